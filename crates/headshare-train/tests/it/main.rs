//! What a training stack has to hold: the same function as llama.cpp, gradients that
//! reach every parameter, and runs that are the same byte for byte.

mod checkpoint;
mod gradients;
mod importance;
mod logits;
mod refused;
mod scales;
mod support;
mod training;
