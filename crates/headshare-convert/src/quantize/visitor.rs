//! One matrix after the other, fitted so that it makes up for what the ones before
//! it lost, then encoded with feedback.
//!
//! With G and C the sums of a matrix's inputs in the changed stream and of its target
//! by the original one, its weights W become
//!
//!   W' = W + s (C - W G) (G + ridge)^-1
//!
//! with a strength s between 0 and 1, and are encoded against H = G + damping
//! (`docs/METHOD.md`). Where there is no target, W' is W.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use faer::{Mat, Par};
use headshare_format::GgmlType;
use headshare_runtime::quants;

use super::error::QuantizerError;
use super::importance::mean_squares;
use super::record::{Counts, Settings, TIED_DAMPING, Unfitted};
use crate::convert::variant::Variant;
use crate::encode::{self, Coded, Coder, transposed};
use crate::engine::normal::{Normal, Sums, ridged, silent_columns, towards};
use crate::engine::{
    EngineError, Frequencies, Role, Seen, Site, Table, Target, Visitor, Wants, tokens_to_fit,
};

/// Outputs that are encoded at a time, at most: an output head has very many.
pub(super) const OUTPUTS: usize = 8192;

/// Encodes the matrices of a model.
pub(super) struct Quantizer<'a> {
    /// The changed stream, in which these have a type of plain numbers.
    pub stream: &'a Variant<'a>,
    /// The model that is made, of which some tensors keep their data.
    pub target: &'a Variant<'a>,
    /// Which tensors get new data, by name.
    pub types: &'a BTreeMap<String, GgmlType>,
    /// Which others make up for what those before them lost, at the type that they have.
    pub kept: &'a BTreeMap<String, GgmlType>,
    /// Whether any data has changed so far.
    pub is_behind: bool,
    /// The first layer in which more than types changes.
    pub first: Option<u32>,
    /// How.
    pub settings: Settings,
    /// Gram matrices of the inputs of output heads that are token embeddings, too, by the
    /// names of these: they are encoded before the pass.
    pub tied: BTreeMap<String, Mat<f64>>,
    /// The names of such heads, with those of the embeddings.
    pub heads: &'a BTreeMap<String, String>,
    /// Blocks that units of the plan use as well, by matrix and first row. What those
    /// units gave before is another thing: the blocks are not fitted to it.
    pub planned: BTreeSet<(String, usize)>,
    /// The new data so far.
    pub made: BTreeMap<String, Vec<u8>>,
    /// How they were made.
    pub counts: Counts,
    /// Those that could not be fitted.
    pub unfitted: Unfitted,
}

impl Visitor<QuantizerError> for Quantizer<'_> {
    fn wants(&mut self, site: &Site) -> Result<Wants, QuantizerError> {
        let is_kept = self.kept.contains_key(&site.name);
        Ok(match self.types.get(&site.name) {
            // Nothing else can tell whether it does better than what is there.
            None if is_kept && site.experts.is_none() && has_target(site) => Wants::Fit,
            None => Wants::Nothing,
            Some(_) if self.heads.contains_key(&site.name) => Wants::Nothing,
            // The logits of all tokens are too many to be held against each other.
            Some(_) if site.role == Role::Head => Wants::BothInputs,
            Some(_) if matches!(site.target, Target::NoPlain { .. }) => Wants::Inputs,
            Some(_) => Wants::Fit,
        })
    }

    fn table(&mut self, table: &Table, _: &Frequencies) -> Result<Option<Vec<u8>>, QuantizerError> {
        let Some(&to) = self.types.get(&table.name) else {
            return Ok(None);
        };
        let weights = self.weights_of(&table.name)?;
        let p = table.columns;
        // Rows of a table alone are looked up one by one, and each of their elements
        // counts as much: nothing moves from one to another, but scales are searched.
        let hessian = match self.tied.get(&table.name) {
            Some(gram) => {
                self.counts.encoded += 1;
                ridged(gram, TIED_DAMPING)
            }
            None => {
                match is_quantized(to) {
                    true => self.counts.looked_up += 1,
                    false => self.counts.plain += 1,
                }
                Mat::identity(p, p)
            }
        };
        let coded = self.encode(&table.name, &weights, p, &hessian, to)?;
        let stream = self.in_stream(&table.name, &coded.values)?;
        let same = self.heads.iter().filter(|(_, of)| **of == table.name);
        for (head, _) in same {
            self.made.insert(head.clone(), coded.bytes.clone());
        }
        self.made.insert(table.name.clone(), coded.bytes);
        self.is_behind |= is_quantized(to);
        Ok(Some(stream))
    }

    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, QuantizerError> {
        let is_behind = |first: u32| site.layer.is_none_or(|layer| layer >= first);
        let is_behind = self.is_behind || self.first.is_some_and(is_behind);
        let kept = self.kept.get(&site.name).filter(|_| is_behind);
        let Some(&to) = self.types.get(&site.name).or(kept) else {
            return Ok(None);
        };
        let mut weights = vec![0f32; site.columns * site.rows];
        let stream = self.stream_type(&site.name)?;
        quants::dequantize_row(stream.id(), seen.bytes(), &mut weights)
            .map_err(|error| QuantizerError::tensor(&site.name, error))?;
        if !weights.iter().all(|v| v.is_finite()) {
            return Err(QuantizerError::NotFinite {
                what: "the weights of",
                name: site.name.clone(),
            });
        }
        let is_plain = !is_behind && !is_quantized(to);
        let coded = match self.types.contains_key(&site.name) {
            true if is_plain => {
                self.counts.plain += 1;
                self.round(&site.name, &weights, site.columns, None, to)?
            }
            true => self.fitted(site, seen, &weights, to)?,
            false => match self.refitted(site, seen, &weights, to)? {
                Some(coded) => coded,
                // Whatever a repair has made of it.
                None => return self.stored(site, seen),
            },
        };
        self.is_behind |= !is_plain;
        let stream = self.in_stream(&site.name, &coded.values)?;
        let made = self.made.entry(site.name.clone()).or_default();
        made.extend(coded.bytes);
        Ok(Some(stream))
    }
}

impl Quantizer<'_> {
    /// The weights of a tensor before the pass.
    fn weights_of(&self, name: &str) -> Result<Vec<f32>, QuantizerError> {
        let index = self.stream.gguf().tensor_index(name);
        let index = index.ok_or_else(|| no_such(name))?;
        let weights = self.stream.source_weights(index);
        let weights = weights.map_err(|error| QuantizerError::tensor(name, error))?;
        match weights.iter().all(|v| v.is_finite()) {
            true => Ok(weights),
            false => Err(QuantizerError::NotFinite {
                what: "the weights of",
                name: name.to_owned(),
            }),
        }
    }

    /// The matrix with `weights`, fitted and encoded.
    fn fitted(
        &mut self,
        site: &Site,
        seen: &Seen<'_>,
        weights: &[f32],
        to: GgmlType,
    ) -> Result<Coded, QuantizerError> {
        let p = site.columns;
        let tokens = seen.tokens();
        let parts = parts(site.rows, seen.fixed(), seen.donated());
        // What is wholly another's is counted there.
        if parts
            .iter()
            .all(|(_, whose)| matches!(whose, Whose::Anothers))
        {
            return Ok(stand_in(weights, to));
        }
        // With fewer, their sums say too little about other tokens.
        let needed = tokens_to_fit(p);
        if tokens < needed {
            self.unfitted.too_few(&site.name, tokens, needed);
            let importance = (tokens > 0).then(|| mean_squares(seen.inputs(), p));
            match importance {
                Some(_) => self.counts.weighted += 1,
                None => self.counts.rounded += 1,
            }
            return self.round(&site.name, weights, p, importance.as_deref(), to);
        }
        let is_fitted = !seen.targets().is_empty();
        if site.role == Role::Head && is_fitted {
            return self.fitted_head(site, seen, weights, to);
        }
        match is_fitted {
            true => self.counts.fitted += 1,
            false => {
                self.counts.encoded += 1;
                if let Target::NoPlain { why, .. } = &site.target {
                    let no_target = &mut self.unfitted.no_target;
                    no_target.insert(site.name.clone(), why.clone());
                }
            }
        }
        // What does nothing is not to make up for anything.
        let silent = silent_columns(weights, p);
        let mut made = Coded::default();
        for (rows, whose) in parts {
            let weights = &weights[rows.start * p..rows.end * p];
            let sums = || match rows.len() == site.rows || !is_fitted {
                true => seen.sums(),
                false => seen.sums_to(rows.clone()),
            };
            let sums = match whose {
                Whose::Anothers => {
                    made.append(stand_in(weights, to));
                    continue;
                }
                Whose::Shared(others) => {
                    let own = sums();
                    let all = own.plus(others);
                    let planned = self.planned.contains(&(site.name.clone(), rows.start));
                    (if planned { own } else { all.clone() }, Some(all))
                }
                Whose::Own => (sums(), None),
            };
            let sums = (
                sums.0.without(&silent),
                sums.1.map(|all| all.without(&silent)),
            );
            let (to_fit, to_encode) = (&sums.0, sums.1.as_ref().unwrap_or(&sums.0));
            let hessian = to_encode.all().ridged(self.settings.damping);
            let part = match is_fitted {
                true => {
                    let wanted = self.towards_target(to_fit, transposed(weights, p));
                    self.encode_matrix(&site.name, wanted, &hessian, to)?
                }
                false => self.encode(&site.name, weights, p, &hessian, to)?,
            };
            made.append(part);
        }
        Ok(made)
    }

    /// The matrix as it was before the pass, where it is another now.
    fn stored(&self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, QuantizerError> {
        let stored = self.in_stream(&site.name, &self.weights_of(&site.name)?)?;
        Ok((stored != seen.bytes()).then_some(stored))
    }

    /// The matrix with `weights` that has its type already, fitted; nothing where what is
    /// stored does as well on held-out tokens.
    fn refitted(
        &mut self,
        site: &Site,
        seen: &Seen<'_>,
        weights: &[f32],
        of: GgmlType,
    ) -> Result<Option<Coded>, QuantizerError> {
        let p = site.columns;
        if seen.targets().is_empty() || seen.tokens() < tokens_to_fit(p) {
            return Ok(None);
        }
        let sums = seen.sums().without(&silent_columns(weights, p));
        let limit = (sums.held).error(&transposed(&self.weights_of(&site.name)?, p));
        let wanted = self.towards_target(&sums, transposed(weights, p));
        let hessian = sums.all().ridged(self.settings.damping);
        let cannot = |error| QuantizerError::tensor(&site.name, error);
        let index = self.target.gguf().tensor_index(&site.name);
        let stored = self
            .target
            .tensor_data(index.ok_or_else(|| no_such(&site.name))?)?;
        let par = Par::rayon(rayon::current_num_threads());
        let coder = Coder::of(of.id()).map_err(cannot)?;
        let encoded = encode::requantize(&wanted, &hessian, &coder, &stored, par);
        let encoded = encoded.map_err(cannot)?;
        // A fit follows noise, and costs a rounding: it must be worth both, on other text.
        if sums.held.error(&encoded.weights) >= limit {
            return Ok(None);
        }
        self.counts.refitted += 1;
        coded(&site.name, encoded.bytes, of).map(Some)
    }

    /// The output head with `weights`, fitted and encoded, some of its rows at a time.
    /// What should come out is W x with the original's inputs x, so that C is the product
    /// of both streams' inputs times W.
    fn fitted_head(
        &mut self,
        site: &Site,
        seen: &Seen<'_>,
        weights: &[f32],
        to: GgmlType,
    ) -> Result<Coded, QuantizerError> {
        let p = site.columns;
        let inputs = seen.sums();
        let hessian = inputs.all().ridged(self.settings.damping);
        self.counts.fitted += 1;
        let fitted = |now: Mat<f64>| {
            let towards = |part: &Normal| Normal {
                cross: &part.cross * &now,
                ..part.clone()
            };
            let sums = Sums {
                fitted: towards(&inputs.fitted),
                held: towards(&inputs.held),
            };
            self.towards_target(&sums, now)
        };
        self.encode_as(fitted, &site.name, weights, p, &hessian, to)
    }

    /// W', transposed, where W is `now`.
    fn towards_target(&self, sums: &Sums, now: Mat<f64>) -> Mat<f64> {
        let Settings {
            strength, ridge, ..
        } = self.settings;
        let (solved, strength) = match strength {
            Some(strength) => (sums.all().solve(&now, ridge), strength),
            None => {
                let solved = sums.fitted.solve(&now, ridge);
                let held = solved.as_ref().map(|s| sums.held.strength(&now, s));
                (solved, held.unwrap_or(0.0))
            }
        };
        match solved.filter(|_| strength > 0.0) {
            Some(solved) => towards(&now, &solved, strength),
            None => now,
        }
    }

    /// Encodes rows of `p` weights.
    fn encode(
        &self,
        name: &str,
        weights: &[f32],
        p: usize,
        hessian: &Mat<f64>,
        to: GgmlType,
    ) -> Result<Coded, QuantizerError> {
        self.encode_as(|now| now, name, weights, p, hessian, to)
    }

    /// Encodes what `wanted` makes of rows of `p` weights (transposed), some at a time.
    fn encode_as(
        &self,
        wanted: impl Fn(Mat<f64>) -> Mat<f64>,
        name: &str,
        weights: &[f32],
        p: usize,
        hessian: &Mat<f64>,
        to: GgmlType,
    ) -> Result<Coded, QuantizerError> {
        let mut all = Coded::default();
        for rows in weights.chunks(OUTPUTS * p) {
            let wanted = wanted(transposed(rows, p));
            all.append(self.encode_matrix(name, wanted, hessian, to)?);
        }
        Ok(all)
    }

    fn encode_matrix(
        &self,
        name: &str,
        wanted: Mat<f64>,
        hessian: &Mat<f64>,
        to: GgmlType,
    ) -> Result<Coded, QuantizerError> {
        let par = Par::rayon(rayon::current_num_threads());
        let coder = Coder::of(to.id());
        let encoded = coder.and_then(|c| encode::encode(&wanted, hessian, &c, None, par));
        let bytes = encoded
            .map_err(|error| QuantizerError::tensor(name, error))?
            .bytes;
        coded(name, bytes, to)
    }

    /// Rows of `p` weights as ggml rounds them.
    fn round(
        &self,
        name: &str,
        weights: &[f32],
        p: usize,
        importance: Option<&[f32]>,
        to: GgmlType,
    ) -> Result<Coded, QuantizerError> {
        let bytes = encode::round(weights, p, importance, to.id())
            .map_err(|error| QuantizerError::tensor(name, error))?;
        coded(name, bytes, to)
    }

    fn stream_type(&self, name: &str) -> Result<GgmlType, QuantizerError> {
        let info = self.stream.gguf().tensor(name);
        Ok(info.ok_or_else(|| no_such(name))?.ggml_type)
    }

    /// Values as they are in the changed stream.
    fn in_stream(&self, name: &str, values: &[f32]) -> Result<Vec<u8>, QuantizerError> {
        let to = self.stream_type(name)?;
        quants::quantize_rows(to.id(), values, values.len(), None)
            .map_err(|error| QuantizerError::tensor(name, error))
    }
}

/// Whether `of` is more than a plain number for each weight.
fn is_quantized(of: GgmlType) -> bool {
    quants::type_info(of.id()).is_some_and(|info| info.is_quantized)
}

/// Whether what should come out of a site is known.
fn has_target(site: &Site) -> bool {
    site.role != Role::Head && !matches!(site.target, Target::NoPlain { .. })
}

fn no_such(name: &str) -> QuantizerError {
    EngineError::Internal(format!("{name} is not in the model")).into()
}

/// Rows in whose place another's come, whatever stands here.
fn stand_in(weights: &[f32], to: GgmlType) -> Coded {
    let bytes = weights.len() as u64 / to.block_elems() * to.block_bytes();
    Coded {
        bytes: vec![0; bytes as usize],
        values: weights.to_vec(),
    }
}

/// Rows of the tensor `name`, with what they stand for.
fn coded(name: &str, bytes: Vec<u8>, of: GgmlType) -> Result<Coded, QuantizerError> {
    let elems = bytes.len() as u64 / of.block_bytes() * of.block_elems();
    let mut values = vec![0f32; elems as usize];
    quants::dequantize_row(of.id(), &bytes, &mut values)
        .map_err(|error| QuantizerError::tensor(name, error))?;
    Ok(Coded { bytes, values })
}

/// Whose rows are.
enum Whose<'s> {
    /// The matrix's alone.
    Own,
    /// Others use them, too, and feed them this.
    Shared(&'s Sums),
    /// Another matrix's.
    Anothers,
}

/// The rows of a matrix in order, by whose they are: some are `fixed`, some `donated`.
fn parts<'s>(
    rows: usize,
    fixed: &[Range<usize>],
    donated: &[(Range<usize>, Option<&'s Sums>)],
) -> Vec<(Range<usize>, Whose<'s>)> {
    let mut special: Vec<(Range<usize>, Whose<'s>)> = (fixed.iter())
        .map(|range| (range.clone(), Whose::Anothers))
        .collect();
    special.extend(
        (donated.iter()).filter_map(|(range, sums)| Some((range.clone(), Whose::Shared((*sums)?)))),
    );
    special.sort_by_key(|(range, _)| range.start);
    let mut parts = Vec::new();
    let mut at = 0;
    for (range, whose) in special {
        // Of blocks that overlap the first one counts.
        if range.start < at {
            continue;
        }
        if at < range.start {
            parts.push((at..range.start, Whose::Own));
        }
        at = range.end;
        parts.push((range, whose));
    }
    if at < rows {
        parts.push((at..rows, Whose::Own));
    }
    parts
}
