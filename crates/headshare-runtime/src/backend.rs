//! Starts llama.cpp once: its log goes to [`crate::log`], ggml's tables are
//! filled, and in a `portable` build the CPU kernels that fit this machine are
//! loaded.

use std::sync::OnceLock;

use ggml_sys as sys;

use crate::{log, threads};

static STARTED: OnceLock<Result<(), String>> = OnceLock::new();

/// llama.cpp cannot run here.
#[derive(Clone, Debug, thiserror::Error)]
#[error("llama.cpp cannot start: {0}")]
pub struct BackendError(String);

/// Which llama.cpp this program contains.
pub fn llama_cpp_revision() -> &'static str {
    sys::LLAMA_CPP_REVISION
}

/// Starts llama.cpp if that has not happened yet. Every entry point of this
/// crate that needs it calls this.
pub fn start() -> Result<(), BackendError> {
    STARTED
        .get_or_init(|| {
            threads::note_start();
            log::install();
            // SAFETY: called once; no other llama.cpp call came before it but
            // the one that sets the log.
            unsafe { sys::llama_backend_init() };
            load_backends()?;
            // SAFETY: called once, after the backends are loaded, and before any
            // other part of this crate uses them: all call this first.
            #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
            unsafe {
                crate::weight_buffers::register_devices()
            };
            Ok(())
        })
        .clone()
        .map_err(BackendError)
}

/// In a `portable` build the kernels are modules: beside the executable (an
/// installed program), else where the build left them.
#[cfg(feature = "portable")]
fn load_backends() -> Result<(), String> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::path::PathBuf;

    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(PathBuf::from));
    let built = sys::BACKENDS_DIR.map(PathBuf::from);
    let mut tried = Vec::new();
    for dir in [beside, built].into_iter().flatten() {
        let Ok(path) = CString::new(dir.as_os_str().as_bytes()) else {
            continue;
        };
        // SAFETY: `path` is NUL-terminated and lives for the call; the folder
        // need not exist.
        unsafe { sys::ggml_backend_load_all_from_path(path.as_ptr()) };
        if have_cpu() {
            return Ok(());
        }
        tried.push(dir.display().to_string());
    }
    Err(format!(
        "no ggml CPU backend (libggml-cpu-*) in {}",
        tried.join(" or ")
    ))
}

#[cfg(not(feature = "portable"))]
fn load_backends() -> Result<(), String> {
    if have_cpu() {
        Ok(())
    } else {
        Err("this build has no ggml CPU backend".into())
    }
}

fn have_cpu() -> bool {
    // SAFETY: reads ggml's device registry, which fills itself when first used.
    !unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) }.is_null()
}
