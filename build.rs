//! Warns when the kernels that end up in the program are slow ones.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let var = |name: &str| env::var(name).unwrap_or_default();
    let avx2 = var("CARGO_CFG_TARGET_FEATURE")
        .split(',')
        .any(|feature| feature == "avx2");
    // `portable` picks its kernels at run time instead.
    if var("CARGO_CFG_TARGET_ARCH") == "x86_64"
        && !avx2
        && env::var_os("CARGO_FEATURE_PORTABLE").is_none()
    {
        println!(
            "cargo:warning=AVX2 is off: llama.cpp's kernels will be several times slower than \
             they could be. Build with RUSTFLAGS=\"-C target-cpu=native\" (.cargo/config.toml \
             does, in a checkout), or with --features portable"
        );
    }
}
