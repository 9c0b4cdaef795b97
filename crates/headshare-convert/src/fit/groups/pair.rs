//! Two layers of which one can use units of the other: their tensors together.

use std::collections::BTreeMap;

use headshare_format::{GgmlType, TensorInfo};

use super::choices::{Choice, Measured, pruned, together};
use crate::fit::error::FitError;
use crate::fit::moves::in_file;
use crate::fit::sharing::Sharing;
use crate::input::ModelFile;
use crate::model::{AttentionMap, Part, UnitId};

/// The tensors of two layers.
pub(super) struct Pair<'s> {
    /// What one uses of the other.
    pub sharing: Sharing,
    matched: Vec<Matched<'s>>,
}

/// A tensor, and the one of the earlier layer that units' rows can be taken from.
struct Matched<'s> {
    own: &'s TensorInfo,
    donor: &'s TensorInfo,
    /// Rows of its own that each step saves, block by block.
    saved: Vec<Vec<u64>>,
}

impl<'s> Pair<'s> {
    /// Those that `sharing` is about, in `source`, whose heads are `map`; `None` where these
    /// are not there.
    pub fn of(source: &'s ModelFile, map: &AttentionMap, sharing: Sharing) -> Option<Self> {
        let own = map.layer(sharing.layer)?;
        let donor = map.layer(sharing.donor_layer)?;
        let mut saved: BTreeMap<(usize, usize), Vec<Vec<u64>>> = BTreeMap::new();
        for part in Part::ALL {
            let rows = own.tensor(part);
            let of_steps = saved.entry((rows.tensor, donor.tensor(part).tensor));
            let of_steps = of_steps.or_insert_with(|| vec![Vec::new(); sharing.steps.len()]);
            for (saved, step) in of_steps.iter_mut().zip(&sharing.steps) {
                let unit = UnitId {
                    layer: sharing.layer,
                    unit: step.unit,
                };
                saved.push(map.block(unit, part)?.len / rows.row_bytes);
            }
        }
        let tensors = source.gguf.tensors();
        let matched = saved.into_iter().map(|((own, donor), saved)| Matched {
            own: &tensors[own],
            donor: &tensors[donor],
            saved,
        });
        Some(Self {
            sharing,
            matched: matched.collect(),
        })
    }

    /// The tensors.
    pub fn tensors(&self) -> Vec<&'s TensorInfo> {
        (self.matched.iter())
            .flat_map(|matched| [matched.donor, matched.own])
            .collect()
    }

    /// What could become of them: all types where nothing is shared, else the same type for
    /// both of each two.
    pub fn choices<'a>(&self, of: &Measured<'a, '_>) -> Result<Vec<Choice<'a>>, FitError> {
        let mut all = vec![Choice::start(0, 0.0)];
        for info in self.tensors() {
            let of_types = of.types(info, (info.row_elems(), info.rows()), 1.0, true)?;
            all = pruned(together(&all, &of_types));
        }
        for steps in 1..=self.sharing.steps.len() {
            let mut of_step = vec![Choice::start(steps, self.sharing.cost(steps))];
            for matched in &self.matched {
                of_step = pruned(together(&of_step, &matched.alike(steps, of)?));
            }
            all.extend(of_step);
        }
        Ok(all)
    }
}

impl Matched<'_> {
    /// Both at each type that both can have, after so many steps. A block is stored once but
    /// for what of it is no whole page.
    fn alike<'a>(
        &self,
        steps: usize,
        measured: &Measured<'a, '_>,
    ) -> Result<Vec<Choice<'a>>, FitError> {
        let both = [self.donor, self.own];
        let of = both.map(|info| measured.movable.get(info.name.as_str()).copied());
        let (source, statistics) = (measured.source, measured.statistics);
        let page = measured.counts.page.bytes();
        let choice = |to: GgmlType, cost| {
            let row = to.row_bytes(self.own.row_elems())?;
            let all = both.map(|info| in_file(row * info.rows(), source));
            let pages = |rows: &u64| row * rows / page * page;
            let saved: u64 = self.saved[..steps].iter().flatten().map(pages).sum();
            Some(Choice {
                bytes: all.iter().sum::<u64>() - saved,
                cost,
                types: (of.iter().flatten())
                    .map(|tensor| (tensor.name.as_str(), to))
                    .collect(),
                steps: 0,
                changes: usize::from(to != self.own.ggml_type || to != self.donor.ggml_type),
            })
        };
        // What each costs at a type: nothing at the one that it has.
        let costs = |i: usize| {
            let has = (both[i].ggml_type, 0.0);
            let moves = of[i].iter().flat_map(|&tensor| {
                let cost = |to| Ok((to, statistics.cost(tensor, to)?));
                tensor.moves.iter().map(move |m| cost(m.to))
            });
            std::iter::once(Ok(has))
                .chain(moves)
                .collect::<Result<Vec<_>, FitError>>()
        };
        let (of_donor, of_own) = (costs(0)?, costs(1)?);
        let alike = of_own.iter().filter_map(|(to, own)| {
            let (_, donor) = of_donor.iter().find(|(other, _)| other == to)?;
            choice(*to, donor + own)
        });
        Ok(pruned(alike.collect()))
    }
}
