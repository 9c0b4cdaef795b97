//! What a conversion comes to, before fitting has decided which tensors get new
//! data.
//!
//! Headers have room for all that may be said. But new data repeat nothing, and a
//! tensor that stays as it is may repeat another, and is stored once then. So sizes
//! are exact if none of the tensors in question repeats anything. Otherwise it
//! depends on the fit, and they are at most those without such a repetition.

use std::collections::BTreeSet;

use headshare_format::PageSize;

use super::error::ConvertError;
use super::{Fitted, Prepared, Unknown, prepare, prepare_for};
use crate::input::ModelFile;
use crate::plan::Plan;

/// A conversion that is not fitted yet.
#[derive(Debug)]
pub struct Foreseen<'a> {
    /// How it would be with new data for all tensors that may get them. Its sizes
    /// are bounds where they are not exact: of the output the most, of what is
    /// saved the least.
    pub prepared: Prepared<'a>,
    /// Whether its sizes do not depend on what fitting finds.
    pub is_exact: bool,
}

impl<'a> Foreseen<'a> {
    /// One of which all is known.
    pub fn exactly(prepared: Prepared<'a>) -> Self {
        Self {
            prepared,
            is_exact: true,
        }
    }
}

/// Plans the conversion of `source` as [`prepare`] does, when of `fitted` only the
/// room is known.
///
/// # Errors
/// As [`prepare`].
pub fn foresee(
    source: &ModelFile,
    plan: Option<Plan>,
    fitted: Fitted,
    page: PageSize,
) -> Result<Foreseen<'_>, ConvertError> {
    let room = fitted.room.clone();
    if room.tensors.is_empty() {
        return prepare(source, plan, fitted, page).map(Foreseen::exactly);
    }
    let with_new = |data: &BTreeSet<String>, has_table: bool| {
        let unknown = Unknown {
            data: data.clone(),
            has_table,
        };
        prepare_for(source, plan.clone(), fitted.clone(), page, &unknown)
    };
    let mut most = with_new(&room.tensors, false)?;
    let is_exact = room.certain == room.tensors || {
        let least = with_new(&room.certain, false)?;
        // Some sharing brings in the table, which a plain file does without.
        if least.headshare.is_some() && most.headshare.is_none() {
            bound(&mut most, &with_new(&room.tensors, true)?);
        }
        let is_exact = least.duplicates == most.duplicates;
        bound(&mut most, &least);
        is_exact
    };
    Ok(Foreseen {
        prepared: most,
        is_exact,
    })
}

/// Lets the sizes of `this` be no better than those of `other`.
fn bound(this: &mut Prepared<'_>, other: &Prepared<'_>) {
    let saved = &mut this.saved;
    this.output_bytes = this.output_bytes.max(other.output_bytes);
    saved.file_bytes = saved.file_bytes.min(other.saved.file_bytes);
    saved.resident_bytes = saved.resident_bytes.min(other.saved.resident_bytes);
}
