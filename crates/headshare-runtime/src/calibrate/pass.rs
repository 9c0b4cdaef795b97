//! What happens at the stops of a pass.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::ptr::NonNull;

use ggml_sys as sys;

use super::error::CalibrateError;
use super::graph::{Graph, Weight};
use super::replay::{self, Trace};
use crate::callbacks::{Node, NodeError, Observer};

/// What is called at the stops of a pass, with the node's index.
pub type AtStop<'a, E> = dyn FnMut(usize, &mut Pass<'_>) -> ControlFlow<Result<(), E>> + 'a;

/// What can be read and written at a stop of a pass. There is none but while the
/// pass waits.
pub struct Pass<'a> {
    graph: &'a Graph,
    live: &'a HashMap<usize, Live>,
    trace: &'a mut Trace,
}

/// A node that has come up.
#[derive(Clone, Copy)]
struct Live {
    raw: NonNull<sys::ggml_tensor>,
    /// Its place in the pass.
    place: usize,
}

impl Pass<'_> {
    /// The elements of node `index`, row after row: the node of this stop, or
    /// one of those kept.
    ///
    /// # Errors
    /// When it has not come up yet, or is not plain f32.
    pub fn f32s(&self, index: usize) -> Result<Cow<'_, [f32]>, CalibrateError> {
        // SAFETY: the pass waits, and what has come up before its stop is computed.
        let node = unsafe { Node::computed(self.live(index)?.raw) };
        Ok(node.f32s()?)
    }

    /// The elements of node `index` where it holds whole numbers, such as the
    /// experts that tokens go to.
    ///
    /// # Errors
    /// When it has not come up yet, or is not i32.
    pub fn i32s(&self, index: usize) -> Result<Vec<i32>, CalibrateError> {
        // SAFETY: the pass waits, and what has come up before its stop is computed.
        let node = unsafe { Node::computed(self.live(index)?.raw) };
        Ok(node.i32s()?)
    }

    /// Replaces the elements of node `index`, which the rest of the pass then
    /// uses.
    ///
    /// # Errors
    /// When it has not come up yet, or these are not its elements.
    pub fn write_f32s(&mut self, index: usize, values: &[f32]) -> Result<(), CalibrateError> {
        // SAFETY: the pass waits, and what has come up before its stop is computed.
        unsafe { replay::put(self.live(index)?.raw, values) }
    }

    /// Computes the nodes after node `after` up to node `through` again, with
    /// the weights as they are now. Both are stops that have come up. `values`
    /// are put into their nodes before: everything from outside the stretch
    /// that it reads.
    ///
    /// What lies in the memory of those nodes is overwritten: the pass can only
    /// go on when nothing after `through` is computed yet, or not at all.
    ///
    /// # Errors
    /// When the stretch reads what is not in `values`, or ggml fails.
    pub fn replay(
        &mut self,
        after: usize,
        through: usize,
        values: &[(usize, &[f32])],
    ) -> Result<(), CalibrateError> {
        let [after, through] = [self.live(after)?, self.live(through)?];
        if after.place >= through.place {
            let message = "a stretch ends before it begins".to_owned();
            return Err(CalibrateError::Graph(message));
        }
        let values = values
            .iter()
            .map(|&(index, values)| Ok((self.live(index)?.raw, values)))
            .collect::<Result<Vec<_>, CalibrateError>>()?;
        // SAFETY: the pass waits, and what has come up before its stop is computed.
        unsafe { self.trace.replay(after.place, through.place, &values) }
    }

    fn live(&self, index: usize) -> Result<Live, CalibrateError> {
        self.live
            .get(&index)
            .copied()
            .ok_or_else(|| NodeError::NoData(self.graph.nodes[index].name.clone()).into())
    }

    /// The bytes of a weight as they are now.
    ///
    /// # Errors
    /// When it does not lie in the CPU's memory.
    pub fn weight(&self, weight: usize) -> Result<&[u8], CalibrateError> {
        // SAFETY: the graph is that of the calibrator that runs this pass, which
        // waits; what writes to weights meanwhile borrows the pass for itself.
        unsafe { read(&self.graph.weights[weight]) }
    }

    /// Replaces bytes of a weight, which the rest of the pass then uses.
    ///
    /// # Errors
    /// As [`Calibrator::write_weight`](super::Calibrator::write_weight).
    pub fn write_weight(
        &mut self,
        weight: usize,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), CalibrateError> {
        // SAFETY: the graph is that of the calibrator that runs this pass, which
        // waits; references to weights' bytes borrow the pass.
        unsafe { write(&self.graph.weights[weight], offset, bytes) }
    }
}

/// Where the bytes of a weight lie, and how many they are.
///
/// # Safety
/// The weight is of a [`Calibrator`](super::Calibrator)'s living model.
unsafe fn place(weight: &Weight) -> Result<(*mut u8, usize), CalibrateError> {
    // SAFETY: the weight belongs to a living model.
    let (len, data, buffer) = unsafe {
        let tensor = weight.raw.as_ref();
        (
            sys::ggml_nbytes(weight.raw.as_ptr()),
            tensor.data,
            tensor.buffer,
        )
    };
    // SAFETY: the buffer of a living tensor, if it has one.
    let host = !buffer.is_null() && unsafe { sys::ggml_backend_buffer_is_host(buffer) };
    if !host || data.is_null() {
        return Err(CalibrateError::Weight {
            name: weight.name.clone(),
            problem: "it does not lie in the CPU's memory".into(),
        });
    }
    Ok((data.cast::<u8>(), len))
}

/// The bytes of a weight.
///
/// # Safety
/// The weight is of a [`Calibrator`](super::Calibrator)'s living model, and
/// nothing writes to it for as long as `'a`.
pub(super) unsafe fn read<'a>(weight: &Weight) -> Result<&'a [u8], CalibrateError> {
    // SAFETY: the caller's promise.
    let (data, len) = unsafe { place(weight) }?;
    // SAFETY: the bytes of a tensor that was read from a file; the caller's
    // promise for the rest.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// Replaces bytes of a weight.
///
/// # Safety
/// The weight is of a [`Calibrator`](super::Calibrator)'s living model, no pass
/// computes at this moment, and nobody has a reference to the weight's bytes.
pub(super) unsafe fn write(
    weight: &Weight,
    offset: usize,
    bytes: &[u8],
) -> Result<(), CalibrateError> {
    // SAFETY: the caller's promise.
    let (data, len) = unsafe { place(weight) }?;
    if offset.checked_add(bytes.len()).is_none_or(|end| end > len) {
        return Err(CalibrateError::Weight {
            name: weight.name.clone(),
            problem: format!("{} bytes at {offset} of {len}", bytes.len()),
        });
    }
    // SAFETY: the bytes lie within the tensor's, which are ours alone to write:
    // the model was read into memory of its own, no pass computes, and the
    // caller promises that nobody reads them.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), data.add(offset), bytes.len());
    }
    Ok(())
}

/// Finds the nodes of the first pass in a later one.
pub(super) struct PassObserver<'a, E> {
    graph: &'a Graph,
    kept: HashMap<(&'a str, &'a str, u32), usize>,
    is_stop: Vec<bool>,
    seen: HashMap<(String, &'static str), u32>,
    live: HashMap<usize, Live>,
    trace: Trace,
    /// The stop that is being computed.
    next: Option<usize>,
    left: usize,
    at: &'a mut AtStop<'a, E>,
    outcome: Option<Result<(), E>>,
}

impl<'a, E> PassObserver<'a, E> {
    /// Watches for `stops`, and keeps an eye on `keep`.
    pub fn new(
        graph: &'a Graph,
        stops: &[usize],
        keep: &[usize],
        n_threads: u32,
        at: &'a mut AtStop<'a, E>,
    ) -> Self {
        let mut kept: HashMap<(&str, &str, u32), usize> = HashMap::new();
        let mut is_stop = vec![false; graph.nodes.len()];
        stops.iter().for_each(|&i| is_stop[i] = true);
        for &i in stops.iter().chain(keep) {
            let node = &graph.nodes[i];
            kept.insert((&node.name, node.op, node.nth), i);
        }
        let left = is_stop.iter().filter(|&&stop| stop).count();
        Self {
            graph,
            kept,
            is_stop,
            seen: HashMap::new(),
            live: HashMap::new(),
            trace: Trace::new(n_threads),
            next: None,
            left,
            at,
            outcome: None,
        }
    }

    /// Stops that have not come up, and how `at` ended the pass.
    pub fn finish(self) -> (usize, Option<Result<(), E>>) {
        (self.left, self.outcome)
    }
}

impl<E> Observer for PassObserver<'_, E> {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        let op = node.op().name();
        let place = self.trace.note(node);
        let count = self.seen.entry((node.name().to_owned(), op)).or_default();
        let nth = *count;
        *count += 1;
        let Some(&index) = self.kept.get(&(node.name(), op, nth)) else {
            return false;
        };
        let raw = node.raw();
        self.live.insert(index, Live { raw, place });
        self.next = self.is_stop[index].then_some(index);
        self.next.is_some()
    }

    fn observe(&mut self, _: &Node<'_>) -> ControlFlow<()> {
        let Some(index) = self.next.take() else {
            return ControlFlow::Continue(());
        };
        self.left -= 1;
        let mut pass = Pass {
            graph: self.graph,
            live: &self.live,
            trace: &mut self.trace,
        };
        match (self.at)(index, &mut pass) {
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
            ControlFlow::Break(outcome) => {
                self.outcome = Some(outcome);
                ControlFlow::Break(())
            }
        }
    }
}
