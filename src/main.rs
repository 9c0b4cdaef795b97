//! The `headshare-gguf` program; everything is in the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    headshare_gguf::cli::main()
}
