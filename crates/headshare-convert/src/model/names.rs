//! What the name of a tensor says.

/// The layer that a tensor called `name` belongs to, and its name within the layer:
/// `attn_q.weight` of `blk.3.attn_q.weight`. `None` for those that belong to none.
pub fn in_layer(name: &str) -> Option<(u32, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// The layer that a tensor called `name` belongs to, if it belongs to one.
pub fn layer_of(name: &str) -> Option<u32> {
    in_layer(name).map(|(layer, _)| layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_layer() {
        assert_eq!(
            in_layer("blk.12.ffn_down.weight"),
            Some((12, "ffn_down.weight"))
        );
        for name in [
            "output.weight",
            "blk.x.attn_q.weight",
            "blk.3",
            "v.blk.3.attn_q.weight",
        ] {
            assert_eq!((in_layer(name), layer_of(name)), (None, None), "{name}");
        }
    }
}
