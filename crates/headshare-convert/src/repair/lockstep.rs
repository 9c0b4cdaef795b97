//! The original stream beside the changed one: a pass in a thread of its own
//! that goes on only when it is asked to, so that the two take turns on the
//! cores and neither has to be stored.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use headshare_runtime::calibrate::{CalibrateError, Calibrator};

use super::error::RepairError;

/// The nodes of the original stream, one after the other.
pub(super) struct Original {
    go: SyncSender<()>,
    values: Receiver<(usize, Vec<f32>)>,
}

impl Original {
    /// Lets the original go on to its next stop; `None` when it has failed.
    pub fn next(&self) -> Option<(usize, Vec<f32>)> {
        self.go.send(()).ok()?;
        self.values.recv().ok()
    }
}

/// Runs `changed` while the original goes through `tokens`, stopping at
/// `stops`.
pub(super) fn beside<T>(
    original: &mut Calibrator,
    tokens: &[i32],
    output: &(dyn Fn(usize) -> bool + Sync),
    stops: &[usize],
    changed: impl FnOnce(&Original) -> Result<T, RepairError>,
) -> Result<T, RepairError> {
    let (go, wait) = sync_channel::<()>(1);
    let (send, values) = sync_channel(1);
    std::thread::scope(|scope| {
        let stream = move || -> Result<(), RepairError> {
            if wait.recv().is_err() {
                return Ok(());
            }
            let mut left = stops.len();
            original.run(tokens, output, stops, &[], &mut |stop, pass| {
                let data = match pass.f32s(stop) {
                    Ok(data) => data.into_owned(),
                    Err(error) => return broken(error),
                };
                left -= 1;
                let sent = send.send((stop, data));
                if left == 0 || sent.is_err() || wait.recv().is_err() {
                    return ControlFlow::Break(Ok(()));
                }
                ControlFlow::Continue(())
            })
        };
        let thread = std::thread::Builder::new()
            .spawn_scoped(scope, stream)
            .map_err(RepairError::Thread)?;
        let lane = Original { go, values };
        let result = changed(&lane);
        drop(lane);
        let original = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // What stopped the original is why the changed stream found nothing.
        original.and(result)
    })
}

fn broken(error: CalibrateError) -> ControlFlow<Result<(), RepairError>> {
    ControlFlow::Break(Err(error.into()))
}
