//! What each type changes of each tensor: some of its rows are encoded at all of them, as
//! they would be in the end, and held against what goes into it.

use std::collections::BTreeMap;
use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use headshare_format::GgmlType;
use headshare_runtime::quants::dequantize_row;

use super::cuts::{Cut, Cutter};
use super::error::FitError;
use super::inputs::{inputs_of, rows_of};
use super::moves::Movable;
use crate::convert::ConvertError;
use crate::convert::variant::Variant;
use crate::encode::{self, Coder, QuantizeError, transposed};
use crate::engine::normal::ridged;
use crate::engine::{
    Engine, EngineError, Frequencies, Options, Seen, Site, Table, Visitor, Wants, Windows,
};
use crate::input::ModelFile;
use crate::model::AttentionMap;
use crate::quantize::{Settings, TIED_DAMPING};

/// Rows of a tensor that are encoded, at most: every so many.
const ROWS: usize = 64;

/// Windows that are read, at most.
const WINDOWS: usize = 16;

/// What a type changes of a tensor's outputs: the mean square, over what goes into it,
/// relative to the outputs' own.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    /// Rounded as ggml does without importances.
    pub rounded: f64,
    /// Encoded with feedback.
    pub encoded: f64,
}

/// What the types of a tensor change that are [tried](Movable::tried).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Losses {
    /// Of its outputs, by each type.
    pub outputs: Vec<Loss>,
    /// Of its rows as they are looked up, where it is an output head and a table at once;
    /// else empty.
    pub rows: Vec<Loss>,
    /// The same where they are encoded as a table alone.
    pub alone: Vec<Loss>,
}

/// What each type changes that is tried of each of `movable`, and what the layers lose when units and
/// channels go.
///
/// # Errors
/// When the engine cannot run, or weights cannot be encoded.
pub fn losses(
    source: &ModelFile,
    movable: &[Movable],
    (windows, options): (&Windows, &Options),
    progress: &dyn Fn(f64),
) -> Result<(Vec<Losses>, Vec<Cut>), FitError> {
    let fast = Variant::fast(source).map_err(ConvertError::from)?;
    let windows = &windows.pick(0..windows.count as usize, WINDOWS);
    let mut engine = Engine::load(source, Some(&fast), Some(&fast), windows, options)?;
    let mut trial = Trial {
        source,
        tensors: movable.iter().map(|m| (m.name.as_str(), m)).collect(),
        lookups: BTreeMap::new(),
        sums: BTreeMap::new(),
    };
    let map = AttentionMap::of(&source.gguf).ok();
    let mut cutter = Cutter::new(source, map.as_ref());
    engine.run::<FitError>(&mut [&mut trial, &mut cutter], progress)?;
    for tensor in movable {
        trial.judge_unseen(tensor)?;
    }
    let of = |tensor: &Movable| {
        let sums = trial.sums.remove(&tensor.name).unwrap_or_default();
        let [outputs, rows, alone] = sums.map(|of| of.iter().map(Sum::loss).collect());
        Losses {
            outputs,
            rows,
            alone,
        }
    };
    Ok((movable.iter().map(of).collect(), cutter.cuts))
}

/// Squares of what is changed, and of what there is.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    rounded: f64,
    encoded: f64,
    all: f64,
}

impl Sum {
    fn loss(&self) -> Loss {
        let relative = |squares: f64| match self.all > 0.0 {
            true => squares / self.all,
            false => 0.0,
        };
        Loss {
            rounded: relative(self.rounded),
            encoded: relative(self.encoded),
        }
    }
}

struct Trial<'a> {
    source: &'a ModelFile,
    tensors: BTreeMap<&'a str, &'a Movable>,
    /// How often the rows of tables are looked up that are output heads, too.
    lookups: BTreeMap<String, Vec<f64>>,
    /// By the tensors' names, of outputs, of rows that are looked up, and of those of a
    /// table alone, by each type; experts are added up.
    sums: BTreeMap<String, [Vec<Sum>; 3]>,
}

impl Visitor<FitError> for Trial<'_> {
    fn wants(&mut self, site: &Site) -> Result<Wants, FitError> {
        Ok(match self.tensors.contains_key(site.name.as_str()) {
            true => inputs_of(site),
            false => Wants::Nothing,
        })
    }

    fn table(&mut self, table: &Table, rows: &Frequencies) -> Result<Option<Vec<u8>>, FitError> {
        if !table.tied {
            let gram = Mat::identity(table.columns, table.columns);
            self.judge(&table.name, 0..table.rows, &gram, true)?;
            return Ok(None);
        }
        // One that is an output head, too, is encoded as that. Tokens that did not come up may.
        let counts = rows.fitted.iter().zip(&rows.held);
        let counts = counts.map(|(a, b)| f64::from(1 + a + b)).collect();
        self.lookups.insert(table.name.clone(), counts);
        Ok(None)
    }

    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, FitError> {
        let first = seen.expert().unwrap_or(0) * site.rows;
        let rows = first..first + site.rows;
        if seen.tokens() > 0 {
            let gram = seen.sums().all().gram;
            // As it is quantized in the end.
            let with_feedback = seen.tokens() >= site.columns / 2;
            self.judge(&site.name, rows, &gram, with_feedback)?;
        }
        Ok(None)
    }
}

impl Trial<'_> {
    /// A matrix whose inputs the engine does not see is only rounded in the end: what that
    /// changes of its weights stands for what it changes of its outputs.
    fn judge_unseen(&mut self, tensor: &Movable) -> Result<(), FitError> {
        let info = self.source.gguf.tensor(&tensor.name);
        let Some(info) = info.filter(|_| !self.sums.contains_key(&tensor.name)) else {
            return Ok(());
        };
        let (columns, rows) = (info.row_elems() as usize, info.rows() as usize);
        let gram = Mat::identity(columns, columns);
        self.judge(&tensor.name, 0..rows, &gram, false)
    }

    /// Adds what is changed of `rows` of a tensor, into which goes what has this Gram
    /// matrix.
    fn judge(
        &mut self,
        name: &str,
        rows: Range<usize>,
        gram: &Mat<f64>,
        with_feedback: bool,
    ) -> Result<(), FitError> {
        let Some(tensor) = self.tensors.get(name) else {
            return Ok(());
        };
        let cannot = |error: QuantizeError| FitError::Weights {
            tensor: name.to_owned(),
            error,
        };
        let info = self.source.gguf.tensor(name);
        let info = info.ok_or_else(|| EngineError::Internal(format!("there is no {name}")))?;
        let picked: Vec<usize> = rows
            .clone()
            .step_by(rows.len().div_ceil(ROWS).max(1))
            .collect();
        let weights = rows_of(self.source, info, &picked).map_err(cannot)?;
        let p = info.row_elems() as usize;
        let par = Par::rayon(rayon::current_num_threads());
        let looked_up = self.lookups.get(name);
        let counts: Option<Vec<f64>> =
            looked_up.map(|counts| picked.iter().map(|&row| counts[row]).collect());
        let of_rows = |of: &Mat<f64>| counts.as_ref().map_or(0.0, |counts| lengths(of, counts));
        let squares = |of: &Mat<f64>| [squares(of, gram, par), of_rows(of), of_rows(of)];
        let now = transposed(&weights, p);
        let all = squares(&now);
        let damping = match counts {
            Some(_) => TIED_DAMPING,
            None => Settings::default().damping,
        };
        let hessian = ridged(gram, damping);
        let alone = counts.as_ref().map(|_| Mat::identity(p, p));
        let sums = self.sums.entry(name.to_owned()).or_default();
        let tried: Vec<GgmlType> = tensor.tried().collect();
        let count = tried.len();
        sums[0].resize(count, Sum::default());
        for of in &mut sums[1..] {
            of.resize(if counts.is_some() { count } else { 0 }, Sum::default());
        }
        for (i, to) in tried.into_iter().enumerate() {
            // Its own type is one of which blocks are made anew, since columns go: so is it here.
            let shift = match to == tensor.has {
                true => off_the_grid(to) % p,
                false => 0,
            };
            let mut back = weights.clone();
            shift_rows(&mut back, p, shift);
            let bytes = encode::round(&back, p, None, to.id()).map_err(|e| cannot(e.into()))?;
            dequantize_row(to.id(), &bytes, &mut back).map_err(|e| cannot(e.into()))?;
            shift_rows(&mut back, p, p - shift);
            let rounded = squares(&(transposed(&back, p) - &now));
            let encoded = |weights: &Mat<f64>, hessian: &Mat<f64>| {
                let coder = Coder::of(to.id()).map_err(cannot)?;
                let encoded = encode::encode(weights, hessian, &coder, None, par);
                Ok::<_, FitError>(encoded.map_err(cannot)?.weights)
            };
            let lost = |hessian: &Mat<f64>| {
                let back = match shift {
                    0 => encoded(&now, hessian)?,
                    _ => {
                        let at = |i: usize| (i + shift) % p;
                        let hessian = Mat::from_fn(p, p, |i, j| hessian[(at(i), at(j))]);
                        let weights = Mat::from_fn(p, now.ncols(), |i, j| now[(at(i), j)]);
                        let encoded = encoded(&weights, &hessian)?;
                        let from = |i: usize| (i + p - shift) % p;
                        Mat::from_fn(p, now.ncols(), |i, j| encoded[(from(i), j)])
                    }
                };
                Ok::<_, FitError>(squares(&(back - &now)))
            };
            let mut encoded = match with_feedback {
                true => lost(&hessian)?,
                false => rounded,
            };
            if let Some(alone) = &alone {
                encoded[2] = lost(alone)?[2];
            }
            for (of, sums) in sums.iter_mut().enumerate() {
                if let Some(sum) = sums.get_mut(i) {
                    sum.all += all[of];
                    sum.rounded += rounded[of];
                    sum.encoded += encoded[of];
                }
            }
        }
        Ok(())
    }
}

/// By how many columns numbers of this type are to be shifted so that no block has those of one
/// block only: half of one, and of super-blocks half of their smallest parts more.
fn off_the_grid(of: GgmlType) -> usize {
    match of.block_elems() as usize {
        elems @ 256.. => elems / 2 + 8,
        elems => elems / 2,
    }
}

/// Lets rows of `columns` numbers begin `by` of them later, with what came before at the end.
fn shift_rows(rows: &mut [f32], columns: usize, by: usize) {
    for row in rows.chunks_mut(columns) {
        row.rotate_left(by % columns);
    }
}

/// The sum of |w|^2 of all columns w, each as often as it counts.
fn lengths(of: &Mat<f64>, counts: &[f64]) -> f64 {
    let of_column = |(j, count): (usize, &f64)| {
        let squares = (0..of.nrows()).map(|i| of[(i, j)] * of[(i, j)]);
        count * squares.sum::<f64>()
    };
    counts.iter().enumerate().map(of_column).sum()
}

/// The sum of w^T G w of all columns w.
fn squares(of: &Mat<f64>, gram: &Mat<f64>, par: Par) -> f64 {
    let mut image = Mat::zeros(of.nrows(), of.ncols());
    matmul(&mut image, Accum::Replace, gram, of, 1.0, par);
    let of_column = |j: usize| -> f64 {
        let products = (0..of.nrows()).map(|i| of[(i, j)] * image[(i, j)]);
        products.sum()
    };
    (0..of.ncols()).map(of_column).sum()
}

#[cfg(test)]
mod tests {
    use headshare_testmodels::{ModelSpec, type_named as named};

    use super::*;
    use crate::fit::moves::movable;

    #[test]
    fn a_matrix_whose_inputs_are_not_seen_loses_what_rounding_changes_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        ModelSpec::preset("tiny-gqa").unwrap().write(&path).unwrap();
        let source = ModelFile::open_plain(&path).unwrap();
        let types = ["q8_0", "q4_0"].map(|name| named(name).unwrap());
        let movable = movable(&source, &types).unwrap();
        let mut trial = Trial {
            source: &source,
            tensors: movable.iter().map(|m| (m.name.as_str(), m)).collect(),
            lookups: BTreeMap::new(),
            sums: BTreeMap::new(),
        };
        let tensor = &movable[0];
        trial.judge_unseen(tensor).unwrap();
        let losses: Vec<Loss> = trial.sums[&tensor.name][0].iter().map(Sum::loss).collect();
        assert_eq!(losses.len(), 2);
        assert!(
            losses
                .iter()
                .all(|loss| loss.rounded > 0.0 && loss.encoded == loss.rounded)
        );
        assert!(losses[1].rounded > 20.0 * losses[0].rounded, "{losses:?}");
        // One that was seen is left as it is.
        trial.judge_unseen(tensor).unwrap();
        let again: Vec<Loss> = trial.sums[&tensor.name][0].iter().map(Sum::loss).collect();
        assert_eq!(losses, again);
    }
}
