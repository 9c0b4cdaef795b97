//! The size of a context, as jobs ask for it.

use headshare_runtime::Model;
use headshare_runtime::context::DEFAULT_N_CTX;

/// The context that was asked for, where 0 stands for what the model was trained
/// with.
pub(crate) fn own_if_0(n_ctx: u32, model: &Model) -> u32 {
    match (n_ctx, model.n_ctx_train()) {
        (0, 0) => DEFAULT_N_CTX,
        (0, trained) => trained,
        (n_ctx, _) => n_ctx,
    }
}

/// The same, but no more than the positions that the model has, beyond which
/// nothing can be evaluated.
pub(crate) fn in_positions(n_ctx: u32, model: &Model) -> u32 {
    own_if_0(n_ctx, model).min(model.n_positions().unwrap_or(u32::MAX))
}
