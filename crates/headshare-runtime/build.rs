//! Compiles the C++ shim that keeps llama.cpp's exceptions away from Rust.

fn main() {
    println!("cargo:rerun-if-changed=shim/guard.cpp");
    let include = std::env::var_os("DEP_HEADSHARE_GGML_INCLUDE")
        .expect("ggml-sys reports DEP_HEADSHARE_GGML_INCLUDE");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("shim/guard.cpp")
        .include(include)
        .warnings(true)
        .compile("headshare_guard");
}
