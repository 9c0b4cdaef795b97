//! Share the attention heads of a GGUF model: find out which heads can stand
//! in for each other, store each distinct weight block once.
//!
//! [`matching`] decides which units share (the paper's match functions and
//! Algorithm 1).

#![forbid(unsafe_code)]

pub mod cli;
pub mod matching;
