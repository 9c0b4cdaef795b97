//! Memory that runs out is told like anything else that goes wrong, instead of
//! ending the process in an allocator's words.

use headshare_runtime::memory::{Shortage, on_shortage};

use super::Exit;
use super::failure::Failure;

/// From now on the program says itself that there is no memory left.
pub(super) fn install() {
    on_shortage(end);
}

fn end(shortage: &Shortage) -> ! {
    failure(shortage).end_process()
}

/// What there is to say about it.
fn failure(shortage: &Shortage) -> Failure {
    Failure {
        message: shortage.to_string(),
        hint: Some(HINT.to_owned()),
        exit: Exit::Failed,
    }
}

/// What takes less memory.
const HINT: &str = "end other programs or raise the limit; a smaller context (-c), batch (-b) or \
                    --memory takes less";
