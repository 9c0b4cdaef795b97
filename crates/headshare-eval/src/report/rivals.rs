//! What llama.cpp makes of a model in at most so many bytes: plain types, and its
//! mixtures.
//!
//! Plain types are one for the token embedding and the output head, and one for the
//! body, of which as many tensors as it takes go down to the next one, in the order of
//! [`Lowering`]. So the embedding's type decides about the body's, and there are as many
//! candidates as there are types for the embedding.

use std::collections::BTreeMap;

use headshare_convert::convert::variant::{Types, typed_header};
use headshare_convert::quantize::types::Wanted;
use headshare_format::{GgmlType, Gguf};
use headshare_runtime::mixture::MIXTURES;

use super::lower::{Lowered, Lowering, bits, from_on};

const EMBEDDING: &str = "token_embd.weight";

/// Plain types, and what comes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain {
    /// The most that the token embedding and the output head get.
    pub embedding: GgmlType,
    /// All types.
    pub lowered: Lowered,
}

/// The plain types with which the file whose header is `gguf` has at most `bytes`, by the
/// type of the embedding, the largest first. Where it makes do with the embedding alone,
/// no smaller one is of any use, nor is one of fewer bits than the whole body.
pub fn plain(gguf: &Gguf, bytes: u64) -> Vec<Plain> {
    let Some(table) = gguf.tensor(EMBEDDING) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for embedding in from_on(table.ggml_type, table.row_elems()) {
        let lowering = Lowering::with_embedding(gguf, embedding);
        let Some(lowered) = lowering.down_to(bytes) else {
            continue;
        };
        let of_body = shares(gguf, &lowering.order, &lowered);
        let fewest = of_body
            .keys()
            .map(|t| bits(*t))
            .fold(f64::INFINITY, f64::min);
        if bits(embedding) < fewest {
            break;
        }
        let is_enough = lowered.weights == 0;
        all.push(Plain { embedding, lowered });
        if is_enough {
            break;
        }
    }
    all
}

impl Plain {
    /// The types as llama-quantize would be asked for them.
    pub fn wanted(&self, gguf: &Gguf) -> Wanted {
        let tensors = gguf.tensors();
        let types = self.lowered.types.tensors.iter();
        let types = types.map(|(&i, &to)| (tensors[i].name.as_str(), to));
        Wanted::exactly(tensors, &types.collect())
    }

    /// What the types are, in words: those of the body with their shares of it.
    pub fn label(&self, gguf: &Gguf) -> String {
        let order = Lowering::of(gguf).order;
        let shares = shares(gguf, &order, &self.lowered);
        let all: u64 = shares.values().sum();
        let mut shares: Vec<(GgmlType, u64)> = shares.into_iter().collect();
        shares.sort_by_key(|(_, weights)| std::cmp::Reverse(*weights));
        let body = match &shares[..] {
            [(only, _)] => only.to_string(),
            _ => {
                let percent = |weights: u64| weights as f64 * 100.0 / all.max(1) as f64;
                let parts = shares
                    .iter()
                    .map(|(t, n)| format!("{:.0}% {t}", percent(*n)));
                parts.collect::<Vec<_>>().join(" + ")
            }
        };
        format!("embedding {}, body {body}", self.embedding)
    }
}

/// The weights of the body at each type.
fn shares(gguf: &Gguf, body: &[usize], lowered: &Lowered) -> BTreeMap<GgmlType, u64> {
    let mut shares = BTreeMap::new();
    for i in body {
        let info = &gguf.tensors()[*i];
        let to = lowered.types.tensors.get(i).copied();
        let weights = info.row_elems() * info.rows();
        *shares.entry(to.unwrap_or(info.ggml_type)).or_default() += weights;
    }
    shares
}

/// A mixture of llama-quantize, and the size of the file that it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mixed {
    /// The mixture's name.
    pub name: &'static str,
    /// Bytes.
    pub bytes: u64,
}

impl Mixed {
    /// The types as llama-quantize would be asked for them.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            to: self.name.to_owned(),
            pure: false,
            overrides: Vec::new(),
            untie: false,
        }
    }
}

/// The mixtures with which the file whose header is `gguf` has at most `bytes`, the largest
/// first, and of those that are as large the one that llama-quantize lists last. None where
/// llama.cpp quantizes no such model.
pub fn mixtures(gguf: &Gguf, bytes: u64) -> Vec<Mixed> {
    let size = |wanted: &Wanted| {
        let assigned = wanted.assign(gguf, &|_| false, true).ok()?;
        let index = |(name, to): (&String, &GgmlType)| Some((gguf.tensor_index(name)?, *to));
        let types = Types {
            tensors: assigned.types.iter().filter_map(index).collect(),
            untied_head: None,
        };
        Some(typed_header(gguf, &types).ok()?.file_len())
    };
    let mixed = MIXTURES.iter().filter_map(|mixture| {
        let mixed = Mixed {
            name: mixture.name,
            bytes: 0,
        };
        let bytes = size(&mixed.wanted())?;
        Some(Mixed { bytes, ..mixed })
    });
    let mut all: Vec<Mixed> = mixed.filter(|mixed| mixed.bytes <= bytes).collect();
    all.reverse();
    all.sort_by_key(|mixed| std::cmp::Reverse(mixed.bytes));
    all
}

#[cfg(test)]
mod tests {
    use headshare_testmodels::ModelSpec;

    use super::*;

    fn named(name: &str) -> GgmlType {
        GgmlType::named(name).unwrap()
    }

    fn gguf(weight_type: &str, n_embd: u32) -> Gguf {
        let spec = ModelSpec {
            n_embd,
            n_ff: 2 * n_embd,
            weight_type: named(weight_type),
            ..ModelSpec::preset("tiny-gqa").unwrap()
        };
        Gguf::parse(&spec.to_bytes().unwrap()).unwrap()
    }

    #[test]
    fn every_type_of_the_embedding_that_makes_the_size_is_there() {
        let gguf = gguf("f16", 128);
        let whole = gguf.file_len();
        for percent in [90, 60, 45, 30, 20] {
            let bytes = whole * percent / 100;
            let all = plain(&gguf, bytes);
            assert!(!all.is_empty(), "{percent}%");
            for (i, of) in all.iter().enumerate() {
                assert!(of.lowered.file_bytes <= bytes, "{percent}% {of:?}");
                let header = typed_header(&gguf, &of.lowered.types).unwrap();
                assert_eq!(header.file_len(), of.lowered.file_bytes);
                let table = gguf.tensor_index(EMBEDDING).unwrap();
                let to = of.lowered.types.tensors.get(&table).copied();
                assert_eq!(to.unwrap_or(named("f16")), of.embedding);
                // A smaller embedding leaves more to the body.
                if let Some(next) = all.get(i + 1) {
                    assert!(bits(next.embedding) < bits(of.embedding));
                    assert!(next.lowered.weights <= of.lowered.weights);
                }
                let wanted = of.wanted(&gguf);
                let assigned = wanted.assign(&gguf, &|_| false, true).unwrap();
                let types = of.lowered.types.tensors.iter();
                let types = types.map(|(i, to)| (gguf.tensors()[*i].name.clone(), *to));
                assert_eq!(assigned.types, types.collect(), "{percent}%");
            }
        }
        assert!(plain(&gguf, 1000).is_empty());
    }

    #[test]
    fn the_words_name_the_embedding_and_the_body() {
        let gguf = gguf("q4_1", 64);
        let labels = |bytes| -> Vec<String> {
            let all = plain(&gguf, bytes);
            all.iter().map(|of| of.label(&gguf)).collect()
        };
        assert_eq!(labels(gguf.file_len()), ["embedding q4_1, body q4_1"]);
        let first = &labels(gguf.file_len() - 2000)[0];
        assert!(first.starts_with("embedding q4_1, body "), "{first}");
        assert!(
            first.contains("% q4_1 + ") && first.contains("% q4_0"),
            "{first}"
        );
    }

    #[test]
    fn the_largest_mixture_that_fits_comes_first() {
        let gguf = gguf("f16", 256);
        let all = mixtures(&gguf, u64::MAX);
        assert_eq!(all.len(), MIXTURES.len());
        assert!(all.is_sorted_by(|a, b| a.bytes >= b.bytes));
        let of = |name: &str| *all.iter().find(|mixed| mixed.name == name).unwrap();
        let q4 = of("q4_K_M");
        let found = mixtures(&gguf, q4.bytes);
        assert!(
            found[0].bytes == q4.bytes && found.contains(&q4),
            "{found:?}"
        );
        // Both names of it are the same; the longer one is shown.
        let place = |name: &str| all.iter().position(|mixed| mixed.name == name);
        assert!(place("q4_K_M") < place("q4_K"));
        assert!(place("iq4_nl") < place("q4_0") || of("iq4_nl").bytes != of("q4_0").bytes);
        let smaller = mixtures(&gguf, q4.bytes - 1);
        assert!(smaller.iter().all(|mixed| mixed.bytes < q4.bytes));
        assert!(mixtures(&gguf, 1000).is_empty());
    }
}
