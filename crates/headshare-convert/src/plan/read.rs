//! Reading a plan file: an error names the field.

use serde::Deserialize;

use super::v1::PlanV1;
use super::{Plan, PlanError, PlanV2, VERSION};

impl Plan {
    /// Reads a plan file.
    ///
    /// # Errors
    /// When it is no JSON of this form, or of another version.
    pub fn from_json(text: &[u8]) -> Result<Self, PlanError> {
        /// The one field that every version has.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        // Some editors put a mark in front.
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        // serde would take an array for the fields in order.
        if text.trim_ascii_start().first() == Some(&b'[') {
            let error = serde::de::Error::custom("expected an object, found an array");
            return Err(PlanError::Json(error));
        }
        // First, so that a newer plan is not called malformed.
        let Versioned { version } = parse(text)?;
        let plan: Self = match version {
            1 => parse::<PlanV1>(text)?.into(),
            VERSION => parse::<PlanV2<'_>>(text)?.into(),
            _ => {
                return Err(PlanError::field(
                    "version",
                    format!("{version} is unknown; this program reads versions 1 and {VERSION}"),
                ));
            }
        };
        if !is_digest(&plan.source) {
            return Err(PlanError::field(
                "source",
                format!(
                    "{:?} is no digest (\"blake3:\" and 64 hexadecimal digits)",
                    plan.source
                ),
            ));
        }
        Ok(plan)
    }
}

/// Reads JSON; an error names the field.
fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, PlanError> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        // "." is the whole; a text that breaks off is no matter of one field.
        if path == "." || error.is_eof() {
            PlanError::Json(error)
        } else {
            PlanError::field(path, error.to_string())
        }
    })?;
    deserializer.end()?;
    Ok(value)
}

/// Whether `text` is the digest of a file. Zeros are none: they stand for a
/// digest that is not known yet.
fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("blake3:").unwrap_or("");
    hex.len() == 64
        && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && hex.bytes().any(|b| b != b'0')
}
