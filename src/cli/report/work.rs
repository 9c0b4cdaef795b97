//! Cell by cell: what is kept is taken, what is missing is made and measured.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use headshare_format::{GgmlType, Gguf};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Args, Inputs, digested, speed, worker};
use crate::cli::output::Output;
use crate::convert;
use crate::input::ModelFile;
use crate::report::cells::Store;
use crate::report::lower::{Lowered, Lowering};
use crate::report::{Form, Made, Quality, Row, Series, TaskScore, Way, requantise};

/// How a model file comes to be.
enum Recipe {
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
struct Target {
    /// The beginning of its cells' names.
    name: String,
    recipe: Recipe,
    path: PathBuf,
}

/// A form's measures.
struct Measured {
    made: Made,
    quality: Quality,
    tasks: Vec<TaskScore>,
    ways: Vec<Way>,
}

pub(super) struct Work<'a> {
    args: &'a Args,
    inputs: &'a Inputs,
    store: &'a Store,
    out: &'a Output,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        args: &'a Args,
        inputs: &'a Inputs,
        store: &'a Store,
        out: &'a Output,
    ) -> Self {
        Self {
            args,
            inputs,
            store,
            out,
        }
    }

    /// All rows, and the source in llama.cpp's own ways of loading.
    pub(super) fn rows(&mut self) -> anyhow::Result<(Vec<Row>, Vec<Way>)> {
        let gguf = ModelFile::open(&self.args.src)?.gguf;
        let lowering = Lowering::of(&gguf);
        let source = Target {
            name: "source".into(),
            recipe: Recipe::Source,
            path: self.args.src.clone(),
        };
        let mut measured = self.measure(&source, "source")?;
        let ways = measured.ways.split_off(1);
        let mut rows = vec![row(Form::Source, None, "source".into(), measured)];
        let mut rivals: Vec<(Lowered, usize)> = Vec::new();
        for &ratio in &self.args.ratios {
            for (i, series) in self.args.series().into_iter().enumerate() {
                // Nothing is shared: nothing to repair.
                let plain = rows
                    .iter()
                    .find(|r| r.ratio == Some(ratio) && r.series == Some("shared"));
                if i > 0 && plain.is_some_and(|row| row.made.changed == 0) {
                    continue;
                }
                rows.push(self.converted(&series, ratio)?);
            }
            let here: Vec<usize> = (0..rows.len())
                .filter(|&i| rows[i].ratio == Some(ratio))
                .collect();
            for i in here {
                let bytes = rows[i].made.file_bytes;
                if bytes >= self.inputs.source.bytes {
                    continue;
                }
                let Some(lowered) = lowering.down_to(bytes) else {
                    continue;
                };
                let known = rivals
                    .iter()
                    .find(|(known, _)| known.types == lowered.types);
                let rival = match known {
                    Some((_, rival)) => *rival,
                    None => {
                        rows.push(self.lowered(&gguf, &lowered)?);
                        rivals.push((lowered, rows.len() - 1));
                        rows.len() - 1
                    }
                };
                rows[i].rival = Some(rival);
            }
        }
        Ok((rows, ways))
    }

    fn converted(&self, series: &Series, ratio: f64) -> anyhow::Result<Row> {
        let name = format!("{}-{ratio}", series.name);
        let label = match series.name {
            "shared" => format!("{} shared", percent(ratio)),
            "dropped" => format!("{} dropped, repaired", percent(ratio)),
            "auto" => format!("as {} shared, auto", percent(ratio)),
            name => format!("{} shared, {name}", percent(ratio)),
        };
        let target = Target {
            recipe: Recipe::Convert {
                ratio,
                arguments: self.args.convert_arguments(series.name),
                repair: series.name != "shared",
            },
            path: self.store.model(&name)?,
            name,
        };
        let measured = self.measure(&target, &label)?;
        let mut row = row(Form::Converted, Some(ratio), label, measured);
        row.series = Some(series.name);
        Ok(row)
    }

    fn lowered(&self, gguf: &Gguf, lowered: &Lowered) -> anyhow::Result<Row> {
        let share = percent((lowered.share() * 100.0).round() / 100.0);
        let label = match lowered.steps(gguf) {
            0 | 1 => format!("{share} of the body one type lower"),
            n => format!("{share} of the body up to {n} types lower"),
        };
        let name = format!("lower-{}", lowered.file_bytes);
        let target = Target {
            recipe: Recipe::Lower(Box::new(lowered.clone())),
            path: self.store.model(&name)?,
            name,
        };
        let measured = self.measure(&target, &label)?;
        Ok(row(Form::Lower, None, label, measured))
    }

    /// Takes the cells that there are, and makes the others.
    fn measure(&self, target: &Target, label: &str) -> anyhow::Result<Measured> {
        let key = self.recipe_key(&target.recipe)?;
        let file_cell = format!("{}.file", target.name);
        let kept: Option<Made> = self.store.get(&file_cell, &key);
        let complete = |made: &Made| {
            let mut measures = self.measures(target, made).into_iter();
            measures.all(|m| self.store.get::<Value>(&m.cell, &m.key).is_some())
        };
        let made = match kept {
            Some(made) if self.is_there(target, &made)? => made,
            Some(made) if complete(&made) && !self.args.keep => made,
            _ => {
                let made = self.make(target, label)?;
                self.store.put(&file_cell, &key, &made)?;
                made
            }
        };
        let mut measures = self.measures(target, &made).into_iter();
        let mut next = || measures.next().expect("one for each");
        let quality: Quality = self.cell(&next(), label, |q: &Quality| {
            format!("perplexity {:.4}", q.perplexity)
        })?;
        let mut tasks = Vec::new();
        for _ in &self.args.tasks {
            tasks.push(self.cell(&next(), label, |t: &TaskScore| {
                format!("{} {:.4}", t.task, t.accuracy_norm)
            })?);
        }
        let bench: Value = self.cell(&next(), label, |_| "speed".into())?;
        let (reference, this) = match target.recipe {
            // llama.cpp's own two ways come first.
            Recipe::Source => (2, 2),
            _ => (0, 1),
        };
        let mut ways = speed::ways(bench, reference)?;
        anyhow::ensure!(ways.len() > this, "bench measured {} ways", ways.len());
        ways.swap(0, this);
        ways[1..].sort_by(|a, b| a.name.cmp(&b.name));
        if !self.args.keep && !matches!(target.recipe, Recipe::Source) {
            let _ = std::fs::remove_file(&target.path);
        }
        Ok(Measured {
            made,
            quality,
            tasks,
            ways,
        })
    }

    /// A cell's value, kept or measured now.
    fn cell<T: Serialize + DeserializeOwned>(
        &self,
        measure: &Measure,
        label: &str,
        shown: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<T> {
        if let Some(value) = self.store.get(&measure.cell, &measure.key) {
            let shown = shown(&value);
            self.out.remark(&format!("{label}: {shown} (kept)"));
            return Ok(value);
        }
        let found = worker::ask(&measure.arguments, self.out).with_context(|| label.to_owned())?;
        let value: T =
            serde_json::from_value(found).with_context(|| format!("{label}: {}", measure.cell))?;
        self.store.put(&measure.cell, &measure.key, &value)?;
        self.out.remark(&format!("{label}: {}", shown(&value)));
        Ok(value)
    }

    /// Whether the file is there as it was made.
    fn is_there(&self, target: &Target, made: &Made) -> anyhow::Result<bool> {
        if matches!(target.recipe, Recipe::Source) {
            return Ok(true);
        }
        Ok(target.path.is_file() && digested(&target.path)?.digest == made.digest)
    }

    fn make(&self, target: &Target, label: &str) -> anyhow::Result<Made> {
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
                    all.extend(["--repair".into(), text.into()]);
                    if self.args.measures() {
                        let stats = self.store.stats(&self.stats_key())?;
                        all.extend(self.args.repair.stats_arguments(&stats));
                    }
                }
                all.extend(["-o".into(), target.path.clone().into()]);
                all.extend(["--force".into(), "--json".into()]);
                let found = worker::ask(&all, self.out).with_context(|| label.to_owned())?;
                self.out.remark(&format!("{label}: converted"));
                made_by_convert(&found, &target.path)
            }
            Recipe::Lower(lowered) => {
                // Mapped only while it is read: pages that two processes map
                // would count half in the other's PSS.
                let source = ModelFile::open(&self.args.src)?;
                let bar = self.out.bar("requantising", lowered.file_bytes, true);
                requantise::write(&source, &lowered.types, &target.path, &|done| {
                    bar.set_position(done);
                })?;
                bar.finish_and_clear();
                self.out.remark(&format!("{label}: requantised"));
                made_by_lowering(&source.gguf, lowered, &target.path)
            }
        }
    }

    /// What the choice of units depends on.
    fn stats_key(&self) -> Value {
        let text = self.inputs.repair.as_ref().map(|file| &file.digest);
        let arguments = self.args.repair.arguments(true);
        let source = &self.inputs.source.digest;
        self.key(
            "choice",
            json!({ "source": source, "repair": text, "arguments": arguments }),
        )
    }

    fn recipe_key(&self, recipe: &Recipe) -> anyhow::Result<Value> {
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
                })
            }
            Recipe::Lower(lowered) => {
                let types: BTreeMap<String, &str> = lowered
                    .types
                    .iter()
                    .map(|(tensor, to)| (tensor.to_string(), to.name()))
                    .collect();
                json!({ "lower": types })
            }
        };
        Ok(self.key(
            "file",
            json!({ "source": self.inputs.source.digest, "how": how }),
        ))
    }

    /// A key: the programs, the measure, and what else its value depends on.
    fn key(&self, measure: &str, on: Value) -> Value {
        json!({
            "tool": convert::TOOL,
            "llama_cpp": headshare_runtime::backend::llama_cpp_revision(),
            "measure": measure,
            "on": on,
        })
    }

    /// All measures of a file, in the order in which they are taken.
    fn measures(&self, target: &Target, made: &Made) -> Vec<Measure> {
        let args = self.args;
        let path = || OsString::from(&target.path);
        let source = OsString::from(&args.src);
        let is_source = matches!(target.recipe, Recipe::Source);
        let base = &self.inputs.source.digest;
        let threads: Vec<OsString> = match args.test.threads {
            Some(n) => vec!["--threads".into(), n.to_string().into()],
            None => Vec::new(),
        };
        let mut all = Vec::new();

        let mut arguments: Vec<OsString> = vec!["eval".into(), "perplexity".into(), path()];
        arguments.extend(["--text".into(), args.text.clone().into()]);
        arguments.extend(["--ctx".into(), args.ctx.to_string().into()]);
        if let Some(chunks) = args.chunks {
            arguments.extend(["--chunks".into(), chunks.to_string().into()]);
        }
        if !is_source {
            arguments.extend(["--base".into(), source.clone()]);
        }
        arguments.extend(threads.clone());
        arguments.push("--json".into());
        let on = json!({
            "file": made.digest,
            "base": (!is_source).then_some(base),
            "text": self.inputs.text.digest,
            "ctx": args.ctx,
            "chunks": args.chunks,
        });
        all.push(Measure {
            cell: format!("{}.perplexity", target.name),
            key: self.key("perplexity", on),
            arguments,
        });

        for (i, (task, file)) in args.tasks.iter().zip(&self.inputs.tasks).enumerate() {
            let mut arguments: Vec<OsString> = vec!["eval".into(), "choice".into(), path()];
            arguments.extend(["--task".into(), task.clone().into()]);
            if let Some(limit) = args.limit {
                arguments.extend(["--limit".into(), limit.to_string().into()]);
            }
            arguments.extend(threads.clone());
            arguments.push("--json".into());
            let on = json!({ "file": made.digest, "task": file.digest, "limit": args.limit });
            all.push(Measure {
                cell: format!("{}.task-{i}", target.name),
                key: self.key("choice", on),
                arguments,
            });
        }

        let mut arguments: Vec<OsString> = vec!["bench".into()];
        arguments.extend(match is_source {
            true => ["--stock".into(), source],
            false => [source, path()],
        });
        let test = args.test.arguments();
        arguments.extend(test.iter().map(Into::into));
        arguments.extend(["--repetitions".into(), args.repetitions.to_string().into()]);
        arguments.extend(["-o".into(), "json".into()]);
        let on = json!({
            "file": made.digest,
            "beside": base,
            "test": test,
            "repetitions": args.repetitions,
            "cpu": crate::cli::bench::report::cpu_info(),
        });
        all.push(Measure {
            cell: format!("{}.speed", target.name),
            key: self.key("speed", on),
            arguments,
        });
        all
    }
}

/// A measure that this program takes when it is called so.
struct Measure {
    cell: String,
    key: Value,
    arguments: Vec<OsString>,
}

fn row(form: Form, ratio: Option<f64>, label: String, mut measured: Measured) -> Row {
    Row {
        form,
        series: None,
        ratio,
        label,
        rival: None,
        made: measured.made,
        quality: measured.quality,
        tasks: measured.tasks,
        speed: measured.ways.swap_remove(0).speed,
    }
}

/// What `convert --json` says of its output.
fn made_by_convert(found: &Value, path: &Path) -> anyhow::Result<Made> {
    let plan = &found["plan"];
    let units = plan["units"].as_u64().unwrap_or(0);
    let (aliases, dropped) = (units_in(&plan["aliases"]), units_in(&plan["dropped"]));
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

/// Units in a list of a plan: one whose parts are matched apart stands there
/// several times.
fn units_in(list: &Value) -> u64 {
    let unit = |entry: &Value| Some((entry["layer"].as_u64()?, entry["unit"].as_u64()?));
    let units: Option<BTreeSet<(u64, u64)>> =
        list.as_array().into_iter().flatten().map(unit).collect();
    units.map_or(0, |units| units.len() as u64)
}

fn made_by_lowering(gguf: &Gguf, lowered: &Lowered, path: &Path) -> anyhow::Result<Made> {
    let mut kinds: BTreeMap<(GgmlType, GgmlType), usize> = BTreeMap::new();
    for (&tensor, &to) in &lowered.types {
        *kinds
            .entry((gguf.tensors[tensor].ggml_type, to))
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
        changed: lowered.types.len() as u64,
        dropped: 0,
        of: Lowering::of(gguf).order.len() as u64,
        share: lowered.share(),
        how: kinds.join(", "),
    })
}

/// A share in percent, without digits that it does not need.
fn percent(share: f64) -> String {
    let text = format!("{:.3}", share * 100.0);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_whose_parts_are_matched_apart_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made.gguf");
        std::fs::write(&path, "made").unwrap();
        let alias = |unit: u32, part: &str| json!({"layer": 2, "unit": unit, "parts": [part]});
        let aliases = [alias(0, "q"), alias(0, "k"), alias(0, "v"), alias(1, "v")];
        let plan = json!({ "units": 8, "aliases": aliases, "dropped": [] });
        let made = made_by_convert(&json!({ "plan": plan }), &path).unwrap();
        assert_eq!((made.changed, made.dropped, made.of), (2, 0, 8));
        assert_eq!(made.share, 0.25);
        assert_eq!(made.how, "of 8 units 2 use another unit's weights");

        let dropped = [json!({"layer": 3, "unit": 1, "score": -0.1})];
        let mut plan = json!({ "units": 8, "aliases": aliases, "dropped": dropped });
        let made = made_by_convert(&json!({ "plan": plan }), &path).unwrap();
        assert_eq!((made.changed, made.dropped, made.share), (2, 1, 0.375));
        assert_eq!(
            made.how,
            "of 8 units 1 are deleted and 2 use another unit's weights"
        );
        plan["aliases"] = json!([]);
        let made = made_by_convert(&json!({ "plan": plan }), &path).unwrap();
        assert_eq!(made.how, "of 8 units 1 are deleted");
    }
}
