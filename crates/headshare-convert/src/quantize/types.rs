//! Which tensor of a model gets which type: one of llama-quantize's mixtures, or one
//! type for all.

use std::collections::BTreeMap;

use headshare_format::{GgmlType, Gguf, TensorInfo};
use headshare_runtime::mixture::{self, Changes, MIXTURES, Mixture, MixtureError};
use headshare_runtime::quants;
use serde::{Deserialize, Serialize};

use crate::convert::variant::{EMBEDDING, HEAD, is_encoded, is_left_alone};
use crate::model::{layer_of, shape};
use crate::plan::{Edit, Store};

/// The types that are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// A mixture of llama-quantize or a type of ggml, by its name in any case.
    pub to: String,
    /// All tensors get the mixture's main type.
    pub pure: bool,
    /// Types of tensors whose names contain a match of a regular expression; the
    /// first one that matches counts.
    pub overrides: Vec<(String, String)>,
    /// The token embedding is not the output head, too, any more: that gets weights, and a
    /// type, of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untie: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// What was wanted: a mixture or a type, by its name.
    pub to: String,
    /// Types by name, of the tensors that get another one than they have.
    pub types: BTreeMap<String, GgmlType>,
    /// Quantized matrices that keep the type that they have, where such may be quantized
    /// again: they can make up for what others lose.
    pub kept: BTreeMap<String, GgmlType>,
    /// llama.cpp's number of the mixture, where it is one.
    pub file_type: Option<u32>,
    /// Tensors whose rows are no whole blocks of the type that they should have, by name,
    /// with that type and the one that they get instead.
    pub fell_back: BTreeMap<String, (GgmlType, GgmlType)>,
    /// Patterns that no tensor's name contains a match of.
    pub unmatched: Vec<String>,
}

/// Why types cannot be assigned.
#[derive(Debug, thiserror::Error)]
pub enum TypesError {
    /// No mixture and no type has that name.
    #[error("{name:?} is no type; there are the mixtures {mixtures} and the types {types}")]
    Unknown {
        /// The name.
        name: String,
        /// What mixtures there are.
        mixtures: String,
        /// What types there are.
        types: String,
    },
    /// No type has that name.
    #[error(
        "{name:?}, for names that contain a match of {pattern:?}, is no type; there are {types}"
    )]
    UnknownOf {
        /// The name.
        name: String,
        /// The pattern.
        pattern: String,
        /// What types there are.
        types: String,
    },
    /// llama.cpp cannot read a pattern.
    #[error("the pattern {pattern:?} is no regular expression: {error}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What it says.
        error: MixtureError,
    },
    /// The model says not enough about itself.
    #[error("{0} is not stated by the model, and llama.cpp's mixtures depend on it")]
    Missing(String),
    /// llama.cpp has nothing else for such rows.
    #[error(
        "{name} has rows of {columns}, which are no whole blocks of {to} ({block}), and llama.cpp has \
         no other type for them instead"
    )]
    Rows {
        /// A tensor.
        name: String,
        /// Weights of its rows.
        columns: u64,
        /// The type.
        to: GgmlType,
        /// Weights of its blocks.
        block: u64,
    },
    /// llama.cpp refuses.
    #[error(transparent)]
    Mixture(#[from] MixtureError),
    /// Quantizing what is quantized loses twice.
    #[error(
        "{name} is {has} already: quantizing it again loses more than quantizing the original once"
    )]
    Requantized {
        /// A tensor.
        name: String,
        /// Its type.
        has: GgmlType,
    },
}

impl Wanted {
    /// These types for `tensors` by name, and for all others of them the ones that they
    /// have; the one of most elements, of the quantized ones if there are any, is said to be the
    /// model's. A type of an output head that is not among the tensors unties the token embedding.
    pub fn exactly(tensors: &[TensorInfo], types: &BTreeMap<&str, GgmlType>) -> Self {
        let mut elements: BTreeMap<(bool, &str), u64> = BTreeMap::new();
        let mut overrides = Vec::new();
        let mut add = |name: &str, to: GgmlType, info: &TensorInfo| {
            let is_quantized = quants::type_info(to.id()).is_some_and(|info| info.is_quantized);
            let count = elements.entry((is_quantized, to.name())).or_default();
            *count += info.row_elems() * info.rows();
            let pattern = format!("^{}$", name.replace('.', "\\."));
            overrides.push((pattern, to.name().to_owned()));
        };
        for info in tensors.iter().filter(|info| info.dims.len() > 1) {
            let to = types.get(info.name.as_str()).copied();
            add(&info.name, to.unwrap_or(info.ggml_type), info);
        }
        let find = |name: &str| tensors.iter().find(|info| info.name == name);
        let own_head = types.get(HEAD).filter(|_| find(HEAD).is_none());
        let untied = own_head.zip(find(EMBEDDING));
        if let Some((&to, table)) = untied {
            add(HEAD, to, table);
        }
        let most = (elements.into_iter()).max_by_key(|((is_quantized, _), n)| (*is_quantized, *n));
        Self {
            to: most.map_or("f32", |((_, name), _)| name).to_owned(),
            pure: true,
            overrides,
            untie: untied.is_some(),
        }
    }

    /// The types of the tensors of `gguf`, but for those whose type `is_given` already.
    /// What else is quantized is refused unless `requantize`.
    ///
    /// # Errors
    /// [`TypesError`].
    pub fn assign(
        &self,
        gguf: &Gguf,
        is_given: &dyn Fn(&str) -> bool,
        requantize: bool,
    ) -> Result<Assigned, TypesError> {
        let mut overrides = (self.overrides.iter())
            .map(|(pattern, name)| {
                let unknown = || TypesError::UnknownOf {
                    name: name.clone(),
                    pattern: pattern.clone(),
                    types: type_names(),
                };
                let to = encoded_type(name).ok_or_else(unknown)?;
                Ok((pattern.clone(), to.id()))
            })
            .collect::<Result<Vec<_>, TypesError>>()?;
        let unmatched = self.unmatched(gguf)?;
        let (mixture, file_type) = self.mixture(&mut overrides)?;
        let changes = Changes {
            pure: self.pure,
            overrides: &overrides,
        };
        let tensors = gguf.tensors();
        let shape = shape(gguf).map_err(TypesError::Missing)?;
        let order = in_order(tensors);
        let assign = |columns: &dyn Fn(u64) -> u64| {
            let sizes = order.iter().map(|&tensor| {
                let info = &tensors[tensor];
                let [first, others @ ..] = dims(info);
                let [second, third, fourth] = others;
                (info.name.as_str(), [columns(first), second, third, fourth])
            });
            let assigned = mixture::assign(mixture, &changes, &shape, sizes)?;
            let mut types = vec![None; tensors.len()];
            for (&tensor, to) in order.iter().zip(assigned) {
                types[tensor] = to;
            }
            Ok::<_, MixtureError>(types)
        };
        // What the types would be if rows were whole blocks of any.
        let meant = assign(&|columns| columns.next_multiple_of(WHOLE))?;
        let assigned =
            assign(&|columns| columns).map_err(|error| no_fall_back(error, &meant, tensors))?;
        let mut types = BTreeMap::new();
        let mut kept = BTreeMap::new();
        let mut fell_back = BTreeMap::new();
        for (info, (to, meant)) in tensors.iter().zip(assigned.into_iter().zip(meant)) {
            let Some(to) = to.and_then(GgmlType::from_id) else {
                continue;
            };
            if !is_encoded(info.ggml_type) || is_given(&info.name) {
                continue;
            }
            if let Some(meant) = meant
                .and_then(GgmlType::from_id)
                .filter(|meant| *meant != to)
            {
                fell_back.insert(info.name.clone(), (meant, to));
            }
            let is_quantized =
                quants::type_info(info.ggml_type.id()).is_some_and(|t| t.is_quantized);
            if to == info.ggml_type {
                if requantize && is_quantized && !is_left_alone(&info.name) {
                    kept.insert(info.name.clone(), to);
                }
                continue;
            }
            if !requantize && is_quantized {
                return Err(TypesError::Requantized {
                    name: info.name.clone(),
                    has: info.ggml_type,
                });
            }
            types.insert(info.name.clone(), to);
        }
        Ok(Assigned {
            to: self.to.clone(),
            types,
            kept,
            file_type,
            fell_back,
            unmatched,
        })
    }

    /// The mixture whose rules say the types, and the number that the file gets where there is
    /// one. `overrides` get one more where a single type is for all others.
    fn mixture(
        &self,
        overrides: &mut Vec<(String, u32)>,
    ) -> Result<(Mixture, Option<u32>), TypesError> {
        let Some(mixture) = Mixture::by_name(&self.to) else {
            let to = type_named(&self.to)?;
            overrides.push((".*".to_owned(), to.id()));
            return Ok((any_quantized(), mixture::file_type_of(to.name())));
        };
        let file_type = Some(mixture.file_type);
        let rules = match mixture.main().is_some_and(|main| main.is_quantized) {
            true if self.pure => mixture,
            // llama.cpp looks at patterns where the main type is a quantized one.
            false if !overrides.is_empty() => any_quantized(),
            _ => return Ok((mixture, file_type)),
        };
        overrides.push((".*".to_owned(), mixture.main_id()));
        Ok((rules, file_type))
    }

    /// The patterns that no name of a tensor in `gguf` contains a match of.
    fn unmatched(&self, gguf: &Gguf) -> Result<Vec<String>, TypesError> {
        let shape = shape(gguf).map_err(TypesError::Missing)?;
        let named = |name: &str| type_named(name).map(GgmlType::id);
        let types = [named("f16")?, named("q8_0")?];
        let mut unmatched = Vec::new();
        for (pattern, _) in &self.overrides {
            let sizes = || {
                let names = gguf.tensors().iter().map(|info| info.name.as_str());
                names.map(|name| (name, [WHOLE, WHOLE, 1, 1]))
            };
            // A name matches where the type that its pattern says is the one it gets.
            let [one, other] = types.map(|to| {
                let overrides = [(pattern.clone(), to)];
                let changes = Changes {
                    pure: false,
                    overrides: &overrides,
                };
                mixture::assign(any_quantized(), &changes, &shape, sizes())
            });
            let cannot = |error| TypesError::Pattern {
                pattern: pattern.clone(),
                error,
            };
            if one.map_err(cannot)? == other.map_err(cannot)? {
                unmatched.push(pattern.clone());
            }
        }
        Ok(unmatched)
    }
}

/// Elements that are whole blocks of every type.
const WHOLE: u64 = 256;

impl Assigned {
    /// Tensors that have rows in common get the type, of those that they would have,
    /// that has the most bits: what is stored once has one type. `has` says which type
    /// a tensor has before.
    pub fn agree(
        &mut self,
        in_common: &[(String, String)],
        has: &dyn Fn(&str) -> Option<GgmlType>,
    ) {
        // Of as many bits, one of both for all: else three tensors would never agree.
        let bits = |t: &GgmlType| (t.block_bytes() * 4096 / t.block_elems(), t.id());
        loop {
            let mut changed = false;
            for (a, b) in in_common {
                let gets = |name: &String| self.types.get(name).copied().or_else(|| has(name));
                let (Some(of_a), Some(of_b)) = (gets(a), gets(b)) else {
                    continue;
                };
                if of_a == of_b {
                    continue;
                }
                let more = if bits(&of_a) >= bits(&of_b) {
                    of_a
                } else {
                    of_b
                };
                for name in [a, b] {
                    self.kept.remove(name);
                    match has(name) == Some(more) {
                        true => self.types.remove(name),
                        false => self.types.insert(name.clone(), more),
                    };
                }
                changed = true;
            }
            if !changed {
                break;
            }
        }
        let types = &self.types;
        self.fell_back.retain(|name, (_, to)| {
            let gets = types.get(name).copied().or_else(|| has(name));
            gets == Some(*to)
        });
    }

    /// As edits of a plan.
    pub fn edits(&self) -> impl Iterator<Item = Edit> + '_ {
        self.types.iter().map(|(tensor, &ggml_type)| {
            Edit::Store(Store {
                tensor: tensor.clone(),
                ggml_type,
            })
        })
    }
}

fn type_named(name: &str) -> Result<GgmlType, TypesError> {
    encoded_type(name).ok_or_else(|| {
        let mixtures: Vec<&str> = MIXTURES.iter().map(|m| m.name).collect();
        TypesError::Unknown {
            name: name.to_owned(),
            mixtures: mixtures.join(", "),
            types: type_names(),
        }
    })
}

/// The type called `name` that ggml encodes, if there is one.
fn encoded_type(name: &str) -> Option<GgmlType> {
    GgmlType::named(name).filter(|t| is_encoded(*t))
}

fn type_names() -> String {
    let names: Vec<&str> = (GgmlType::all().filter(|t| is_encoded(*t)))
        .map(GgmlType::name)
        .collect();
    names.join(", ")
}

/// Names the tensor that llama.cpp has refused, where it knows no type to fall back to from the
/// one that is `meant` for it.
fn no_fall_back(error: MixtureError, meant: &[Option<u32>], tensors: &[TensorInfo]) -> TypesError {
    let MixtureError::Refused(why) = &error else {
        return error.into();
    };
    let mut partial = tensors.iter().zip(meant).filter_map(|(info, meant)| {
        let to = meant.and_then(GgmlType::from_id)?;
        let is_partial = !info.row_elems().is_multiple_of(to.block_elems());
        is_partial.then_some((info, to))
    });
    match partial.find(|(_, to)| why.contains("fallback") && why.contains(to.name())) {
        Some((info, to)) => TypesError::Rows {
            name: info.name.clone(),
            columns: info.row_elems(),
            to,
            block: to.block_elems(),
        },
        None => error.into(),
    }
}

/// A mixture with quantized types, in which patterns count.
fn any_quantized() -> Mixture {
    let quantized = |m: &&Mixture| m.main().is_some_and(|main| main.is_quantized);
    *MIXTURES.iter().find(quantized).expect("most of them are")
}

/// The tensors in the order in which llama-quantize comes to them, which its rules count by: those
/// of no layer first, then layer by layer, by name (`weight_name_comparer` in llama.cpp's
/// `llama-model-loader.h`). A file may have them in any other, as by name alone.
fn in_order(tensors: &[TensorInfo]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&tensor| {
        let name = tensors[tensor].name.as_str();
        (layer_of(name), name)
    });
    order
}

fn dims(info: &TensorInfo) -> [u64; 4] {
    let size = |i: usize| info.dims.get(i).copied().unwrap_or(1);
    [size(0), size(1), size(2), size(3)]
}
