//! Compiles the preload library where it can work: 64-bit Linux with glibc.

use std::env;
use std::path::PathBuf;

const SOURCES: [&str; 4] = ["c/hooks.c", "c/plan.c", "c/stitch.c", "c/fold.c"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=c");
    println!("cargo:rustc-check-cfg=cfg(preload)");
    let target = |name: &str| env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    if target("OS") != "linux" || target("ENV") != "gnu" || target("POINTER_WIDTH") != "64" {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let status = cc::Build::new()
        .std("gnu11")
        .pic(true)
        // Weights are hashed and copied with it, also in debug builds.
        .opt_level(2)
        .debug(false)
        .flag("-fvisibility=hidden")
        // Loaded at start-up, so its thread's storage needs no allocation.
        .flag("-ftls-model=initial-exec")
        // Fortified headers define `open` themselves.
        .flag("-U_FORTIFY_SOURCE")
        .warnings(true)
        .get_compiler()
        .to_command()
        .args(["-shared", "-Wl,-z,now", "-Wl,-z,relro", "-Wl,--as-needed"])
        .arg("-o")
        .arg(out.join("preload.so"))
        .args(SOURCES)
        .arg("-ldl")
        .status();
    match status {
        Ok(status) if status.success() => println!("cargo:rustc-cfg=preload"),
        Ok(status) => panic!("the C compiler failed on the preload library: {status}"),
        Err(error) => panic!("the preload library needs a C compiler: {error}"),
    }
}
