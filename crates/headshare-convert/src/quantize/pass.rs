//! Making the data of tensors that get other types: in one pass of the engine, or by
//! ggml's rounding.

use std::collections::{BTreeMap, BTreeSet};

use faer::Mat;
use headshare_format::{GgmlType, TensorInfo};

use super::assign::TypedPlan;
use super::error::QuantizerError;
use super::imatrix;
use super::importance::{Importances, Measure, SquaredInputs};
use super::record::{By, Calibrated, Counts, QuantizeRecord, Settings, Unfitted};
use super::visitor::{OUTPUTS, Quantizer};
use crate::convert::variant::{EMBEDDING, Heads, Variant};
use crate::convert::{ConvertError, Fitted, FittedBy, Room, attention_map};
use crate::encode;
use crate::engine::normal::Sums;
use crate::engine::{
    self, Engine, EngineError, Options, Role, Seen, Site, Takes, Visitor, Wants, Windows,
};
use crate::input::ModelFile;
use crate::model::AttentionMap;
use crate::plan::{Edit, Plan, Store};
use crate::repair::{self, Record, Refitter, SurveyRecord, check_supported};

/// What a pass takes that quantizes all of `source`, beside what is
/// [`kept`](TypedPlan::kept) for a plan.
pub fn takes(source: &ModelFile) -> Takes<'static> {
    // Both streams hold plain numbers where the source may hold fewer bits, and what is
    // made is kept until it is written.
    let matrices = source.gguf.tensors().iter().filter(|t| t.dims.len() > 1);
    Takes {
        at: &bytes_at,
        kept: matrices.map(kept).sum(),
    }
}

/// The same, where a repair refits matrices of `source` first.
pub fn takes_with_repair(source: &ModelFile) -> Takes<'static> {
    Takes {
        at: &|info| bytes_at(info).max(repair::bytes_at(info)),
        ..takes(source)
    }
}

/// Bytes of a matrix in both streams, and of what is made of it.
fn kept(info: &TensorInfo) -> u64 {
    6 * info.rows() * info.row_elems()
}

/// The sums of a matrix, the same of what is fitted, held out and both; some of its
/// weights in double precision, a few times over; and all of them in single.
fn bytes_at(info: &TensorInfo) -> u64 {
    let [inputs, rows, ..] = info.dims[..] else {
        return 0;
    };
    let outputs = rows.min(OUTPUTS as u64);
    let weights = inputs.saturating_mul(outputs).saturating_mul(6 * 8);
    let whole = info.rows().saturating_mul(inputs).saturating_mul(2 * 4);
    (Sums::bytes(inputs, outputs).saturating_mul(3))
        .saturating_add(weights)
        .saturating_add(whole)
}

/// New data for a model's tensors.
#[derive(Debug, Clone, Default)]
pub struct NewTensors {
    /// By name.
    pub tensors: BTreeMap<String, Vec<u8>>,
    /// How they were made.
    pub counts: Counts,
    /// Those that could not be fitted.
    pub unfitted: Unfitted,
    /// What was refitted beside, where that was wanted.
    pub repair: Option<Record>,
}

impl NewTensors {
    /// For [`prepare`](crate::convert::prepare): made as `record` says; `longest` is
    /// the record of a repair that no other is longer than, where one was wanted, with the
    /// tensors that it may replace.
    /// Without data it says how much room they take.
    pub fn into_fitted(
        self,
        typed: &TypedPlan,
        record: &QuantizeRecord,
        longest: Option<&(Record, BTreeSet<String>)>,
    ) -> Fitted {
        let longest_record = longest.map(|(record, _)| record);
        let by = |repair: Option<&Record>| FittedBy {
            repair: repair.map(Record::to_json),
            quantized: Some(record.to_json()),
            trained: None,
        };
        let certain: BTreeSet<String> = typed.assigned.types.keys().cloned().collect();
        let mut tensors = certain.clone();
        tensors.extend(
            longest
                .iter()
                .flat_map(|(_, could_be)| could_be.iter().cloned()),
        );
        if matches!(record.by, By::Calibration(_)) {
            tensors.extend(typed.assigned.kept.keys().cloned());
        }
        Fitted {
            duplicates: typed.duplicates.clone(),
            by: by(self.repair.as_ref().or(longest_record)),
            room: Room {
                by: by(longest_record),
                certain,
                tensors,
            },
            tensors: self.tensors,
        }
    }
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

impl Fit<'_> {
    /// What a file says of it.
    pub fn record(&self) -> Calibrated {
        Calibrated {
            text: self.windows.digest.clone(),
            windows: self.windows.count,
            window: self.windows.window,
            outputs: engine::outputs(self.windows, self.options),
            threads: rayon::current_num_threads(),
            settings: self.settings,
        }
    }
}

impl TypedPlan {
    /// Quantizes with the importances `of` columns, as ggml rounds; without any
    /// where there are none.
    ///
    /// # Errors
    /// When ggml refuses, or there are no importances at all and a type needs them.
    pub fn round(
        &self,
        source: &ModelFile,
        of: &Importances,
    ) -> Result<NewTensors, QuantizerError> {
        self.check_rounding(of)?;
        let target = self.target(source)?;
        source.require_numbers().map_err(EngineError::from)?;
        let of = &imatrix::pooled(of, &self.whole_aliases(target.gguf()));
        let mut done = NewTensors::default();
        for name in self.assigned.types.keys() {
            let bytes = rounded(&target, name, of)?;
            match of.contains_key(name) {
                true => done.counts.weighted += 1,
                false => done.counts.rounded += 1,
            }
            done.tensors.insert(name.clone(), bytes);
        }
        self.give_to_aliases(target.gguf(), &mut done.tensors);
        Ok(done)
    }

    /// Fits and encodes in one pass of the engine. Passes beforehand sum up what the
    /// users of shared rows feed them, and what goes into an output head that is the
    /// token embedding, too.
    ///
    /// # Errors
    /// [`QuantizerError`].
    pub fn fit(
        &self,
        source: &ModelFile,
        how: Fit<'_>,
        progress: &dyn Fn(f64),
    ) -> Result<NewTensors, QuantizerError> {
        let target = self.target(source)?;
        let stream = Variant::new(source, &self.stream_plan(source), None)?;
        let original = Variant::fast(source).map_err(ConvertError::from)?;
        let mut engine = Engine::load(
            source,
            Some(&original),
            Some(&stream),
            how.windows,
            how.options,
        )?;
        engine.put(&self.links_as_they_are(target.gguf()))?;
        let links = self.links(target.gguf());
        engine.share(&links)?;
        let heads = self.tied_heads(engine.sites(), &self.whole_aliases(target.gguf()));
        let passes = 1.0
            + [!links.is_empty(), !heads.is_empty()]
                .map(f64::from)
                .iter()
                .sum::<f64>();
        let mut before = 0.0;
        if !links.is_empty() {
            engine.gather(&|done| progress(done / passes))?;
            before += 1.0;
        }
        let mut tied = HeadInputs {
            heads: &heads,
            grams: BTreeMap::new(),
        };
        if !heads.is_empty() {
            let of_pass = |done| progress((before + done) / passes);
            engine.run::<QuantizerError>(&mut [&mut tied], &of_pass)?;
        }
        let mut quantizer = Quantizer {
            stream: &stream,
            target: &target,
            types: &self.assigned.types,
            kept: &self.assigned.kept,
            is_behind: false,
            first: self.base.first_layer(),
            settings: how.settings,
            tied: tied.grams,
            heads: &heads,
            planned: self.planned_donors(target.gguf()),
            made: BTreeMap::new(),
            counts: Counts::default(),
            unfitted: Unfitted::default(),
        };
        let of_pass = |done| progress((passes - 1.0 + done) / passes);
        let repair = match how.repair {
            true => Some(self.run_beside(source, &mut engine, &mut quantizer, how, &of_pass)?),
            false => {
                engine.run(&mut [&mut quantizer], &of_pass)?;
                None
            }
        };
        let mut done = NewTensors {
            tensors: quantizer.made,
            counts: quantizer.counts,
            unfitted: quantizer.unfitted,
            repair,
        };
        // Such as a matrix for each head: no site, so nothing was visited.
        for name in self.assigned.types.keys() {
            if !done.tensors.contains_key(name) {
                let bytes = rounded(&target, name, &Importances::default())?;
                done.tensors.insert(name.clone(), bytes);
                done.counts.rounded += 1;
                let why = "no product with such a tensor as one matrix is known".to_owned();
                done.unfitted.no_target.insert(name.clone(), why);
            }
        }
        self.give_to_aliases(target.gguf(), &mut done.tensors);
        Ok(done)
    }

    /// The output heads among `sites` that are tables of embeddings, too, or have the same
    /// data as one, with the tables' names; `aliases` are tensors that are whole other ones.
    fn tied_heads(&self, sites: &[Site], aliases: &[(String, String)]) -> BTreeMap<String, String> {
        let heads = sites.iter().filter(|site| site.role == Role::Head);
        let heads = heads.map(|site| &site.name);
        let heads = heads.filter(|name| self.assigned.types.contains_key(*name));
        let table_of = |head: &String| {
            let of_pair = |(alias, donor): &(String, String)| match head {
                head if head == alias => Some(donor.clone()),
                head if head == donor => Some(alias.clone()),
                _ => None,
            };
            let other = aliases.iter().find_map(of_pair);
            match head == "output.weight" {
                true => other.filter(|name| sites.iter().all(|site| site.name != *name)),
                false => Some(head.clone()),
            }
        };
        heads
            .filter_map(|head| Some((head.clone(), table_of(head)?)))
            .collect()
    }

    /// Bytes that are kept of what the users of shared rows feed them, and of an output head
    /// that the source does not have.
    ///
    /// # Errors
    /// When the plan cannot be carried out.
    pub fn kept(&self, source: &ModelFile) -> Result<u64, ConvertError> {
        let target = self.target(source)?;
        let donors = self.links(target.gguf()).into_iter().map(|s| s.donor);
        let donors: BTreeSet<_> = donors
            .map(|d| (d.matrix, d.rows.start, d.rows.end))
            .collect();
        let bytes = donors.iter().map(|(matrix, first, end)| {
            let info = target.gguf().tensor(matrix);
            let inputs = info.map_or(0, TensorInfo::row_elems);
            Sums::bytes(inputs, (end - first) as u64)
        });
        let new = target.gguf().tensors().iter();
        let new = new.filter(|info| source.gguf.tensor(&info.name).is_none());
        Ok(bytes.chain(new.map(kept)).fold(0, u64::saturating_add))
    }

    /// Runs with a visitor before `quantizer` that refits what writes to the residual
    /// stream after the plan's other edits.
    fn run_beside(
        &self,
        source: &ModelFile,
        engine: &mut Engine<'_>,
        quantizer: &mut Quantizer<'_>,
        how: Fit<'_>,
        progress: &dyn Fn(f64),
    ) -> Result<Record, QuantizerError> {
        let stream = quantizer.stream;
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
        refitter.stay = &self.as_one;
        engine.run(&mut [&mut Beside(&mut refitter), quantizer], progress)?;
        for (name, bytes) in refitter.repaired.tensors {
            // What has the type that it had, and nothing else becomes of.
            let types = &self.assigned;
            if !types.types.contains_key(&name) && !types.kept.contains_key(&name) {
                quantizer.made.insert(name, bytes);
            }
        }
        Ok(refitter.repaired.record)
    }

    /// The record of a repair beside, which no other is longer than, and the tensors that it
    /// may replace.
    ///
    /// # Errors
    /// When the plan cannot be carried out.
    pub fn longest_repair(
        &self,
        source: &ModelFile,
        how: Fit<'_>,
        choice: Option<SurveyRecord>,
    ) -> Result<(Record, BTreeSet<String>), ConvertError> {
        let map = attention_map(source)?;
        let mut could_be = repair::could_be(&self.target(source)?, &map, &self.base);
        could_be.retain(|name| !self.as_one.contains(name));
        let outputs = engine::outputs(how.windows, how.options);
        let record = Record {
            choice,
            ..repair::record(how.windows, outputs)
        };
        Ok((record.longest(&could_be), could_be))
    }

    /// The plan of the changed stream: what gets a type has one of plain numbers.
    fn stream_plan(&self, source: &ModelFile) -> Plan {
        let mut plan = self.plan.clone();
        // What keeps its type may get new data, too.
        plan.edits.extend(self.assigned.kept.keys().map(|tensor| {
            Edit::Store(Store {
                tensor: tensor.clone(),
                ggml_type: GgmlType::F16,
            })
        }));
        for edit in &mut plan.edits {
            let Edit::Store(Store { tensor, ggml_type }) = edit else {
                continue;
            };
            if self.assigned.types.contains_key(tensor) {
                // A new head is what the table is.
                let has = |name: &str| source.gguf.tensor(name).map(|info| info.ggml_type);
                let of = has(tensor).or_else(|| has(EMBEDDING));
                // F16 holds what quantized weights stand for well enough.
                let exact = of.is_some_and(|t| ["f32", "bf16"].contains(&t.name()));
                *ggml_type = if exact { GgmlType::F32 } else { GgmlType::F16 };
            }
        }
        plan
    }
}

/// The tensor `name` of `target` as ggml's encoder makes it, with the importances of
/// its columns where they are known.
fn rounded(target: &Variant<'_>, name: &str, of: &Importances) -> Result<Vec<u8>, QuantizerError> {
    let index = target.gguf().tensor_index(name);
    let index = index.ok_or_else(|| EngineError::Internal(format!("there is no {name}")))?;
    let info = &target.gguf().tensors()[index];
    let columns = info.row_elems() as usize;
    let cannot = |error| QuantizerError::tensor(name, error);
    let weights = target.source_weights(index).map_err(cannot)?;
    let means: Vec<Vec<f32>> =
        (of.get(name)).map_or_else(Vec::new, |inputs| inputs.means(columns).collect());
    let each = weights.len() / means.len().max(1);
    let mut bytes = Vec::new();
    for (expert, weights) in weights.chunks(each).enumerate() {
        let importance = means.get(expert).map(|m| &m[..]);
        let rows = encode::round(weights, columns, importance, info.ggml_type.id());
        bytes.extend(rows.map_err(cannot)?);
    }
    Ok(bytes)
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
    let fast = Variant::fast(source).map_err(ConvertError::from)?;
    let mut engine = Engine::load(source, Some(&fast), Some(&fast), windows, options)?;
    let mut measure = Measure::default();
    engine.run::<QuantizerError>(&mut [&mut measure], progress)?;
    let is_finite = |inputs: &SquaredInputs| inputs.squares.iter().all(|v| v.is_finite());
    match measure.of.iter().find(|(_, inputs)| !is_finite(inputs)) {
        Some((name, _)) => Err(QuantizerError::NotFinite {
            what: "the inputs of",
            name: name.clone(),
        }),
        None => Ok(measure.of),
    }
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
    /// Their names, with those of the tables.
    heads: &'a BTreeMap<String, String>,
    /// By the names of the tables.
    grams: BTreeMap<String, Mat<f64>>,
}

impl Visitor<QuantizerError> for HeadInputs<'_> {
    fn wants(&mut self, site: &Site) -> Result<Wants, QuantizerError> {
        Ok(match self.heads.contains_key(&site.name) {
            true => Wants::Inputs,
            false => Wants::Nothing,
        })
    }

    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, QuantizerError> {
        if let Some(table) = self.heads.get(&site.name) {
            self.grams.insert(table.clone(), seen.sums().all().gram);
        }
        Ok(None)
    }
}
