//! The buffer types of `shim/buffers.cpp` and the memory behind them.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, c_char, c_void};
use std::mem::offset_of;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Mutex;

use ggml_sys as sys;
use headshare_format::GgmlType;
use headshare_stitch::{FoldArena, StitchedMapping, mappings_left, page_size};

use crate::interpose;

/// What the buffers of one load ask of this side; `shim/buffers.cpp` says more.
#[repr(C)]
struct Arena {
    user: *mut c_void,
    allocate: unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void,
    repeated: unsafe extern "C" fn(*mut c_void, *const c_char, *const TensorPlace) -> bool,
    written: unsafe extern "C" fn(*mut c_void, *const c_char, *const TensorPlace),
    mapped: unsafe extern "C" fn(*mut c_void, *const c_char, *const c_void) -> *const c_void,
}

/// Where a tensor lies in the arena, and what decides how it lies there.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct TensorPlace {
    offset: usize,
    size: usize,
    file_size: usize,
    row: i64,
    layout: *const c_void,
}

/// What a load decides about its weights.
#[repr(C)]
struct RawChoice {
    user: *const c_void,
    fold: sys::ggml_backend_buffer_type_t,
    map: sys::ggml_backend_buffer_type_t,
    choose: unsafe extern "C" fn(*const c_void, *const c_char) -> sys::ggml_backend_buffer_type_t,
}

// As `shim/buffers.cpp` asserts of its own.
const _: () = {
    assert!(size_of::<TensorPlace>() == 40 && align_of::<TensorPlace>() == 8);
    assert!(offset_of!(TensorPlace, offset) == 0);
    assert!(offset_of!(TensorPlace, size) == 8);
    assert!(offset_of!(TensorPlace, file_size) == 16);
    assert!(offset_of!(TensorPlace, row) == 24);
    assert!(offset_of!(TensorPlace, layout) == 32);

    assert!(size_of::<Arena>() == 40 && align_of::<Arena>() == 8);
    assert!(offset_of!(Arena, user) == 0);
    assert!(offset_of!(Arena, allocate) == 8);
    assert!(offset_of!(Arena, repeated) == 16);
    assert!(offset_of!(Arena, written) == 24);
    assert!(offset_of!(Arena, mapped) == 32);

    assert!(size_of::<RawChoice>() == 32 && align_of::<RawChoice>() == 8);
    assert!(offset_of!(RawChoice, user) == 0);
    assert!(offset_of!(RawChoice, fold) == 8);
    assert!(offset_of!(RawChoice, map) == 16);
    assert!(offset_of!(RawChoice, choose) == 24);
};

unsafe extern "C" {
    fn headshare_repacking_type(ggml_type: i32, ne: *const i64) -> sys::ggml_backend_buffer_type_t;
    fn headshare_buffer_type_new(
        arena: *const Arena,
        real: sys::ggml_backend_buffer_type_t,
        page: usize,
    ) -> sys::ggml_backend_buffer_type_t;
    fn headshare_buffer_type_free(buft: sys::ggml_backend_buffer_type_t);
    fn headshare_devices_register();
    fn headshare_choose(next: *const RawChoice) -> *const RawChoice;
}

/// Adds the devices through which llama.cpp asks where weights go.
///
/// # Safety
/// To be called once, when the CPU backend is there and nothing else uses ggml.
pub(crate) unsafe fn register_devices() {
    // SAFETY: the caller's promise.
    unsafe { headshare_devices_register() };
}

/// Which weights go to buffers of ours.
#[derive(Default)]
pub(crate) struct Choice<'a> {
    fold: Option<&'a WeightBuffers>,
    map: Option<&'a WeightBuffers>,
    by_name: HashMap<&'a str, sys::ggml_backend_buffer_type_t>,
}

impl<'a> Choice<'a> {
    /// Has the weights `names` go to `buffers` around a repacking type.
    pub(crate) fn fold(&mut self, buffers: &'a WeightBuffers, names: &'a [String]) {
        self.fold = Some(buffers);
        self.add(buffers, names);
    }

    /// Has the weights `names` go to `buffers` that stay in the mapping.
    pub(crate) fn map(&mut self, buffers: &'a WeightBuffers, names: &'a [String]) {
        self.map = Some(buffers);
        self.add(buffers, names);
    }

    fn add(&mut self, buffers: &WeightBuffers, names: &'a [String]) {
        let all = names.iter().map(|name| (name.as_str(), buffers.buft));
        self.by_name.extend(all);
    }

    /// Runs `load`, which loads a model in this thread with this choice.
    pub(crate) fn during<T>(&self, load: impl FnOnce() -> T) -> T {
        let buft =
            |buffers: Option<&WeightBuffers>| buffers.map_or(std::ptr::null_mut(), |b| b.buft);
        let raw = RawChoice {
            user: (&raw const *self).cast(),
            fold: buft(self.fold),
            map: buft(self.map),
            choose,
        };
        // SAFETY: the function is for the `Choice` that is given with it.
        unsafe { asking(&raw, load) }
    }
}

/// Runs `load`, during which llama.cpp asks `choice` in this thread.
///
/// # Safety
/// Its function can be called with its pointer and any tensor's name.
unsafe fn asking<T>(choice: &RawChoice, load: impl FnOnce() -> T) -> T {
    struct Restore(*const RawChoice);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: what was in force before, by a caller further out.
            unsafe { headshare_choose(self.0) };
        }
    }
    // SAFETY: the choice lives until the one before it is in force again.
    let _restore = Restore(unsafe { headshare_choose(choice) });
    load()
}

/// What [`RawChoice`] has for a [`Choice`].
///
/// # Safety
/// `user` points to the choice that is in force, `name` to text that ends with NUL.
unsafe extern "C" fn choose(
    user: *const c_void,
    name: *const c_char,
) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: the choice that `during` passed, alive while it runs; ggml's names
    // are NUL-terminated.
    let (choice, name) = unsafe { (&*user.cast::<Choice<'_>>(), CStr::from_ptr(name)) };
    let found = name.to_str().ok().and_then(|name| choice.by_name.get(name));
    found.copied().unwrap_or(std::ptr::null_mut())
}

/// The CPU backend's buffer type that repacks weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RepackingType(sys::ggml_backend_buffer_type_t);

impl RepackingType {
    /// The type that a weight of `dims` (`ne[0]` first) is repacked into when
    /// it is multiplied with; `None` when ggml leaves it as it is.
    pub(crate) fn of(ggml_type: GgmlType, dims: &[u64]) -> Option<Self> {
        if dims.len() > 3 {
            return None;
        }
        let mut ne = [1i64; 3];
        for (ne, &dim) in ne.iter_mut().zip(dims) {
            *ne = i64::try_from(dim).ok().filter(|&dim| dim > 0)?;
        }
        let id = ggml_type.id().cast_signed();
        // SAFETY: a type that ggml has, and three positive dimensions.
        let buft = unsafe { headshare_repacking_type(id, ne.as_ptr()) };
        (!buft.is_null()).then_some(Self(buft))
    }
}

/// Rows of two tensors that hold the same bytes.
#[derive(Debug, Clone)]
pub(crate) struct Twin {
    pub donor: String,
    pub donor_offset: u64,
    pub alias: String,
    pub alias_offset: u64,
    pub len: u64,
}

/// A buffer type over memory of ours, freed when dropped: after the model.
pub(crate) struct WeightBuffers {
    buft: sys::ggml_backend_buffer_type_t,
    state: NonNull<Mutex<State>>,
}

struct State {
    /// Whether pages are folded.
    fold: bool,
    /// Addresses to lend where nothing is written.
    lent: Range<usize>,
    /// By tensor: where it lies better than where the loader has it.
    better: HashMap<String, usize>,
    arenas: Vec<FoldArena>,
    /// By tensor: the twins that it is part of.
    twins: HashMap<String, Vec<Twin>>,
    /// Where tensors lie, of those whose bytes are in place.
    places: HashMap<String, TensorPlace>,
    folded_bytes: u64,
    /// Why something could not be folded.
    trouble: Option<String>,
}

// SAFETY: the buffer type is only an address handed to llama.cpp; the state is
// behind a mutex.
unsafe impl Send for WeightBuffers {}
// SAFETY: as above.
unsafe impl Sync for WeightBuffers {}

impl WeightBuffers {
    /// Buffers around the repacking type `real` whose equal pages, as `twins`
    /// name them, become the same memory.
    ///
    /// # Safety
    /// They are dropped after every model that was loaded with them.
    pub(crate) unsafe fn fold(real: RepackingType, twins: &[Twin]) -> Self {
        // SAFETY: the caller's promise; `real` came from ggml.
        unsafe { Self::new(real.0, twins, 0..0, HashMap::new()) }
    }

    /// Buffers whose tensors stay in `mapping`, where the loader has them, or at
    /// the addresses that are `better` for them.
    ///
    /// # Safety
    /// They and the mapping are dropped after every model that was loaded with
    /// them. At each address in `better` the tensor of that name can be read for as
    /// long as the mapping is there.
    pub(crate) unsafe fn map(
        mapping: &StitchedMapping,
        better: HashMap<String, *const u8>,
    ) -> Self {
        let start = mapping.as_ptr() as usize;
        let better = better.into_iter().map(|(name, at)| (name, at as usize));
        let lent = start..start + mapping.len();
        // SAFETY: the caller's promise.
        unsafe { Self::new(std::ptr::null_mut(), &[], lent, better.collect()) }
    }

    /// Buffers around `real`, or, where that is NULL, ones that lend the addresses
    /// `lent`.
    ///
    /// # Safety
    /// `real` is NULL or a type of ggml's; for the rest as [`fold`](Self::fold)
    /// and [`map`](Self::map).
    unsafe fn new(
        real: sys::ggml_backend_buffer_type_t,
        twins: &[Twin],
        lent: Range<usize>,
        better: HashMap<String, usize>,
    ) -> Self {
        let mut by_tensor: HashMap<String, Vec<Twin>> = HashMap::new();
        for twin in twins {
            let names: HashSet<&String> = [&twin.donor, &twin.alias].into();
            for name in names {
                by_tensor
                    .entry(name.clone())
                    .or_default()
                    .push(twin.clone());
            }
        }
        let state = Box::new(Mutex::new(State {
            fold: !real.is_null(),
            lent,
            better,
            arenas: Vec::new(),
            twins: by_tensor,
            places: HashMap::new(),
            folded_bytes: 0,
            trouble: None,
        }));
        let state = NonNull::from(Box::leak(state));
        let arena = Arena {
            user: state.as_ptr().cast(),
            allocate,
            repeated,
            written,
            mapped,
        };
        // SAFETY: the arena is copied; its state lives until `drop`, after the
        // model's buffers.
        let buft =
            unsafe { headshare_buffer_type_new(&raw const arena, real, page_size().to_usize()) };
        Self { buft, state }
    }

    /// Bytes that folding has freed.
    pub(crate) fn folded_bytes(&self) -> u64 {
        self.with(|state| state.folded_bytes)
    }

    /// Ends the loading: nothing is written any more.
    pub(crate) fn seal(&self) {
        self.with(|state| {
            for arena in &mut state.arenas {
                // Writable is what stock llama.cpp's buffers are, too.
                let _ = arena.seal();
            }
            state.fold = false;
            state.places = HashMap::new();
            state.twins = HashMap::new();
        });
    }

    /// Why something could not be folded, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.with(|state| state.trouble.clone())
    }

    /// The addresses that hold weights.
    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        self.with(|state| {
            let range = |arena: &FoldArena| {
                let start = arena.as_ptr() as u64;
                start..start + arena.len() as u64
            };
            state.arenas.iter().map(range).collect()
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        // SAFETY: ours until `drop`.
        let state = unsafe { self.state.as_ref() };
        f(&mut state.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

impl Drop for WeightBuffers {
    fn drop(&mut self) {
        // SAFETY: the model, and with it every buffer of this type, is gone
        // (the owner's drop order); both came from `new`.
        unsafe {
            headshare_buffer_type_free(self.buft);
            drop(Box::from_raw(self.state.as_ptr()));
        }
    }
}

/// [`Arena`]'s; `shim/buffers.cpp` says what these four do.
///
/// # Safety
/// `user` is the state of buffers that are not dropped yet.
unsafe extern "C" fn allocate(user: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the state that `new` passed, alive as long as the buffer type.
    let state = unsafe { &*user.cast::<Mutex<State>>() };
    let mut state = state.lock().unwrap_or_else(|e| e.into_inner());
    if !state.lent.is_empty() {
        // Every tensor begins on a page there, as it does here.
        let start = state.lent.start as *mut c_void;
        return if size <= state.lent.len() {
            start
        } else {
            std::ptr::null_mut()
        };
    }
    match FoldArena::new(size, mappings_left()) {
        Ok(arena) => {
            let start = arena.as_ptr();
            state.arenas.push(arena);
            // Offsets are within one arena; llama.cpp asks for one.
            if state.arenas.len() > 1 {
                state.fold = false;
            }
            start.cast()
        }
        Err(_) => {
            interpose::note_refused();
            std::ptr::null_mut()
        }
    }
}

/// [`Arena`]'s.
///
/// # Safety
/// As [`allocate`]; `name` ends with NUL and `place` is in the memory it gave.
unsafe extern "C" fn repeated(
    user: *mut c_void,
    name: *const c_char,
    place: *const TensorPlace,
) -> bool {
    // SAFETY: as in `allocate`; ggml's names are NUL-terminated, and the place
    // is the shim's own variable.
    let (state, name, place) =
        unsafe { (&*user.cast::<Mutex<State>>(), CStr::from_ptr(name), &*place) };
    let mut state = state.lock().unwrap_or_else(|e| e.into_inner());
    state.fold && state.repeated(&name.to_string_lossy(), place)
}

/// [`Arena`]'s.
///
/// # Safety
/// As [`repeated`]; the tensor's bytes are in place.
unsafe extern "C" fn written(user: *mut c_void, name: *const c_char, place: *const TensorPlace) {
    // SAFETY: as in `repeated`.
    let (state, name, place) =
        unsafe { (&*user.cast::<Mutex<State>>(), CStr::from_ptr(name), &*place) };
    let mut state = state.lock().unwrap_or_else(|e| e.into_inner());
    if state.fold {
        state.written(&name.to_string_lossy(), *place);
    }
}

/// [`Arena`]'s.
///
/// # Safety
/// As [`allocate`]; `name` ends with NUL.
unsafe extern "C" fn mapped(
    user: *mut c_void,
    name: *const c_char,
    data: *const c_void,
) -> *const c_void {
    // SAFETY: as in `repeated`.
    let (state, name) = unsafe { (&*user.cast::<Mutex<State>>(), CStr::from_ptr(name)) };
    let state = state.lock().unwrap_or_else(|e| e.into_inner());
    let better = state.better.get(&*name.to_string_lossy());
    better.map_or(data, |&at| at as *const c_void)
}

impl Twin {
    /// The other of the two tensors.
    fn other(&self, name: &str) -> &str {
        if self.alias == name {
            &self.donor
        } else {
            &self.alias
        }
    }
}

impl State {
    /// Gives the tensor `name` the pages of one that is in place and holds the
    /// same throughout: repacked alike, it would be the same there too.
    fn repeated(&mut self, name: &str, place: &TensorPlace) -> bool {
        let same = self.twins.get(name).into_iter().flatten().find_map(|twin| {
            let other = self.places.get(twin.other(name))?;
            let whole = (twin.donor_offset, twin.alias_offset) == (0, 0)
                && twin.len == place.file_size as u64
                && other.file_size == place.file_size;
            let alike =
                other.size == place.size && other.row == place.row && other.layout == place.layout;
            (whole && alike).then_some(other.offset)
        });
        let Some(other) = same else {
            return false;
        };
        // Tensors begin on pages here, so the rest of their last page is theirs.
        let len = place.size.next_multiple_of(page_size().to_usize());
        let arena = self.arenas.last_mut().expect("a tensor lies in an arena");
        // SAFETY: ggml asks before it hands the tensor's bytes over, which it then
        // does not; the other tensor's are in place. Weights are written once, and
        // nothing is computed with them before all are there.
        let done = unsafe { arena.repeat(other..other + len, place.offset..place.offset + len) };
        let done = done.unwrap_or(false); // then it is written, and folded if that works
        if done {
            self.folded_bytes += place.file_size as u64;
        }
        done
    }

    /// Folds what the tensor `name`, now in place, shares with tensors that are
    /// in place.
    fn written(&mut self, name: &str, place: TensorPlace) {
        self.places.insert(name.to_owned(), place);
        let Some(twins) = self.twins.get(name) else {
            return;
        };
        for twin in twins {
            let (Some(donor), Some(alias)) =
                (self.places.get(&twin.donor), self.places.get(&twin.alias))
            else {
                continue;
            };
            let range = |place: &TensorPlace, offset: u64| {
                let start = place.offset + offset as usize;
                start..start + twin.len as usize
            };
            let arena = self.arenas.last_mut().expect("a tensor lies in an arena");
            let donor = range(donor, twin.donor_offset);
            let alias = range(alias, twin.alias_offset);
            // SAFETY: both tensors are in `places`, so their bytes are in place;
            // weights are written once.
            match unsafe { arena.fold(donor, alias) } {
                Ok(bytes) => self.folded_bytes += bytes,
                Err(e) => self.trouble = Some(e.to_string()),
            }
        }
    }
}
