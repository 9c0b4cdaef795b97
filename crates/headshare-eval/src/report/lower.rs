//! The plain alternative to sharing: store part of the body one type lower.
//!
//! The body is what llama.cpp's quantizer would quantize in the layers. Tensors
//! go down in a fixed order ([`Lowering::order`]), as many as it takes for the
//! file to be no larger than asked for; when all have gone down, they go down
//! again. Token embedding and output head stay as they are, or have a type of their own
//! ([`Lowering::with_embedding`]).

use std::collections::BTreeMap;

use headshare_format::{GgmlType, Gguf, TensorInfo};
use headshare_runtime::mixture::is_embedding_or_head;

use headshare_convert::convert::variant::{Types, left_alone, typed_header};
use headshare_convert::model::layer_of;

/// The types below each type, the nearest first; a row that is no whole number
/// of the nearest one's blocks takes the next. Types of one size stand beside
/// each other nowhere: whatever goes down gets smaller.
const BELOW: &[(&str, &[&str])] = &[
    ("f64", &["f32"]),
    ("f32", &["f16"]),
    ("f16", &["q8_0"]),
    ("bf16", &["q8_0"]),
    ("q8_0", &["q6_K", "q5_1"]),
    ("q6_K", &["q5_K"]),
    ("q5_1", &["q5_0"]),
    ("q5_K", &["q4_K"]),
    ("q5_0", &["q4_1"]),
    ("q4_1", &["q4_0"]),
    ("q4_K", &["q3_K"]),
    ("q4_0", &["q3_K", "q2_0"]),
    ("iq4_nl", &["q3_K", "q2_0"]),
    ("iq4_xs", &["q3_K"]),
    ("mxfp4", &["q3_K", "q2_0"]),
    ("iq3_s", &["q2_K"]),
    ("q3_K", &["q2_K"]),
    ("iq3_xxs", &["q2_K"]),
    ("q2_K", &["q2_0"]),
];

/// Matrices that llama.cpp's own mixtures (Q4_K_M and its kin) keep at a higher
/// type: they go down last.
const SENSITIVE: &[&str] = &["attn_v.", "attn_qkv.", "ffn_down"];

/// The next type below `from` for rows of `row` elements.
pub fn next_below(from: GgmlType, row: u64) -> Option<GgmlType> {
    let (_, below) = BELOW.iter().find(|(name, _)| *name == from.name())?;
    below
        .iter()
        .filter_map(|name| GgmlType::named(name))
        .find(|t| row.is_multiple_of(t.block_elems()))
}

/// `from` and all types below it, for rows of `row` elements.
pub fn from_on(from: GgmlType, row: u64) -> impl Iterator<Item = GgmlType> {
    std::iter::successors(Some(from), move |t| next_below(*t, row))
}

/// Bits that a weight takes.
pub fn bits(of: GgmlType) -> f64 {
    of.block_bytes() as f64 * 8.0 / of.block_elems() as f64
}

/// Which tensors are stored at which type instead of the source's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lowered {
    /// The new types, by index of the tensor.
    pub types: Types,
    /// Weights of the body whose type is lower.
    pub weights: u64,
    /// Weights of the body.
    pub body: u64,
    /// Size of the file.
    pub file_bytes: u64,
}

impl Lowered {
    /// The share of the body that is lower, from 0 to 1.
    pub fn share(&self) -> f64 {
        self.weights as f64 / self.body.max(1) as f64
    }

    /// The largest number of types that a tensor has gone down.
    pub fn steps(&self, gguf: &Gguf) -> usize {
        let down = |(&tensor, &to): (&usize, &GgmlType)| {
            let info = &gguf.tensors()[tensor];
            let mut types = from_on(info.ggml_type, info.row_elems());
            types.position(|t| t == to).unwrap_or(0)
        };
        self.types.tensors.iter().map(down).max().unwrap_or(0)
    }
}

/// What there is to lower in a file.
#[derive(Debug)]
pub struct Lowering<'a> {
    /// The file's header.
    pub gguf: &'a Gguf,
    /// Indices of the body's tensors, those that go down first in front.
    pub order: Vec<usize>,
    /// The types that what is not of the body gets, by index of the tensor.
    others: BTreeMap<usize, GgmlType>,
    steps: Vec<(usize, GgmlType)>,
}

impl<'a> Lowering<'a> {
    /// The body of the file whose header is `gguf`, in the order in which it
    /// goes down: layers spread evenly, what is sensitive last, and in both
    /// halves layer 0 last, which all others build on: an error made there costs
    /// more than one made anywhere else.
    pub fn of(gguf: &'a Gguf) -> Self {
        let mut body: Vec<(bool, bool, u64, usize)> = Vec::new();
        for (i, info) in gguf.tensors().iter().enumerate() {
            if let Some(layer) = layer_of_body(info) {
                let sensitive = SENSITIVE.iter().any(|part| info.name.contains(part));
                body.push((sensitive, layer == 0, spread(layer), i));
            }
        }
        body.sort_unstable();
        let order: Vec<usize> = body.into_iter().map(|(.., i)| i).collect();
        let mut types: Vec<GgmlType> = order.iter().map(|&i| gguf.tensors()[i].ggml_type).collect();
        let mut steps = Vec::new();
        loop {
            let before = steps.len();
            for (&tensor, at) in order.iter().zip(&mut types) {
                if let Some(below) = next_below(*at, gguf.tensors()[tensor].row_elems()) {
                    *at = below;
                    steps.push((tensor, below));
                }
            }
            if steps.len() == before {
                break;
            }
        }
        Self {
            gguf,
            order,
            others: BTreeMap::new(),
            steps,
        }
    }

    /// The same, in a file whose token embedding and output head have types of no more
    /// bits than `to`.
    pub fn with_embedding(gguf: &'a Gguf, to: GgmlType) -> Self {
        let tensors = gguf.tensors().iter().enumerate();
        let looked_up = tensors.filter(|(_, info)| is_embedding_or_head(&info.name));
        let others = looked_up.filter_map(|(i, info)| {
            let mut types = from_on(info.ggml_type, info.row_elems());
            let found = types.find(|t| bits(*t) <= bits(to))?;
            (found != info.ggml_type).then_some((i, found))
        });
        Self {
            others: others.collect(),
            ..Self::of(gguf)
        }
    }

    /// As few steps as make a file of at most `bytes`; `None` when the whole
    /// body at the lowest types is still larger.
    pub fn down_to(&self, bytes: u64) -> Option<Lowered> {
        let (mut low, mut high) = (0, self.steps.len());
        if self.after(high).file_bytes > bytes {
            return None;
        }
        // `high` steps are enough, and fewer than `low` are not.
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.after(middle).file_bytes <= bytes {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Some(self.after(high))
    }

    fn after(&self, steps: usize) -> Lowered {
        let lower: BTreeMap<usize, GgmlType> = self.steps[..steps].iter().copied().collect();
        let weights = |i: usize| {
            let info = &self.gguf.tensors()[i];
            info.row_elems() * info.rows()
        };
        let of_body = lower.keys().map(|&i| weights(i)).sum();
        let types = Types {
            tensors: self.others.clone().into_iter().chain(lower).collect(),
            untied_head: None,
        };
        Lowered {
            weights: of_body,
            body: self.order.iter().map(|&i| weights(i)).sum(),
            file_bytes: typed_header(self.gguf, &types)
                .map_or(u64::MAX, |header| header.file_len()),
            types,
        }
    }
}

/// The layer of a tensor that belongs to the body.
fn layer_of_body(info: &TensorInfo) -> Option<u32> {
    layer_of(&info.name).filter(|_| left_alone(info).is_none())
}

/// A key by which the first of any number of consecutive layers are spread
/// evenly over all: multiples of the golden ratio, modulo 1.
fn spread(layer: u32) -> u64 {
    u64::from(layer).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> GgmlType {
        GgmlType::named(name).unwrap()
    }

    #[test]
    fn whatever_goes_down_gets_smaller_and_ends() {
        for from in GgmlType::all() {
            for row in [256, 32, 64, 100] {
                let mut at = from;
                let mut steps = 0;
                while let Some(below) = next_below(at, row) {
                    assert!(bits(below) < bits(at), "{at} -> {below}");
                    assert!(row.is_multiple_of(below.block_elems()), "{at} -> {below}");
                    at = below;
                    steps += 1;
                    assert!(steps < 20, "{from}");
                }
            }
        }
        for (name, _) in BELOW {
            named(name);
        }
    }

    #[test]
    fn the_row_length_decides() {
        assert_eq!(next_below(named("q8_0"), 512), Some(named("q6_K")));
        assert_eq!(next_below(named("q8_0"), 576), Some(named("q5_1")));
        assert_eq!(next_below(named("q4_1"), 576), Some(named("q4_0")));
        assert_eq!(next_below(named("q4_0"), 576), Some(named("q2_0")));
        assert_eq!(next_below(named("q4_0"), 96), None);
        assert_eq!(next_below(named("f16"), 100), None);
        assert_eq!(next_below(named("q2_0"), 256), None);
    }

    #[test]
    fn layers_are_spread() {
        let mut layers: Vec<u32> = (0..30).collect();
        layers.sort_by_key(|&l| spread(l));
        // Of the first ten, each third of the layers has some.
        let third = |n: u32| layers[..10].iter().filter(|&&l| l / 10 == n).count();
        assert!((0..3).all(|n| third(n) >= 3), "{layers:?}");
    }

    #[test]
    fn layer_0_goes_down_last_of_its_class() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let spec = headshare_testmodels::ModelSpec::preset("tiny-gqa").unwrap();
        spec.write(&path).unwrap();
        let gguf = headshare_convert::input::ModelFile::open(&path)
            .unwrap()
            .gguf;
        let order = Lowering::of(&gguf).order;
        let name = |i: &usize| gguf.tensors()[*i].name.as_str();
        let names: Vec<&str> = order.iter().map(name).collect();
        let (sensitive, others): (Vec<&str>, Vec<&str>) = names
            .iter()
            .partition(|name| SENSITIVE.iter().any(|part| name.contains(part)));
        assert_eq!([&others[..], &sensitive[..]].concat(), names);
        for class in [others, sensitive] {
            let first = class.iter().filter(|name| name.starts_with("blk.0."));
            let first = first.count();
            assert!(0 < first && first < class.len(), "{class:?}");
            let tail = &class[class.len() - first..];
            assert!(tail.iter().all(|n| n.starts_with("blk.0.")), "{class:?}");
        }
    }
}
