//! Whether a plan can be carried out on a source, before anything is made of it.

use super::attention_map;
use super::digest::{UNKNOWN_DIGEST, digest_of};
use super::error::ConvertError;
use super::variant::Variant;
use crate::input::ModelFile;
use crate::plan::Plan;

/// Checks that `plan` was made for `source` and can be carried out on it. Whether it `gets_types`
/// later says whether its own are all.
///
/// # Errors
/// When it does not fit; names the edit.
pub fn check(source: &ModelFile, plan: &Plan, gets_types: bool) -> Result<(), ConvertError> {
    check_source(plan, source, &digest_of(source))?;
    if plan.is_about_units() {
        plan.check(&attention_map(source)?)?;
    }
    match gets_types {
        true => Ok(()),
        false => Variant::new(source, plan, None).map(|_| ()),
    }
}

/// Checks that `plan` was made for `source`, whose digest is `digest`.
///
/// # Errors
/// When it was made for another file.
pub fn check_source(plan: &Plan, source: &ModelFile, digest: &str) -> Result<(), ConvertError> {
    if plan.source == UNKNOWN_DIGEST || plan.source == digest {
        return Ok(());
    }
    Err(ConvertError::WrongSource {
        path: source.path().to_owned(),
        expected: plan.source.clone(),
        actual: digest.to_owned(),
    })
}
