//! Parts of a pass computed again: with other weights, or from other values on.
//!
//! A graph's nodes stay as they are until the next pass, so any stretch of them
//! can be computed once more. What it reads from outside must be put back
//! first, for llama.cpp reuses memory: the values it starts from, and the
//! pass's inputs (positions, masks), which are noted when they are first used.

use std::collections::HashSet;
use std::ptr::NonNull;

use ggml_sys as sys;

use super::error::CalibrateError;
use crate::callbacks::Node;

/// The nodes of a pass so far, in order, and what its inputs were.
pub(super) struct Trace {
    nodes: Vec<NonNull<sys::ggml_tensor>>,
    known: HashSet<NonNull<sys::ggml_tensor>>,
    inputs: Vec<(NonNull<sys::ggml_tensor>, Vec<u8>)>,
    backend: Option<Backend>,
    n_threads: u32,
}

impl Trace {
    pub fn new(n_threads: u32) -> Self {
        Self {
            nodes: Vec::new(),
            known: HashSet::new(),
            inputs: Vec::new(),
            backend: None,
            n_threads,
        }
    }

    /// Notes a node that is about to be computed; returns its place.
    pub fn note(&mut self, node: &Node<'_>) -> usize {
        for i in 0..sys::GGML_MAX_SRC as usize {
            let Some(src) = node.src(i) else { break };
            // SAFETY: the sources of a node of a living graph.
            let root = unsafe { root(src.raw()) };
            // SAFETY: as above; what llama.cpp has set has memory.
            unsafe {
                if is_input(root) && self.known.insert(root) {
                    self.inputs.push((root, bytes_of(root)));
                }
            }
        }
        self.known.insert(node.raw());
        self.nodes.push(node.raw());
        self.nodes.len() - 1
    }

    /// Computes the nodes after place `after` up to place `through` again, with
    /// the inputs put back and each of `values` in its node.
    ///
    /// # Safety
    /// The pass that all noted nodes are of waits, and the nodes up to `through`
    /// and those of `values` are computed.
    pub unsafe fn replay(
        &mut self,
        after: usize,
        through: usize,
        values: &[(NonNull<sys::ggml_tensor>, &[f32])],
    ) -> Result<(), CalibrateError> {
        let stretch = &self.nodes[after + 1..=through];
        // SAFETY: the caller's promise.
        unsafe { self.check(stretch, values) }?;
        for (tensor, data) in &self.inputs {
            // SAFETY: a tensor of the pass that waits, and bytes of its size.
            unsafe {
                sys::ggml_backend_tensor_set(tensor.as_ptr(), data.as_ptr().cast(), 0, data.len());
            }
        }
        for (tensor, data) in values {
            // SAFETY: the caller's promise.
            unsafe { put(*tensor, data) }?;
        }
        if self.backend.is_none() {
            self.backend = Some(Backend::new(self.n_threads)?);
        }
        let backend = self.backend.as_ref().ok_or_else(|| graph("no backend"))?;
        // SAFETY: the caller's promise; the stretch is in the pass's order.
        unsafe { backend.compute(stretch) }
    }

    /// Everything that the stretch reads must be computed in it, put back, or
    /// lie where no pass writes.
    ///
    /// # Safety
    /// As [`replay`](Self::replay).
    unsafe fn check(
        &self,
        stretch: &[NonNull<sys::ggml_tensor>],
        values: &[(NonNull<sys::ggml_tensor>, &[f32])],
    ) -> Result<(), CalibrateError> {
        let mut there: HashSet<_> = self.inputs.iter().map(|(tensor, _)| *tensor).collect();
        // SAFETY: tensors of the pass that waits.
        there.extend(values.iter().map(|(tensor, _)| unsafe { root(*tensor) }));
        for &raw in stretch {
            // SAFETY: the caller's promise.
            let node = unsafe { Node::computed(raw) };
            for i in 0..sys::GGML_MAX_SRC as usize {
                let Some(src) = node.src(i) else { break };
                // SAFETY: the sources of a node of a living graph.
                let (root, scratch) = unsafe {
                    let root = root(src.raw());
                    (root, is_scratch(root))
                };
                if scratch && !there.contains(&root) {
                    return Err(graph(&format!(
                        "{} is computed from {}, which is not there any more",
                        node.name(),
                        src.name()
                    )));
                }
            }
            there.insert(raw);
        }
        Ok(())
    }
}

/// Writes `values` into a tensor.
///
/// # Safety
/// It is of a pass that waits, and computed.
pub(super) unsafe fn put(
    tensor: NonNull<sys::ggml_tensor>,
    values: &[f32],
) -> Result<(), CalibrateError> {
    // SAFETY: the caller's promise.
    let node = unsafe { Node::computed(tensor) };
    // SAFETY: the tensor lives.
    let contiguous = unsafe { sys::ggml_is_contiguous(tensor.as_ptr()) };
    if node.ggml_type() != sys::GGML_TYPE_F32
        || !contiguous
        || node.elements() != values.len() as u64
    {
        return Err(graph(&format!(
            "{} values do not fit {}",
            values.len(),
            node.name()
        )));
    }
    // SAFETY: exactly the tensor's bytes; it has memory, as it was computed.
    unsafe {
        sys::ggml_backend_tensor_set(
            tensor.as_ptr(),
            values.as_ptr().cast(),
            0,
            size_of_val(values),
        );
    }
    Ok(())
}

fn graph(problem: &str) -> CalibrateError {
    CalibrateError::Graph(problem.to_owned())
}

/// The tensor whose memory this one's is.
///
/// # Safety
/// It is a tensor of a living graph.
unsafe fn root(mut tensor: NonNull<sys::ggml_tensor>) -> NonNull<sys::ggml_tensor> {
    // SAFETY: the caller's promise; the sources of views live as long.
    while let Some(source) = NonNull::new(unsafe { tensor.as_ref() }.view_src) {
        tensor = source;
    }
    tensor
}

/// Whether its memory is used for other things in the course of a pass.
///
/// # Safety
/// It is a tensor of a living graph.
unsafe fn is_scratch(tensor: NonNull<sys::ggml_tensor>) -> bool {
    // SAFETY: the caller's promise.
    let tensor = unsafe { tensor.as_ref() };
    if tensor.buffer.is_null() || tensor.data.is_null() {
        return false;
    }
    // SAFETY: a living tensor's buffer.
    let usage = unsafe { sys::ggml_backend_buffer_get_usage(tensor.buffer) };
    usage == sys::GGML_BACKEND_BUFFER_USAGE_COMPUTE
}

/// Whether llama.cpp sets it before the pass.
///
/// # Safety
/// It is a tensor of a living graph.
unsafe fn is_input(tensor: NonNull<sys::ggml_tensor>) -> bool {
    // SAFETY: the caller's promise.
    unsafe { tensor.as_ref().op == sys::GGML_OP_NONE && is_scratch(tensor) }
}

/// The tensor's bytes.
///
/// # Safety
/// It is a tensor of a living graph, and has memory.
unsafe fn bytes_of(tensor: NonNull<sys::ggml_tensor>) -> Vec<u8> {
    // SAFETY: the caller's promise; the bytes are as many as there is room for.
    unsafe {
        let mut bytes = vec![0u8; sys::ggml_nbytes(tensor.as_ptr())];
        sys::ggml_backend_tensor_get(tensor.as_ptr(), bytes.as_mut_ptr().cast(), 0, bytes.len());
        bytes
    }
}

/// A CPU backend of our own; the context's is busy with the pass.
struct Backend(NonNull<sys::ggml_backend>);

impl Backend {
    fn new(n_threads: u32) -> Result<Self, CalibrateError> {
        // SAFETY: the backends are loaded, or there would be no pass; no
        // parameters are needed.
        let raw = unsafe {
            sys::ggml_backend_init_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU, std::ptr::null())
        };
        let this = Self(NonNull::new(raw).ok_or_else(|| graph("ggml has no CPU backend"))?);
        // SAFETY: `raw` is a living backend, and the name NUL-terminated. The
        // function of that name has this type in ggml-backend.h.
        unsafe {
            let device = sys::ggml_backend_get_device(raw);
            let registry = sys::ggml_backend_dev_backend_reg(device);
            let name = c"ggml_backend_set_n_threads".as_ptr();
            let found = sys::ggml_backend_reg_get_proc_address(registry, name);
            if !found.is_null() {
                let set: unsafe extern "C" fn(sys::ggml_backend_t, std::ffi::c_int) =
                    std::mem::transmute(found);
                set(raw, n_threads.max(1).cast_signed());
            }
        }
        Ok(this)
    }

    /// Computes nodes one after the other.
    ///
    /// # Safety
    /// They are of a pass that waits, have memory, and are in the pass's order.
    unsafe fn compute(&self, nodes: &[NonNull<sys::ggml_tensor>]) -> Result<(), CalibrateError> {
        // SAFETY: plain arithmetic.
        let size = unsafe { sys::ggml_graph_overhead_custom(nodes.len(), false) };
        let params = sys::ggml_init_params {
            mem_size: size,
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        };
        // SAFETY: ggml allocates what `params` says.
        let context = unsafe { sys::ggml_init(params) };
        if context.is_null() {
            return Err(graph("no memory for a graph"));
        }
        // SAFETY: a graph of as many nodes, in a context with room for it; the
        // nodes are as the caller promises. The context is freed after its last
        // use.
        let status = unsafe {
            let graph = sys::ggml_new_graph_custom(context, nodes.len(), false);
            for node in nodes {
                sys::ggml_graph_add_node(graph, node.as_ptr());
            }
            let status = sys::ggml_backend_graph_compute(self.0.as_ptr(), graph);
            sys::ggml_free(context);
            status
        };
        if status == sys::GGML_STATUS_SUCCESS {
            Ok(())
        } else {
            Err(graph(&format!("computing a part again failed ({status})")))
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // SAFETY: ours, and not used again.
        unsafe { sys::ggml_backend_free(self.0.as_ptr()) }
    }
}
