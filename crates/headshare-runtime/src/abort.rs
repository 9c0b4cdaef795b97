//! llama.cpp ends the process where something is not as it expects, a model's
//! metadata for example. What can be checked beforehand is (`preflight`); for
//! what is left a program can have itself told, with the file's name, and end
//! in its own way.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use ggml_sys as sys;

use crate::memory::tell_if_short;

/// What is to be done instead of aborting.
static THEN: OnceLock<fn(&Abort) -> !> = OnceLock::new();
static MODELS: Mutex<Models> = Mutex::new(Models {
    loaded: Vec::new(),
    at_work: Vec::new(),
});

/// llama.cpp is about to end the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The models that it may be about: the one that llama.cpp is at work on,
    /// or more where that is not known.
    pub models: Vec<PathBuf>,
    /// llama.cpp's own words.
    pub reason: String,
}

struct Models {
    loaded: Vec<Arc<Path>>,
    at_work: Vec<(ThreadId, Arc<Path>)>,
}

impl Models {
    fn blamed(&self, thread: ThreadId) -> Vec<PathBuf> {
        let mine = self.at_work.iter().rfind(|(of, _)| *of == thread);
        if let Some((_, model)) = mine {
            return vec![model.to_path_buf()];
        }
        // A thread of llama.cpp's own, or a call that says nothing.
        let at_work: Vec<_> = self.at_work.iter().map(|(_, model)| model).collect();
        let loaded = || self.loaded.iter().collect();
        let candidates = if at_work.is_empty() {
            loaded()
        } else {
            at_work
        };
        let mut models: Vec<PathBuf> = candidates.iter().map(|m| m.to_path_buf()).collect();
        models.sort();
        models.dedup();
        models
    }
}

/// Has `then` called instead of aborting, once, from whatever thread it
/// happens in.
pub fn on_abort(then: fn(&Abort) -> !) {
    if THEN.set(then).is_ok() {
        // SAFETY: the callback is a function that lives as long as the process
        // and may be called from any thread.
        unsafe { sys::ggml_set_abort_callback(Some(aborted)) };
    }
}

/// A model that is in memory, for as long as this lives.
#[derive(Debug)]
pub(crate) struct InMemory(Arc<Path>);

impl InMemory {
    /// The model of the file at `path`.
    pub(crate) fn new(path: Arc<Path>) -> Self {
        models().loaded.push(Arc::clone(&path));
        Self(path)
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Arc<Path> {
        &self.0
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        let mut models = models();
        if let Some(at) = models.loaded.iter().position(|m| Arc::ptr_eq(m, &self.0)) {
            models.loaded.swap_remove(at);
        }
    }
}

/// Runs `call`, in which llama.cpp works on `model`.
pub(crate) fn at_work<T>(model: &Arc<Path>, call: impl FnOnce() -> T) -> T {
    struct Done(ThreadId);
    impl Drop for Done {
        fn drop(&mut self) {
            let mut models = models();
            if let Some(at) = models.at_work.iter().rposition(|(of, _)| *of == self.0) {
                models.at_work.remove(at);
            }
        }
    }
    let thread = thread::current().id();
    models().at_work.push((thread, Arc::clone(model)));
    let _done = Done(thread);
    call()
}

fn models() -> MutexGuard<'static, Models> {
    MODELS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// ggml's abort callback.
///
/// # Safety
/// `message` is NULL or ends with NUL.
unsafe extern "C" fn aborted(message: *const c_char) {
    // Much that llama.cpp asserts is that there was memory.
    tell_if_short();
    static FIRST: AtomicBool = AtomicBool::new(true);
    // All threads of a computation can find the same thing wrong.
    while !FIRST.swap(false, Ordering::AcqRel) {
        thread::park();
    }
    let reason = if message.is_null() {
        String::new()
    } else {
        // SAFETY: ggml passes a NUL-terminated string that lives for the call.
        let message = unsafe { CStr::from_ptr(message) };
        message.to_string_lossy().into_owned()
    };
    let abort = Abort {
        models: models().blamed(thread::current().id()),
        reason: in_short(&reason).to_owned(),
    };
    if let Some(then) = THEN.get() {
        then(&abort);
    }
}

/// ggml's message without the folders of the source file in front of it.
fn in_short(message: &str) -> &str {
    let message = message.trim_end();
    // `/folders/file.cpp:12: GGML_ASSERT(...) failed`
    match message.split_once(": ") {
        Some((place, _)) => {
            let folders = place.rfind(['/', '\\']).map_or(0, |at| at + 1);
            &message[folders..]
        }
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_the_calling_thread_is_named_or_all_that_it_can_be() {
        let (a, b): (Arc<Path>, Arc<Path>) = (Path::new("a").into(), Path::new("b").into());
        let me = thread::current().id();
        let other = thread::spawn(|| thread::current().id()).join().unwrap();
        let mut models = Models {
            loaded: vec![b.clone(), a.clone(), a.clone()],
            at_work: Vec::new(),
        };
        let both = [PathBuf::from("a"), PathBuf::from("b")];
        assert_eq!(models.blamed(me), both);
        models.at_work.push((other, b.clone()));
        assert_eq!(models.blamed(me), both[1..]);
        models.at_work.push((me, b));
        models.at_work.push((me, a));
        assert_eq!(models.blamed(me), both[..1]);
    }

    #[test]
    fn what_is_at_work_is_so_no_longer_than_the_call() {
        let path: Arc<Path> = Path::new("only/here").into();
        let me = thread::current().id();
        let (inside, nested) = at_work(&path, || {
            let nested = at_work(&Path::new("nested").into(), || models().blamed(me));
            (models().blamed(me), nested)
        });
        assert_eq!(inside, [PathBuf::from("only/here")]);
        assert_eq!(nested, [PathBuf::from("nested")]);
        assert!(!models().at_work.iter().any(|(of, _)| *of == me));
    }

    #[test]
    fn folders_of_the_build_are_left_out() {
        assert_eq!(
            in_short("/some/where/llama-model.cpp:1330: GGML_ASSERT(a/b > 0) failed"),
            "llama-model.cpp:1330: GGML_ASSERT(a/b > 0) failed"
        );
        assert_eq!(in_short("ggml.c:1: fatal error\n"), "ggml.c:1: fatal error");
        assert_eq!(in_short("odd"), "odd");
    }
}
