//! Compiles the C++ shims: the one that keeps llama.cpp's exceptions away from
//! Rust, the buffer types over ggml's internal buffer interface, and the choice of
//! types of llama-quantize.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=shim");
    let reported =
        |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("ggml-sys reports {name}"));
    let include = reported("DEP_HEADSHARE_GGML_INCLUDE");
    // Not installed with the other headers: ggml-backend-impl.h.
    let source = reported("DEP_HEADSHARE_GGML_SOURCE");
    let internal = Path::new(&source).join("ggml/src");
    // Likewise: llama-ext.h.
    let staged = Path::new(&source).join("src");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("shim/guard.cpp")
        .file("shim/buffers.cpp")
        .file("shim/mixture.cpp")
        .include(include)
        .include(internal)
        .include(staged)
        .warnings(true)
        .compile("headshare_shim");
}
