//! The load itself: what is decided before llama.cpp is called, the call, and
//! what stays behind the weights.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use headshare_format::{
    GgmlType, Gguf, LogicalLayout, TensorInfo, VirtualGguf, bytes_mapped_again,
};
use headshare_stitch::{HugePages, StitchedMapping, mappings_left, page_size};

use super::source::{Sharing, Source};
use super::stream::Stream;
use super::virtual_file::VirtualFile;
use crate::backing::{Backing, Shared, StitchError};
use crate::interpose::Registration;
use crate::model::{Model, ModelError, ModelParams, Progress};
use crate::weight_buffers::{Choice, RepackingType, Twin, WeightBuffers};
use crate::{guard, preflight};

/// Bytes that may be consumed before the file's pages are let go of.
const DROP_EVERY: u64 = 8 << 20;

/// Everything behind a loaded model's weights, dropped after the model.
struct StitchedWeights {
    fold: Option<WeightBuffers>,
    _map: Option<WeightBuffers>,
    // Before the mapping it registers.
    _registration: Registration,
    mapping: StitchedMapping,
    shared: Shared,
}

impl Backing for StitchedWeights {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The mapped file and the arenas.
    fn ranges(&self) -> Vec<Range<u64>> {
        let start = self.mapping.as_ptr() as u64;
        let mapped = start..start + self.mapping.len() as u64;
        let arenas = self.fold.iter().flat_map(WeightBuffers::ranges);
        let beside = self.mapping.own_mapping();
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
        let name: Arc<Path> = params
            .called
            .as_deref()
            .unwrap_or(source.file.path())
            .into();
        if params.check_metadata {
            let tensors = source
                .table
                .map_or(source.gguf.tensors(), |table| table.tensors.as_slice());
            preflight::check(source.gguf, tensors).map_err(ModelError::metadata(&name))?;
        }
        let mut plan = LoadPlan::new(source, sharing)?;
        let fd = source
            .file
            .file()
            .try_clone()
            .map_err(StitchError::Stream)?;
        let (start, len) = (plan.mapping.as_ptr(), plan.mapping.len());
        // SAFETY: the mapping outlives it: here, where it is declared first, and in
        // what is made of the plan.
        let registration =
            unsafe { Registration::new(start, len, fd.into()) }.ok_or(StitchError::TooMany)?;
        let params = ModelParams {
            use_mmap: true,
            ..params.clone()
        };
        let choice = plan.choice();
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
        let bytes: &[u8] = mapping;
        let stream = Stream::new(&bytes).map_err(StitchError::Stream)?;
        // SAFETY: the guard is dropped before the stream.
        let attached = unsafe { registration.attach(stream.as_ptr()) };
        let open = |raw: &mut _, out: &mut _| {
            let load = |error, error_size| {
                // SAFETY: the stream is open, the parameters and all they point
                // to live for the call, `out` is ours.
                unsafe {
                    guard::headshare_model_load_stream(stream.as_ptr(), raw, out, error, error_size)
                }
            };
            choice.during(|| guard::call(&name, load))
        };
        // SAFETY: `open` gives what llama.cpp has loaded.
        let model = unsafe { Self::load_with(&name, &params, Some(&mut on_progress), open) };
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
        model.keep(Box::new(backing));
        Ok(model)
    }
}

impl Model {
    /// Reads `file`, a plain GGUF with the header `gguf` that need not exist, into
    /// memory of llama.cpp's own; `name` is for messages.
    ///
    /// # Errors
    /// As [`load`](Self::load), and those of the file.
    pub fn load_virtual(
        file: &dyn VirtualFile,
        gguf: &Gguf,
        name: &Path,
        params: &ModelParams,
    ) -> Result<Self, ModelError> {
        let name: Arc<Path> = name.into();
        if params.check_metadata {
            preflight::check(gguf, gguf.tensors()).map_err(ModelError::metadata(&name))?;
        }
        let params = ModelParams {
            use_mmap: false,
            use_mlock: false,
            ..params.clone()
        };
        let mut stream = Stream::new(file).map_err(StitchError::Stream)?;
        let open = |raw: &mut _, out: &mut _| {
            guard::call(&name, |error, error_size| {
                // SAFETY: the stream is open, the parameters and all they point
                // to live for the call, `out` is ours.
                unsafe {
                    guard::headshare_model_load_stream(stream.as_ptr(), raw, out, error, error_size)
                }
            })
        };
        // SAFETY: `open` gives what llama.cpp has loaded.
        let model = unsafe { Self::load_with(&name, &params, None, open) };
        // What kept a part from being read is clearer than that it is missing.
        match stream.failure() {
            Some(error) => Err(StitchError::Stream(error).into()),
            None => model,
        }
    }
}

/// What is decided before llama.cpp is called.
struct LoadPlan {
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

impl LoadPlan {
    fn new(source: &Source<'_>, sharing: Sharing) -> Result<Self, StitchError> {
        let Some(table) = source.table else {
            let tensors = source.gguf.tensors();
            let huge_pages = huge_pages(tensors, &repacking_types(tensors), sharing);
            return Ok(Self::plain(StitchedMapping::plain(
                source.file,
                huge_pages,
            )?));
        };
        let view = VirtualGguf::new(source.gguf, table, LogicalLayout::Pages(page_size()))?;
        let repacking = repacking_types(view.tensors());
        let mapping = StitchedMapping::new(
            &view,
            source.file,
            mappings_left(),
            huge_pages(view.tensors(), &repacking, sharing),
        )?;
        let ranges = table.shared_ranges(0..table.tensors.len() as u32)?;
        let kinds: BTreeMap<u32, Option<RepackingType>> = ranges
            .iter()
            .flat_map(|range| [range.alias.tensor, range.donor.tensor])
            .map(|tensor| (tensor, repacking[tensor as usize]))
            .collect();
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
                // SAFETY: the model keeps them and is dropped first.
                plan.fold = Some(unsafe { WeightBuffers::fold(real, &twins) });
            }
            _ => plan.unpacked = repacked.into_iter().map(name).collect(),
        }
        let better = plan.better_places(&view, &repacking);
        let unpacked: BTreeSet<String> = std::mem::take(&mut plan.unpacked)
            .into_iter()
            .chain(better.keys().cloned())
            .collect();
        plan.unpacked = unpacked.into_iter().collect();
        if !plan.unpacked.is_empty() {
            // SAFETY: the model keeps them and the mapping, and is dropped first;
            // the mapping gave the addresses.
            plan.map = Some(unsafe { WeightBuffers::map(&plan.mapping, better) });
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
            range.start..range.end.next_multiple_of(page_size().bytes())
        }));
        let in_place: Vec<Range<u64>> = in_place.iter().map(|t| view.data_range(t)).collect();
        plan.mapped_shared = bytes_mapped_again(plan.mapping.mapped(), &in_place);
        Ok(plan)
    }

    /// Weights that are multiplied with where they lie in the file, and lie
    /// there in one piece, but not so that huge pages can be used.
    /// `repacking` is that of each tensor.
    fn better_places(
        &self,
        view: &VirtualGguf,
        repacking: &[Option<RepackingType>],
    ) -> HashMap<String, *const u8> {
        let unpacked: HashSet<&String> = self.unpacked.iter().collect();
        let in_place = |&(tensor, repacking): &(&TensorInfo, &Option<RepackingType>)| {
            is_multiplied(tensor) && (repacking.is_none() || unpacked.contains(&tensor.name))
        };
        view.tensors()
            .iter()
            .zip(repacking)
            .filter(in_place)
            .filter_map(|(tensor, _)| {
                let range = view.data_range(tensor);
                let physical = view.physical(range.clone())?;
                let at = self.mapping.in_own_mapping(range.start, physical)?;
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

    fn choice(&self) -> Choice<'_> {
        let mut choice = Choice::default();
        if let Some(buffers) = &self.fold {
            choice.fold(buffers, &self.folded);
        }
        if let Some(buffers) = &self.map {
            choice.map(buffers, &self.unpacked);
        }
        choice
    }

    fn into_backing(self, registration: Registration) -> StitchedWeights {
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
        StitchedWeights {
            fold: self.fold,
            _map: self.map,
            _registration: registration,
            mapping: self.mapping,
            shared,
        }
    }
}

/// The type that llama.cpp repacks each tensor into. Only weights that it
/// multiplies with are repacked: those of the layers, and the output.
fn repacking_types(tensors: &[TensorInfo]) -> Vec<Option<RepackingType>> {
    let mut known: HashMap<(GgmlType, &[u64]), Option<RepackingType>> = HashMap::new();
    tensors
        .iter()
        .map(|tensor| {
            if !is_multiplied(tensor) {
                return None;
            }
            *known
                .entry((tensor.ggml_type, &tensor.dims))
                .or_insert_with(|| RepackingType::of(tensor.ggml_type, &tensor.dims))
        })
        .collect()
}

fn is_multiplied(tensor: &TensorInfo) -> bool {
    // A matrix for each head, as of multi-head latent attention, is used where it lies.
    let is_whole = tensor.dims.iter().skip(2).all(|&n| n == 1);
    tensor.name.ends_with(".weight")
        && (tensor.name.starts_with("blk.") || tensor.name == "output.weight")
        && tensor.dims.len() >= 2
        && (is_whole || tensor.name.contains("exps."))
}

/// Aligned to huge pages where most of the weights are used where they lie.
fn huge_pages(
    tensors: &[TensorInfo],
    repacking: &[Option<RepackingType>],
    sharing: Sharing,
) -> HugePages {
    let bytes = |repacked: bool| -> u64 {
        tensors
            .iter()
            .zip(repacking)
            .filter(|(_, repacking)| repacking.is_some() == repacked)
            .map(|(tensor, _)| tensor.byte_len())
            .sum()
    };
    if sharing == Sharing::Map || bytes(false) > bytes(true) {
        HugePages::Aligned
    } else {
        HugePages::Any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ggml repacks matrices, and those of experts; llama.cpp multiplies by a matrix for each head
    /// (multi-head latent attention) as it lies in the file.
    #[test]
    fn matrices_for_each_head_stay_where_they_lie() {
        let q4_0 = GgmlType::named("q4_0").unwrap();
        let known = |name: &str, dims: &[u64]| {
            let tensor = TensorInfo {
                name: name.to_owned(),
                ggml_type: q4_0,
                dims: dims.to_owned(),
                offset: 0,
            };
            is_multiplied(&tensor)
        };
        assert!(known("blk.0.attn_q.weight", &[64, 64]));
        assert!(known("blk.0.attn_q.weight", &[64, 64, 1]));
        assert!(known("blk.0.ffn_up_exps.weight", &[64, 64, 4]));
        assert!(known("blk.0.ffn_up_chexps.weight", &[64, 64, 4]));
        assert!(known("output.weight", &[64, 320]));
        assert!(!known("blk.0.attn_k_b.weight", &[64, 64, 4]));
        assert!(!known("blk.0.attn_norm.weight", &[64]));
        assert!(!known("token_embd.weight", &[64, 320]));
    }
}
