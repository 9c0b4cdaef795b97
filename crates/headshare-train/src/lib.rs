//! Trains models that a GGUF file holds.
#![forbid(unsafe_code)]

pub mod config;
pub mod error;
pub mod loss;
pub mod model;
mod ops;
pub mod parameters;
pub mod windows;

pub use config::Config;
pub use error::TrainError;
pub use model::{Forward, Model};
pub use ops::{Activation, NormKind, RopePairs};
pub use parameters::{Gradients, Parameter, Parameters, Tie};
pub use windows::Windows;
