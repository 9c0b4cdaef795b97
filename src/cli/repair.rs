//! What `convert --repair` adds: its arguments, the run, what it reports.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use headshare_format::FormatError;
use headshare_runtime::memory;
use headshare_stitch::MappedFile;

use super::output::Output;
use crate::convert::{self, Replacement};
use crate::input::{InputError, ModelFile};
use crate::plan::Plan;
use crate::repair::{self, Options, Record};

/// Memory to stay within where the system does not tell how much there is.
const FALLBACK_MEMORY: u64 = 8 << 30;

#[derive(Debug, clap::Args)]
pub(super) struct RepairArgs {
    /// Refit the layers after what is shared, on this text (UTF-8).
    #[arg(long, value_name = "TEXT")]
    repair: Option<PathBuf>,
    /// How the units that share are chosen.
    #[arg(long, value_enum, default_value_t, requires = "repair")]
    choose: Choose,
    /// Bytes of memory that repair stays within, by default half of what the
    /// machine has.
    #[arg(long, value_name = "BYTES", requires = "repair")]
    memory: Option<u64>,
    /// Windows of the text that repair looks at, at most.
    #[arg(long, value_name = "N", default_value = "64", requires = "repair",
        value_parser = clap::value_parser!(u32).range(2..=256))]
    windows: u32,
    /// Tokens of a window.
    #[arg(long, value_name = "TOKENS", default_value = "512", requires = "repair",
        value_parser = clap::value_parser!(u32).range(8..=65536))]
    window: u32,
}

/// How the units that share are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Choose {
    /// By the match function, as the paper does.
    #[default]
    Match,
}

impl RepairArgs {
    /// The text, if there is to be a repair.
    pub(super) fn text(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.repair else {
            return Ok(None);
        };
        let Choose::Match = self.choose;
        let file = MappedFile::open(path).map_err(InputError::from)?;
        match std::str::from_utf8(&file) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(error) => {
                let problem = format!("is not UTF-8 at byte {}", error.valid_up_to());
                Err(InputError::content(path)(FormatError::new("text", problem)).into())
            }
        }
    }

    /// The file that the text comes from, if there is to be a repair.
    pub(super) fn path(&self) -> Option<&Path> {
        self.repair.as_deref()
    }

    /// The arguments that ask for this, but for the text itself.
    pub(super) fn arguments(&self) -> Vec<String> {
        let choose = self
            .choose
            .to_possible_value()
            .expect("no value is skipped");
        let mut all = vec!["--choose".to_owned(), choose.get_name().to_owned()];
        all.extend(["--windows".to_owned(), self.windows.to_string()]);
        all.extend(["--window".to_owned(), self.window.to_string()]);
        if let Some(memory) = self.memory {
            all.extend(["--memory".to_owned(), memory.to_string()]);
        }
        all
    }

    /// Finds out early what would keep `source` from being repaired: its
    /// architecture, too little text or memory.
    pub(super) fn check(&self, source: &ModelFile, out: &Output) -> anyhow::Result<()> {
        if let Some(text) = self.text()? {
            let map = convert::attention_map(source)?;
            repair::check_supported(&map)?;
            repair::check_text(source, &self.options(text), &|text| out.remark(text))?;
        }
        Ok(())
    }

    fn options(&self, text: String) -> Options {
        Options {
            text,
            windows: self.windows,
            window: self.window,
            memory: self.memory.unwrap_or_else(|| {
                memory::physical_memory().map_or(FALLBACK_MEMORY, |bytes| bytes / 2)
            }),
            n_threads: None,
            stop: Arc::default(),
        }
    }

    /// Repairs `source` after `plan`; a dry run says which tensors that would
    /// replace.
    pub(super) fn run(
        &self,
        source: &ModelFile,
        plan: &Plan,
        text: String,
        dry_run: bool,
        out: &Output,
    ) -> anyhow::Result<(Replacement, Option<Record>)> {
        let map = convert::attention_map(source)?;
        plan.check(&map).map_err(convert::ConvertError::from)?;
        repair::check_supported(&map)?;
        if dry_run {
            let data = |tensor: usize| {
                let info = &source.gguf.tensors[tensor];
                source.bytes(source.gguf.data_range(info)).to_vec()
            };
            let replaced = repair::tensors_to_repair(source, &map, plan);
            let tensors: BTreeMap<usize, Vec<u8>> =
                replaced.into_iter().map(|t| (t, data(t))).collect();
            return Ok((
                Replacement {
                    tensors,
                    by: String::new(),
                },
                None,
            ));
        }
        let options = self.options(text);
        let bar = out.bar("repairing", 1000, false);
        let repaired = repair::repair(
            source,
            &map,
            plan,
            &options,
            &|done| bar.set_position((done * 1000.0) as u64),
            &|text| out.remark(text),
        )?;
        bar.finish_and_clear();
        let by = serde_json::to_string(&repaired.record)?;
        Ok((
            Replacement {
                tensors: repaired.tensors,
                by,
            },
            Some(repaired.record),
        ))
    }
}

/// What `convert` says about a repair.
pub(super) fn render(record: Option<&Record>) -> String {
    let Some(record) = record else {
        return String::new();
    };
    let n = record.tensors.len().max(1) as f64;
    let mean =
        |value: fn(&repair::TensorRecord) -> f64| record.tensors.iter().map(value).sum::<f64>() / n;
    format!(
        "repaired: {} tensors on {} windows of {} tokens; mean error of the residual stream {:.5} -> {:.5}\n",
        record.tensors.len(),
        record.windows,
        record.window,
        mean(|t| t.before),
        mean(|t| t.after)
    )
}
