//! One site of a pass: what is read from the two streams there, and the bytes
//! that go back.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::ops::Range;
use std::rc::Rc;

use faer::Par;
use headshare_runtime::calibrate::Pass;
use rayon::prelude::*;

use super::error::EngineError;
use super::lockstep::{Given, Original};
use super::normal::{Grams, Rows};
use super::shared::{Links, Matrix};
use super::sites::{Site, Target};
use super::visit::{Seen, Visitor, Wants, Weighting};
use super::weights::dequantized;
use crate::input::ModelFile;

/// The tokens of a pass.
pub(super) struct Tokens {
    n: usize,
    /// Those that pass through the last layer's end.
    picked: Vec<usize>,
    /// The first one that is held out.
    held_from: usize,
}

impl Tokens {
    /// `n` of them, `outputs` of which pass through the end.
    pub fn new(n: usize, outputs: usize, held_from: usize) -> Self {
        // Spread evenly, and the last token of the text among them.
        let is_output = |&i: &usize| (i + 1) * outputs / n != i * outputs / n;
        Self {
            n,
            picked: (0..n).filter(is_output).collect(),
            held_from,
        }
    }

    pub fn outputs(&self) -> usize {
        self.picked.len()
    }

    pub fn is_output(&self, i: usize) -> bool {
        self.picked.binary_search(&i).is_ok()
    }

    /// The first row of those that are held out, where there are `rows` in all.
    fn held_from(&self, rows: usize) -> usize {
        if rows == self.n {
            self.held_from
        } else {
            self.picked.partition_point(|&i| i < self.held_from)
        }
    }

    /// How many tokens pass where `rows` are there for a site with experts, of
    /// which each uses some, and `inputs` rows go in.
    fn passing(&self, rows: usize, inputs: usize) -> Result<usize, EngineError> {
        let fits = |n: &usize| *n > 0 && rows.is_multiple_of(*n) && [*n, rows].contains(&inputs);
        let mut counts = [self.n, self.picked.len()].into_iter();
        counts.find(fits).ok_or_else(|| {
            EngineError::Internal(format!("{rows} choices of experts for {inputs} rows"))
        })
    }

    /// `wanted` rows of `width` elements: all, or those of the picked tokens.
    fn rows<'a>(
        &self,
        values: Cow<'a, [f32]>,
        width: usize,
        wanted: usize,
    ) -> Result<Cow<'a, [f32]>, EngineError> {
        let have = values.len() / width;
        if have == wanted {
            return Ok(values);
        }
        if have == self.n && wanted == self.picked.len() {
            let picked = self.picked.iter();
            let rows = picked.flat_map(|&i| &values[i * width..(i + 1) * width]);
            return Ok(rows.copied().collect::<Vec<f32>>().into());
        }
        Err(EngineError::Internal(format!(
            "{have} rows where {wanted} were expected"
        )))
    }
}

/// A site at which both streams wait.
pub(super) struct Stop<'a> {
    pub source: &'a ModelFile,
    pub tokens: &'a Tokens,
    pub site: &'a Site,
    /// What the target is made of.
    pub aim: Option<&'a Aim>,
    /// What each visitor wants to see.
    pub wants: &'a [Wants],
    /// Blocks that matrices have in common.
    pub links: &'a Links,
}

/// What a target is made of, in the original stream.
pub(super) struct Aim {
    /// The node.
    pub node: usize,
    /// The node that goes into the matrix.
    pub input: usize,
    /// Of a product with experts: the node that says which.
    pub chosen: Option<usize>,
    /// Elements of a row of the node.
    pub width: usize,
    /// Those that the changed matrix has outputs for, where some are gone.
    pub rows: Option<Vec<Range<u64>>>,
}

impl Aim {
    /// What the original gives, as wide as the changed matrix.
    fn of(&self, original: &Original) -> Result<Given, EngineError> {
        let mut given = original.at(self.node)?;
        if let Some(rows) = &self.rows {
            given.values = (given.values.chunks(self.width))
                .flat_map(|row| (rows.iter()).flat_map(|r| &row[r.start as usize..r.end as usize]))
                .copied()
                .collect();
        }
        Ok(given)
    }
}

/// Rows of a site for visitors that want the same.
#[derive(Default)]
struct Shown<'a> {
    inputs: Cow<'a, [f32]>,
    targets: Vec<f32>,
    /// What tokens count: [`Weighting::Inverse`].
    inverse: Vec<f32>,
    held_from: usize,
    /// The Gram matrices of these inputs, if they are shared.
    grams: Option<Rc<OnceCell<Grams>>>,
}

/// The Gram matrices of the last input: sites of the same input follow each
/// other.
#[derive(Default)]
pub(super) struct LastGrams {
    of: Option<(usize, usize)>,
    grams: Rc<OnceCell<Grams>>,
}

impl LastGrams {
    fn of(&mut self, input: usize, rows: usize) -> Rc<OnceCell<Grams>> {
        if self.of != Some((input, rows)) {
            self.of = Some((input, rows));
            self.grams = Rc::default();
        }
        Rc::clone(&self.grams)
    }
}

impl Stop<'_> {
    /// Shows the site to the visitors that want it, and writes what they make
    /// of it.
    pub fn visit<E: From<EngineError>>(
        &self,
        pass: &mut Pass<'_>,
        original: &Original,
        visitors: &mut [&mut dyn Visitor<E>],
        grams: &mut LastGrams,
    ) -> Result<(), E> {
        let aim = self.aim.filter(|_| self.wanted(Wants::Fit));
        let given = aim.map(|aim| aim.of(original)).transpose()?;
        let both = self.aim.filter(|_| self.wanted(Wants::BothInputs));
        let both = both.map(|aim| original.at(aim.input)).transpose()?;
        let Some(experts) = self.site.experts else {
            let new = {
                let shown = self.plain(pass, given, both, grams)?;
                let bytes = pass.weight(self.site.weight).map_err(EngineError::from)?;
                self.show(visitors, &shown, None, bytes)?
            };
            return self.write(pass, 0, new);
        };
        let chosen = pass.i32s(experts.chosen).map_err(EngineError::from)?;
        for expert in 0..experts.count {
            let (at, new) = {
                let [all, fit] = self.of_expert(pass, given.as_ref(), &chosen, expert)?;
                let shown = [all, fit, Shown::default()];
                let bytes = pass.weight(self.site.weight).map_err(EngineError::from)?;
                let len = bytes.len() / experts.count;
                let at = expert * len;
                let new = self.show(visitors, &shown, Some(expert), &bytes[at..at + len])?;
                (at, new)
            };
            self.write(pass, at, new)?;
        }
        Ok(())
    }

    fn wanted(&self, what: Wants) -> bool {
        self.wants.contains(&what)
    }

    fn write<E: From<EngineError>>(
        &self,
        pass: &mut Pass<'_>,
        at: usize,
        new: Option<Vec<u8>>,
    ) -> Result<(), E> {
        if let Some(new) = new {
            pass.write_weight(self.site.weight, at, &new)
                .map_err(EngineError::from)?;
            (self.links.follow(pass, self.site.weight)).map_err(EngineError::from)?;
        }
        Ok(())
    }

    /// What the visitors make of a matrix that is `bytes` now; what is shown is for those
    /// that want inputs alone, targets, and the inputs of both streams.
    fn show<E: From<EngineError>>(
        &self,
        visitors: &mut [&mut dyn Visitor<E>],
        [all, fit, both]: &[Shown<'_>; 3],
        expert: Option<usize>,
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>, E> {
        let site = self.site;
        let mut new: Option<Vec<u8>> = None;
        let matrix = Matrix::of(site, expert);
        let fixed = self.links.fixed(&matrix);
        let donated = self.links.donated(&matrix);
        for (visitor, wants) in visitors.iter_mut().zip(self.wants) {
            let (shown, outputs) = match wants {
                Wants::Nothing => continue,
                Wants::Inputs => (all, 0),
                Wants::Fit => (fit, site.rows),
                Wants::BothInputs => (both, site.columns),
            };
            let inverse = *wants == Wants::Fit && visitor.weighting(site) == Weighting::Inverse;
            let even = vec![1.0; shown.inputs.len() / site.columns];
            let seen = Seen {
                rows: Rows {
                    inputs: (&shown.inputs, site.columns),
                    targets: (&shown.targets, outputs),
                    weights: if inverse { &shown.inverse } else { &even },
                    held_from: shown.held_from,
                },
                expert,
                bytes: new.as_deref().unwrap_or(bytes),
                fixed: &fixed,
                donated: &donated,
                grams: shown.grams.as_deref().filter(|_| !inverse),
                par: Par::rayon(rayon::current_num_threads()),
            };
            if let Some(what) = seen.not_finite() {
                let name = site.name.clone();
                return Err(EngineError::NotFinite { what, name }.into());
            }
            if let Some(made) = visitor.visit(site, &seen)? {
                if made.len() != bytes.len() {
                    let (got, name) = (made.len(), &site.name);
                    let problem = format!("{got} bytes for the {} of {name}", bytes.len());
                    return Err(EngineError::Internal(problem).into());
                }
                new = Some(made);
            }
        }
        Ok(new)
    }

    /// All rows of a matrix, those that have a target, and those of both streams.
    fn plain<'p>(
        &self,
        pass: &'p Pass<'_>,
        given: Option<Given>,
        both: Option<Given>,
        grams: &mut LastGrams,
    ) -> Result<[Shown<'p>; 3], EngineError> {
        let site = self.site;
        let mut shown = |inputs: Cow<'p, [f32]>| {
            let n = inputs.len() / site.columns;
            Shown {
                inputs,
                held_from: self.tokens.held_from(n),
                grams: Some(grams.of(site.input, n)),
                ..Shown::default()
            }
        };
        let all = match self.wanted(Wants::Inputs) {
            true => shown(pass.f32s(site.input)?),
            false => Shown::default(),
        };
        let fit = match given {
            Some(given) => {
                let n = given.values.len() / site.rows;
                let inputs = pass.f32s(site.input)?;
                let inputs = self.tokens.rows(inputs, site.columns, n)?;
                Shown {
                    inverse: inverse_squares(&given.values, site.rows),
                    targets: self.targets(given.values, pass)?,
                    ..shown(inputs)
                }
            }
            None => Shown::default(),
        };
        let both = match both {
            Some(both) => {
                let n = both.values.len() / site.columns;
                let inputs = pass.f32s(site.input)?;
                Shown {
                    targets: both.values,
                    ..shown(self.tokens.rows(inputs, site.columns, n)?)
                }
            }
            None => Shown::default(),
        };
        Ok([all, fit, both])
    }

    /// The same of one expert, whose tokens are `chosen`: those that have a
    /// target are sent to it by the original, too.
    fn of_expert<'p>(
        &self,
        pass: &'p Pass<'_>,
        given: Option<&Given>,
        chosen: &[i32],
        expert: usize,
    ) -> Result<[Shown<'p>; 2], EngineError> {
        let (p, n) = (self.site.columns, self.site.rows);
        let inputs = pass.f32s(self.site.input)?;
        // The input is one for all experts of a token, or one for each.
        let have = inputs.len() / p;
        let tokens = self.tokens.passing(chosen.len(), have)?;
        let used = chosen.len() / tokens;
        let is_it = |&&e: &&i32| usize::try_from(e) == Ok(expert);
        let held = self.tokens.held_from(tokens);
        let mut shown = [Shown::default(), Shown::default()];
        let mut add = |which: usize, token: usize, slot: usize, target: &[f32]| {
            let row = if have == tokens {
                token
            } else {
                token * used + slot
            };
            let to: &mut Shown<'_> = &mut shown[which];
            to.inputs
                .to_mut()
                .extend_from_slice(&inputs[row * p..(row + 1) * p]);
            to.targets.extend_from_slice(target);
            to.held_from += usize::from(token < held);
        };
        for (token, experts) in chosen.chunks(used).enumerate() {
            let Some(slot) = experts.iter().position(|e| is_it(&e)) else {
                continue;
            };
            if self.wanted(Wants::Inputs) {
                add(0, token, slot, &[]);
            }
            let theirs = given.and_then(|given| {
                let chosen = given.chosen.get(token * used..(token + 1) * used)?;
                let row = token * used + chosen.iter().position(|e| is_it(&e))?;
                given.values.get(row * n..(row + 1) * n)
            });
            if let Some(target) = theirs {
                add(1, token, slot, target);
            }
        }
        shown[1].inverse = inverse_squares(&shown[1].targets, n);
        Ok(shown)
    }

    /// What should come out: of `aim`, the original's node, without what is
    /// added to it.
    fn targets(&self, aim: Vec<f32>, pass: &Pass<'_>) -> Result<Vec<f32>, EngineError> {
        let site = self.site;
        let mut targets = aim;
        if let Target::Sum {
            residual, scale, ..
        } = site.target
        {
            let rows = targets.len() / site.rows;
            let residual = pass.f32s(residual)?;
            let residual = self.tokens.rows(residual, site.rows, rows)?;
            let rows = targets.par_chunks_mut(site.rows);
            rows.zip(residual.par_chunks(site.rows))
                .for_each(|(targets, residual)| {
                    let of_row = targets.iter_mut().zip(residual);
                    of_row.for_each(|(target, x)| *target = (*target - x) / scale);
                });
        }
        if site.bias.is_some() {
            let name = site.name.replace(".weight", ".bias");
            let missing = || EngineError::Internal(format!("{name} is not in the file"));
            let bias = self.source.gguf.tensor_index(&name).ok_or_else(missing)?;
            let bias = dequantized(self.source, bias)
                .map_err(|error| EngineError::Internal(format!("{name}: {error}")))?;
            targets.par_chunks_mut(site.rows).for_each(|row| {
                row.iter_mut().zip(&bias).for_each(|(y, b)| *y -= b);
            });
        }
        Ok(targets)
    }
}

/// The inverse of each row's mean square.
pub fn inverse_squares(rows: &[f32], width: usize) -> Vec<f32> {
    rows.par_chunks(width)
        .map(|row| {
            let sum: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            let mean = sum / width as f64;
            // A row of zeros says nothing about outputs' scale.
            if mean == 0.0 {
                0.0
            } else {
                (1.0 / mean) as f32
            }
        })
        .collect()
}
