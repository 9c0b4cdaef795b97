//! Warns when the kernels that end up in the program are slow ones, and lets a
//! portable program find its libraries.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let var = |name: &str| env::var(name).unwrap_or_default();
    let portable = env::var_os("CARGO_FEATURE_PORTABLE").is_some();
    if portable && var("CARGO_CFG_TARGET_OS") == "linux" {
        // llama.cpp is shared libraries then, which travel beside the program.
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN");
    }
    let avx2 = var("CARGO_CFG_TARGET_FEATURE")
        .split(',')
        .any(|feature| feature == "avx2");
    // `portable` picks its kernels at run time instead.
    if var("CARGO_CFG_TARGET_ARCH") == "x86_64" && !avx2 && !portable {
        println!(
            "cargo:warning=AVX2 is off: llama.cpp's kernels will be several times slower than \
             they could be. Build with RUSTFLAGS=\"-C target-cpu=native\" (.cargo/config.toml \
             does, in a checkout), or with --features portable"
        );
    }
}
