//! The `headshare-gguf` program; everything is in the library.
#![forbid(unsafe_code)]

/// Says so where memory runs out.
#[global_allocator]
static ALLOCATOR: headshare_runtime::memory::Allocator = headshare_runtime::memory::Allocator;

fn main() -> std::process::ExitCode {
    headshare_gguf::cli::main()
}
