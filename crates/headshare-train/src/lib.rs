//! Trains models that a GGUF file holds.
#![forbid(unsafe_code)]

pub mod adam;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod loss;
pub mod model;
mod ops;
pub mod pack;
pub mod parameters;
pub mod random;
pub mod schedule;
pub mod settings;
pub mod trained;
pub mod trainer;
pub mod windows;

pub use adam::AdamOptions;
pub use config::Config;
pub use error::TrainError;
pub use model::{Forward, Model};
pub use ops::{Activation, NormKind, RopePairs};
pub use pack::{Packed, pack};
pub use parameters::{Gradients, Parameter, Parameters, Tie};
pub use schedule::Schedule;
pub use settings::Settings;
pub use trained::{Train, Trained};
pub use trainer::{Checkpoints, Ended, Progress, Trainer};
pub use windows::Windows;
