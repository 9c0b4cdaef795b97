//! Memory that runs out is told like anything else that goes wrong, instead of
//! ending the process in an allocator's words.

use headshare_jobs::{Error, Kind};
use headshare_runtime::memory::{Shortage, on_shortage};

use super::failure;

/// From now on the program says itself that there is no memory left.
pub(crate) fn install() {
    on_shortage(end);
}

fn end(shortage: &Shortage) -> ! {
    let error = Error::in_words(Kind::Failed, shortage);
    failure::end_process(&error.hint(HINT))
}

/// What takes less memory.
const HINT: &str = "end other programs or raise the limit; a smaller context (-c), batch (-b) or \
                    --memory takes less";
