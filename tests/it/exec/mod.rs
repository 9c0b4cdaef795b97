//! `exec`: programs that nobody here built, unharmed and able to read
//! converted files.
//!
//! `client.py` does, through libc, what llama.cpp does with a file; the real
//! thing, the server in PyPI's xllamacpp, is in `xllamacpp.rs`.

mod models;
mod programs;
mod streams;
mod xllamacpp;
