//! How model files come to be, and what that depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use headshare_format::{GgmlType, Gguf};
use serde_json::{Value, json};

use super::work::Work;
use super::{Args, Inputs, digested, worker};
use crate::convert;
use crate::convert::variant::Variant;
use crate::input::{InputError, ModelFile};
use crate::report::Made;
use crate::report::cells::Store;
use crate::report::lower::{Lowered, Lowering};

/// How a model file comes to be.
pub(super) enum Recipe {
    /// It is the source.
    Source,
    /// By `convert` with these arguments, and a repair's text.
    Convert {
        ratio: f64,
        arguments: Vec<String>,
        repair: bool,
    },
    /// By storing tensors at these types.
    Lower(Box<Lowered>),
}

/// A model file: to be made, or there.
pub(super) struct Target {
    /// The beginning of its cells' names.
    pub(super) name: String,
    pub(super) recipe: Recipe,
    pub(super) path: PathBuf,
}

impl Target {
    /// The cell that says how the file came to be.
    pub(super) fn file_cell(&self) -> String {
        format!("{}.file", self.name)
    }
}

impl Work<'_> {
    /// What the file at the end of `recipe` depends on.
    pub(super) fn recipe_key(&self, recipe: &Recipe) -> Value {
        let how = match recipe {
            Recipe::Source => json!("source"),
            Recipe::Convert {
                ratio,
                arguments,
                repair,
            } => {
                let text = self.inputs.repair.as_ref().filter(|_| *repair);
                json!({
                    "convert": arguments,
                    "ratio": ratio,
                    "repair": text.map(|file| &file.digest),
                    "stats": text.and(self.stats.as_ref()),
                })
            }
            Recipe::Lower(lowered) => {
                let types: BTreeMap<String, &str> = lowered
                    .types
                    .tensors
                    .iter()
                    .map(|(tensor, to)| (tensor.to_string(), to.name()))
                    .collect();
                json!({ "lower": types })
            }
        };
        self.inputs.key(
            "file",
            json!({ "source": self.inputs.source.digest, "how": how }),
        )
    }

    /// Makes the file.
    pub(super) fn make(&self, target: &Target, label: &str) -> anyhow::Result<Made> {
        match &target.recipe {
            Recipe::Source => Ok(Made {
                file_bytes: self.inputs.source.bytes,
                digest: self.inputs.source.digest.clone(),
                changed: 0,
                dropped: 0,
                of: 0,
                share: 0.0,
                how: "the source as it is".into(),
            }),
            Recipe::Convert {
                ratio,
                arguments,
                repair,
            } => {
                let mut all: Vec<OsString> = vec!["convert".into(), self.args.src.clone().into()];
                all.extend(["--ratio".into(), ratio.to_string().into()]);
                all.extend(arguments.iter().map(Into::into));
                if let Some(text) = self.args.repair.path().filter(|_| *repair) {
                    all.extend(["--repair".into(), self.inputs.stdin.path(text).into()]);
                }
                let measured = (*repair && self.args.measures())
                    .then(|| Stats::of(self.args, self.inputs, self.store))
                    .transpose()?;
                if let Some(stats) = &measured {
                    all.extend(stats.arguments.clone());
                }
                all.extend(["-o".into(), target.path.clone().into()]);
                all.extend(["--force".into(), "--json".into()]);
                let found = worker::ask(&all, self.out).with_context(|| label.to_owned())?;
                if let Some(stats) = &measured {
                    stats.record(self.store)?;
                }
                self.out.remark(&format!("{label}: converted"));
                made_by_convert(&found, &target.path)
            }
            Recipe::Lower(lowered) => {
                // Mapped only while it is read: pages that two processes map
                // would count half in the other's PSS.
                let source = ModelFile::open(&self.args.src)?;
                let bar = self.out.bar("requantising", lowered.file_bytes, true);
                let variant = Variant::with_types(&source, &lowered.types)
                    .map_err(InputError::content(&self.args.src))?;
                convert::write_plain(&variant, &target.path, true, &|done| {
                    bar.set_position(done);
                })?;
                bar.finish_and_clear();
                self.out.remark(&format!("{label}: requantised"));
                made_by_lowering(&source.gguf, lowered, &target.path)
            }
        }
    }
}

/// The file of what was measured to choose units, which serves all ratios.
pub(super) struct Stats {
    /// What the measuring depends on.
    key: Value,
    /// The arguments that have it written or read.
    arguments: Vec<OsString>,
    /// A file of the user's.
    theirs: Option<PathBuf>,
}

/// The cell that tells which of the user's files this report has written.
const STATS_CELL: &str = "choice.stats";

impl Stats {
    fn of(args: &Args, inputs: &Inputs, store: &Store) -> anyhow::Result<Self> {
        let arguments = args.repair.arguments(true);
        let key = inputs.key(
            "choice",
            json!({
                "source": inputs.source.digest,
                "repair": inputs.repair.as_ref().map(|file| &file.digest),
                "arguments": arguments,
            }),
        );
        let ours = store.stats(&key)?;
        let mut arguments = args.repair.stats_arguments(&ours);
        if let Some(path) = arguments.last_mut() {
            *path = inputs.stdin.path(Path::new(path)).into();
        }
        let path = arguments.last().map(PathBuf::from);
        Ok(Self {
            key,
            arguments,
            theirs: path.filter(|path| *path != ours),
        })
    }

    /// The digest of a file that decides what is chosen, unless it says what
    /// this report would measure by itself, or has measured.
    pub(super) fn digest(
        args: &Args,
        inputs: &Inputs,
        store: &Store,
    ) -> anyhow::Result<Option<String>> {
        if inputs.repair.is_none() || !args.measures() {
            return Ok(None);
        }
        let stats = Self::of(args, inputs, store)?;
        let Some(path) = stats.theirs.as_deref().filter(|_| !stats.is_written()) else {
            return Ok(None);
        };
        let digest = digested(path)?.digest;
        let known: Option<String> = store.get(STATS_CELL, &stats.key);
        Ok(Some(digest).filter(|digest| known.as_ref() != Some(digest)))
    }

    /// Whether the conversion writes the file; else it reads it.
    fn is_written(&self) -> bool {
        self.arguments
            .first()
            .is_some_and(|flag| flag == "--save-stats")
    }

    /// Remembers what a conversion has written.
    fn record(&self, store: &Store) -> anyhow::Result<()> {
        if let Some(path) = self.theirs.as_deref().filter(|_| self.is_written()) {
            store.put(STATS_CELL, &self.key, &digested(path)?.digest)?;
        }
        Ok(())
    }
}

/// What `convert --json` says of its output.
fn made_by_convert(found: &Value, path: &Path) -> anyhow::Result<Made> {
    let plan = &found["plan"];
    let units = plan["choice"]["units"].as_u64().unwrap_or(0);
    let (aliases, dropped) = (units_in(plan, "share"), units_in(plan, "drop"));
    let mut doings = Vec::new();
    if dropped > 0 {
        doings.push(format!("{dropped} are deleted"));
    }
    if aliases > 0 || dropped == 0 {
        doings.push(format!("{aliases} use another unit's weights"));
    }
    let mut how = format!("of {units} units {}", doings.join(" and "));
    if let Some(duplicates) = found["duplicates"]["bytes"].as_u64().filter(|n| *n > 0) {
        how += &format!(", {duplicates} bytes of exact duplicates are stored once");
    }
    if let Some(tensors) = found["repair"]["tensors"].as_array() {
        let windows = &found["repair"]["windows"];
        how += &format!(
            ", {} tensors are refitted on {windows} windows",
            tensors.len()
        );
    }
    let file = digested(path)?;
    Ok(Made {
        file_bytes: file.bytes,
        digest: file.digest,
        changed: aliases,
        dropped,
        of: units,
        share: (aliases + dropped) as f64 / units.max(1) as f64,
        how,
    })
}

/// Units of the edits of one kind: one whose parts are matched apart stands
/// there several times.
fn units_in(plan: &Value, kind: &str) -> u64 {
    let unit = |edit: &Value| {
        let edit = &edit[kind];
        Some((edit["layer"].as_u64()?, edit["unit"].as_u64()?))
    };
    let edits = plan["edits"].as_array().into_iter().flatten();
    let units: BTreeSet<(u64, u64)> = edits.filter_map(unit).collect();
    units.len() as u64
}

fn made_by_lowering(gguf: &Gguf, lowered: &Lowered, path: &Path) -> anyhow::Result<Made> {
    let mut kinds: BTreeMap<(GgmlType, GgmlType), usize> = BTreeMap::new();
    for (&tensor, &to) in &lowered.types.tensors {
        *kinds
            .entry((gguf.tensors()[tensor].ggml_type, to))
            .or_default() += 1;
    }
    let kinds: Vec<String> = kinds
        .into_iter()
        .map(|((from, to), n)| format!("{n} tensors from {from} to {to}"))
        .collect();
    let file = digested(path)?;
    Ok(Made {
        file_bytes: file.bytes,
        digest: file.digest,
        changed: lowered.types.tensors.len() as u64,
        dropped: 0,
        of: Lowering::of(gguf).order.len() as u64,
        share: lowered.share(),
        how: kinds.join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::super::stdin::Stdin;
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn file() -> crate::report::File {
        crate::report::File {
            path: "file".into(),
            bytes: 4,
            digest: "blake3:0".into(),
        }
    }

    #[test]
    fn a_file_that_decides_what_is_chosen_is_in_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("report")).unwrap();
        let path = folder.path().join("stats.json");
        let inputs = Inputs {
            source: file(),
            text: file(),
            tasks: Vec::new(),
            repair: Some(file()),
            build: "blake3:1".into(),
            stdin: Stdin::of([]).unwrap(),
        };
        let args = |more: &[&str]| {
            let all = ["", "m.gguf", "--ratios", "0.5", "--text", "t", "-o", "o"];
            let repair = ["--repair", "r.txt"];
            <Cli as clap::Parser>::parse_from([&all[..], &repair, more].concat()).args
        };
        let digest = |more: &[&str]| Stats::digest(&args(more), &inputs, &store).unwrap();
        let stats = path.to_str().unwrap();
        assert_eq!(digest(&[]), None);
        // It will be written.
        assert_eq!(digest(&["--save-stats", stats]), None);
        std::fs::write(&path, "theirs").unwrap();
        let theirs = digest(&["--stats", stats]);
        assert_eq!(theirs, Some(digested(&path).unwrap().digest));
        assert_eq!(digest(&["--save-stats", stats]), theirs);
        // Where the units are not chosen by measuring, nobody reads it.
        assert_eq!(digest(&["--match", "qk"]), None);
        // What this report wrote itself says what it would measure again.
        std::fs::remove_file(&path).unwrap();
        let written = Stats::of(&args(&["--save-stats", stats]), &inputs, &store).unwrap();
        std::fs::write(&path, "ours").unwrap();
        written.record(&store).unwrap();
        assert_eq!(digest(&["--save-stats", stats]), None);
        std::fs::write(&path, "ours no more").unwrap();
        assert!(digest(&["--save-stats", stats]).is_some());
    }

    #[test]
    fn the_memory_of_a_repair_is_always_told() {
        let memory = |more: &[&str]| {
            let all = ["", "m.gguf", "--ratios", "0.5", "--text", "t", "-o", "o"];
            let args = <Cli as clap::Parser>::parse_from([&all[..], more].concat()).args;
            let arguments = args.repair.arguments(true);
            let at = arguments.iter().position(|a| a == "--memory").unwrap();
            arguments[at + 1].parse::<u64>().unwrap()
        };
        assert_eq!(memory(&["--repair", "r", "--memory", "9"]), 9);
        assert!(memory(&["--repair", "r"]) > 1 << 20);
    }

    #[test]
    fn a_unit_whose_parts_are_matched_apart_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made.gguf");
        std::fs::write(&path, "made").unwrap();
        let alias =
            |unit: u32, part: &str| json!({"share": {"layer": 2, "unit": unit, "parts": [part]}});
        let mut edits = vec![alias(0, "q"), alias(0, "k"), alias(0, "v"), alias(1, "v")];
        let choice = json!({"by": "separate", "units": 8});
        let plan = json!({ "choice": choice, "edits": edits });
        let made = made_by_convert(&json!({ "plan": plan }), &path).unwrap();
        assert_eq!((made.changed, made.dropped, made.of), (2, 0, 8));
        assert_eq!(made.share, 0.25);
        assert_eq!(made.how, "of 8 units 2 use another unit's weights");

        let dropped = json!({"drop": {"layer": 3, "unit": 1, "score": -0.1}});
        edits.push(dropped.clone());
        let mut plan = json!({ "choice": choice, "edits": edits });
        let made = made_by_convert(&json!({ "plan": plan }), &path).unwrap();
        assert_eq!((made.changed, made.dropped, made.share), (2, 1, 0.375));
        assert_eq!(
            made.how,
            "of 8 units 1 are deleted and 2 use another unit's weights"
        );
        plan["edits"] = json!([dropped]);
        let made = made_by_convert(&json!({ "plan": plan }), &path).unwrap();
        assert_eq!(made.how, "of 8 units 1 are deleted");
    }
}
