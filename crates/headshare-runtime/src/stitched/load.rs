//! The load itself: what is decided before llama.cpp is called, the call, and
//! what stays behind the weights.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::CString;
use std::ops::Range;
use std::ptr;

use ggml_sys as sys;
use headshare_format::{LogicalLayout, TensorInfo, VirtualGguf, bytes_mapped_again};
use headshare_stitch::{Steps, StitchedMapping, mappings_left, page_size};

use super::buffers::{RepackingType, Twin, WeightBuffers};
use super::hooks::Registration;
use super::stream::Stream;
use super::{Shared, Sharing, Source, StitchError};
use crate::guard;
use crate::model::{Model, ModelError, ModelParams, Progress};

/// Bytes that may be consumed before the file's pages are let go of.
const DROP_EVERY: u64 = 8 << 20;

/// Everything behind a loaded model's weights, dropped after the model.
pub(crate) struct Backing {
    fold: Option<WeightBuffers>,
    _map: Option<WeightBuffers>,
    // Before the mapping it registers.
    _registration: Registration,
    mapping: StitchedMapping,
    shared: Shared,
}

impl Backing {
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The addresses that hold weights: the mapped file and the arenas.
    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        let start = self.mapping.as_ptr() as u64;
        let mapped = start..start + self.mapping.len() as u64;
        let arenas = self.fold.iter().flat_map(WeightBuffers::ranges);
        let beside = self.mapping.beside();
        std::iter::once(mapped)
            .chain(beside)
            .chain(arenas)
            .collect()
    }
}

impl Model {
    /// Loads `source` with its shared blocks in memory once.
    ///
    /// `drop_consumed` lets go of the file's pages once their content has been
    /// copied elsewhere; they are read again if touched.
    ///
    /// # Errors
    /// [`ModelError`]; in particular [`ModelError::Stitch`].
    pub fn load_stitched(
        source: &Source<'_>,
        sharing: Sharing,
        drop_consumed: bool,
        params: &ModelParams,
        mut progress: Option<Progress<'_>>,
    ) -> Result<Self, ModelError> {
        let path = source.file.path();
        let mut plan = Plan::new(source, sharing)?;
        let fd = source
            .file
            .file()
            .try_clone()
            .map_err(StitchError::Stream)?;
        let registration = Registration::new(plan.mapping.as_ptr(), plan.mapping.len(), fd.into())
            .ok_or(StitchError::TooMany)?;
        let params = ModelParams {
            use_mmap: true,
            ..params.clone()
        };
        let overrides = plan.overrides();
        let raw_overrides = overrides.raw();
        let mapping = &plan.mapping;
        let len = mapping.len() as u64;
        let mut dropped_at = 0f64;
        let step = DROP_EVERY as f64 / len.max(1) as f64;
        let mut on_progress = |part: f32| {
            if drop_consumed && f64::from(part) >= dropped_at + step {
                mapping.drop_pages(0..len);
                dropped_at = f64::from(part);
            }
            progress.as_mut().is_none_or(|progress| progress(part))
        };
        let stream = Stream::new(mapping).map_err(StitchError::Stream)?;
        let attached = registration.attach(stream.as_ptr());
        let model = Self::load_with(path, &params, Some(&mut on_progress), |raw, out| {
            raw.tensor_buft_overrides = raw_overrides.as_ptr();
            guard::call(|error, error_size| {
                // SAFETY: the stream is open, the parameters and all they point
                // to live for the call, `out` is ours.
                unsafe {
                    guard::headshare_model_load_stream(stream.as_ptr(), raw, out, error, error_size)
                }
            })
        });
        drop(attached);
        drop(stream);
        let mut model = model?;
        if drop_consumed {
            plan.mapping.drop_pages(0..len);
        }
        for range in std::mem::take(&mut plan.read_once) {
            plan.mapping.give_up_copies(range);
        }
        let backing = plan.into_backing(registration);
        if sharing == Sharing::Fold
            && let Some(trouble) = &backing.shared.trouble
        {
            let trouble = trouble.clone();
            drop(model);
            return Err(StitchError::CannotFold(trouble).into());
        }
        model.keep(backing);
        Ok(model)
    }
}

/// What is decided before llama.cpp is called.
struct Plan {
    mapping: StitchedMapping,
    /// Pages of the logical file that nobody reads once it is loaded: the header,
    /// and what lies in a buffer then.
    read_once: Vec<Range<u64>>,
    /// Tensors to fold, and to map although llama.cpp would repack them.
    folded: Vec<String>,
    unpacked: Vec<String>,
    fold: Option<WeightBuffers>,
    map: Option<WeightBuffers>,
    mapped_tensors: usize,
    /// Bytes of shared rows, and those that the mapping shares.
    alias_bytes: u64,
    mapped_shared: u64,
}

impl Plan {
    fn new(source: &Source<'_>, sharing: Sharing) -> Result<Self, StitchError> {
        let Some(table) = source.table else {
            let steps = steps(&source.gguf.tensors, sharing);
            return Ok(Self::plain(StitchedMapping::plain(source.file, steps)?));
        };
        let view = VirtualGguf::new(source.gguf, table, LogicalLayout::Pages(page_size()))?;
        let mapping = StitchedMapping::new(
            &view,
            source.file,
            mappings_left(),
            steps(view.tensors(), sharing),
        )?;
        let ranges = table.shared_ranges(0..table.tensors.len() as u32)?;
        let mut kinds: BTreeMap<u32, Option<RepackingType>> = BTreeMap::new();
        for range in &ranges {
            for tensor in [range.alias.tensor, range.donor.tensor] {
                kinds
                    .entry(tensor)
                    .or_insert_with(|| repacking_type(&table.tensors[tensor as usize]));
            }
        }
        let name = |tensor: u32| table.tensors[tensor as usize].name.clone();
        let repacked: Vec<u32> = kinds
            .iter()
            .filter(|(_, kind)| kind.is_some())
            .map(|(&tensor, _)| tensor)
            .collect();
        let mut plan = Self {
            alias_bytes: ranges.iter().map(|r| r.len).sum(),
            ..Self::plain(mapping)
        };
        let real = repacked.iter().find_map(|t| kinds[t]);
        match real {
            Some(real) if sharing != Sharing::Map => {
                // One genuine type takes all; a weight of another stays unpacked.
                let (folded, others): (Vec<u32>, Vec<u32>) =
                    repacked.iter().partition(|t| kinds[t] == Some(real));
                let twins: Vec<Twin> = ranges
                    .iter()
                    .filter(|r| {
                        kinds[&r.alias.tensor] == Some(real) && kinds[&r.donor.tensor] == Some(real)
                    })
                    .map(|r| Twin {
                        donor: name(r.donor.tensor),
                        donor_offset: r.donor.offset,
                        alias: name(r.alias.tensor),
                        alias_offset: r.alias.offset,
                        len: r.len,
                    })
                    .collect();
                plan.folded = folded.into_iter().map(name).collect();
                plan.unpacked = others.into_iter().map(name).collect();
                plan.fold = Some(WeightBuffers::fold(real, &twins));
            }
            _ => plan.unpacked = repacked.into_iter().map(name).collect(),
        }
        let better = plan.better_places(&view);
        let unpacked: BTreeSet<String> = std::mem::take(&mut plan.unpacked)
            .into_iter()
            .chain(better.keys().cloned())
            .collect();
        plan.unpacked = unpacked.into_iter().collect();
        if !plan.unpacked.is_empty() {
            plan.map = Some(WeightBuffers::map(&plan.mapping, better));
        }
        plan.mapped_tensors = kinds.len() - plan.folded.len();
        let names: HashSet<&String> = plan.folded.iter().collect();
        let (folded, in_place): (Vec<&TensorInfo>, Vec<&TensorInfo>) = kinds
            .keys()
            .map(|&t| &view.tensors()[t as usize])
            .partition(|tensor| names.contains(&tensor.name));
        plan.read_once.push(0..view.data_offset());
        plan.read_once.extend(folded.into_iter().map(|tensor| {
            let range = view.data_range(tensor);
            // Every tensor begins on a page: the rest of its last one is its own.
            range.start..range.end.next_multiple_of(page_size())
        }));
        let in_place: Vec<Range<u64>> = in_place.iter().map(|t| view.data_range(t)).collect();
        plan.mapped_shared = bytes_mapped_again(plan.mapping.mapped(), &in_place);
        Ok(plan)
    }

    /// Weights that are multiplied with where they lie in the file, and lie
    /// there in one piece, but so that addresses are translated in small steps.
    fn better_places(&self, view: &VirtualGguf) -> HashMap<String, *const u8> {
        let in_place = |tensor: &&TensorInfo| {
            is_multiplied(tensor)
                && (repacking_type(tensor).is_none() || self.unpacked.contains(&tensor.name))
        };
        view.tensors()
            .iter()
            .filter(in_place)
            .filter_map(|tensor| {
                let range = view.data_range(tensor);
                let physical = view.physical(range.clone())?;
                let at = self.mapping.in_large_steps(range.start, physical)?;
                Some((tensor.name.clone(), at))
            })
            .collect()
    }

    fn plain(mapping: StitchedMapping) -> Self {
        Self {
            mapping,
            read_once: Vec::new(),
            folded: Vec::new(),
            unpacked: Vec::new(),
            fold: None,
            map: None,
            mapped_tensors: 0,
            alias_bytes: 0,
            mapped_shared: 0,
        }
    }

    fn overrides(&self) -> Overrides {
        let mut list = Vec::new();
        for (names, buffers) in [(&self.folded, &self.fold), (&self.unpacked, &self.map)] {
            if let Some(buffers) = buffers {
                list.push((pattern(names), buffers.as_ptr()));
            }
        }
        Overrides { list }
    }

    fn into_backing(self, registration: Registration) -> Backing {
        for buffers in self.fold.iter().chain(&self.map) {
            buffers.seal();
        }
        let folded_bytes = self.fold.as_ref().map_or(0, WeightBuffers::folded_bytes);
        let shared_bytes = folded_bytes + self.mapped_shared;
        let shared = Shared {
            folded_tensors: self.folded.len(),
            mapped_tensors: self.mapped_tensors,
            shared_bytes,
            copied_bytes: self.alias_bytes.saturating_sub(shared_bytes),
            given_up_bytes: self.mapping.given_up_bytes(),
            mappings: self.mapping.mapped().len() + self.mapping.copied().len(),
            trouble: self.fold.as_ref().and_then(WeightBuffers::trouble),
        };
        Backing {
            fold: self.fold,
            _map: self.map,
            _registration: registration,
            mapping: self.mapping,
            shared,
        }
    }
}

/// The type that llama.cpp repacks `tensor` into. Only weights that it
/// multiplies with are repacked: those of the layers, and the output.
fn repacking_type(tensor: &TensorInfo) -> Option<RepackingType> {
    if !is_multiplied(tensor) {
        return None;
    }
    RepackingType::of(tensor.ggml_type.id(), &tensor.dims)
}

fn is_multiplied(tensor: &TensorInfo) -> bool {
    tensor.name.ends_with(".weight")
        && (tensor.name.starts_with("blk.") || tensor.name == "output.weight")
        && tensor.dims.len() >= 2
}

/// Large steps where most of the weights are used where they lie.
fn steps(tensors: &[TensorInfo], sharing: Sharing) -> Steps {
    let bytes = |repacked: bool| -> u64 {
        tensors
            .iter()
            .filter(|tensor| repacking_type(tensor).is_some() == repacked)
            .map(TensorInfo::byte_len)
            .sum()
    };
    if sharing == Sharing::Map || bytes(false) > bytes(true) {
        Steps::Large
    } else {
        Steps::Small
    }
}

/// One regular expression that matches exactly `names`. Layers of one kind of
/// tensor are listed together: llama.cpp compiles it anew for every tensor.
fn pattern(names: &[String]) -> CString {
    let mut by_suffix: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut others: Vec<&str> = Vec::new();
    for name in names {
        match name.strip_prefix("blk.").and_then(|n| n.split_once('.')) {
            Some((layer, suffix)) => by_suffix.entry(suffix).or_default().push(layer),
            None => others.push(name),
        }
    }
    let escape = |text: &str| {
        text.chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '_' {
                    c.to_string()
                } else {
                    format!("\\{c}")
                }
            })
            .collect::<String>()
    };
    let mut parts: Vec<String> = by_suffix
        .iter()
        .map(|(suffix, layers)| {
            let layers: Vec<String> = layers.iter().map(|l| escape(l)).collect();
            format!("blk\\.({})\\.{}", layers.join("|"), escape(suffix))
        })
        .collect();
    parts.extend(others.iter().map(|name| escape(name)));
    CString::new(format!("^({})$", parts.join("|"))).expect("tensor names with NUL are escaped")
}

/// `tensor_buft_overrides`, with its strings.
struct Overrides {
    list: Vec<(CString, sys::ggml_backend_buffer_type_t)>,
}

impl Overrides {
    fn raw(&self) -> Vec<sys::llama_model_tensor_buft_override> {
        let mut raw: Vec<_> = self
            .list
            .iter()
            .map(|(pattern, buft)| sys::llama_model_tensor_buft_override {
                pattern: pattern.as_ptr(),
                buft: *buft,
            })
            .collect();
        raw.push(sys::llama_model_tensor_buft_override {
            pattern: ptr::null(),
            buft: ptr::null_mut(),
        });
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::pattern;

    #[test]
    fn the_pattern_groups_layers_and_escapes_dots() {
        let names = [
            "blk.1.attn_q.weight",
            "blk.10.attn_q.weight",
            "blk.1.attn_k.weight",
            "output.weight",
        ]
        .map(str::to_owned);
        assert_eq!(
            pattern(&names).to_str().unwrap(),
            r"^(blk\.(1)\.attn_k\.weight|blk\.(1|10)\.attn_q\.weight|output\.weight)$"
        );
    }
}
