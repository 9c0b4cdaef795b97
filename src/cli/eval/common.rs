//! What every measure takes.

use headshare_jobs::Resolve;

use crate::cli::llama_cpp::{Gpu, Log, Threads};
use crate::cli::values::resolve;
use crate::process::output::Output;

/// What every measure takes: how models are loaded and run.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    #[command(flatten)]
    pub(super) threads: Threads,
    /// How shared blocks of converted files are loaded.
    #[arg(long, value_parser = resolve(), default_value = "auto")]
    pub(super) resolve: Resolve,
    #[command(flatten)]
    gpu: Gpu,
    #[command(flatten)]
    log: Log,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

/// What measures of nothing but statistics take.
#[derive(Debug, clap::Args)]
pub(super) struct Fast {
    /// Compute with weights as F16 whose types llama.cpp multiplies slowly on the
    /// CPU (all but Q4_0, Q8_0, IQ4_NL, MXFP4 and those that are not quantized).
    /// Takes more memory. Figures differ a little, because activations are not
    /// rounded then.
    #[arg(long, conflicts_with = "resolve")]
    pub(super) fast: bool,
}

impl Common {
    /// What is to be done before the job.
    pub(super) fn begin(&self, out: &Output) {
        self.gpu.remark(out);
        self.log.begin();
    }
}
