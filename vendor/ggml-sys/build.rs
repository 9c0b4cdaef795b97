//! Generates bindings over the headers that llama-cpp-sys-2's build installs,
//! tells dependents where those headers and llama.cpp's sources lie, and
//! records which llama.cpp that is.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=BINDGEN_EXTRA_CLANG_ARGS");
    // <prefix>/lib/cmake, as reported by llama-cpp-sys-2 (`links = "llama"`).
    let cmake_dir = PathBuf::from(
        env::var_os("DEP_LLAMA_GGML_CMAKE_DIR")
            .expect("llama-cpp-sys-2 reports DEP_LLAMA_GGML_CMAKE_DIR"),
    );
    let prefix = cmake_dir
        .ancestors()
        .nth(2)
        .expect("the ggml cmake folder lies two levels below the prefix");
    let include = prefix.join("include");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));

    bindgen::Builder::default()
        .header_contents(
            "ggml_sys.h",
            "#include <llama.h>\n#include <ggml.h>\n#include <ggml-backend.h>\n\
             #include <ggml-cpu.h>\n#include <gguf.h>\n",
        )
        .clang_arg(format!("-I{}", include.display()))
        .allowlist_item("(llama|ggml|gguf|LLAMA|GGML|GGUF)_.*")
        .prepend_enum_name(false)
        .derive_default(false)
        .generate_comments(false)
        .generate()
        .expect("bindgen reads llama.h (is libclang installed?)")
        .write_to_file(out.join("bindings.rs"))
        .expect("OUT_DIR is writable");

    let build = prefix.join("build");
    let source = cmake_home(&build.join("CMakeCache.txt"));
    println!("cargo:include={}", include.display());
    if let Some(source) = &source {
        println!("cargo:source={}", source.display());
    }
    println!(
        "cargo:rustc-env=GGML_SYS_LLAMA_CPP_REVISION={}",
        revision(&build, source.as_deref())
    );
}

/// The folder that cmake configured: llama.cpp's sources inside the
/// llama-cpp-sys-2 package.
fn cmake_home(cache: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(cache).ok()?;
    let home = text
        .lines()
        .find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="))?;
    Some(PathBuf::from(home))
}

/// "llama.cpp 0.6.0-dev, ggml 0.26.0 (llama-cpp-sys-2 0.1.161 at e7af607)",
/// with what cannot be found left out. A package from a registry knows only
/// the commit of llama-cpp-sys-2's own repository, which pins llama.cpp's.
fn revision(build: &Path, source: Option<&Path>) -> String {
    let quoted = |file: PathBuf, name: &str| -> Option<String> {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.contains(name))?;
        let value = line.split('"').nth(1)?;
        (!value.is_empty() && value != "unknown").then(|| value.to_owned())
    };
    let mut engine = String::from("llama.cpp");
    let version_h = build.join("src/llama-version.h");
    if let Some(version) = quoted(version_h.clone(), "LLAMA_VERSION") {
        engine += &format!(" {version}");
    }
    if let Some(commit) = quoted(version_h, "LLAMA_COMMIT") {
        engine += &format!(" ({commit})");
    }
    if let Some(version) = quoted(build.join("ggml/src/ggml-version.h"), "GGML_VERSION") {
        engine += &format!(", ggml {version}");
    }
    let Some(package) = source.and_then(Path::parent) else {
        return format!("{engine} (llama-cpp-sys-2)");
    };
    let mut wrapper = String::from("llama-cpp-sys-2");
    if let Some(version) = quoted(package.join("Cargo.toml"), "version = ") {
        wrapper += &format!(" {version}");
    }
    if let Some(sha) = fs::read_to_string(package.join(".cargo_vcs_info.json"))
        .ok()
        .and_then(|text| {
            let sha = text.split("\"sha1\":").nth(1)?.split('"').nth(1)?;
            sha.get(..7).map(str::to_owned)
        })
    {
        wrapper += &format!(" at {sha}");
    }
    format!("{engine} ({wrapper})")
}
