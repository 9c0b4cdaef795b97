//! The best model for so many bytes: types are chosen by what their errors do to the
//! running model, then everything is fitted and encoded in one pass.

use std::collections::BTreeMap;
use std::path::Path;

use headshare_convert::convert;
use headshare_convert::convert::variant::{EMBEDDING, HEAD};
use headshare_convert::fit::cuts::Part;
use headshare_convert::fit::{self, FitError, Group, Movable, Point, Statistics, moves, select};
use headshare_convert::input::ModelFile;
use headshare_convert::input::text::{self, Contents};
use headshare_convert::plan::{Edit, Plan};
use headshare_convert::quantize::takes;
use headshare_convert::quantize::types::Wanted;
use headshare_eval::analyze::picture::Format;
use headshare_eval::analyze::{file_name, frontier};
use headshare_files::{AtomicFile, FileId};
use headshare_format::GgmlType;
use serde::{Deserialize, Serialize};

use super::calibrate::Calibration;
use super::choose::Stats;
use super::quantize::{Quantization, With, unplanned};
use crate::error::Context as _;
use crate::output::Written;
use crate::{Error, Ui, Unit};

/// Windows that a plan is made with to see how good it is, at most.
const TRIED_WITH: u32 = 8;

/// Other plans that are made to be compared with the one that is predicted to be best.
const OTHERS: usize = 2;

/// Attempts to come below a size whose header depends on what is chosen.
const ATTEMPTS: usize = 8;

/// What a model is to fit into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Bytes that the file may have.
    pub bytes: u64,
    /// The types that tensors may get; by default those that ggml is good at.
    pub types: Option<Vec<String>>,
    /// The text that is probed and fitted with.
    pub calibration: Calibration,
    /// What is done with what was measured.
    pub stats: Stats,
}

/// How a model was made to fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MadeToFit {
    /// Bytes that it was to have at most.
    pub wanted: u64,
    /// The divergence from the source that encoding at these types was predicted to make,
    /// in nats a token. Fitting makes less of it.
    pub predicted: f64,
    /// Tensors that could have other types.
    pub tensors: usize,
    /// What became of them.
    pub types: Vec<Retyped>,
    /// The type of the output head, where the token embedding was that, too, and it got weights
    /// of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_head: Option<String>,
    /// Units of attention that were dropped.
    pub units: u64,
    /// Channels of feed-forward layers that were deleted.
    pub channels: u64,
    /// The bytes of the file, and the least predicted divergence, from the source down to
    /// the smallest.
    pub frontier: Vec<Point>,
    /// Plans that were really made to find the best, with a few of the windows, and measured on
    /// others; empty where only one was there, and in a dry run.
    pub tried: Vec<Tried>,
}

/// A plan that was made and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// The divergence that was predicted, in nats a token.
    pub predicted: f64,
    /// The one that it has.
    pub measured: f64,
}

/// What makes a model fit.
pub(super) struct ToFit {
    /// The types.
    pub quantization: Quantization,
    /// What goes.
    pub plan: Option<Plan>,
}

/// Tensors that got another type, or kept theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retyped {
    /// The type that they had.
    pub from: String,
    /// The type that they have.
    pub to: String,
    /// How many.
    pub tensors: usize,
}

impl MadeToFit {
    /// Draws the frontier of `source`, and what was chosen of it, a file of `bytes`.
    pub(super) fn draw(
        &self,
        source: &Path,
        bytes: u64,
        written: Written<'_>,
        ui: &dyn Ui,
    ) -> Result<(), Error> {
        let name = file_name(source);
        let title = format!("{name} in fewer bytes");
        let points: Vec<(u64, f64)> = self.frontier.iter().map(|p| (p.bytes, p.cost)).collect();
        let chosen = (bytes, self.predicted);
        let Some(scene) = frontier::picture(&title, &points, chosen) else {
            ui.remark("note: no move costs anything, so there is nothing to draw");
            return Ok(());
        };
        let format = Format::of(written.path).unwrap_or(Format::Svg);
        written.write(&scene.encode(format), ui)
    }
}

impl Budget {
    /// What could be done to `source`, and what was chosen for it: first what is predicted
    /// to cost least. `size_of` is the size of what comes out.
    pub(super) fn choose(
        &self,
        source: &ModelFile,
        size_of: &dyn Fn(&ToFit) -> Result<u64, Error>,
        (force, inputs): (bool, &[FileId]),
        ui: &dyn Ui,
    ) -> Result<Vec<(ToFit, MadeToFit)>, Error> {
        if source.len() <= self.bytes {
            return Err(self.about(
                source,
                FitError::FitsAlready {
                    has: source.len(),
                    wanted: self.bytes,
                },
            ));
        }
        let of_source = |error| self.about(source, error);
        let types = moves::types(self.types.as_deref()).map_err(Error::from)?;
        let movable = moves::movable(source, &types).map_err(of_source)?;
        let statistics = self.statistics(source, &movable, force, inputs, ui)?;
        if statistics.cuts.is_empty() {
            ui.remark("note: llama.cpp has one size for all layers of such a model, so no units or channels go");
        }
        let groups = fit::groups(source, &movable, &statistics).map_err(of_source)?;
        let all: Vec<select::Alternatives> = groups.iter().map(Group::alternatives).collect();
        let rest = source.len() - all.iter().map(|of| of[0].0).sum::<u64>();
        let least = |of: &select::Alternatives| of.iter().map(|a| a.0).min().unwrap_or_default();
        let smallest = rest + all.iter().map(least).sum::<u64>();
        let too_small = |smallest| {
            let wanted = self.bytes;
            self.about(source, FitError::TooSmall { wanted, smallest })
        };
        // What a header says of all this takes bytes, too.
        let mut header = 0;
        let mut fitted = |allowed: &dyn Fn(usize, usize) -> bool| {
            for _ in 0..ATTEMPTS {
                let budget = self.bytes.saturating_sub(rest + header);
                let Some(chosen) = select::choose_among(&all, budget, allowed) else {
                    return Ok(None);
                };
                let changes = fit::changes(&groups, &chosen.which);
                let made = ToFit {
                    quantization: self.quantization(source, &changes.types),
                    plan: (!changes.edits.is_empty()).then(|| planned(changes.edits.clone())),
                };
                let size = size_of(&made)?;
                if size <= self.bytes {
                    return Ok::<_, Error>(Some((chosen, made, changes.types)));
                }
                header += size - self.bytes;
            }
            Ok(None)
        };
        let Some(best) = fitted(&|_, _| true)? else {
            return Err(too_small(smallest + header));
        };
        let mut found = vec![best];
        for other in others(&groups, &all, &found[0].0) {
            if found.len() > OTHERS {
                break;
            }
            if let Some(other) = fitted(&*other)?
                && found.iter().all(|(chosen, ..)| *chosen != other.0)
            {
                found.push(other);
            }
        }
        let frontier: Vec<Point> = (select::frontier(&all).into_iter())
            .map(|point| Point {
                bytes: point.bytes + rest + header,
                ..point
            })
            .collect();
        let candidates = found.into_iter().map(|(chosen, made, types)| {
            let [units, channels] = gone(&groups, &chosen.which);
            let fit = MadeToFit {
                wanted: self.bytes,
                predicted: chosen.cost,
                tensors: movable.len(),
                types: counted(&movable, &types),
                output_head: own_head(source, &types).map(|to| to.name().to_owned()),
                units,
                channels,
                frontier: frontier.clone(),
                tried: Vec::new(),
            };
            (made, fit)
        });
        Ok(candidates.collect())
    }

    /// What the moves of `movable` do to `source`: measured, or read.
    fn statistics(
        &self,
        source: &ModelFile,
        movable: &[Movable],
        force: bool,
        inputs: &[FileId],
        ui: &dyn Ui,
    ) -> Result<Statistics, Error> {
        if let Stats::Save(path) = &self.stats {
            AtomicFile::check(path, force, inputs)?;
        }
        let digest = convert::digest_of(source);
        let ready = self.calibration.prepare(source, takes(source), true, ui)?;
        if let Stats::Load(path) = &self.stats {
            let file = Contents::open(path)?;
            let read = Statistics::from_json(&file, &digest, &ready.windows);
            return read.about(|| text::name(path));
        }
        let bar = ui.bar("measuring", 1000, Unit::Parts);
        let with = (&ready.windows, &ready.options);
        let of = (source, &digest[..]);
        let measured = Statistics::measure(of, movable, with, &|done| bar.part(done));
        let measured = measured.map_err(|error| self.about(source, error))?;
        if let Stats::Save(path) = &self.stats {
            measured.write(path, force, inputs)?;
        }
        Ok(measured)
    }

    /// What gives tensors their types, those of `to` by name.
    fn quantization(&self, source: &ModelFile, to: &BTreeMap<&str, GgmlType>) -> Quantization {
        let tensors = source.gguf.tensors().iter();
        let matrices = tensors.filter(|info| info.dims.len() > 1).map(|info| {
            let name = info.name.as_str();
            let to = to.get(name).copied().unwrap_or(info.ggml_type);
            (name, to, info.row_elems() * info.rows())
        });
        let table = source.gguf.tensor(EMBEDDING);
        let head = own_head(source, to).zip(table);
        let head = head.map(|(to, table)| (HEAD, to, table.row_elems() * table.rows()));
        Quantization {
            wanted: Wanted {
                untie: head.is_some(),
                ..Wanted::exactly(matrices.chain(head))
            },
            with: With::Calibration {
                calibration: self.calibration.clone(),
                settings: None,
                save_imatrix: None,
            },
            allow_requantize: true,
        }
    }

    /// The text, with so many of `windows` that every other one of them is left to measure
    /// on; `None` where they are too few.
    pub(super) fn some_of(&self, windows: u32) -> Option<Calibration> {
        // Windows are spread evenly, so these are among the even ones where they divide half.
        let half = windows / 2;
        let divides = |n: &u32| half.is_multiple_of(*n) && windows.is_multiple_of(2);
        let some = (2..=TRIED_WITH).rev().find(divides);
        let windows = some.unwrap_or(half.min(TRIED_WITH));
        (windows >= 2).then(|| Calibration {
            windows,
            ..self.calibration.clone()
        })
    }

    fn about(&self, source: &ModelFile, error: FitError) -> Error {
        Error::from(error).about(source.path().display())
    }
}

/// A plan of these edits.
fn planned(edits: Vec<Edit>) -> Plan {
    let mut plan = unplanned();
    plan.edits = edits;
    plan
}

/// What other plans are allowed, by group and alternative, than the one that `chosen` is
/// predicted to be best: without cuts, and with the dearest group larger and smaller.
fn others<'a>(
    groups: &'a [Group<'_>],
    all: &[select::Alternatives],
    chosen: &select::Chosen,
) -> Vec<Box<dyn Fn(usize, usize) -> bool + 'a>> {
    let mut others: Vec<Box<dyn Fn(usize, usize) -> bool + 'a>> = Vec::new();
    let which = &chosen.which;
    if (groups.iter().zip(which)).any(|(group, &i)| !group.is_whole(i)) {
        others.push(Box::new(|group: usize, i| groups[group].is_whole(i)));
    }
    let cost = |&group: &usize| all[group][which[group]].1;
    let dearest = (0..all.len()).max_by(|a, b| cost(a).total_cmp(&cost(b)));
    if let Some(dearest) = dearest {
        let now = which[dearest];
        let larger = now.checked_sub(1);
        let smaller = Some(now + 1).filter(|&i| i < all[dearest].len());
        for i in larger.into_iter().chain(smaller) {
            others.push(Box::new(move |group, other| group != dearest || other == i));
        }
    }
    others
}

/// Units and channels that go with the chosen alternatives of `groups`.
fn gone(groups: &[Group<'_>], which: &[usize]) -> [u64; 2] {
    let mut gone = [0, 0];
    for (group, &which) in groups.iter().zip(which) {
        if let Some((part, count)) = group.gone(which) {
            gone[usize::from(part == Part::FeedForward)] += u64::from(count);
        }
    }
    gone
}

/// The type of the output head among those of `to`, where `source` has none of its own.
fn own_head(source: &ModelFile, to: &BTreeMap<&str, GgmlType>) -> Option<GgmlType> {
    let head = to.get(HEAD).copied();
    head.filter(|_| source.gguf.tensor(HEAD).is_none())
}

fn counted(movable: &[Movable], to: &BTreeMap<&str, GgmlType>) -> Vec<Retyped> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for tensor in movable {
        let now = to.get(tensor.name.as_str()).copied().unwrap_or(tensor.has);
        *counts.entry((tensor.has.name(), now.name())).or_default() += 1;
    }
    let retyped = |((from, to), tensors): ((&str, &str), usize)| Retyped {
        from: from.to_owned(),
        to: to.to_owned(),
        tensors,
    };
    counts.into_iter().map(retyped).collect()
}
