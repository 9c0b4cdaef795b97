//! The original stream beside the changed one: a pass in a thread of its own
//! that goes on only when it is asked to, so that the two take turns on the
//! cores and neither has to be stored.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use headshare_runtime::calibrate::{CalibrateError, Calibrator, Pass};
use rayon::prelude::*;

use super::error::EngineError;

/// A node of the original stream.
pub(super) struct Given {
    /// Its elements.
    pub values: Vec<f32>,
    /// Of a product with experts: which of them each token went to.
    pub chosen: Vec<i32>,
}

/// The nodes of the original stream.
pub(super) struct Original {
    go: SyncSender<()>,
    values: Receiver<(usize, Given)>,
    /// What came up before it was asked for.
    early: RefCell<HashMap<usize, Given>>,
}

impl Original {
    /// Lets the original go on until node `stop` is computed; hands over
    /// what it holds, once.
    pub fn at(&self, stop: usize) -> Result<Given, EngineError> {
        let mut early = self.early.borrow_mut();
        loop {
            if let Some(values) = early.remove(&stop) {
                return Ok(values);
            }
            let (at, values) = self
                .next()
                .ok_or_else(|| EngineError::Internal("the original stream ended".into()))?;
            early.insert(at, values);
        }
    }

    /// `None` when it has failed or is through.
    fn next(&self) -> Option<(usize, Given)> {
        self.go.send(()).ok()?;
        self.values.recv().ok()
    }
}

/// Runs `changed` while the original goes through `tokens`, stopping at
/// `stops`, each of which is there once; `chosen` are the nodes that say which
/// experts tokens go to, by stop.
pub(super) fn beside<T, E: From<EngineError>>(
    original: &mut Calibrator,
    tokens: &[i32],
    output: &(dyn Fn(usize) -> bool + Sync),
    stops: &[usize],
    chosen: &HashMap<usize, usize>,
    changed: impl FnOnce(&Original) -> Result<T, E>,
) -> Result<T, E> {
    let (go, wait) = sync_channel::<()>(1);
    let (send, values) = sync_channel(1);
    std::thread::scope(|scope| {
        let stream = move || -> Result<(), EngineError> {
            if wait.recv().is_err() {
                return Ok(());
            }
            let mut left = stops.len();
            let keep: Vec<usize> = chosen.values().copied().collect();
            let read = |stop: usize, pass: &Pass<'_>| -> Result<Given, CalibrateError> {
                let chosen = chosen.get(&stop).map(|&node| pass.i32s(node));
                Ok(Given {
                    values: owned(pass.f32s(stop)?),
                    chosen: chosen.transpose()?.unwrap_or_default(),
                })
            };
            original.run::<EngineError>(tokens, output, stops, &keep, &mut |stop, pass| {
                let given = match read(stop, pass) {
                    Ok(given) => given,
                    Err(error) => return ControlFlow::Break(Err(error.into())),
                };
                left -= 1;
                let sent = send.send((stop, given));
                if left == 0 || sent.is_err() || wait.recv().is_err() {
                    return ControlFlow::Break(Ok(()));
                }
                ControlFlow::Continue(())
            })
        };
        let thread = std::thread::Builder::new()
            .spawn_scoped(scope, stream)
            .map_err(EngineError::Thread)?;
        let lane = Original {
            go,
            values,
            early: RefCell::default(),
        };
        let result = changed(&lane);
        drop(lane);
        let original = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // What stopped the original is why the changed stream found nothing.
        original.map_err(E::from).and(result)
    })
}

/// Numbers that one thread copies at a time.
const COPIED: usize = 1 << 16;

/// A copy, made by all threads: they are hundreds of megabytes, in memory that is new.
fn owned(values: Cow<'_, [f32]>) -> Vec<f32> {
    match values {
        Cow::Owned(values) => values,
        Cow::Borrowed(values) => {
            let mut copy = vec![0f32; values.len()];
            let parts = copy.par_chunks_mut(COPIED).zip(values.par_chunks(COPIED));
            parts.for_each(|(to, from)| to.copy_from_slice(from));
            copy
        }
    }
}
