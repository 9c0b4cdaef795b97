//! The sizes that a model states.

use headshare_format::Gguf;
use headshare_runtime::mixture::Shape;

/// What llama.cpp's rules for mixtures know about the model; of sizes that differ from
/// layer to layer, those of the first one.
///
/// # Errors
/// The key that is missing.
pub fn shape(gguf: &Gguf) -> Result<Shape<'_>, String> {
    let architecture = gguf.architecture().ok().flatten();
    let architecture = architecture.ok_or_else(|| "general.architecture".to_owned())?;
    let stated = |suffix: &str| -> Option<u32> {
        let key = format!("{architecture}.{suffix}");
        let first = |key: &str| gguf.array_value(key).ok()??.values().next()?.as_u64();
        let number = (gguf.u64_value(&key).ok().flatten()).or_else(|| first(&key));
        number.and_then(|n| u32::try_from(n).ok())
    };
    let needed = |suffix: &str| stated(suffix).ok_or_else(|| format!("{architecture}.{suffix}"));
    let embedding = needed("embedding_length")?;
    let heads = stated("attention.head_count").unwrap_or(0);
    let each = embedding.checked_div(heads).unwrap_or(0);
    Ok(Shape {
        architecture,
        embedding,
        feed_forward: stated("feed_forward_length").unwrap_or(0),
        layers: needed("block_count")?,
        heads,
        kv_heads: stated("attention.head_count_kv").unwrap_or(heads),
        experts: stated("expert_count").unwrap_or(0),
        key_length: stated("attention.key_length").unwrap_or(each),
        value_length: stated("attention.value_length").unwrap_or(each),
    })
}
