//! Records in a header whose length is known before their content is.

use std::collections::BTreeMap;

use serde::Serialize;

use super::digest::UNKNOWN_DIGEST;
use crate::TOOL;
use crate::plan::Plan;

/// Makes JSON `len` bytes long, with spaces after it.
pub(super) fn pad(json: &mut String, len: usize) {
    let spaces = len.saturating_sub(json.len());
    json.extend(std::iter::repeat_n(' ', spaces));
}

/// What a variant says about how it was made, under
/// [`MADE_BY`](super::variant::MADE_BY).
#[derive(Debug)]
pub(super) struct MadeBy {
    plan: Plan,
    repair: Option<serde_json::Value>,
    quantized: Option<serde_json::Value>,
    /// The tensors whose digests it states.
    pub tensors: Vec<String>,
    len: usize,
}

#[derive(Serialize)]
struct Json<'a> {
    tool: &'a str,
    plan: &'a Plan,
    repair: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantized: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tensors: BTreeMap<&'a str, &'a str>,
}

impl MadeBy {
    /// Of what `plan` and a fit make, which says `by` of itself. There is room for
    /// `room` bytes of that, and for the digests of the tensors `most`.
    pub fn new(plan: &Plan, by: &str, room: usize, tensors: Vec<String>, most: &[String]) -> Self {
        let mut this = Self {
            plan: plan.clone(),
            repair: None,
            quantized: None,
            tensors: most.to_vec(),
            len: 0,
        };
        this.len = (this.unknown().len() + room).saturating_sub("null".len());
        let by: Option<serde_json::Value> = serde_json::from_str(by).ok();
        match by {
            // Both may be said, each under its name.
            Some(serde_json::Value::Object(mut all)) if all.contains_key("quantized") => {
                this.quantized = all.remove("quantized");
                this.repair = all.remove("repair");
            }
            repair => this.repair = repair,
        }
        this.tensors = tensors;
        this
    }

    /// As JSON, with the digests of its tensors.
    pub fn json(&self, digests: &BTreeMap<String, String>) -> String {
        let digest = |name: &String| digests.get(name).map_or(UNKNOWN_DIGEST, String::as_str);
        let tensors = self
            .tensors
            .iter()
            .map(|name| (name.as_str(), digest(name)));
        let json = Json {
            tool: TOOL,
            plan: &self.plan,
            repair: self.repair.as_ref(),
            quantized: self.quantized.as_ref(),
            tensors: tensors.collect(),
        };
        let mut json = serde_json::to_string(&json).expect("a plan is plain data");
        pad(&mut json, self.len);
        json
    }

    /// The same, as long, before the digests are known.
    pub fn unknown(&self) -> String {
        self.json(&BTreeMap::new())
    }
}
