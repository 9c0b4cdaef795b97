//! Reads a few headers through the bindgen that `ggml-sys` uses, so that the
//! set-up learns within seconds what would otherwise fail after llama.cpp has
//! been compiled.

fn main() {
    // Asked anew each time: a file that does not exist always counts as changed.
    println!("cargo:rerun-if-changed=what-the-machine-has");
    bindgen::Builder::default()
        // The first is the compiler's own header, which some libclang packages
        // lack; the second is the C library's.
        .header_contents(
            "probe.h",
            "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n\
             size_t probe(uint32_t number, FILE * stream);\n",
        )
        .allowlist_function("probe")
        .generate()
        .expect("bindgen reads a C header");
}
