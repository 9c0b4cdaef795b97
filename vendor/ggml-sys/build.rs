//! Generates bindings over the headers that llama-cpp-sys-2's build installs.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=BINDGEN_EXTRA_CLANG_ARGS");
    // <prefix>/lib/cmake, as reported by llama-cpp-sys-2 (`links = "llama"`).
    let cmake_dir = PathBuf::from(
        env::var_os("DEP_LLAMA_GGML_CMAKE_DIR")
            .expect("llama-cpp-sys-2 reports DEP_LLAMA_GGML_CMAKE_DIR"),
    );
    let include = cmake_dir
        .ancestors()
        .nth(2)
        .map(|prefix| prefix.join("include"))
        .expect("the ggml cmake folder lies two levels below the prefix");
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    bindgen::Builder::default()
        .header_contents(
            "ggml_sys.h",
            "#include <llama.h>\n#include <ggml-cpu.h>\n#include <gguf.h>\n",
        )
        .clang_arg(format!("-I{}", include.display()))
        .allowlist_item("(?i)(llama|ggml|gguf)_.*")
        .prepend_enum_name(false)
        .derive_default(false)
        .generate()
        .expect("bindgen reads llama.h (is libclang installed?)")
        .write_to_file(out)
        .expect("OUT_DIR is writable");
}
