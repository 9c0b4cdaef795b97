//! llama.cpp's `deci`, which is `llama` with numbers of heads and of
//! feed-forward channels for each layer (`src/models/deci.cpp`): the same
//! tensors, keys under another name, arrays for what was one number.

use headshare_format::gguf::Value;
use headshare_format::{FormatError, Gguf};

use super::keys::Keys;

/// The architecture whose layers can differ, and what it becomes.
pub(super) const LLAMA: &str = "llama";
pub(super) const DECI: &str = "deci";

const FEED_FORWARD: &str = "feed_forward_length";

/// Whether `gguf` can become [`DECI`]; `what` begins the sentence that says why
/// not.
pub(super) fn check(gguf: &Gguf, what: &str) -> Result<(), String> {
    let name = gguf.architecture().ok().flatten().unwrap_or("unknown");
    if name == DECI {
        return Err(format!(
            "this is {DECI}, of which units are gone already; let all go in one step, from the {LLAMA} model"
        ));
    }
    if name != LLAMA {
        return Err(format!(
            "{what} from {LLAMA} models only, which llama.cpp also runs with another number of heads in each layer, as {DECI}; this is {name}"
        ));
    }
    let experts = gguf.u64_value("llama.expert_count");
    if experts.ok().flatten().is_some_and(|n| n > 0) {
        return Err(format!(
            "this model has experts, and llama.cpp's {DECI} has none"
        ));
    }
    Ok(())
}

/// The keys of the `deci` model that is left of the `llama` model `gguf`, whose
/// layers have `heads` (query, KV; of so many layers), and `channels` where these
/// are given.
///
/// # Errors
/// When the source's keys are not what they must be.
pub(super) fn keys(
    gguf: &Gguf,
    heads: impl FnOnce(usize) -> (Vec<u32>, Vec<u32>),
    key_length: u64,
    channels: Option<Vec<u32>>,
) -> Result<Keys, FormatError> {
    let key = |suffix: &str| format!("{LLAMA}.{suffix}");
    let blocks =
        gguf.u64_value(&key("block_count"))?
            .ok_or_else(|| FormatError::key(&key("block_count"), "is missing"))? as usize;
    let (query, kv) = heads(blocks);
    let channels = match channels {
        Some(channels) => channels,
        None => feed_forward_lengths(gguf, LLAMA, blocks)?,
    };
    let length = key_length as u32;
    let mut keys = Keys::renamed(LLAMA, DECI);
    keys.arrays = [
        ("attention.head_count", query),
        ("attention.head_count_kv", kv),
        (FEED_FORWARD, channels),
    ]
    .into();
    // llama.cpp would take these from the number of heads.
    keys.if_absent = [
        ("attention.key_length", length),
        ("attention.value_length", length),
        ("rope.dimension_count", length),
    ]
    .into();
    Ok(keys)
}

/// The number of feed-forward channels of each of `blocks` layers.
///
/// # Errors
/// When the key is missing, or is no list of a number a layer.
pub(super) fn feed_forward_lengths(
    gguf: &Gguf,
    architecture: &str,
    blocks: usize,
) -> Result<Vec<u32>, FormatError> {
    if blocks > gguf.tensors().len() {
        let key = format!("{architecture}.block_count");
        return Err(FormatError::key(&key, "is more than there are tensors"));
    }
    let key = format!("{architecture}.{FEED_FORWARD}");
    match gguf.value(&key) {
        Some(Value::Array(array)) => array
            .values()
            .map(|v| v.as_u64().and_then(|n| u32::try_from(n).ok()))
            .collect::<Option<Vec<u32>>>()
            .filter(|list| list.len() == blocks)
            .ok_or_else(|| FormatError::key(&key, "is no list of a number a layer")),
        _ => {
            let n = gguf
                .u64_value(&key)?
                .ok_or_else(|| FormatError::key(&key, "is missing"))?;
            Ok(vec![u32::try_from(n).unwrap_or(u32::MAX); blocks])
        }
    }
}
