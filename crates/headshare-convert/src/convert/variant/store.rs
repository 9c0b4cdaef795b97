//! Tensors that are stored at another type.
//!
//! What llama.cpp itself never quantizes (norms, biases, routers and other
//! small tensors, `tensor_allows_quantization` of `llama-quant.cpp`) stays as
//! it is: its kernels want these as they are.

use std::collections::BTreeMap;

use headshare_format::{GgmlType, Gguf, TensorInfo};
use headshare_runtime::mixture::Mixture;
use headshare_runtime::quants;

use super::shapes::Shapes;
use crate::model::architecture;
use crate::plan::{Edit, Plan, PlanError};

/// Parts of the names of matrices that llama.cpp's quantizer leaves as they are
/// (`tensor_allows_quantization`): they are used in other ways than by products, or are
/// small and all the rest of a layer depends on them.
const LEFT_ALONE: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "position_embd",
    "token_types",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
];

/// The types whose mixtures llama.cpp guesses by the type that most of the tensors
/// have.
const GUESSED: &[&str] = &[
    "f32", "f16", "q4_0", "q4_1", "q8_0", "q5_0", "q5_1", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K",
];

/// The table of embeddings, which many models use as output head, too.
pub const EMBEDDING: &str = "token_embd.weight";
/// The output head.
pub const HEAD: &str = "output.weight";

/// The types that tensors get.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Types {
    /// By index in the source.
    pub tensors: BTreeMap<usize, GgmlType>,
    /// The output head's, where the source uses its token embedding as head and
    /// the variant has one of its own.
    pub untied_head: Option<GgmlType>,
}

impl Types {
    /// Those that `plan` asks for, whose source is `gguf`.
    ///
    /// # Errors
    /// When an edit names a tensor that is not there, or a type that it cannot
    /// have.
    pub(super) fn of(plan: &Plan, gguf: &Gguf) -> Result<Self, PlanError> {
        let mut types = Self::default();
        for (i, edit) in plan.edits.iter().enumerate() {
            let Edit::Store(store) = edit else { continue };
            let field = |name: &str, problem: String| {
                Err(PlanError::field(plan.field_of(i, name), problem))
            };
            let (name, ggml_type) = (&store.tensor, store.ggml_type);
            let twice = format!("{name} is stored at two types");
            if !is_encoded(ggml_type) {
                return field("type", format!("ggml stores no weights as {ggml_type}"));
            }
            if name == HEAD && gguf.tensor(name).is_none() {
                if let Err(why) = can_untie(gguf) {
                    return field("tensor", why);
                }
                if types.untied_head.replace(ggml_type).is_some() {
                    return field("tensor", twice);
                }
                continue;
            }
            let Some(tensor) = gguf.tensor_index(name) else {
                return field("tensor", format!("the model has no tensor {name:?}"));
            };
            if let Some(part) = left_alone(&gguf.tensors()[tensor]) {
                return field("tensor", format!("{name}: {part}"));
            }
            if types.tensors.insert(tensor, ggml_type).is_some() {
                return field("tensor", twice);
            }
        }
        Ok(types)
    }

    /// F16 for what ggml multiplies slowly with many columns at once
    /// ([`quants::multiplies_fast`]): weights that stand for nearly the same numbers (11
    /// bits of each) and are read faster, but take more memory.
    pub fn fast(gguf: &Gguf) -> Self {
        let mut half = Self::half(gguf);
        let is_slow = |tensor: usize| {
            let info = &gguf.tensors()[tensor];
            !quants::multiplies_fast(info.ggml_type.id())
        };
        half.tensors.retain(|&tensor, _| is_slow(tensor));
        half
    }

    /// F16 for all that is quantized: what goes into such weights is not rounded to 8 bits.
    pub fn half(gguf: &Gguf) -> Self {
        let is_quantized = |info: &TensorInfo| {
            let t = quants::type_info(info.ggml_type.id());
            t.is_some_and(|t| t.is_quantized && t.has_to_float)
        };
        let all = gguf.tensors().iter().enumerate();
        let quantized = all.filter(|(_, info)| is_quantized(info));
        Self {
            tensors: (quantized.map(|(tensor, _)| (tensor, GgmlType::F16))).collect(),
            untied_head: None,
        }
    }

    /// Adds the types to `shapes`.
    ///
    /// # Errors
    /// When rows are no whole blocks of a type; names the edit.
    pub(super) fn shape(
        &self,
        plan: &Plan,
        gguf: &Gguf,
        shapes: &mut Shapes<'_>,
    ) -> Result<(), PlanError> {
        let fits = |tensor: usize, name: &str, ggml_type: GgmlType, row: u64| {
            if row.is_multiple_of(ggml_type.block_elems()) {
                return Ok(());
            }
            let edit = plan
                .edits
                .iter()
                .position(|edit| matches!(edit, Edit::Store(store) if store.tensor == name));
            let field = edit.map_or_else(
                || gguf.tensors()[tensor].name.clone(),
                |i| plan.field_of(i, "type"),
            );
            Err(PlanError::field(
                field,
                format!(
                    "rows of {name} have {row} elements, which are no whole blocks of {ggml_type} ({} elements)",
                    ggml_type.block_elems()
                ),
            ))
        };
        for (&tensor, &ggml_type) in &self.tensors {
            let row = shapes.row_elems(tensor);
            fits(tensor, shapes.name(tensor), ggml_type, row)?;
            shapes.store(tensor, ggml_type);
        }
        if let Some(ggml_type) = self.untied_head
            && let Some(tensor) = gguf.tensor_index(EMBEDDING)
        {
            fits(tensor, HEAD, ggml_type, gguf.tensors()[tensor].row_elems())?;
        }
        self.untie(gguf, shapes);
        Ok(())
    }

    /// Adds the output head to `shapes`, where there is one of its own.
    pub(super) fn untie(&self, gguf: &Gguf, shapes: &mut Shapes<'_>) {
        if let Some((ggml_type, table)) = self.untied_head.zip(gguf.tensor_index(EMBEDDING)) {
            shapes.copy(HEAD.to_owned(), table, ggml_type);
        }
    }

    /// Whether any of them is quantized.
    pub(super) fn are_quantized(&self) -> bool {
        let all = self.tensors.values().chain(&self.untied_head);
        (all.copied()).any(|t| quants::type_info(t.id()).is_some_and(|t| t.is_quantized))
    }
}

/// Whether the model's token embedding is its output head, and llama.cpp would take another.
///
/// # Errors
/// Says why not.
pub fn can_untie(gguf: &Gguf) -> Result<(), String> {
    let name = gguf.architecture().ok().flatten().unwrap_or("unknown");
    let tied = gguf.tensor(EMBEDDING).is_some();
    match architecture(name) {
        _ if gguf.tensor(HEAD).is_some() => Err(format!("the model has {HEAD} already")),
        _ if !tied => Err(format!("the model has neither {HEAD} nor {EMBEDDING}")),
        Some(row) if row.always_tied || row.encoder_only => {
            Err(format!("llama.cpp reads no {HEAD} of {name} models"))
        }
        Some(_) => Ok(()),
        None => Err(format!(
            "the model has no tensor {HEAD:?}, and whether llama.cpp would read one of {name} is unknown"
        )),
    }
}

/// Whether llama.cpp's quantizer leaves the matrix `name` as it is.
pub fn is_left_alone(name: &str) -> bool {
    LEFT_ALONE.iter().any(|part| name.contains(part))
}

/// Why a tensor stays as it is, if it must.
pub fn left_alone(info: &TensorInfo) -> Option<&'static str> {
    let name = info.name.as_str();
    let matrix = info.dims.len() > 1 && info.rows() > 1;
    if !matrix || !name.ends_with(".weight") {
        return Some("biases, norms and other vectors stay as they are");
    }
    if !is_encoded(info.ggml_type) {
        return Some("its type has no numbers");
    }
    is_left_alone(name).then_some("llama.cpp wants this tensor as it is")
}

/// Whether ggml can encode weights as `ggml_type`, and read them again.
pub fn is_encoded(ggml_type: GgmlType) -> bool {
    quants::type_info(ggml_type.id()).is_some_and(|info| info.has_to_float)
}

/// llama.cpp's number of the mixture of types of `after`, where most matrices
/// have another type than in `before`.
pub(super) fn file_type(before: &[TensorInfo], after: &[TensorInfo]) -> Option<u32> {
    let most_after = most(after)?;
    if most(before) == Some(most_after) {
        return None;
    }
    let name = most_after.name();
    let mixture = Mixture::by_name(name).filter(|_| GUESSED.contains(&name));
    mixture.map(|mixture| mixture.file_type)
}

/// The type that most matrices have; of equally many, the one with the lower
/// number.
fn most(infos: &[TensorInfo]) -> Option<GgmlType> {
    let mut counts: BTreeMap<GgmlType, usize> = BTreeMap::new();
    for info in infos.iter().filter(|info| info.rows() > 1) {
        *counts.entry(info.ggml_type).or_default() += 1;
    }
    let most = counts.values().max()?;
    counts.iter().find(|(_, n)| *n == most).map(|(t, _)| *t)
}
