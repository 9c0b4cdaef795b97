//! Jobs and outcomes out of JSON.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// What `text` says.
///
/// `serde_json::from_str` would refuse fractions in jobs and in some outcomes: a
/// crate of the workspace has serde_json keep numbers as text
/// (`arbitrary_precision`), which types that are tagged or flattened cannot read.
/// A [`Value`] can.
///
/// # Errors
/// When it is no JSON, or says something else.
pub fn from_json<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_value(serde_json::from_str::<Value>(text)?)
}
