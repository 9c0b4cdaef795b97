//! Whether a plan can be carried out on a source, before anything is made of it.

use super::digest::UNKNOWN_DIGEST;
use super::error::ConvertError;
use super::heads::attention_map;
use super::variant::Variant;
use crate::input::ModelFile;
use crate::plan::Plan;

/// Checks that `plan` was made for `source` and can be carried out on it. Whether it `gets_types`
/// later says whether its own are all.
///
/// # Errors
/// When it does not fit; names the edit.
pub fn check(source: &ModelFile, plan: &Plan, gets_types: bool) -> Result<(), ConvertError> {
    check_source(plan, source)?;
    if plan.is_about_units() {
        check_units(source, plan)?;
    }
    match gets_types {
        true => Ok(()),
        false => Variant::new(source, plan, None).map(|_| ()),
    }
}

/// Checks that `plan` was made for `source`.
///
/// # Errors
/// When it was made for another file.
pub fn check_source(plan: &Plan, source: &ModelFile) -> Result<(), ConvertError> {
    if plan.source == UNKNOWN_DIGEST || plan.source == source.digest() {
        return Ok(());
    }
    Err(ConvertError::WrongSource {
        path: source.path().to_owned(),
        expected: plan.source.clone(),
        actual: source.digest().to_owned(),
    })
}

/// Checks that what `plan` says of units can be carried out on `source`. Of a plan for another
/// file nothing else is said than that.
///
/// # Errors
/// When it does not fit; names the edit.
pub(super) fn check_units(source: &ModelFile, plan: &Plan) -> Result<(), ConvertError> {
    let Err(error) = plan.check(&attention_map(source)?) else {
        return Ok(());
    };
    check_source(plan, source)?;
    Err(error.into())
}
