//! What a visitor of the engine is asked, and what it is shown.

use std::cell::OnceCell;
use std::ops::Range;

use faer::Par;
use headshare_format::TensorInfo;
use rayon::prelude::*;

use super::normal::{Grams, Rows, Sums};
use super::sites::{Site, Table};

/// What a visitor wants to see of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wants {
    /// Nothing: the site is passed over.
    Nothing,
    /// Its inputs.
    Inputs,
    /// Its inputs, and what should come out.
    Fit,
    /// Its inputs, and what goes in in the original stream, as targets: an output
    /// head's outputs are too many to be held against each other, but they follow from
    /// these. Only of a site without experts whose input no other site has.
    BothInputs,
}

/// What tokens count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighting {
    /// All as much.
    Even,
    /// The inverse of the mean square of what the target is made of: the
    /// original's residual stream, or its output.
    Inverse,
}

/// Bytes that a pass takes for its visitors, beside what the streams take: what
/// [`Windows::of`](super::Windows::of) leaves room for.
#[derive(Clone, Copy)]
pub struct Takes<'a> {
    /// While a matrix is visited: its [sums](super::normal::Sums::bytes), and what is
    /// made of them. The matrix for which that is most counts.
    pub at: &'a dyn Fn(&TensorInfo) -> u64,
    /// All the time: what is kept from one matrix to the next, of
    /// [`Engine::gather`](super::Engine::gather), too.
    pub kept: u64,
}

/// How often each row of a table is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frequencies {
    /// In the windows to fit on.
    pub fitted: Vec<u32>,
    /// In those that are held out.
    pub held: Vec<u32>,
}

/// One that is led from matrix to matrix, in the order in which they run.
pub trait Visitor<E> {
    /// What it wants to see of `site`. Asked once for every site, before
    /// anything runs.
    ///
    /// # Errors
    /// When there is no use in running.
    fn wants(&mut self, site: &Site) -> Result<Wants, E>;

    /// What tokens count at `site`, where a target is wanted; elsewhere all
    /// count as much.
    fn weighting(&self, site: &Site) -> Weighting {
        // Norms have made inputs alike already; what is added to the stream is
        // seen relative to it.
        match site.role.writes_to_stream() {
            true => Weighting::Inverse,
            false => Weighting::Even,
        }
    }

    /// Looks at a table, before the streams begin. Returns its new bytes, of
    /// its type and shape in the changed stream; nothing where it stays.
    ///
    /// # Errors
    /// Ends the run.
    fn table(&mut self, _table: &Table, _rows: &Frequencies) -> Result<Option<Vec<u8>>, E> {
        Ok(None)
    }

    /// Looks at a site whose inputs are computed and whose product is not; of
    /// experts at each in turn, also at those that no token goes to. Returns the
    /// matrix's new bytes (of an expert its own), of its type and shape in the
    /// changed stream, which goes on with them; nothing where it stays.
    ///
    /// # Errors
    /// Ends the run.
    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, E>;
}

/// What goes into a matrix, and what should come out, a row for each token that
/// passes through it.
pub struct Seen<'a> {
    pub(super) rows: Rows<'a>,
    pub(super) expert: Option<usize>,
    pub(super) bytes: &'a [u8],
    pub(super) fixed: &'a [Range<usize>],
    pub(super) donated: &'a [(Range<usize>, Option<&'a Sums>)],
    /// Where other sites of this input find their Gram matrices, too.
    pub(super) grams: Option<&'a OnceCell<Grams>>,
    pub(super) par: Par,
}

/// Numbers that one thread checks at a time.
const CHECKED: usize = 1 << 16;

impl<'a> Seen<'a> {
    /// The inputs, a row for each token, in the changed stream.
    pub fn inputs(&self) -> &'a [f32] {
        self.rows.inputs.0
    }

    /// What should come out, likewise, without the bias, or what goes in in the original
    /// stream ([`Wants`]); empty where neither was asked for. With targets, only those of
    /// an expert's tokens are here that the original sends to it as well.
    pub fn targets(&self) -> &'a [f32] {
        self.rows.targets.0
    }

    /// What each token counts.
    pub fn token_weights(&self) -> &'a [f32] {
        self.rows.weights
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.rows.weights.len()
    }

    /// The first token of those that are held out: all before it are to be
    /// fitted on.
    pub fn held_from(&self) -> usize {
        self.rows.held_from
    }

    /// Which of a site's experts this is about.
    pub fn expert(&self) -> Option<usize> {
        self.expert
    }

    /// The matrix in the changed stream as it is now: what the visitor before
    /// has made of it, or what was loaded.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Rows that are another matrix's: whatever a visitor makes of them, they stay
    /// what they are.
    pub fn fixed(&self) -> &'a [Range<usize>] {
        self.fixed
    }

    /// Rows that other matrices use, too, and the sums of what those feed them:
    /// to be added to [`sums_to`](Self::sums_to) these rows. Without sums where
    /// the engine's `gather` has not run. What becomes of these rows
    /// becomes of them everywhere.
    pub fn donated(&self) -> &'a [(Range<usize>, Option<&'a Sums>)] {
        self.donated
    }

    /// What of this is no finite number, if anything.
    pub(super) fn not_finite(&self) -> Option<&'static str> {
        let of_chunk = |values: &[f32]| values.iter().all(|v| v.is_finite());
        let finite = |values: &[f32]| values.par_chunks(CHECKED).all(of_chunk);
        [
            (self.inputs(), "the activations that go into"),
            (self.targets(), "the activations that should come out of"),
            (
                self.token_weights(),
                "the sizes of activations that come out of",
            ),
        ]
        .into_iter()
        .find(|(values, _)| !finite(values))
        .map(|(_, what)| what)
    }

    /// The sums over all tokens.
    pub fn sums(&self) -> Sums {
        self.sum_up(self.rows)
    }

    /// The sums for some of the outputs: what they take grows with their number,
    /// and an output head has very many.
    pub fn sums_to(&self, outputs: Range<usize>) -> Sums {
        let (targets, width) = self.rows.targets;
        let some: Vec<f32> = (targets.par_chunks(width.max(1)))
            .flat_map_iter(|row| &row[outputs.clone()])
            .copied()
            .collect();
        self.sum_up(Rows {
            targets: (&some, outputs.len()),
            ..self.rows
        })
    }

    /// The sums with other inputs, `columns` for each token.
    pub fn sums_of(&self, inputs: &[f32], columns: usize) -> Sums {
        let inputs = (inputs, columns);
        Sums::of(
            Rows {
                inputs,
                ..self.rows
            },
            self.par,
        )
    }

    fn sum_up(&self, rows: Rows<'_>) -> Sums {
        match self.grams {
            Some(known) => {
                let grams = known.get_or_init(|| rows.grams(self.par));
                Sums::beside(grams, rows, self.par)
            }
            None => Sums::of(rows, self.par),
        }
    }
}
