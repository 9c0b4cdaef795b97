//! What can go wrong when a model is to fit into so many bytes.

use crate::convert::ConvertError;
use crate::encode::QuantizeError;
use crate::engine::EngineError;
use crate::repair::RepairError;

/// Why a model cannot be made to fit.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// No type has that name.
    #[error(
        "{name:?} is no type that ggml encodes without an importance matrix; there are {types}"
    )]
    UnknownType {
        /// The name.
        name: String,
        /// What there is.
        types: String,
    },
    /// All moves together do not save enough.
    #[error(
        "{wanted} bytes are less than the smallest that the moves reach: at least {smallest} bytes"
    )]
    TooSmall {
        /// What is wanted.
        wanted: u64,
        /// The smallest has no less.
        smallest: u64,
    },
    /// The model fits as it is.
    #[error("the model has {has} bytes and fits into {wanted} as it is: nothing is written")]
    FitsAlready {
        /// What it has.
        has: u64,
        /// What is wanted.
        wanted: u64,
    },
    /// The model fits into memory as it is.
    #[error(
        "with a context of {ctx} tokens the model takes {takes} bytes of memory and fits into {memory} as it is: nothing is written"
    )]
    InMemoryAlready {
        /// What it takes.
        takes: u64,
        /// What there is.
        memory: u64,
        /// Tokens of the context.
        ctx: u32,
    },
    /// No weights fit into memory.
    #[error(
        "with a context of {ctx} tokens, KV cache, compute buffers and the program take {others} bytes of memory or more, and {memory} are there: take a smaller context (--ctx) or more memory (--ram)"
    )]
    NoMemory {
        /// What all but weights take.
        others: u64,
        /// What there is.
        memory: u64,
        /// Tokens of the context.
        ctx: u32,
    },
    /// The smallest that the moves reach does not fit into memory.
    #[error(
        "not even the smallest that the moves reach fits into {memory} bytes of memory with a context of {ctx} tokens: take a smaller context (--ctx) or more memory (--ram)"
    )]
    NotInMemory {
        /// What there is.
        memory: u64,
        /// Tokens of the context.
        ctx: u32,
    },
    /// No tensor can have another type.
    #[error("no tensor has rows that are whole blocks of a smaller type")]
    NoMoves,
    /// No plan that was made gives numbers.
    #[error(
        "all models that were made predict no numbers: take a larger size, or fewer types (--types)"
    )]
    NoNumbers,
    /// A tensor's weights cannot be read or encoded.
    #[error("tensor {tensor:?}: {error}")]
    Weights {
        /// The tensor.
        tensor: String,
        /// Why.
        error: QuantizeError,
    },
    /// A changed model gives no numbers.
    #[error("with {tensor:?} as {ggml_type}, the model's logits are no numbers")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The type that was probed.
        ggml_type: String,
    },
    /// What was measured does not tell.
    #[error(
        "what {ggml_type} does to {tensor:?} was not measured: measure again, or allow only the types that were"
    )]
    NotMeasured {
        /// The tensor.
        tensor: String,
        /// The type.
        ggml_type: String,
    },
    /// A changed model cannot be made.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A model cannot be run.
    #[error(transparent)]
    Run(#[from] EngineError),
    /// What sharing costs cannot be measured.
    #[error(transparent)]
    Sharing(#[from] RepairError),
}
