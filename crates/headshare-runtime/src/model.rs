//! A loaded model: RAII owner of llama.cpp's `llama_model`.

use std::any::Any;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use ggml_sys as sys;
use headshare_format::FormatError;

use crate::abort::InMemory;
use crate::backend::{self, BackendError};
use crate::backing::{Backing, Shared, StitchError};
use crate::memory::WeightRegions;
use crate::vocab::Vocab;
use crate::{guard, interpose, log, preflight};

/// How a model is loaded; llama.cpp's names and defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelParams {
    /// Map the file instead of reading it.
    pub use_mmap: bool,
    /// Keep the weights from being swapped out; those that
    /// [`load_stitched`](Model::load_stitched) folds or maps are not.
    pub use_mlock: bool,
    /// Layers to keep on a GPU; negative means all. Without a GPU backend in
    /// the build it changes nothing.
    pub n_gpu_layers: i32,
    /// Let the CPU backend copy weights into its faster, interleaved layouts.
    pub use_extra_bufts: bool,
    /// Check that the weights are valid numbers while loading.
    pub check_tensors: bool,
    /// Look for what llama.cpp would end the process over before it is called
    /// ([`preflight`]): [`load`](Model::load) reads the header once more for it.
    pub check_metadata: bool,
    /// What to call the file in messages where it is a copy of another.
    pub called: Option<PathBuf>,
}

impl Default for ModelParams {
    fn default() -> Self {
        Self {
            use_mmap: true,
            use_mlock: false,
            n_gpu_layers: -1,
            use_extra_bufts: true,
            check_tensors: false,
            check_metadata: true,
            called: None,
        }
    }
}

/// Called with the part of the weights that is loaded, 0 to 1; `false` stops
/// the loading.
pub type Progress<'a> = &'a mut dyn FnMut(f32) -> bool;

/// Why a model could not be loaded or cannot do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// llama.cpp cannot run here at all.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The file cannot be read.
    #[error("cannot open {path}: {source}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The system has no memory, or no addresses, for the file.
    #[error("no memory to load {path}: {reason}", path = path.display())]
    NoMemory {
        /// The file.
        path: PathBuf,
        /// llama.cpp's own words.
        reason: String,
    },
    /// llama.cpp does not load the file.
    #[error("cannot load {path}: {reason}", path = path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// llama.cpp's own words.
        reason: String,
    },
    /// llama.cpp would end the process over the file's metadata.
    #[error("{path}: {error}", path = path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: FormatError,
    },
    /// A converted file cannot be loaded in place.
    #[error(transparent)]
    Stitch(#[from] StitchError),
    /// The progress function stopped the loading.
    #[error("loading was interrupted")]
    Interrupted,
    /// The model does not generate text token by token.
    #[error("{architecture} models do not generate text: {why}")]
    NotGenerative {
        /// `general.architecture`.
        architecture: String,
        /// What it is instead.
        why: &'static str,
    },
}

impl ModelError {
    /// An error about the metadata of the file called `name`.
    pub(crate) fn metadata(name: &Path) -> impl FnOnce(FormatError) -> Self {
        let path = name.to_owned();
        move |error| Self::Metadata { path, error }
    }
}

/// A loaded model. Contexts share it through an [`std::sync::Arc`].
pub struct Model {
    raw: NonNull<sys::llama_model>,
    file: InMemory,
    /// llama.cpp's own buffers and mappings.
    regions: WeightRegions,
    /// What the weights lie in; goes after `raw`, which `drop` frees first.
    backing: Option<Box<dyn Backing>>,
}

// SAFETY: after loading, llama.cpp only reads a model, from any thread;
// whatever changes belongs to contexts.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    /// Loads a plain GGUF file.
    pub fn load(
        path: &Path,
        params: &ModelParams,
        progress: Option<Progress<'_>>,
    ) -> Result<Self, ModelError> {
        // The system's reason is clearer than llama.cpp's.
        let open = std::fs::File::open(path).and_then(|file| {
            if file.metadata()?.is_dir() {
                return Err(std::io::ErrorKind::IsADirectory.into());
            }
            Ok(())
        });
        let name: Arc<Path> = params.called.as_deref().unwrap_or(path).into();
        if let Err(source) = open {
            let path = name.to_path_buf();
            return Err(ModelError::Open { path, source });
        }
        if params.check_metadata {
            preflight::check_file(path).map_err(ModelError::metadata(&name))?;
        }
        let c_path = c_path(path)?;
        let open = |raw_params: &mut _, out: &mut _| {
            guard::call(&name, |error, error_size| {
                // SAFETY: the path is NUL-terminated, the parameters and all
                // they point to live for the call, `out` is ours.
                unsafe {
                    guard::headshare_model_load(c_path.as_ptr(), raw_params, out, error, error_size)
                }
            })
        };
        // SAFETY: `open` gives what llama.cpp has loaded.
        unsafe { Self::load_with(&name, params, progress, open) }
    }

    /// What all ways of loading share: `open` is handed llama.cpp's parameters
    /// (and may complete them) and the place for the model. `name` is for
    /// messages only.
    ///
    /// # Safety
    /// `open` puts nothing but NULL there, or a model that llama.cpp has loaded and
    /// that is no one else's.
    pub(crate) unsafe fn load_with(
        name: &Arc<Path>,
        params: &ModelParams,
        progress: Option<Progress<'_>>,
        open: impl FnOnce(
            &mut sys::llama_model_params,
            &mut *mut sys::llama_model,
        ) -> Result<(), String>,
    ) -> Result<Self, ModelError> {
        backend::start()?;
        let mark = log::mark();
        let mut watch = LoadProgress {
            progress,
            stopped: false,
            panic: None,
        };
        // SAFETY: returns a plain struct.
        let mut raw_params = unsafe { sys::llama_model_default_params() };
        raw_params.n_gpu_layers = params.n_gpu_layers;
        raw_params.use_extra_bufts = params.use_extra_bufts;
        raw_params.check_tensors = params.check_tensors;
        raw_params.load_mode = match (params.use_mmap, params.use_mlock) {
            (true, true) => sys::LLAMA_LOAD_MODE_MMAP_MLOCK,
            (true, false) => sys::LLAMA_LOAD_MODE_MMAP,
            (false, true) => sys::LLAMA_LOAD_MODE_MLOCK,
            (false, false) => sys::LLAMA_LOAD_MODE_NONE,
        };
        raw_params.progress_callback = Some(on_progress);
        raw_params.progress_callback_user_data = (&raw mut watch).cast();
        let mut raw = std::ptr::null_mut();
        let (opened, taken) = interpose::record(|| open(&mut raw_params, &mut raw));
        let mut regions = WeightRegions::default();
        taken
            .ranges
            .into_iter()
            .for_each(|range| regions.add(range));
        if let Some(panic) = watch.panic {
            if !raw.is_null() {
                // SAFETY: loaded just now and known to no one else.
                unsafe { sys::llama_model_free(raw) };
            }
            resume_unwind(panic);
        }
        match (opened, NonNull::new(raw)) {
            (Ok(()), Some(raw)) => Ok(Self {
                raw,
                file: InMemory::new(Arc::clone(name)),
                regions,
                backing: None,
            }),
            (Ok(()), None) if watch.stopped => Err(ModelError::Interrupted),
            (opened, _) => {
                let path = name.to_path_buf();
                let reason = match opened {
                    Err(thrown) => thrown,
                    Ok(()) => log::reason_since(mark)
                        .unwrap_or_else(|| "llama.cpp gives no reason".into()),
                };
                Err(if taken.refused {
                    ModelError::NoMemory { path, reason }
                } else {
                    ModelError::Load { path, reason }
                })
            }
        }
    }

    /// Keeps what the weights lie in as long as the model.
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    pub(crate) fn keep(&mut self, backing: Box<dyn Backing>) {
        self.backing = Some(backing);
    }

    /// What became of the weights that are used more than once; `None` for
    /// models loaded by [`load`](Self::load).
    pub fn shared(&self) -> Option<&Shared> {
        self.backing.as_ref().map(|backing| backing.shared())
    }

    /// The addresses of the weights: llama.cpp's buffers, the mapped file, and
    /// ours. Empty where the system's allocations cannot be watched.
    pub fn weight_regions(&self) -> WeightRegions {
        let mut regions = self.regions.clone();
        for range in self.backing.iter().flat_map(|backing| backing.ranges()) {
            regions.add(range);
        }
        regions
    }

    /// The file's path, as messages call it.
    pub fn file(&self) -> &Path {
        self.file.path()
    }

    pub(crate) fn path(&self) -> &Arc<Path> {
        self.file.path()
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::llama_model {
        self.raw.as_ptr()
    }

    /// The vocabulary.
    pub fn vocab(&self) -> Vocab<'_> {
        // SAFETY: loaded, and borrowed for as long as the vocabulary.
        unsafe { Vocab::new(self.as_ptr(), self.path()) }
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> String {
        self.meta("general.architecture").unwrap_or_default()
    }

    /// A metadata value as llama.cpp prints it; `None` for keys that are
    /// absent and for arrays.
    pub fn meta(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        self.string(|buf, size| {
            // SAFETY: the model lives, the key is NUL-terminated, the buffer is
            // as long as stated.
            unsafe { sys::llama_model_meta_val_str(self.as_ptr(), key.as_ptr(), buf, size) }
        })
    }

    /// llama.cpp's one-line description: size class and quantization.
    pub fn description(&self) -> String {
        self.string(|buf, size| {
            // SAFETY: as in `meta`.
            unsafe { sys::llama_model_desc(self.as_ptr(), buf, size) }
        })
        .unwrap_or_default()
    }

    /// Calls a function that fills a buffer like `snprintf`.
    fn string(&self, fill: impl Fn(*mut c_char, usize) -> i32) -> Option<String> {
        let mut buf = vec![0u8; 256];
        loop {
            let len = usize::try_from(fill(buf.as_mut_ptr().cast(), buf.len())).ok()?;
            if len < buf.len() {
                buf.truncate(len);
                return Some(String::from_utf8_lossy(&buf).into_owned());
            }
            buf.resize(len.checked_add(1)?, 0);
        }
    }

    /// Number of parameters.
    pub fn n_params(&self) -> u64 {
        // SAFETY: the model lives.
        unsafe { sys::llama_model_n_params(self.as_ptr()) }
    }

    /// Bytes of all tensors as the file describes them.
    pub fn size_bytes(&self) -> u64 {
        // SAFETY: the model lives.
        unsafe { sys::llama_model_size(self.as_ptr()) }
    }

    /// Tokens of context that the model was trained with; 0 if unknown.
    pub fn n_ctx_train(&self) -> u32 {
        // SAFETY: the model lives.
        u32::try_from(unsafe { sys::llama_model_n_ctx_train(self.as_ptr()) }).unwrap_or(0)
    }

    /// Positions that the model has, where it has learned one by one what they
    /// mean: llama.cpp ends the process at the first beyond them. `None` where
    /// positions are computed.
    ///
    /// Source: the loaders and graphs of the bundled llama.cpp that use
    /// `position_embd` (`src/models`). MPT has it where it has no ALiBi.
    pub fn n_positions(&self) -> Option<u32> {
        let learned = match self.architecture().as_str() {
            "bert" | "gpt2" | "starcoder" => true,
            "mpt" => self
                .meta("mpt.attention.max_alibi_bias")
                .and_then(|bias| bias.parse::<f32>().ok())
                .is_none_or(|bias| bias <= 0.0),
            _ => false,
        };
        learned.then(|| self.n_ctx_train())
    }

    /// Number of layers.
    pub fn n_layer(&self) -> u32 {
        // SAFETY: the model lives.
        u32::try_from(unsafe { sys::llama_model_n_layer(self.as_ptr()) }).unwrap_or(0)
    }

    /// Length of the hidden state.
    pub fn n_embd(&self) -> u32 {
        // SAFETY: the model lives.
        u32::try_from(unsafe { sys::llama_model_n_embd(self.as_ptr()) }).unwrap_or(0)
    }

    /// The file's chat template (Jinja source): the default one, or the one
    /// with a name. `None` when the file holds none.
    pub fn chat_template(&self, name: Option<&str>) -> Option<String> {
        let name = match name {
            Some(name) => Some(CString::new(name).ok()?),
            None => None,
        };
        let name = name.as_ref().map_or(std::ptr::null(), |name| name.as_ptr());
        // SAFETY: the model lives; the name is NULL or NUL-terminated.
        let template = unsafe { sys::llama_model_chat_template(self.as_ptr(), name) };
        if template.is_null() {
            return None;
        }
        // SAFETY: a NUL-terminated string that belongs to the model.
        let template = unsafe { CStr::from_ptr(template) };
        Some(template.to_string_lossy().into_owned())
    }

    /// Whether the model has an encoder, which runs before any decoding.
    pub fn has_encoder(&self) -> bool {
        // SAFETY: the model lives.
        unsafe { sys::llama_model_has_encoder(self.as_ptr()) }
    }

    /// Whether llama.cpp can run a decoder of the model. It says yes for
    /// encoders of BERT's kind as well; [`crate::Context::is_generative`] knows
    /// about those.
    pub fn has_decoder(&self) -> bool {
        // SAFETY: the model lives.
        unsafe { sys::llama_model_has_decoder(self.as_ptr()) }
    }

    /// Whether the model keeps one state a sequence, in all layers or in some
    /// (Mamba, RWKV, Jamba): what sequences have in common is then no common
    /// part of a KV cache.
    pub fn keeps_states(&self) -> bool {
        // SAFETY: the model lives.
        unsafe {
            sys::llama_model_is_recurrent(self.as_ptr())
                || sys::llama_model_is_hybrid(self.as_ptr())
        }
    }

    /// Refuses models that do not generate text one token after the other, as
    /// far as that is known without a context.
    pub fn check_generative(&self) -> Result<(), ModelError> {
        // SAFETY: the model lives.
        let diffusion = unsafe { sys::llama_model_is_diffusion(self.as_ptr()) };
        let why = if !self.has_decoder() {
            "it is an encoder only"
        } else if self.has_encoder() {
            "running encoder-decoder models is not supported"
        } else if diffusion {
            "running diffusion models is not supported"
        } else {
            return Ok(());
        };
        Err(ModelError::NotGenerative {
            architecture: self.architecture(),
            why,
        })
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: ours alone; contexts hold an Arc of `self`.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) };
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("description", &self.description())
            .finish_non_exhaustive()
    }
}

/// What the progress callback of one load works on.
struct LoadProgress<'a> {
    progress: Option<Progress<'a>>,
    stopped: bool,
    panic: Option<Box<dyn Any + Send>>,
}

/// llama.cpp's progress callback.
///
/// # Safety
/// `user_data` points to a [`LoadProgress`] that nothing else uses meanwhile.
unsafe extern "C" fn on_progress(part: f32, user_data: *mut c_void) -> bool {
    // SAFETY: the pointer that `load_with` set; the `LoadProgress` outlives the load
    // and nothing else touches it meanwhile.
    let watch = unsafe { &mut *user_data.cast::<LoadProgress<'_>>() };
    let Some(progress) = watch.progress.as_mut() else {
        return true;
    };
    match catch_unwind(AssertUnwindSafe(|| progress(part))) {
        Ok(go_on) => {
            watch.stopped |= !go_on;
            go_on
        }
        Err(panic) => {
            watch.panic = Some(panic);
            false
        }
    }
}

fn c_path(path: &Path) -> Result<CString, ModelError> {
    #[cfg(unix)]
    let bytes = {
        use std::os::unix::ffi::OsStrExt;
        path.as_os_str().as_bytes()
    };
    #[cfg(not(unix))]
    let bytes = path.as_os_str().as_encoded_bytes();
    CString::new(bytes).map_err(|_| ModelError::Open {
        path: path.to_owned(),
        source: std::io::ErrorKind::InvalidInput.into(),
    })
}
