//! What a model is trained on.

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::{Advice, Error};

/// What a model is trained on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainOn {
    /// The CPU.
    #[default]
    Cpu,
    /// The first CUDA device.
    Cuda,
    /// The first Metal device.
    Metal,
}

impl TrainOn {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Cuda, Self::Metal];

    /// Its name, which is also that of the feature that it is built with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }

    /// The device.
    pub(super) fn device(self) -> Result<Device, Error> {
        let device = match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => Device::new_cuda(0),
            Self::Metal => Device::new_metal(0),
        };
        device.map_err(|error| {
            Error::failed(error)
                .about(self.name())
                .advise(Advice::BuildWith(self.name().to_owned()))
        })
    }
}
