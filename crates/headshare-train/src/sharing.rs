//! What a plan shares, as rows of the variant that is trained: ties, when it is shared
//! already, or pairs to pull together before it is. And what it silences.

use headshare_convert::convert::variant::Variant;
use headshare_convert::model::{AttentionMap, Part, RowsRange};
use headshare_convert::plan::{Plan, Share};

use crate::error::TrainError;
use crate::model::Model;

/// For each unit that `plan` shares, its blocks and those of its donor, as rows of the
/// tensors of `variant`, which is made by the same plan. One after the other they are
/// the ties of [`crate::Model::load`]; as they are, the pairs of
/// [`crate::loss::pairs::HeadPairs::new`].
///
/// # Errors
/// When the variant's heads cannot be found, or the plan does not fit it.
pub fn shared_blocks(
    plan: &Plan,
    variant: &Variant<'_>,
) -> Result<Vec<Vec<(RowsRange, RowsRange)>>, TrainError> {
    let map = heads(variant)?;
    let left = plan.renumbered();
    let fits = left.check(&map);
    fits.map_err(|error| TrainError::option("plan", error.to_string()))?;
    let blocks = |share: &Share| {
        let (alias, donor) = (share.alias(), share.donor());
        let pair = |&part: &Part| Some((map.block(alias, part)?, map.block(donor, part)?));
        share.parts.iter().filter_map(pair).collect()
    };
    Ok(left.shares().map(blocks).collect())
}

/// Keeps the units silent that `plan` silences, in `model`, which was loaded from
/// `variant`, which is made by the same plan.
///
/// # Errors
/// When the variant's heads cannot be found, or the plan does not fit it.
pub fn keep_silent(
    model: &mut Model,
    plan: &Plan,
    variant: &Variant<'_>,
) -> Result<(), TrainError> {
    if plan.silences().next().is_none() {
        return Ok(());
    }
    let map = heads(variant)?;
    for unit in plan.renumbered().silences() {
        let columns = map.layer(unit.layer).map(|l| l.output_columns(unit.unit));
        let columns = columns
            .ok_or_else(|| TrainError::option("plan", format!("the model has no {}", unit.id())))?;
        let name = format!("blk.{}.attn_output.weight", unit.layer);
        let columns = columns.start as usize..columns.end as usize;
        model.parameters_mut().silence(&name, columns)?;
    }
    Ok(())
}

fn heads(variant: &Variant<'_>) -> Result<AttentionMap, TrainError> {
    AttentionMap::of(variant.gguf()).map_err(|error| TrainError::Heads {
        path: variant.source.path().to_owned(),
        error,
    })
}
