//! Memory that runs out is told like anything else that goes wrong, instead of
//! ending the process in an allocator's words.

use headshare_jobs::worker::Failed;
use headshare_jobs::{Advice, Kind};
use headshare_runtime::memory::{Shortage, on_shortage};

use super::failure;

/// From now on the program says itself that there is no memory left.
pub(crate) fn install() {
    on_shortage(end);
}

fn end(shortage: &Shortage) -> ! {
    failure::end_process(&Failed {
        kind: Kind::Failed,
        advice: Some(Advice::Words(HINT.to_owned())),
        message: shortage.to_string(),
    })
}

/// What takes less memory.
const HINT: &str = "end other programs or raise the limit; a smaller context (-c), batch (-b) or \
                    --memory takes less";
