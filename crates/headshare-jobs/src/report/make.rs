//! How model files come to be, and what that depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;

use headshare_convert::convert;
use headshare_convert::convert::variant::Variant;
use headshare_convert::input::{InputError, ModelFile};
use headshare_convert::matching::MatchFunction;
use headshare_convert::plan::Plan;
use headshare_eval::report::lower::{Lowered, Lowering};
use headshare_eval::report::{FileFacts, Series};
use headshare_format::{GgmlType, Gguf};
use serde::Serialize;

use super::cell::Cell;
use super::input::{By, Input};
use super::run::Run;
use super::stats::KeptStats;
use super::target::{Recipe, Rounding, Target};
use crate::convert::{Change, Convert, Converted, Quantization, Stats, With};
use crate::error::Context as _;
use crate::worker::ask;
use crate::{Error, Unit};

/// The page size that conversions are laid out for.
const PAGE: u64 = 4096;

/// What a file depends on that is no job's output: the source, and the types that
/// its tensors get, by index.
#[derive(Serialize)]
struct Stored<'a> {
    source: &'a str,
    types: BTreeMap<usize, &'a str>,
}

impl Run<'_> {
    /// The cell that says how a file came to be; `deciding` is the digest of a file
    /// from which units are chosen.
    pub fn file_cell(&self, target: &Target, deciding: Option<&str>) -> Result<Cell, Error> {
        let source = self.inputs.source.file.digest.as_str();
        let name = format!("{}.file", target.name);
        let types = match &target.recipe {
            Recipe::Source => BTreeMap::new(),
            Recipe::Lower(lowered) => {
                let types = lowered.types.tensors.iter();
                types.map(|(tensor, to)| (*tensor, to.name())).collect()
            }
            recipe @ (Recipe::Convert { .. } | Recipe::Fit { .. } | Recipe::Round(_)) => {
                let decides = deciding.map_or(Stats::Forget, |d| Stats::Load(d.into()));
                let kept = KeptStats::of(self)?.map_or(Stats::Forget, |kept| kept.stats());
                let conversion = self.measure(name, |by| match by {
                    By::Digest => self.conversion(recipe, by, Path::new(""), &decides),
                    _ => self.conversion(recipe, by, &target.path, &kept),
                })?;
                return Ok(conversion.cell);
            }
        };
        Ok(Cell {
            name,
            key: self.key(Stored { source, types })?,
            command: Vec::new(),
        })
    }

    /// The conversion of a recipe; `stats` is what one that measures does with what it
    /// measures.
    fn conversion(&self, recipe: &Recipe, by: By, output: &Path, stats: &Stats) -> Convert {
        match recipe {
            Recipe::Convert {
                series,
                function,
                ratio,
            } => self.sharing((*series, *function, *ratio), by, output, stats),
            Recipe::Fit { bytes } => {
                let fit = self.job.fit.as_ref().zip(self.calibration(by));
                Convert {
                    fit: fit.map(|(fit, on)| fit.budget(*bytes, on, stats.clone())),
                    ..self.unchanged(by, output)
                }
            }
            Recipe::Round(rounding) => self.rounding(rounding, by, output),
            Recipe::Source | Recipe::Lower(_) => self.unchanged(by, output),
        }
    }

    /// A conversion that changes nothing yet.
    fn unchanged(&self, by: By, output: &Path) -> Convert {
        Convert {
            page_size: PAGE,
            force: true,
            ..Convert::new(self.inputs.source.called(by), output, Change::Lossless)
        }
    }

    /// What llama.cpp's quantizer would do. It writes a plain file.
    pub fn rounding(&self, rounding: &Rounding, by: By, output: &Path) -> Convert {
        Convert {
            keep_duplicates: true,
            quantize: Some(Quantization {
                wanted: Some(rounding.wanted.clone()),
                with: match &rounding.imatrix {
                    Some(file) => With::Imatrix {
                        file: file.called(by),
                    },
                    None => With::Rounding,
                },
                allow_requantize: true,
            }),
            ..self.unchanged(by, output)
        }
    }

    /// A conversion of a series, by a match function, at a ratio.
    fn sharing(
        &self,
        (series, function, ratio): (Series, MatchFunction, f64),
        by: By,
        output: &Path,
        stats: &Stats,
    ) -> Convert {
        let repair = match series {
            Series::Shared | Series::Fitted => None,
            Series::Repaired | Series::Dropped | Series::Auto => self.calibration(by),
        };
        let measured = self.job.measured.as_ref().filter(|_| repair.is_some());
        Convert {
            change: match measured {
                Some(choice) => Change::Measure {
                    ratio,
                    units: choice.units,
                    stats: stats.clone(),
                },
                None => Change::Match { ratio, function },
            },
            repair,
            ..self.unchanged(by, output)
        }
    }

    /// What a conversion says of a file that llama.cpp's quantizer could have made.
    fn made_by_rounding(&self, found: &Converted, path: &Path) -> Result<FileFacts, Error> {
        let source = ModelFile::open(&self.job.source)?;
        let stores = found.plan.iter().flat_map(Plan::stores);
        let types = stores.filter_map(|store| {
            let has = source.gguf.tensor(&store.tensor)?.ggml_type;
            Some((has, store.ggml_type))
        });
        let types: Vec<(GgmlType, GgmlType)> = types.collect();
        let changed = types.len() as u64;
        let matrices = source.gguf.tensors().iter();
        let matrices = matrices.filter(|info| info.dims.len() > 1).count() as u64;
        let file = Input::read(path, path)?.file;
        Ok(FileFacts {
            file_bytes: file.bytes,
            digest: file.digest,
            changed,
            dropped: 0,
            of: matrices,
            share: changed as f64 / matrices.max(1) as f64,
            how: kinds(types.into_iter()),
        })
    }

    /// Makes the file.
    pub fn make(&self, target: &Target, label: &str) -> Result<FileFacts, Error> {
        match &target.recipe {
            Recipe::Source => {
                let file = &self.inputs.source.file;
                Ok(FileFacts {
                    file_bytes: file.bytes,
                    digest: file.digest.clone(),
                    changed: 0,
                    dropped: 0,
                    of: 0,
                    share: 0.0,
                    how: "the source as it is".into(),
                })
            }
            recipe @ (Recipe::Convert { .. } | Recipe::Fit { .. } | Recipe::Round(_)) => {
                let kept = match recipe {
                    Recipe::Round(_)
                    | Recipe::Convert {
                        series: Series::Shared,
                        ..
                    } => None,
                    _ => KeptStats::of(self)?,
                };
                let stats = kept.as_ref().map_or(Stats::Forget, KeptStats::stats);
                let job = self.conversion(recipe, By::Place, &target.path, &stats);
                let converted = ask(&job, None, self.ui).about(|| label)?;
                if let Some(kept) = kept {
                    kept.record(self)?;
                }
                let done = match recipe {
                    Recipe::Round(_) => "rounded",
                    _ => "converted",
                };
                self.ui.remark(&format!("{label}: {done}"));
                match recipe {
                    Recipe::Fit { .. } => made_to_fit(&converted, &target.path),
                    Recipe::Round(_) => self.made_by_rounding(&converted, &target.path),
                    _ => made_by_convert(&converted, &target.path),
                }
            }
            Recipe::Lower(lowered) => {
                // Mapped only while it is read: pages that two processes map
                // would count half in the other's PSS.
                let source = ModelFile::open(&self.job.source)?;
                let bar = (self.ui).bar("requantizing", lowered.file_bytes, Unit::Bytes);
                let variant = Variant::with_types(&source, &lowered.types)
                    .map_err(InputError::content(&self.job.source))?;
                convert::write_plain(&variant, &target.path, true, &|done| bar.set(done))?;
                drop(bar);
                self.ui.remark(&format!("{label}: requantized"));
                made_by_lowering(&source.gguf, lowered, &target.path)
            }
        }
    }
}

/// What a conversion says of a file that it made to fit.
fn made_to_fit(found: &Converted, path: &Path) -> Result<FileFacts, Error> {
    let file = Input::read(path, path)?.file;
    let fit = found.fit.as_ref();
    let changes = fit.map(|fit| &fit.changes);
    let kinds = changes.map_or(&[][..], |of| &of.types);
    let retyped = kinds.iter().filter(|kind| kind.from != kind.to);
    let changed: usize = retyped.clone().map(|kind| kind.tensors).sum();
    let kinds = retyped.map(|kind| tensors(kind.tensors, &kind.from, &kind.to));
    let mut how: Vec<String> = kinds.collect();
    if let Some(to) = changes.and_then(|of| of.output_head.as_ref()) {
        how.push(format!("the output head has weights of its own, {to}"));
    }
    let (units, channels) = changes.map_or((0, 0), |of| (of.units, of.channels));
    if units > 0 || channels > 0 {
        how.push(format!(
            "{units} units of attention and {channels} feed-forward channels go"
        ));
    }
    if let Some(shared) = changes.map(|of| of.shared).filter(|&shared| shared > 0) {
        how.push(format!("{shared} units use the weights of others"));
    }
    let of = fit.map_or(0, |fit| fit.tensors as u64);
    Ok(FileFacts {
        file_bytes: file.bytes,
        digest: file.digest,
        changed: changed as u64,
        dropped: units,
        of,
        share: changed as f64 / of.max(1) as f64,
        how: how.join(", "),
    })
}

/// So many tensors that have another type, in words.
fn tensors(count: usize, from: &dyn Display, to: &dyn Display) -> String {
    format!("{count} tensors from {from} to {to}")
}

/// What a conversion says of its output.
fn made_by_convert(found: &Converted, path: &Path) -> Result<FileFacts, Error> {
    let units = |plan: &Plan| plan.choice.units.unwrap_or(0) as u64;
    let units = found.plan.as_ref().map_or(0, units);
    let (aliases, dropped) = found.plan.as_ref().map_or((0, 0), changed_units);
    let mut how = format!("of {units} units {}", doings(aliases, dropped));
    if found.duplicates.bytes > 0 {
        let bytes = found.duplicates.bytes;
        how += &format!(", {bytes} bytes of exact duplicates are stored once");
    }
    if let Some(record) = &found.repair {
        how += &format!(
            ", {} tensors are refitted on {} windows",
            record.tensors.len(),
            record.windows
        );
    }
    let file = Input::read(path, path)?.file;
    Ok(FileFacts {
        file_bytes: file.bytes,
        digest: file.digest,
        changed: aliases,
        dropped,
        of: units,
        share: (aliases + dropped) as f64 / units.max(1) as f64,
        how,
    })
}

/// What was done to so many units, in words.
pub(super) fn doings(aliases: u64, dropped: u64) -> String {
    let mut doings = Vec::new();
    if dropped > 0 {
        doings.push(format!("{dropped} are dropped"));
    }
    if aliases > 0 || dropped == 0 {
        doings.push(format!("{aliases} use another unit's weights"));
    }
    doings.join(" and ")
}

/// Units that share, and units that are dropped. One whose parts are matched apart stands
/// in a plan several times.
pub(super) fn changed_units(plan: &Plan) -> (u64, u64) {
    let shared: BTreeSet<_> = plan.shares().map(|edit| (edit.layer, edit.unit)).collect();
    let dropped: BTreeSet<_> = plan.drops().map(|edit| (edit.layer, edit.unit)).collect();
    (shared.len() as u64, dropped.len() as u64)
}

fn made_by_lowering(gguf: &Gguf, lowered: &Lowered, path: &Path) -> Result<FileFacts, Error> {
    let types = lowered.types.tensors.iter();
    let types = types.map(|(&tensor, &to)| (gguf.tensors()[tensor].ggml_type, to));
    let how = kinds(types);
    let file = Input::read(path, path)?.file;
    Ok(FileFacts {
        file_bytes: file.bytes,
        digest: file.digest,
        changed: lowered.types.tensors.len() as u64,
        dropped: 0,
        of: Lowering::of(gguf).order.len() as u64,
        share: lowered.share(),
        how,
    })
}

/// Types that tensors had, and those that they have, in words.
fn kinds(types: impl Iterator<Item = (GgmlType, GgmlType)>) -> String {
    let mut kinds: BTreeMap<(GgmlType, GgmlType), usize> = BTreeMap::new();
    for kind in types {
        *kinds.entry(kind).or_default() += 1;
    }
    let kinds = kinds.into_iter();
    let kinds: Vec<String> = kinds
        .map(|((from, to), n)| tensors(n, &from, &to))
        .collect();
    kinds.join(", ")
}
