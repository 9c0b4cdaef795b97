//! llama-quantize's mixtures of types: which tensor gets which type, by llama.cpp's
//! own rules (`llama_quant_compute_types`), so that files compare one to one.

use std::ffi::{CString, c_char, c_int};
use std::mem::offset_of;
use std::path::Path;
use std::sync::Arc;

use ggml_sys as sys;

use crate::quants::{TypeInfo, type_info};
use crate::{guard, log};

/// A mixture, by llama-quantize's name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mixture {
    /// Its name, such as `q4_K_M`.
    pub name: &'static str,
    /// Its number in `general.file_type` (`llama_ftype`).
    pub file_type: u32,
    /// The type that most tensors get, by its number.
    main: u32,
}

macro_rules! mixtures {
    ($($name:literal $file_type:ident $main:ident,)*) => {
        /// All of them.
        pub const MIXTURES: &[Mixture] = &[$(Mixture {
            name: $name,
            file_type: sys::$file_type,
            main: sys::$main,
        }),*];
    };
}

mixtures! {
    "f32" LLAMA_FTYPE_ALL_F32 GGML_TYPE_F32,
    "f16" LLAMA_FTYPE_MOSTLY_F16 GGML_TYPE_F16,
    "bf16" LLAMA_FTYPE_MOSTLY_BF16 GGML_TYPE_BF16,
    "q8_0" LLAMA_FTYPE_MOSTLY_Q8_0 GGML_TYPE_Q8_0,
    "q6_K" LLAMA_FTYPE_MOSTLY_Q6_K GGML_TYPE_Q6_K,
    "q5_0" LLAMA_FTYPE_MOSTLY_Q5_0 GGML_TYPE_Q5_0,
    "q5_1" LLAMA_FTYPE_MOSTLY_Q5_1 GGML_TYPE_Q5_1,
    "q5_K" LLAMA_FTYPE_MOSTLY_Q5_K_M GGML_TYPE_Q5_K,
    "q5_K_S" LLAMA_FTYPE_MOSTLY_Q5_K_S GGML_TYPE_Q5_K,
    "q5_K_M" LLAMA_FTYPE_MOSTLY_Q5_K_M GGML_TYPE_Q5_K,
    "q4_0" LLAMA_FTYPE_MOSTLY_Q4_0 GGML_TYPE_Q4_0,
    "q4_1" LLAMA_FTYPE_MOSTLY_Q4_1 GGML_TYPE_Q4_1,
    "q4_K" LLAMA_FTYPE_MOSTLY_Q4_K_M GGML_TYPE_Q4_K,
    "q4_K_S" LLAMA_FTYPE_MOSTLY_Q4_K_S GGML_TYPE_Q4_K,
    "q4_K_M" LLAMA_FTYPE_MOSTLY_Q4_K_M GGML_TYPE_Q4_K,
    "iq4_nl" LLAMA_FTYPE_MOSTLY_IQ4_NL GGML_TYPE_IQ4_NL,
    "iq4_xs" LLAMA_FTYPE_MOSTLY_IQ4_XS GGML_TYPE_IQ4_XS,
    "mxfp4_moe" LLAMA_FTYPE_MOSTLY_MXFP4_MOE GGML_TYPE_MXFP4,
    "q3_K" LLAMA_FTYPE_MOSTLY_Q3_K_M GGML_TYPE_Q3_K,
    "q3_K_S" LLAMA_FTYPE_MOSTLY_Q3_K_S GGML_TYPE_Q3_K,
    "q3_K_M" LLAMA_FTYPE_MOSTLY_Q3_K_M GGML_TYPE_Q3_K,
    "q3_K_L" LLAMA_FTYPE_MOSTLY_Q3_K_L GGML_TYPE_Q3_K,
    "iq3_xxs" LLAMA_FTYPE_MOSTLY_IQ3_XXS GGML_TYPE_IQ3_XXS,
    "iq3_xs" LLAMA_FTYPE_MOSTLY_IQ3_XS GGML_TYPE_IQ3_S,
    "iq3_s" LLAMA_FTYPE_MOSTLY_IQ3_S GGML_TYPE_IQ3_S,
    "iq3_m" LLAMA_FTYPE_MOSTLY_IQ3_M GGML_TYPE_IQ3_S,
    "q2_K" LLAMA_FTYPE_MOSTLY_Q2_K GGML_TYPE_Q2_K,
    "q2_K_S" LLAMA_FTYPE_MOSTLY_Q2_K_S GGML_TYPE_Q2_K,
    "q2_0" LLAMA_FTYPE_MOSTLY_Q2_0 GGML_TYPE_Q2_0,
    "iq2_xxs" LLAMA_FTYPE_MOSTLY_IQ2_XXS GGML_TYPE_IQ2_XXS,
    "iq2_xs" LLAMA_FTYPE_MOSTLY_IQ2_XS GGML_TYPE_IQ2_XS,
    "iq2_s" LLAMA_FTYPE_MOSTLY_IQ2_S GGML_TYPE_IQ2_S,
    "iq2_m" LLAMA_FTYPE_MOSTLY_IQ2_M GGML_TYPE_IQ2_S,
    "iq1_s" LLAMA_FTYPE_MOSTLY_IQ1_S GGML_TYPE_IQ1_S,
    "iq1_m" LLAMA_FTYPE_MOSTLY_IQ1_M GGML_TYPE_IQ1_M,
    "tq1_0" LLAMA_FTYPE_MOSTLY_TQ1_0 GGML_TYPE_TQ1_0,
    "tq2_0" LLAMA_FTYPE_MOSTLY_TQ2_0 GGML_TYPE_TQ2_0,
    "q1_0" LLAMA_FTYPE_MOSTLY_Q1_0 GGML_TYPE_Q1_0,
}

impl Mixture {
    /// The one called `name`, in any case.
    pub fn by_name(name: &str) -> Option<Self> {
        (MIXTURES.iter().copied()).find(|m| m.name.eq_ignore_ascii_case(name))
    }

    /// The type that most tensors get.
    pub fn main(self) -> Option<TypeInfo> {
        type_info(self.main)
    }

    /// Its number.
    pub fn main_id(self) -> u32 {
        self.main
    }
}

/// llama.cpp's number for files whose matrices all have the type called `name`, where there is
/// one although llama-quantize has no mixture of that name.
pub fn file_type_of(name: &str) -> Option<u32> {
    match name {
        "mxfp4" => Some(sys::LLAMA_FTYPE_MOSTLY_MXFP4_MOE),
        "nvfp4" => Some(sys::LLAMA_FTYPE_MOSTLY_NVFP4),
        _ => None,
    }
}

/// Types that llama-quantize rounds to only with an importance matrix
/// (`tensor_requires_imatrix` in llama.cpp's `llama-quant.cpp`).
const NEED_IMPORTANCE: &[&str] = &["iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"];

/// Whether llama-quantize refuses to round the tensor `name` to the type with number
/// `id`, in a file of type `file_type`, without the importances of its columns.
pub fn needs_importance(name: &str, id: u32, file_type: Option<u32>) -> bool {
    let Some(info) = type_info(id).filter(|_| !is_embedding_or_head(name)) else {
        return false;
    };
    let small = file_type == Some(sys::LLAMA_FTYPE_MOSTLY_Q2_K_S);
    NEED_IMPORTANCE.contains(&info.name) || (small && info.name == "q2_K")
}

/// Whether the tensor `name` is the token embedding or the output head.
pub fn is_embedding_or_head(name: &str) -> bool {
    ["token_embd.weight", "output.weight"].contains(&name)
}

/// What llama.cpp's rules know about a model.
#[derive(Debug, Clone)]
pub struct Shape<'a> {
    /// `general.architecture`.
    pub architecture: &'a str,
    /// Width of the residual stream.
    pub embedding: u32,
    /// Width of the feed-forward part.
    pub feed_forward: u32,
    /// Layers.
    pub layers: u32,
    /// Heads of a layer.
    pub heads: u32,
    /// Key and value heads of a layer.
    pub kv_heads: u32,
    /// Experts, 0 where there are none.
    pub experts: u32,
    /// Elements of a key head.
    pub key_length: u32,
    /// Elements of a value head.
    pub value_length: u32,
}

/// Why llama.cpp gives no types.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MixtureError {
    /// It has no such model.
    #[error("llama.cpp quantizes no model of {0} layers")]
    Layers(u32),
    /// A name that no C string holds.
    #[error("the name {0:?} has a zero byte")]
    Name(String),
    /// What it says itself.
    #[error("llama.cpp: {0}")]
    Refused(String),
}

/// `LLAMA_MAX_LAYERS` of llama.cpp, over which it aborts.
const MOST_LAYERS: u32 = 512;

// `llama_quant_model_desc` of `llama-ext.h`.
#[repr(C)]
struct Description {
    architecture: *const c_char,
    n_embd: u32,
    n_ff: u32,
    n_layer: u32,
    n_head: u32,
    n_head_kv: u32,
    n_expert: u32,
    n_embd_head_k: u32,
    n_embd_head_v: u32,
}

// As the other side has it.
const _: () = assert!(size_of::<Description>() == 40 && align_of::<Description>() == 8);
const _: () = assert!(offset_of!(Description, n_embd) == 8);
const _: () = assert!(offset_of!(Description, n_head_kv) == 24);
const _: () = assert!(offset_of!(Description, n_embd_head_v) == 36);

unsafe extern "C" {
    fn headshare_mixture(
        description: *const Description,
        file_type: i32,
        pure: bool,
        n_overrides: usize,
        patterns: *const *const c_char,
        override_types: *const i32,
        n: usize,
        names: *const *const c_char,
        dims: *const i64,
        types: *mut i32,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
}

/// What a mixture is changed by.
#[derive(Debug, Clone, Default)]
pub struct Changes<'a> {
    /// All tensors get the main type.
    pub pure: bool,
    /// Types, by number, of the tensors whose names contain a match of a regular
    /// expression (ECMAScript's); the first one that matches counts.
    pub overrides: &'a [(String, u32)],
}

/// The types, by number, that `tensors` (name and size in each dimension) get in
/// `mixture`; nothing for those that llama.cpp never quantizes. Rows that are no
/// whole blocks of a type get the one that llama.cpp takes then. The rules are those
/// without an importance matrix.
///
/// # Errors
/// When llama.cpp has no such architecture, or a pattern is no regular expression.
pub fn assign<'t>(
    mixture: Mixture,
    changes: &Changes<'_>,
    shape: &Shape<'_>,
    tensors: impl IntoIterator<Item = (&'t str, [u64; 4])>,
) -> Result<Vec<Option<u32>>, MixtureError> {
    if shape.layers == 0 || shape.layers > MOST_LAYERS {
        return Err(MixtureError::Layers(shape.layers));
    }
    let c_string = |name: &str| CString::new(name).map_err(|_| MixtureError::Name(name.to_owned()));
    let (mut names, mut dims) = (Vec::new(), Vec::new());
    for (name, size) in tensors {
        names.push(c_string(name)?);
        dims.extend(size.map(|n| n as i64));
    }
    let patterns = (changes.overrides.iter()).map(|(pattern, _)| c_string(pattern));
    let patterns = patterns.collect::<Result<Vec<CString>, _>>()?;
    let of_patterns: Vec<*const c_char> = patterns.iter().map(|p| p.as_ptr()).collect();
    let override_types: Vec<i32> = changes.overrides.iter().map(|(_, t)| *t as i32).collect();
    let pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let mut types = vec![-1i32; names.len()];
    let architecture = c_string(shape.architecture)?;
    let description = Description {
        architecture: architecture.as_ptr(),
        n_embd: shape.embedding,
        n_ff: shape.feed_forward,
        n_layer: shape.layers,
        n_head: shape.heads,
        n_head_kv: shape.kv_heads,
        n_expert: shape.experts,
        n_embd_head_k: shape.key_length,
        n_embd_head_v: shape.value_length,
    };
    // It warns of every single type that falls back.
    log::install();
    // What a message says that llama.cpp was at work on, if it aborts.
    let path: Arc<Path> = Path::new(shape.architecture).into();
    guard::call(&path, |error, size| {
        // SAFETY: every pointer is to as many elements as `names` has (dims to four
        // times as many) or patterns, strings end in zero and outlive the call,
        // and the layers are as many as llama.cpp has room for.
        unsafe {
            headshare_mixture(
                &raw const description,
                mixture.file_type as i32,
                changes.pure,
                of_patterns.len(),
                of_patterns.as_ptr(),
                override_types.as_ptr(),
                pointers.len(),
                pointers.as_ptr(),
                dims.as_ptr(),
                types.as_mut_ptr(),
                error,
                size,
            )
        }
    })
    .map_err(MixtureError::Refused)?;
    Ok((types.into_iter()).map(|t| u32::try_from(t).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Shape<'static> {
        Shape {
            architecture: "llama",
            embedding: 4096,
            feed_forward: 14336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            experts: 0,
            key_length: 128,
            value_length: 128,
        }
    }

    fn named(tensors: &[(&str, [u64; 4])], mixture: &str, pure: bool) -> Vec<Option<&'static str>> {
        let changes = Changes {
            pure,
            ..Changes::default()
        };
        changed(tensors, mixture, &changes)
    }

    fn changed(
        tensors: &[(&str, [u64; 4])],
        mixture: &str,
        changes: &Changes<'_>,
    ) -> Vec<Option<&'static str>> {
        let mixture = Mixture::by_name(mixture).expect("a mixture");
        let types = assign(mixture, changes, &llama(), tensors.iter().copied()).expect("types");
        let name = |t: u32| type_info(t).expect("a type").name;
        types.into_iter().map(|t| t.map(name)).collect()
    }

    #[test]
    fn the_types_are_those_of_llama_quantize() {
        let tensors = [
            ("token_embd.weight", [4096, 32000, 1, 1]),
            ("blk.0.attn_norm.weight", [4096, 1, 1, 1]),
            ("blk.0.attn_v.weight", [4096, 1024, 1, 1]),
            ("blk.0.ffn_down.weight", [14336, 4096, 1, 1]),
            ("blk.5.ffn_gate.weight", [4096, 14336, 1, 1]),
            ("output.weight", [4096, 32000, 1, 1]),
        ];
        let q4 = Some("q4_K");
        let mixed = named(&tensors, "Q4_k_m", false);
        assert_eq!(
            mixed,
            [q4, None, Some("q6_K"), Some("q6_K"), q4, Some("q6_K")]
        );
        assert_eq!(named(&tensors, "q4_k_m", true), [q4, None, q4, q4, q4, q4]);
    }

    #[test]
    fn rows_that_are_no_blocks_get_the_type_that_llama_cpp_takes() {
        let tensors = [("blk.0.attn_q.weight", [576, 576, 1, 1])];
        assert_eq!(named(&tensors, "q4_k_m", false), [Some("q5_0")]);
        assert_eq!(named(&tensors, "q2_k", false), [Some("q4_0")]);
        let odd = [("blk.0.attn_q.weight", [70, 576, 1, 1])];
        assert_eq!(named(&odd, "q4_k_m", false), [Some("f16")]);
    }

    #[test]
    fn the_first_pattern_that_matches_a_name_says_its_type() {
        let tensors = [
            ("blk.0.attn_q.weight", [256, 256, 1, 1]),
            ("blk.1.attn_q.weight", [256, 256, 1, 1]),
            ("blk.1.ffn_up.weight", [256, 256, 1, 1]),
        ];
        let overrides = [
            ("1\\.attn_q".to_owned(), sys::GGML_TYPE_Q8_0),
            ("attn".to_owned(), sys::GGML_TYPE_Q5_0),
        ];
        let changes = Changes {
            overrides: &overrides,
            ..Changes::default()
        };
        let types = changed(&tensors, "q4_0", &changes);
        assert_eq!(types, [Some("q5_0"), Some("q8_0"), Some("q4_0")]);
        let overrides = [("(".to_owned(), sys::GGML_TYPE_Q8_0)];
        let q4 = Mixture::by_name("q4_0").expect("a mixture");
        let changes = Changes {
            overrides: &overrides,
            ..Changes::default()
        };
        let refused = assign(q4, &changes, &llama(), []).unwrap_err();
        assert!(matches!(refused, MixtureError::Refused(_)), "{refused}");
    }

    #[test]
    fn what_llama_cpp_does_not_know_is_an_error() {
        let q4 = Mixture::by_name("q4_0").expect("a mixture");
        let unknown = Shape {
            architecture: "no such",
            ..llama()
        };
        let refused = assign(q4, &Changes::default(), &unknown, []).unwrap_err();
        assert!(matches!(refused, MixtureError::Refused(_)), "{refused}");
        let deep = Shape {
            layers: 513,
            ..llama()
        };
        let refused = assign(q4, &Changes::default(), &deep, []);
        assert_eq!(refused, Err(MixtureError::Layers(513)));
    }

    #[test]
    fn every_mixture_has_a_type_of_ggml() {
        for mixture in MIXTURES {
            assert!(mixture.main().is_some(), "{}", mixture.name);
            let tensors = [("blk.0.attn_q.weight", [256, 256, 1, 1])];
            let types = assign(*mixture, &Changes::default(), &llama(), tensors);
            assert!(types.is_ok_and(|t| t[0].is_some()), "{}", mixture.name);
        }
    }
}
