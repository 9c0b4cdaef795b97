//! Compiles the C++ shims: the one that keeps llama.cpp's exceptions away from
//! Rust, and the buffer types over ggml's internal buffer interface.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=shim");
    let reported =
        |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("ggml-sys reports {name}"));
    let include = reported("DEP_HEADSHARE_GGML_INCLUDE");
    // Not installed with the other headers: ggml-backend-impl.h.
    let internal = Path::new(&reported("DEP_HEADSHARE_GGML_SOURCE")).join("ggml/src");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("shim/guard.cpp")
        .file("shim/buffers.cpp")
        .include(include)
        .include(internal)
        .warnings(true)
        .compile("headshare_shim");
}
