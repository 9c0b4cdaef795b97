//! Watching a forward pass: llama.cpp's eval callback, safely.
//!
//! llama.cpp asks an [`Observer`] about every node of the graph that it is
//! about to compute, and hands over those that the observer wants once they
//! are computed and before anything that uses them is. Names repeat (views and
//! reshapes of a tensor carry its name), so nodes are told apart by name *and*
//! operation, or by what they are computed from ([`Node::src`]).
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use headshare_runtime::callbacks::{Node, Observer, Op};
//! # use headshare_runtime::{Context, ContextParams, FlashAttention, Model, ModelParams};
//!
//! /// Counts the rows of attention that a pass computes.
//! struct Rows(u64);
//!
//! impl Observer for Rows {
//!     fn wants(&mut self, node: &Node<'_>) -> bool {
//!         node.op() == Op::SOFT_MAX && node.name().starts_with("kq_soft_max-")
//!     }
//!     fn observe(&mut self, node: &Node<'_>) -> ControlFlow<()> {
//!         let [_, tokens, heads, _] = node.dims();
//!         self.0 += tokens * heads;
//!         ControlFlow::Continue(())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let model = std::sync::Arc::new(Model::load("m.gguf".as_ref(), &ModelParams::default(), None)?);
//! let params = ContextParams {
//!     observable: true,
//!     // Its fused node never has the attention map.
//!     flash_attention: FlashAttention::Off,
//!     ..ContextParams::default()
//! };
//! let mut context = Context::new(&model, &params)?;
//! let mut rows = Rows(0);
//! context.decode_observed(&[1, 2, 3], &mut rows)?;
//! # Ok(())
//! # }
//! ```

use std::any::Any;
use std::borrow::Cow;
use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::fmt;
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use ggml_sys as sys;

/// Watches the nodes of a forward pass.
pub trait Observer {
    /// Whether this node is to be handed over once it is computed. Nodes come
    /// in the order in which they are computed, each once; their data is not
    /// there yet.
    ///
    /// What is not wanted is computed together: each `true` costs a pause of
    /// all threads.
    fn wants(&mut self, node: &Node<'_>) -> bool;

    /// Looks at a node that was wanted and is computed now. [`Break`] ends the
    /// pass: the rest of the graph is left out where it can be, and the context
    /// forgets its text.
    ///
    /// [`Break`]: ControlFlow::Break
    fn observe(&mut self, node: &Node<'_>) -> ControlFlow<()>;
}

/// What a node computes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Op(sys::ggml_op);

impl Op {
    /// A matrix product: `src(0)` is the weight, `src(1)` what goes through it.
    pub const MUL_MAT: Self = Self(sys::GGML_OP_MUL_MAT);
    /// Softmax, with its scale and mask.
    pub const SOFT_MAX: Self = Self(sys::GGML_OP_SOFT_MAX);

    /// ggml's name, such as `MUL_MAT`.
    pub fn name(self) -> &'static str {
        // SAFETY: the value came from ggml, which has a static name for each.
        let name = unsafe { CStr::from_ptr(sys::ggml_op_name(self.0)) };
        name.to_str().unwrap_or("?")
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a node's data cannot be had as numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// It is of another type than the one that was asked for.
    #[error("node {name} is not {wanted} (ggml type {ggml_type})")]
    Type {
        /// The node's name.
        name: String,
        /// Its ggml type's number.
        ggml_type: u32,
        /// The type that was asked for.
        wanted: &'static str,
    },
    /// Its elements do not lie one after the other.
    #[error("node {0} is a view with gaps")]
    NotContiguous(String),
    /// It has no memory: it was looked at before it was computed, or is a
    /// weight that llama.cpp keeps elsewhere.
    #[error("node {0} has no data")]
    NoData(String),
}

/// A node of the graph (or what it is computed from), for the length of one
/// call of an [`Observer`].
#[derive(Clone, Copy)]
pub struct Node<'a> {
    raw: NonNull<sys::ggml_tensor>,
    /// The data is readable.
    computed: bool,
    call: PhantomData<&'a ()>,
}

impl<'a> Node<'a> {
    /// A node that is known to be computed.
    ///
    /// # Safety
    /// `raw` is a node of a pass that waits for as long as `'a`, and computed.
    pub(crate) unsafe fn computed(raw: NonNull<sys::ggml_tensor>) -> Self {
        Self {
            raw,
            computed: true,
            call: PhantomData,
        }
    }

    /// What ggml knows it by.
    pub(crate) fn raw(&self) -> NonNull<sys::ggml_tensor> {
        self.raw
    }

    /// The factor of a node that multiplies by one number and adds nothing.
    pub(crate) fn scale(&self) -> Option<f32> {
        if self.get().op != sys::GGML_OP_SCALE {
            return None;
        }
        let [factor, bias] = self.first_numbers();
        (bias == 0.0).then_some(factor)
    }

    /// Whether the node is an attention whose heads have slopes of their own.
    pub(crate) fn alibi(&self) -> bool {
        let [_, max_bias] = self.first_numbers();
        let ops = [sys::GGML_OP_SOFT_MAX, sys::GGML_OP_FLASH_ATTN_EXT];
        ops.contains(&self.get().op) && max_bias > 0.0
    }

    /// The first two parameters of an operation that takes numbers.
    fn first_numbers(&self) -> [f32; 2] {
        [0, 1].map(|i| f32::from_bits(self.get().op_params[i].cast_unsigned()))
    }

    /// What its data lie in, if it has any.
    fn buffer(&self) -> sys::ggml_backend_buffer_t {
        match NonNull::new(self.get().view_src) {
            // SAFETY: a view's source lives as long as the view.
            Some(source) => unsafe { source.as_ref() }.buffer,
            None => self.get().buffer,
        }
    }

    fn get(&self) -> &'a sys::ggml_tensor {
        // SAFETY: ggml handed the tensor to the call that `'a` is the length
        // of, and neither it nor other threads change its header meanwhile.
        unsafe { self.raw.as_ref() }
    }

    /// The name, such as `kq_soft_max-3`: llama.cpp's label and the layer.
    /// Empty for the rare name that is not UTF-8.
    pub fn name(&self) -> &'a str {
        // SAFETY: ggml keeps names NUL-terminated within their array.
        let name = unsafe { CStr::from_ptr(self.get().name.as_ptr()) };
        name.to_str().unwrap_or("")
    }

    /// The layer, when the name is `label` and a layer.
    pub fn layer_of(&self, label: &str) -> Option<u32> {
        let layer = self.name().strip_prefix(label)?.strip_prefix('-')?;
        layer.parse().ok()
    }

    /// What the node computes.
    pub fn op(&self) -> Op {
        Op(self.get().op)
    }

    /// The number of its ggml type, as in GGUF files.
    pub fn ggml_type(&self) -> u32 {
        self.get().type_
    }

    /// Its shape, ggml's `ne`: elements of a row, rows, and so on; 1 beyond its
    /// dimensions.
    pub fn dims(&self) -> [u64; 4] {
        self.get().ne.map(|n| u64::try_from(n).unwrap_or(0))
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.dims().iter().product()
    }

    /// What it is computed from: `src(0)`, `src(1)`, ... Their data, too, can be
    /// read while the node is [observed](Observer::observe), if ggml has not
    /// reused its memory for the node itself.
    pub fn src(&self, i: usize) -> Option<Node<'a>> {
        let src = NonNull::new(*self.get().src.get(i)?)?;
        Some(Node { raw: src, ..*self })
    }

    /// Its elements in their order, rows one after the other: as they lie in
    /// memory where that is the CPU's, else a copy.
    ///
    /// # Errors
    /// For other types than `f32`, views with gaps, and nodes without data, as
    /// all are in [`Observer::wants`].
    pub fn f32s(&self) -> Result<Cow<'a, [f32]>, NodeError> {
        let tensor = self.get();
        let name = || self.name().to_owned();
        if tensor.type_ != sys::GGML_TYPE_F32 {
            return Err(NodeError::Type {
                name: name(),
                ggml_type: tensor.type_,
                wanted: "f32",
            });
        }
        // SAFETY: the tensor lives.
        if !unsafe { sys::ggml_is_contiguous(self.raw.as_ptr()) } {
            return Err(NodeError::NotContiguous(name()));
        }
        let buffer = self.buffer();
        if !self.computed || buffer.is_null() || tensor.data.is_null() {
            return Err(NodeError::NoData(name()));
        }
        let len = usize::try_from(self.elements()).unwrap_or(0);
        let data = tensor.data.cast::<f32>();
        // SAFETY: a living tensor's buffer.
        if unsafe { sys::ggml_backend_buffer_is_host(buffer) } && data.is_aligned() {
            // SAFETY: a contiguous f32 tensor of this many elements in the
            // CPU's memory, computed, and written again only after the call.
            return Ok(Cow::Borrowed(unsafe {
                std::slice::from_raw_parts(data, len)
            }));
        }
        let mut copy = vec![0f32; len];
        // SAFETY: exactly the tensor's bytes, into a buffer of as many.
        unsafe {
            sys::ggml_backend_tensor_get(
                self.raw.as_ptr(),
                copy.as_mut_ptr().cast(),
                0,
                size_of_val(&copy[..]),
            );
        }
        Ok(Cow::Owned(copy))
    }
}

impl Node<'_> {
    /// Its elements where it holds whole numbers, rows one after the other, as a
    /// copy: such nodes are small, and often views with gaps.
    ///
    /// # Errors
    /// For other types than `i32`, and as [`f32s`](Node::f32s) for nodes without
    /// data.
    pub fn i32s(&self) -> Result<Vec<i32>, NodeError> {
        let tensor = self.get();
        let name = || self.name().to_owned();
        if tensor.type_ != sys::GGML_TYPE_I32 {
            return Err(NodeError::Type {
                name: name(),
                ggml_type: tensor.type_,
                wanted: "i32",
            });
        }
        let size = size_of::<i32>();
        if tensor.nb[0] != size {
            return Err(NodeError::NotContiguous(name()));
        }
        if !self.computed || self.buffer().is_null() || tensor.data.is_null() {
            return Err(NodeError::NoData(name()));
        }
        let [width, b, c, d] = self.dims().map(|n| n as usize);
        let mut all = Vec::with_capacity(width * b * c * d);
        let mut row = vec![0i32; width];
        for i in 0..b * c * d {
            let at = [i % b, i / b % c, i / b / c];
            let offset = (at.iter().zip(&tensor.nb[1..])).map(|(i, bytes)| i * bytes);
            // SAFETY: a row of a computed tensor, within its strides, and a
            // buffer of as many bytes.
            unsafe {
                sys::ggml_backend_tensor_get(
                    self.raw.as_ptr(),
                    row.as_mut_ptr().cast(),
                    offset.sum(),
                    width * size,
                );
            }
            all.extend_from_slice(&row);
        }
        Ok(all)
    }
}

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:?} {:?}", self.name(), self.op(), self.dims())
    }
}

/// The place in which a context keeps the observer of the pass that runs.
/// llama.cpp holds a pointer to it as long as the context lives.
#[derive(Default)]
pub(crate) struct Slot {
    observer: Cell<Option<NonNull<dyn Observer>>>,
    halted: Cell<bool>,
    panic: Cell<Option<Box<dyn Any + Send>>>,
}

/// How a watched pass ended, besides what llama.cpp says.
pub(crate) enum Watched {
    /// The observer saw all of it.
    Through,
    /// The observer ended it.
    Halted,
    /// The observer panicked.
    Panicked(Box<dyn Any + Send>),
}

impl Slot {
    /// Runs `pass` with `observer` in place.
    pub(crate) fn watch<R>(
        &self,
        observer: &mut dyn Observer,
        pass: impl FnOnce() -> R,
    ) -> (R, Watched) {
        let observer: NonNull<dyn Observer + '_> = observer.into();
        // SAFETY: only the lifetime changes; the pointer is taken out below,
        // before `observer` ends.
        let observer: NonNull<dyn Observer> = unsafe { std::mem::transmute(observer) };
        self.halted.set(false);
        self.panic.set(None);
        self.observer.set(Some(observer));
        /// Takes the pointer out, however `pass` ends.
        struct Clear<'a>(&'a Slot);
        impl Drop for Clear<'_> {
            fn drop(&mut self) {
                self.0.observer.set(None);
            }
        }
        let clear = Clear(self);
        let result = pass();
        drop(clear);
        let watched = match (self.panic.take(), self.halted.get()) {
            (Some(panic), _) => Watched::Panicked(panic),
            (None, true) => Watched::Halted,
            (None, false) => Watched::Through,
        };
        (result, watched)
    }

    /// What llama.cpp's callback returns for this node: asked, whether it is
    /// wanted; observed, whether to go on.
    ///
    /// # Safety
    /// ggml hands over `raw`, a node of the pass that runs in [`watch`](Self::watch)
    /// on this thread, and not from within another such call; when it does not
    /// `ask`, the node is computed.
    unsafe fn call(&self, raw: NonNull<sys::ggml_tensor>, ask: bool) -> bool {
        let Some(mut observer) = self.observer.get().filter(|_| !self.halted.get()) else {
            return false;
        };
        let node = Node {
            raw,
            computed: !ask,
            call: PhantomData,
        };
        // SAFETY: `watch` has the one reference to the observer, and does not use
        // it while the pass runs. The caller promises that this thread is the
        // pass's, and that no call is within another.
        let observer = unsafe { observer.as_mut() };
        let answer = catch_unwind(AssertUnwindSafe(|| {
            if ask {
                observer.wants(&node)
            } else {
                observer.observe(&node).is_continue()
            }
        }));
        match answer {
            Ok(answer) => {
                if !ask && !answer {
                    self.halted.set(true);
                }
                answer
            }
            Err(panic) => {
                self.panic.set(Some(panic));
                self.halted.set(true);
                false
            }
        }
    }
}

/// llama.cpp's `cb_eval`.
///
/// # Safety
/// `slot` points to a [`Slot`]; for the rest as [`Slot::call`].
pub(crate) unsafe extern "C" fn on_node(
    tensor: *mut sys::ggml_tensor,
    ask: bool,
    slot: *mut c_void,
) -> bool {
    // SAFETY: the pointer that the context was made with, to a slot that it
    // keeps.
    let slot = unsafe { &*slot.cast_const().cast::<Slot>() };
    // SAFETY: the caller's promise.
    NonNull::new(tensor).is_some_and(|tensor| unsafe { slot.call(tensor, ask) })
}
