//! Records in a header whose length is known before their content is.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::digest::UNKNOWN_DIGEST;
use crate::TOOL;
use crate::plan::Plan;

/// Makes JSON `len` bytes long, with spaces after it.
pub(super) fn pad(json: &mut String, len: usize) {
    let spaces = len.saturating_sub(json.len());
    json.extend(std::iter::repeat_n(' ', spaces));
}

/// What new data were computed by: records, as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FittedBy {
    /// Of a repair.
    pub repair: Option<String>,
    /// Of quantizing.
    pub quantized: Option<String>,
    /// Of training.
    pub trained: Option<String>,
}

impl FittedBy {
    /// As a converted file says it, in `headshare.replaced.by`.
    pub(super) fn json(&self) -> String {
        let named = [
            ("quantized", &self.quantized),
            ("repair", &self.repair),
            ("trained", &self.trained),
        ];
        let member = |(name, json): &(&str, &Option<String>)| {
            json.as_ref().map(|json| format!("\"{name}\":{json}"))
        };
        let members: Vec<String> = named.iter().filter_map(member).collect();
        match (&members[..], &self.repair) {
            ([], _) => ENCODED.to_owned(),
            ([_], Some(repair)) => repair.clone(),
            _ => format!("{{{}}}", members.join(",")),
        }
    }
}

/// What tensors were computed by where nothing was fitted.
const ENCODED: &str = "{\"quantized\":\"ggml\"}";

/// What a variant says about how it was made, under
/// [`MADE_BY`](super::variant::MADE_BY).
#[derive(Debug)]
pub(super) struct MadeBy {
    plan: Plan,
    repair: Option<Box<RawValue>>,
    quantized: Option<Box<RawValue>>,
    trained: Option<Box<RawValue>>,
    /// The tensors whose digests it states.
    pub tensors: Vec<String>,
    len: usize,
}

#[derive(Serialize)]
struct Json<'a> {
    tool: &'a str,
    plan: &'a Plan,
    repair: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantized: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trained: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tensors: BTreeMap<&'a str, &'a str>,
}

impl MadeBy {
    /// Of what `plan` makes and what was fitted `by`. There is room for what is said
    /// in `room` in its place, and for the digests of the tensors `most`.
    pub fn new(
        plan: &Plan,
        by: &FittedBy,
        room: &FittedBy,
        tensors: Vec<String>,
        most: &[String],
    ) -> Self {
        let raw = |json: &Option<String>| {
            let json = json.as_ref()?;
            Some(RawValue::from_string(json.clone()).expect("records are JSON"))
        };
        let of = |by: &FittedBy, tensors| Self {
            plan: plan.clone(),
            repair: raw(&by.repair),
            quantized: raw(&by.quantized),
            trained: raw(&by.trained),
            tensors,
            len: 0,
        };
        Self {
            len: of(room, most.to_vec()).unknown().len(),
            ..of(by, tensors)
        }
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
            repair: self.repair.as_deref(),
            quantized: self.quantized.as_deref(),
            trained: self.trained.as_deref(),
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
