//! What llama.cpp asks about weights.

use std::cell::Cell;

use headshare_stitch::{HugePages, MappedFile};
use headshare_testmodels::ModelSpec;

use super::*;
use crate::{Model, ModelParams};

struct Asked<'a> {
    about: Cell<usize>,
    buffers: &'a WeightBuffers,
}

/// # Safety
/// `user` points to an [`Asked`], `name` to text that ends with NUL.
unsafe extern "C" fn count(
    user: *const c_void,
    name: *const c_char,
) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: the pointer that the test has given; ggml's names are
    // NUL-terminated.
    let (asked, name) = unsafe { (&*user.cast::<Asked<'_>>(), CStr::from_ptr(name)) };
    asked.about.set(asked.about.get() + 1);
    if name.to_bytes().ends_with(b".attn_q.weight") {
        return asked.buffers.buft;
    }
    std::ptr::null_mut()
}

/// Patterns that list the weights would be gone through for every one.
#[test]
fn llama_cpp_asks_about_each_weight_once() {
    let folder = tempfile::tempdir().unwrap();
    for repeat in [1, 8] {
        let path = folder.path().join("model.gguf");
        let spec = ModelSpec {
            repeat,
            ..ModelSpec::preset("tiny-llama").unwrap()
        };
        spec.write(&path).unwrap();
        let file = MappedFile::open(&path).unwrap();
        let mapping = StitchedMapping::plain(&file, HugePages::Any).unwrap();
        // SAFETY: the models below are dropped first, and the mapping last.
        let buffers = unsafe { WeightBuffers::map(&mapping, HashMap::new()) };
        let asked = Asked {
            about: Cell::new(0),
            buffers: &buffers,
        };
        let choice = RawChoice {
            user: (&raw const asked).cast(),
            fold: std::ptr::null_mut(),
            map: buffers.buft,
            choose: count,
        };
        let load = || Model::load(&path, &ModelParams::default(), None).unwrap();
        // SAFETY: `count` is for `asked`, and takes any name.
        let model = unsafe { asking(&choice, load) };
        let tensors = headshare_format::Gguf::parse(&file)
            .unwrap()
            .tensors()
            .len();
        assert_eq!(asked.about.get(), tensors);
        drop(model);
        let load = || Model::load(&path, &ModelParams::default(), None).unwrap();
        drop(load());
        assert_eq!(
            asked.about.get(),
            tensors,
            "asked after the load it was for"
        );
    }
}
