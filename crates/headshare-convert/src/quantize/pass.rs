//! Quantizing a model: types become edits of its plan, and their tensors' data are
//! made in one pass of the engine, or by ggml's rounding.

use std::collections::{BTreeMap, BTreeSet};

use faer::Mat;
use headshare_format::layout::SharedRows;
use headshare_format::{GgmlType, Gguf, TensorInfo};

use headshare_runtime::quants;

use super::error::QuantizerError;
use super::imatrix;
use super::importance::{self, Importances, Measure};
use super::record::{Calibrated, Counts, QuantizeRecord, Settings};
use super::types::{Assigned, Wanted};
use super::visitor::Quantizer;
use crate::convert::variant::{Heads, Variant};
use crate::convert::{ConvertError, Fitted, Room, attention_map, shared_rows};
use crate::engine::normal::Sums;
use crate::engine::{
    self, Block, Engine, EngineError, Options, Seen, Shared, Site, Visitor, Wants, Windows,
};
use crate::input::ModelFile;
use crate::model::AttentionMap;
use crate::plan::{Edit, Plan, Store};
use crate::repair::{self, Record, Refitter, SurveyRecord, check_supported};

/// What a pass takes that quantizes `source` as `types` say.
pub fn takes<'a>(types: &'a Types, source: &ModelFile) -> (impl Fn(&TensorInfo) -> u64 + 'a, u64) {
    let at = |info: &TensorInfo| {
        if !types.assigned.types.contains_key(&info.name) {
            return 0;
        }
        let (inputs, outputs) = (info.row_elems(), info.dims.get(1).copied().unwrap_or(1));
        let outputs = outputs.min(super::visitor::OUTPUTS as u64);
        // The sums, to fit and held out and both; the weights a few times over.
        let weights = inputs.saturating_mul(outputs).saturating_mul(6 * 8);
        let stacked = info.rows().saturating_mul(inputs).saturating_mul(8);
        (Sums::bytes(inputs, outputs).saturating_mul(2))
            .saturating_add(weights)
            .saturating_add(stacked)
    };
    // The changed stream holds plain numbers where the source may hold fewer bits, and
    // what is made is kept until it is written.
    let numbers = |name: &String| {
        source
            .gguf
            .tensor(name)
            .map_or(0, |i| 4 * i.rows() * i.row_elems())
    };
    let kept: u64 = types.assigned.types.keys().map(numbers).sum();
    (at, kept)
}

/// A plan with the types that tensors get, and what they have in common.
#[derive(Debug, Clone)]
pub struct Types {
    /// The plan.
    pub plan: Plan,
    /// What was assigned.
    pub assigned: Assigned,
    /// Rows that are stored once: by the plan, or since they are equal in the source.
    pub shared: Vec<SharedRows>,
    /// The plan before the types were added to it.
    base: Plan,
}

impl Encoded {
    /// For [`prepare`](crate::convert::prepare): made as `record` says; `longest` is the record of a repair that no other is longer
    /// than, where one was wanted. Without data it says how much room they take.
    pub fn into_fitted(
        self,
        types: &Types,
        record: &QuantizeRecord,
        longest: Option<&Record>,
    ) -> Fitted {
        let tensors: BTreeSet<String> = types.assigned.types.keys().cloned().collect();
        let room = Room {
            by: record.to_json(longest).len(),
            certain: tensors.clone(),
            tensors,
        };
        Fitted {
            shared: types.shared.clone(),
            by: record.to_json(self.repair.as_ref().or(longest)),
            room,
            tensors: self.tensors,
        }
    }
}

/// New data for a model's tensors.
#[derive(Debug, Clone, Default)]
pub struct Encoded {
    /// By name.
    pub tensors: BTreeMap<String, Vec<u8>>,
    /// How they were made.
    pub counts: Counts,
    /// What was refitted beside, where that was wanted.
    pub repair: Option<Record>,
}

/// How matrices are fitted.
#[derive(Debug, Clone, Copy)]
pub struct Fit<'a> {
    /// The text.
    pub windows: &'a Windows,
    /// How the engine runs.
    pub options: &'a Options,
    /// How weights are fitted and encoded.
    pub settings: Settings,
    /// Refits the layers after what the plan shares or drops first.
    pub repair: bool,
}

/// Adds to `plan` the types that `wanted` gives to what it makes of `source`. What is
/// quantized already gets another type only with `requantize`.
///
/// # Errors
/// When there is no such type, or the plan cannot be carried out.
pub fn assign(
    source: &ModelFile,
    plan: Plan,
    wanted: &Wanted,
    requantize: bool,
) -> Result<Types, QuantizerError> {
    let before = Variant::new(source, &plan, None)?;
    let mut assigned = wanted.assign(before.gguf(), requantize)?;
    // A type that the plan gives to a tensor itself is its own.
    for store in plan.stores() {
        assigned.types.remove(&store.tensor);
    }
    let shared = shared_rows(&before, &plan)?;
    let gguf = before.gguf();
    let name = |tensor: usize| gguf.tensors()[tensor].name.clone();
    assigned.agree(shared.iter().map(|s| (name(s.alias), name(s.donor))));
    let base = plan.clone();
    let mut plan = plan;
    plan.edits.extend(assigned.edits());
    plan.choice.file_type = assigned.file_type;
    let shared = of_types(&shared, gguf, &assigned);
    Ok(Types {
        plan,
        assigned,
        shared,
        base,
    })
}

/// The same rows where tensors have their new types; what has no type there is left
/// out.
fn of_types(shared: &[SharedRows], gguf: &Gguf, assigned: &Assigned) -> Vec<SharedRows> {
    let tensors = gguf.tensors();
    (shared.iter())
        .filter_map(|s| {
            let info = &tensors[s.alias];
            let to = assigned.types.get(&info.name)?;
            let bytes = |old: u64| {
                old / info.row_bytes() * (info.row_elems() / to.block_elems() * to.block_bytes())
            };
            Some(SharedRows {
                alias_offset: bytes(s.alias_offset),
                donor_offset: bytes(s.donor_offset),
                len: bytes(s.len),
                ..*s
            })
        })
        .collect()
}

impl Types {
    /// The model that is made of `source`.
    ///
    /// # Errors
    /// When the plan cannot be carried out.
    pub fn target<'s>(&self, source: &'s ModelFile) -> Result<Variant<'s>, ConvertError> {
        Variant::new(source, &self.plan, None)
    }

    /// Whether ggml's rounding with the importances `of` columns makes use of weights.
    ///
    /// # Errors
    /// When there are none at all and a type needs them.
    pub fn check_rounding(&self, of: &Importances) -> Result<(), QuantizerError> {
        let needs = |(_, t): &(&String, &GgmlType)| quants::needs_importance(t.id());
        if let Some((name, &ggml_type)) = self.assigned.types.iter().find(needs)
            && of.is_empty()
        {
            let name = name.clone();
            return Err(QuantizerError::NeedsImportances { name, ggml_type });
        }
        Ok(())
    }

    /// Quantizes with the importances `of` columns, as ggml rounds; without any
    /// where there are none.
    ///
    /// # Errors
    /// When ggml refuses, or there are no importances at all and a type needs them.
    pub fn round(&self, source: &ModelFile, of: &Importances) -> Result<Encoded, QuantizerError> {
        self.check_rounding(of)?;
        let target = self.target(source)?;
        let whole = |s: &&SharedRows| s.len == target.gguf().tensors()[s.alias].byte_len();
        let name = |tensor: usize| target.gguf().tensors()[tensor].name.clone();
        let in_common: Vec<(String, String)> = (self.shared.iter().filter(whole))
            .map(|s| (name(s.alias), name(s.donor)))
            .collect();
        let of = &imatrix::pooled(of, &in_common);
        let mut done = Encoded::default();
        for name in self.assigned.types.keys() {
            let bytes =
                importance::encoded(&target, name, of).map_err(|error| QuantizerError::Tensor {
                    name: name.clone(),
                    error: error.into(),
                })?;
            match of.contains_key(name) {
                true => done.counts.weighted += 1,
                false => done.counts.rounded += 1,
            }
            done.tensors.insert(name.clone(), bytes);
        }
        self.give_to_aliases(target.gguf(), &mut done.tensors);
        Ok(done)
    }

    /// Fits and encodes in one pass of the engine, beside `others`, which come to each
    /// matrix first.
    ///
    /// # Errors
    /// [`QuantizerError`].
    pub fn fit(
        &self,
        source: &ModelFile,
        how: Fit<'_>,
        progress: &dyn Fn(f64),
    ) -> Result<Encoded, QuantizerError> {
        let Fit {
            windows,
            options,
            settings,
            ..
        } = how;
        let target = self.target(source)?;
        let stream = Variant::new(source, &self.stream_plan(source), None)?;
        let mut engine = Engine::load(source, Some(&stream), windows, options)?;
        let links = links(&self.shared, target.gguf());
        engine.share(&links)?;
        let passes = if links.is_empty() { 1.0 } else { 2.0 };
        if !links.is_empty() {
            engine.gather(&|done| progress(done / passes))?;
        }
        let mut quantizer = Quantizer {
            stream: &stream,
            types: &self.assigned.types,
            settings,
            tied: self.tied_inputs(&mut engine)?,
            planned: self.planned(target.gguf())?,
            made: BTreeMap::new(),
            counts: Counts::default(),
        };
        let of_pass = |done| progress((passes - 1.0 + done) / passes);
        let repair = match how.repair {
            true => Some(self.run_beside(
                source,
                &stream,
                &mut engine,
                &mut quantizer,
                how,
                &of_pass,
            )?),
            false => {
                engine.run(&mut [&mut quantizer], &of_pass)?;
                None
            }
        };
        let mut done = Encoded {
            tensors: quantizer.made,
            counts: quantizer.counts,
            repair,
        };
        self.give_to_aliases(target.gguf(), &mut done.tensors);
        Ok(done)
    }

    /// Runs with a visitor before `quantizer` that refits what writes to the residual
    /// stream after the plan's other edits.
    fn run_beside(
        &self,
        source: &ModelFile,
        stream: &Variant<'_>,
        engine: &mut Engine<'_>,
        quantizer: &mut Quantizer<'_>,
        how: Fit<'_>,
        progress: &dyn Fn(f64),
    ) -> Result<Record, QuantizerError> {
        let map = attention_map(source)?;
        check_supported(&map)?;
        let layers = repair::layers_to_repair(&map, &self.base);
        let of_stream = AttentionMap::of(stream.gguf());
        let of_stream = of_stream.map_err(|error| ConvertError::model(source, error))?;
        let internal = |e: &dyn std::fmt::Display| EngineError::Internal(e.to_string());
        let heads = Heads::new(source, &map, BTreeSet::new()).map_err(|e| internal(&e))?;
        let renumbered = self.base.renumbered();
        let record = repair::record(how.windows, engine.outputs());
        let mut refitter = repair::beside(stream, &of_stream, &renumbered, &heads, layers, record);
        engine.run(&mut [&mut Beside(&mut refitter), quantizer], progress)?;
        Ok(refitter.repaired.record)
    }

    /// The record of a repair beside, which no other is longer than.
    ///
    /// # Errors
    /// When the plan cannot be carried out.
    pub fn longest_repair(
        &self,
        source: &ModelFile,
        how: Fit<'_>,
        choice: Option<SurveyRecord>,
    ) -> Result<Record, ConvertError> {
        let map = attention_map(source)?;
        let could_be = repair::could_be(&self.target(source)?, &map, &self.base);
        let outputs = engine::outputs(how.windows, how.options);
        let record = Record {
            choice,
            ..repair::record(how.windows, outputs)
        };
        Ok(record.longest(&could_be))
    }

    /// How [`fit`](Self::fit) goes about it.
    pub fn record(how: Fit<'_>) -> Calibrated {
        let Fit {
            windows,
            options,
            settings,
            ..
        } = how;
        Calibrated {
            text: windows.digest.clone(),
            windows: windows.count,
            window: windows.window,
            outputs: engine::outputs(windows, options),
            threads: rayon::current_num_threads(),
            settings,
        }
    }

    /// The plan of the changed stream: what gets a type has one of plain numbers.
    fn stream_plan(&self, source: &ModelFile) -> Plan {
        let mut plan = self.plan.clone();
        for edit in &mut plan.edits {
            let Edit::Store(Store { tensor, ggml_type }) = edit else {
                continue;
            };
            if self.assigned.types.contains_key(tensor) {
                let of = source.gguf.tensor(tensor).map(|info| info.ggml_type);
                // F16 holds what quantized weights stand for well enough.
                let exact = of.is_some_and(|t| ["f32", "bf16"].contains(&t.name()));
                *ggml_type = if exact { plain("f32") } else { plain("f16") };
            }
        }
        plan
    }

    /// The blocks that units use which the plan lets share, by matrix and first row.
    fn planned(&self, gguf: &Gguf) -> Result<BTreeSet<(String, usize)>, QuantizerError> {
        let renumbered = self.base.renumbered();
        if renumbered.shares().next().is_none() {
            return Ok(BTreeSet::new());
        }
        let map = AttentionMap::of(gguf);
        let map = map.map_err(|error| EngineError::Internal(error.to_string()))?;
        let shared = engine::shared_by(&renumbered, &map, gguf);
        let donors = shared.into_iter().map(|s| s.donor);
        Ok(donors
            .map(|donor| (donor.matrix, donor.rows.start))
            .collect())
    }

    /// The Gram matrices of the inputs of output heads that are token embeddings.
    fn tied_inputs(
        &self,
        engine: &mut Engine<'_>,
    ) -> Result<BTreeMap<String, Mat<f64>>, QuantizerError> {
        let mut seen = HeadInputs {
            types: &self.assigned.types,
            grams: BTreeMap::new(),
        };
        engine.run::<QuantizerError>(&mut [&mut seen], &|_| {})?;
        Ok(seen.grams)
    }

    /// Puts donors' rows into their aliases' places.
    fn give_to_aliases(&self, gguf: &Gguf, made: &mut BTreeMap<String, Vec<u8>>) {
        let name = |tensor: usize| &gguf.tensors()[tensor].name;
        for s in &self.shared {
            let Some(donor) = made.get(name(s.donor)) else {
                continue;
            };
            let rows = donor[s.donor_offset as usize..(s.donor_offset + s.len) as usize].to_vec();
            if let Some(alias) = made.get_mut(name(s.alias)) {
                alias[s.alias_offset as usize..(s.alias_offset + s.len) as usize]
                    .copy_from_slice(&rows);
            }
        }
    }
}

/// Measures the importances of all columns of `source`.
///
/// # Errors
/// When the engine cannot run.
pub fn measure(
    source: &ModelFile,
    windows: &Windows,
    options: &Options,
    progress: &dyn Fn(f64),
) -> Result<Importances, QuantizerError> {
    let mut engine = Engine::load(source, None, windows, options)?;
    let mut measure = Measure::default();
    engine.run::<QuantizerError>(&mut [&mut measure], progress)?;
    // llama-quantize rounds tables and output heads without importances.
    measure.of.retain(|name, _| name.starts_with("blk."));
    Ok(measure.of)
}

/// One of ggml's types of plain numbers.
fn plain(name: &str) -> GgmlType {
    let named = GgmlType::all().find(|t| t.name() == name);
    named.expect("ggml has it")
}

/// Shared rows as the engine knows them.
fn links(shared: &[SharedRows], gguf: &Gguf) -> Vec<Shared> {
    let block = |tensor: usize, offset: u64, len: u64| {
        let info = &gguf.tensors()[tensor];
        let row = |bytes: u64| (bytes / info.row_bytes()) as usize;
        Block {
            matrix: info.name.clone(),
            rows: row(offset)..row(offset + len),
        }
    };
    let all = shared.iter().map(|s| Shared {
        user: block(s.alias, s.alias_offset, s.len),
        donor: block(s.donor, s.donor_offset, s.len),
    });
    let of_an_expert = |name: &str| {
        let info = gguf.tensor(name)?;
        (info.dims.len() > 2).then(|| info.dims[1] as usize)
    };
    engine::by_expert(all.collect(), &of_an_expert)
}

/// A visitor of repair, beside one that quantizes.
struct Beside<'r, 'a>(&'r mut Refitter<'a>);

impl Visitor<QuantizerError> for Beside<'_, '_> {
    fn wants(&mut self, site: &Site) -> Result<Wants, QuantizerError> {
        Ok(self.0.wants(site)?)
    }

    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, QuantizerError> {
        Ok(self.0.visit(site, seen)?)
    }
}

/// Sums up what goes into output heads that are token embeddings, too.
struct HeadInputs<'a> {
    types: &'a BTreeMap<String, GgmlType>,
    grams: BTreeMap<String, Mat<f64>>,
}

impl Visitor<QuantizerError> for HeadInputs<'_> {
    fn wants(&mut self, site: &Site) -> Result<Wants, QuantizerError> {
        let tied = site.role == engine::Role::Head && site.name != "output.weight";
        Ok(match tied && self.types.contains_key(&site.name) {
            true => Wants::Inputs,
            false => Wants::Nothing,
        })
    }

    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, QuantizerError> {
        self.grams.insert(site.name.clone(), seen.sums().all().gram);
        Ok(None)
    }
}
