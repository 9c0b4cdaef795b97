//! What in a model's metadata llama.cpp does not refuse, but ends the process
//! over: looked for before it is called.
//!
//! Only what llama.cpp asserts, divides by or reads beyond is here; what it
//! refuses in its own words is left to it. Each check names what it stands in
//! for, in the sources of the bundled llama.cpp.

use std::collections::HashMap;
use std::path::Path;

use headshare_format::gguf::{KEY_ARCHITECTURE, Value, ValueType};
use headshare_format::{FormatError, Gguf, TensorInfo, alias};
use headshare_stitch::MappedFile;

/// Layers that llama.cpp has room for (`LLAMA_MAX_LAYERS`, llama-hparams.h).
pub const MAX_LAYERS: u32 = 512;
/// Experts that it has room for (`LLAMA_MAX_EXPERTS`, llama-hparams.h).
const MAX_EXPERTS: u32 = 1024;

/// Architectures whose positions are not turned into weights' dimensions, or not
/// always: those in llama.cpp's `src/models` without `ggml_rope`, or where it
/// depends on the file.
const WITHOUT_ROPE: [&str; 24] = [
    "arwkv7",
    "bloom",
    "glm5-next",
    "gpt2",
    "granite",
    "granite_swa",
    "granitehybrid",
    "granitemoe",
    "graniteswitch",
    "jais",
    "jamba",
    "kimi-k3",
    "kimi-linear",
    "mamba",
    "mamba2",
    "mpt",
    "nemotron_h",
    "nemotron_h_moe",
    "refact",
    "rwkv6",
    "rwkv6qwen2",
    "rwkv7",
    "starcoder",
    "t5",
];

/// Types of tensors that ggml's CPU backend cannot multiply by.
const WITHOUT_PRODUCT: [&str; 7] = ["q8_1", "q8_K", "i8", "i16", "i32", "i64", "f64"];

const TOKENS: &str = "tokenizer.ggml.tokens";

/// Checks the metadata of the GGUF file at `path`. What is no GGUF file passes:
/// llama.cpp says so itself.
///
/// # Errors
/// As [`check`].
pub fn check_file(path: &Path) -> Result<(), FormatError> {
    let Ok(file) = MappedFile::open(path) else {
        return Ok(());
    };
    Gguf::parse(&file).map_or(Ok(()), |gguf| check(&gguf, gguf.tensors()))
}

/// Checks the metadata of a model: the keys of `gguf`, plain or converted, and
/// the `tensors` that llama.cpp is to see.
///
/// # Errors
/// What llama.cpp would end the process over.
pub fn check(gguf: &Gguf, tensors: &[TensorInfo]) -> Result<(), FormatError> {
    let architecture = match text(gguf, KEY_ARCHITECTURE) {
        Some(alias::ARCHITECTURE) => text(gguf, alias::keys::ARCHITECTURE),
        plain => plain,
    };
    let Some(architecture) = architecture else {
        return Ok(());
    };
    let model = Metadata { gguf, architecture };
    model.layers()?;
    model.experts()?;
    model.routed(tensors)?;
    model.rope()?;
    model.numbers()?;
    distinct_tokens(gguf)?;
    tensors.iter().try_for_each(multiplied)
}

fn text<'a>(gguf: &'a Gguf, key: &str) -> Option<&'a str> {
    gguf.str_value(key).ok().flatten()
}

struct Metadata<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Metadata<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn error(&self, name: &str, problem: impl Into<String>) -> FormatError {
        FormatError::key(&self.key(name), problem)
    }

    /// A number. llama.cpp refuses other types than this one.
    fn u32(&self, name: &str) -> Option<u32> {
        match self.gguf.value(&self.key(name)) {
            Some(Value::U32(n)) => Some(n),
            _ => None,
        }
    }

    /// The largest of a number a layer, or of the one for all.
    fn largest(&self, name: &str) -> Option<u32> {
        match self.gguf.value(&self.key(name))? {
            Value::U32(n) => Some(n),
            Value::Array(array) => array
                .values()
                .filter_map(|value| value.as_u64())
                .map(|n| u32::try_from(n).unwrap_or(u32::MAX))
                .max(),
            _ => None,
        }
    }

    /// llama-model.cpp, `load_hparams`.
    fn layers(&self) -> Result<(), FormatError> {
        let Some(layers) = self.u32("block_count") else {
            return Ok(());
        };
        if layers == 0 {
            return Err(self.error("block_count", "the model has no layers"));
        }
        if layers > MAX_LAYERS {
            let problem = format!("{layers} layers; llama.cpp loads at most {MAX_LAYERS}");
            return Err(self.error("block_count", problem));
        }
        match self.u32("nextn_predict_layers") {
            Some(draft) if draft > layers => Err(self.error(
                "nextn_predict_layers",
                format!("{draft} layers draft tokens, of {layers}"),
            )),
            _ => Ok(()),
        }
    }

    /// llama-model.cpp, `load_hparams`.
    fn experts(&self) -> Result<(), FormatError> {
        let experts = self.u32("expert_count").unwrap_or(0);
        let used = self.largest("expert_used_count").unwrap_or(0);
        let groups = self.u32("expert_group_count").unwrap_or(0);
        let groups_used = self.u32("expert_group_used_count").unwrap_or(0);
        if self.architecture.starts_with("hunyuan") && experts <= 1 {
            return Ok(()); // it counts the one network as an expert
        }
        if experts > MAX_EXPERTS {
            let problem = format!("{experts} experts; llama.cpp loads at most {MAX_EXPERTS}");
            return Err(self.error("expert_count", problem));
        }
        if used > experts || (experts > 0 && used == 0) {
            let problem = format!("{used} experts are used, of {experts}");
            return Err(self.error("expert_used_count", problem));
        }
        if groups > 0 && groups >= experts || groups > 1 && !experts.is_multiple_of(groups) {
            let problem = format!("{experts} experts cannot be in {groups} groups");
            return Err(self.error("expert_group_count", problem));
        }
        if groups > 1 && !(1..groups).contains(&groups_used) {
            let problem = format!("{groups_used} groups of experts are used, of {groups}");
            return Err(self.error("expert_group_used_count", problem));
        }
        Ok(())
    }

    /// A layer that chooses among experts uses some: llama-graph.cpp,
    /// `build_moe_ffn`, adds up as many as are used.
    fn routed(&self, tensors: &[TensorInfo]) -> Result<(), FormatError> {
        const NAME: &str = "expert_used_count";
        let Some(Value::Array(used)) = self.gguf.value(&self.key(NAME)) else {
            return Ok(());
        };
        let used: Vec<Option<u64>> = used.values().map(|value| value.as_u64()).collect();
        let routed_layer = |tensor: &TensorInfo| -> Option<usize> {
            let layer = tensor.name.strip_prefix("blk.")?;
            layer.strip_suffix(".ffn_gate_inp.weight")?.parse().ok()
        };
        match tensors
            .iter()
            .filter_map(routed_layer)
            .find(|&layer| used.get(layer) == Some(&Some(0)))
        {
            Some(layer) => Err(self.error(NAME, format!("layer {layer} uses none of its experts"))),
            None => Ok(()),
        }
    }

    /// llama-model.cpp, `load_hparams`: the names that it knows; and ops.cpp,
    /// `ggml_compute_forward_rope_flt`, which does not come to an end when there
    /// is nothing to turn.
    fn rope(&self) -> Result<(), FormatError> {
        for name in ["rope.dimension_count", "rope.dimension_count_swa"] {
            if self.u32(name) == Some(0) && !WITHOUT_ROPE.contains(&self.architecture) {
                return Err(self.error(name, "0 dimensions hold a position"));
            }
        }
        const KNOWN: [&str; 4] = ["none", "linear", "yarn", "longrope"];
        match text(self.gguf, &self.key("rope.scaling.type")) {
            Some(name) if !KNOWN.contains(&name) => {
                let problem = format!("llama.cpp knows no {name:?}, only {}", KNOWN.join(", "));
                Err(self.error("rope.scaling.type", problem))
            }
            _ => Ok(()),
        }
    }

    /// Numbers that are none: what is computed with them is not either, and
    /// ggml asserts bounds that no comparison with them holds.
    fn numbers(&self) -> Result<(), FormatError> {
        let prefix = self.key("");
        let of_model = |key: &str| key.starts_with(&prefix);
        for kv in self.gguf.kvs().iter().filter(|kv| of_model(&kv.key)) {
            let is_nan = |value: Value<'_>| match value {
                Value::F32(x) => x.is_nan(),
                Value::F64(x) => x.is_nan(),
                _ => false,
            };
            let nan = match self.gguf.value_of(kv) {
                Value::Array(array) => {
                    matches!(array.elem, ValueType::F32 | ValueType::F64)
                        && array.values().any(is_nan)
                }
                value => is_nan(value),
            };
            if nan {
                return Err(FormatError::key(&kv.key, "is not a number (NaN)"));
            }
            if kv.key.ends_with("epsilon")
                && let Value::F32(x) = self.gguf.value_of(kv)
                && x < 0.0
            {
                return Err(FormatError::key(&kv.key, format!("{x} is negative")));
            }
        }
        Ok(())
    }
}

/// llama-vocab.cpp, `load`: as many tokens as texts of tokens.
fn distinct_tokens(gguf: &Gguf) -> Result<(), FormatError> {
    let Some(Value::Array(tokens)) = gguf.value(TOKENS) else {
        return Ok(());
    };
    let mut seen: HashMap<&[u8], usize> = HashMap::with_capacity(tokens.len as usize);
    for (i, token) in tokens.values().enumerate() {
        // Empty ones are given a text of their own.
        if let Value::String(text) = token
            && !text.is_empty()
            && let Some(first) = seen.insert(text, i)
        {
            let text = String::from_utf8_lossy(text);
            let problem = format!("tokens {first} and {i} are the same: {text:?}");
            return Err(FormatError::key(TOKENS, problem));
        }
    }
    Ok(())
}

/// ggml-cpu.c, `ggml_compute_forward_mul_mat`: it calls the type's function for
/// dot products, which these types have not.
fn multiplied(tensor: &TensorInfo) -> Result<(), FormatError> {
    let is_matrix = tensor.dims.len() >= 2
        && tensor.name.ends_with(".weight")
        && (tensor.name.starts_with("blk.") || tensor.name == "output.weight");
    // Experts by token: looked up, not multiplied with.
    let is_table = tensor.name.ends_with("ffn_gate_tid2eid.weight");
    if is_matrix && !is_table && WITHOUT_PRODUCT.contains(&tensor.ggml_type.name()) {
        let problem = format!("llama.cpp cannot multiply by {}", tensor.ggml_type);
        return Err(FormatError::tensor(&tensor.name, problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use headshare_format::GgmlType;
    use headshare_format::gguf::HeaderBuilder;

    use super::*;

    /// What is wrong with a llama model that states these keys; empty when
    /// nothing is.
    fn problem(state: impl FnOnce(&mut HeaderBuilder)) -> String {
        let mut header = HeaderBuilder::new(3);
        header.str(KEY_ARCHITECTURE, "llama");
        state(&mut header);
        let gguf = Gguf::parse(&header.finish()).unwrap();
        check(&gguf, gguf.tensors()).map_or_else(|error| error.to_string(), |()| String::new())
    }

    fn numbers(numbers: &[(&str, u32)]) -> String {
        problem(|header| {
            for (name, n) in numbers {
                header.u32(&format!("llama.{name}"), *n);
            }
        })
    }

    #[test]
    fn layers_are_counted_as_llama_cpp_does() {
        let layers = |n| numbers(&[("block_count", n)]);
        assert_eq!([layers(1), layers(MAX_LAYERS)], ["", ""]);
        assert!(layers(0).contains("no layers"));
        assert!(layers(MAX_LAYERS + 1).contains("513 layers"));
        let draft = |n| numbers(&[("block_count", 4), ("nextn_predict_layers", n)]);
        assert_eq!(draft(4), "");
        assert!(draft(5).contains("5 layers draft tokens, of 4"));
    }

    #[test]
    fn experts_are_counted_as_llama_cpp_does() {
        let experts = |n, used, groups, groups_used| {
            numbers(&[
                ("expert_count", n),
                ("expert_used_count", used),
                ("expert_group_count", groups),
                ("expert_group_used_count", groups_used),
            ])
        };
        for fine in [
            experts(0, 0, 0, 0),
            experts(8, 2, 0, 0),
            experts(8, 8, 1, 0),
            experts(8, 2, 4, 3),
            experts(MAX_EXPERTS, 2, 0, 0),
        ] {
            assert_eq!(fine, "");
        }
        for (found, says) in [
            (experts(MAX_EXPERTS + 1, 2, 0, 0), "1025 experts"),
            (experts(8, 9, 0, 0), "9 experts are used, of 8"),
            (experts(8, 0, 0, 0), "0 experts are used, of 8"),
            (experts(0, 1, 0, 0), "1 experts are used, of 0"),
            (experts(8, 2, 8, 1), "8 experts cannot be in 8 groups"),
            (experts(8, 2, 3, 1), "8 experts cannot be in 3 groups"),
            (experts(0, 0, 1, 1), "0 experts cannot be in 1 groups"),
            (experts(8, 2, 4, 0), "0 groups of experts are used, of 4"),
            (experts(8, 2, 4, 4), "4 groups of experts are used, of 4"),
        ] {
            assert!(found.contains(says), "{found:?} does not say {says:?}");
        }
        let largest = problem(|header| {
            header.u32("llama.expert_count", 4);
            header.u32s("llama.expert_used_count", [2, 5, 0].into_iter());
        });
        assert!(largest.contains("5 experts are used, of 4"), "{largest}");
    }

    #[test]
    fn numbers_are_numbers_and_tokens_are_distinct() {
        let of_model = problem(|header| header.f32("llama.logit_scale", f32::NAN));
        assert!(of_model.contains("llama.logit_scale"), "{of_model}");
        let in_array = problem(|h| h.f32s("llama.alpha", [1.0, f32::NAN].into_iter()));
        assert!(in_array.contains("llama.alpha"), "{in_array}");
        let negative = problem(|header| header.f32("llama.norm_epsilon", -1.0));
        assert!(negative.contains("-1 is negative"), "{negative}");
        let fine = problem(|header| {
            header.f32("other.logit_scale", f32::NAN);
            header.f32("llama.scale", -1.0);
            header.f32("llama.norm_epsilon", 0.0);
            header.strs(TOKENS, ["a", "", "b", ""].into_iter());
        });
        assert_eq!(fine, "");
        let twice = problem(|header| header.strs(TOKENS, ["a", "b", "a"].into_iter()));
        assert!(twice.contains("tokens 0 and 2 are the same"), "{twice}");
        let none = numbers(&[("rope.dimension_count", 0)]);
        assert!(none.contains("0 dimensions"), "{none}");
        let unknown = problem(|header| header.str("llama.rope.scaling.type", "x"));
        assert!(unknown.contains("yarn"), "{unknown}");
    }

    /// A converted file's keys are those of the model that it stands for.
    #[test]
    fn the_true_architecture_counts() {
        let mut header = HeaderBuilder::new(3);
        header.str(KEY_ARCHITECTURE, alias::ARCHITECTURE);
        header.str(alias::keys::ARCHITECTURE, "llama");
        header.u32("llama.block_count", 0);
        let gguf = Gguf::parse(&header.finish()).unwrap();
        assert!(check(&gguf, gguf.tensors()).is_err());
    }

    #[cfg(not(feature = "portable"))]
    #[test]
    fn ggml_multiplies_by_all_other_types() {
        use ggml_sys as sys;
        for ggml_type in GgmlType::all() {
            // SAFETY: a type that ggml has; its traits are a static table.
            let traits = unsafe { &*sys::ggml_get_type_traits_cpu(ggml_type.id() as _) };
            let without = WITHOUT_PRODUCT.contains(&ggml_type.name());
            assert_eq!(traits.vec_dot.is_none(), without, "{ggml_type}");
        }
    }
}
