//! What every measure takes, and how each says which model it is about.

use headshare_jobs::{MeasuredFile, Resolve, Resolved};
use headshare_runtime::log;

use crate::cli::llama_cpp::Gpu;
use crate::cli::output::{Output, grouped};
use crate::cli::values::resolve;

/// What every measure takes: how models are loaded and run.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Number of threads [default: one for each physical core, fewer while
    /// other programs are busy]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub(super) threads: Option<u32>,
    /// How shared blocks of converted files are loaded.
    #[arg(long, value_parser = resolve(), default_value = "auto")]
    pub(super) resolve: Resolve,
    #[command(flatten)]
    gpu: Gpu,
    /// Print llama.cpp's log on stderr.
    #[arg(short, long)]
    verbose: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

impl Common {
    /// What is to be done before the job.
    pub(super) fn begin(&self, out: &Output) {
        self.gpu.remark(out);
        log::set_verbose(self.verbose);
    }
}

/// A model in a line.
pub(super) fn line(measured: &MeasuredFile) -> String {
    let line = format!("{}: {} bytes", measured.file, grouped(measured.bytes));
    match measured.resolve {
        Resolved::None => line,
        how => format!("{line}, {}", how.as_str()),
    }
}
