//! Trains models that a GGUF file holds: the paper's PostShare, and whatever else
//! gradients are for.
//!
//! A [`Model`] is a file, or a variant of one that need not exist, as f32 parameters
//! by name. It computes what llama.cpp computes, and goes back from a loss to the
//! gradients of all parameters a layer at a time. [`loss`] has the losses, [`Trained`]
//! what is trained, [`Trainer`] the loop.
//!
//! ```no_run
//! use candle_core::Device;
//! use headshare_convert::{convert::variant::Variant, input::ModelFile};
//! use headshare_train::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let tokens: Vec<u32> = Vec::new();
//! let file = ModelFile::open("model.gguf".as_ref())?;
//! let model = Model::load(&Variant::unchanged(&file), &[], &Device::Cpu)?;
//! let data = pack(&tokens, 512, None, 0.1)?;
//! let mut trainer = Trainer::new(model, Settings::default(), data, None, None, None)?;
//! trainer.run(&Default::default(), &mut |progress| println!("{}", progress.loss))?;
//! let trained = trainer.into_best()?;
//! # Ok(())
//! # }
//! ```
//!
//! Everything is f32. On the CPU the operations are ours (`ops`); candle's are used on
//! other devices, where weights are uploaded for each pass and AdamW stays on the CPU.
#![forbid(unsafe_code)]

pub mod adam;
pub mod checkpoint;
pub mod codes;
pub mod config;
pub mod error;
pub mod export;
pub mod importance;
pub mod loss;
pub mod model;
mod ops;
pub mod pack;
pub mod parameters;
pub mod random;
pub mod schedule;
pub mod settings;
pub mod sharing;
pub mod speed;
pub mod trained;
pub mod trainer;
pub mod windows;

pub use adam::AdamOptions;
pub use checkpoint::Checkpoints;
pub use codes::{Codes, has_scales};
pub use config::Config;
pub use error::TrainError;
pub use model::{Forward, Model};
pub use ops::{Activation, NormKind, RopePairs};
pub use pack::{Packed, pack};
pub use parameters::{Gradients, Parameter, Parameters, Tie};
pub use schedule::Schedule;
pub use settings::Settings;
pub use trained::{Train, Trained};
pub use trainer::{Ended, Progress, Trainer};
pub use windows::Windows;
