//! The model to be: what a plan makes of a source.
//!
//! A [`Variant`] is a plain GGUF that need not exist: it knows its header, and
//! for every tensor its name, type, shape and where its data come from - rows
//! and columns of the source, an encoding of them, or new bytes. So it can be
//! checked and sized without any work, and read like a file. How it is laid out
//! on disk, and what of it is stored once, is decided by others.

mod data;
mod deci;
mod error;
mod heads;
mod keys;
mod narrow;
mod shapes;
mod silence;
mod store;
mod zeros;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use headshare_format::gguf::align_up;
use headshare_format::{FormatError, GgmlType, Gguf, TensorInfo};
use headshare_runtime::quants::QuantError;
use headshare_runtime::stitched::VirtualFile;

pub use data::{Origin, cut_columns, spread_columns};
pub use error::ShapeError;
pub use heads::{Heads, Limits};
pub use keys::MADE_BY;
pub use store::{EMBEDDING, HEAD, Types, can_untie, is_encoded, is_left_alone, left_alone};

use super::digest::{CHUNK, for_chunks};
use super::error::ConvertError;
use crate::input::{InputError, ModelFile};
use crate::model::{AttentionMap, RowsRange};
use crate::plan::{Edit, Plan, PlanError};
use keys::Keys;
use narrow::{Channels, Lengths};
use shapes::Shapes;
use silence::Silent;

/// A model that need not exist.
#[derive(Debug)]
pub struct Variant<'a> {
    /// What it is made of.
    pub source: &'a ModelFile,
    gguf: Cow<'a, Gguf>,
    origins: Vec<Origin>,
    /// New data, by tensor of the variant.
    new: BTreeMap<usize, Vec<u8>>,
    /// The tensors that will get new data, which are not known yet.
    awaited: BTreeSet<usize>,
    /// Whether header and places are the source's, and with them what lies
    /// between tensors.
    as_source: bool,
}

impl<'a> Variant<'a> {
    /// The source as it is.
    pub fn unchanged(source: &'a ModelFile) -> Self {
        Self {
            source,
            gguf: Cow::Borrowed(&source.gguf),
            origins: (0..source.gguf.tensors().len())
                .map(Origin::whole)
                .collect(),
            new: BTreeMap::new(),
            awaited: BTreeSet::new(),
            as_source: true,
        }
    }

    /// What `plan` makes of `source`, but for what it shares. What says `made_by` is a
    /// file of its own, also where shapes and types are the source's.
    ///
    /// # Errors
    /// When the plan does not fit the source; names the edit.
    pub fn new(
        source: &'a ModelFile,
        plan: &Plan,
        made_by: Option<String>,
    ) -> Result<Self, ConvertError> {
        let gguf = &source.gguf;
        let types = Types::of(plan, gguf)?;
        if !plan.reshapes() && made_by.is_none() {
            return Ok(Self::unchanged(source));
        }
        let map = || AttentionMap::of(gguf).map_err(|error| ConvertError::model(source, error));
        let silent = match plan.silences().next() {
            Some(_) => Silent::of(plan, gguf, &map()?)?,
            None => Silent::default(),
        };
        let dropped = plan.dropped_units();
        let mut shapes = Shapes::of(gguf);
        let stored = |name: &str| plan.stores().any(|store| store.tensor == name);
        let channels = Channels::of(plan, gguf, &stored)?;
        channels.shape(&mut shapes);
        let lengths = channels
            .lengths(gguf, !dropped.is_empty())
            .map_err(|why| narrow_error(plan, why))?;
        let each = match &lengths {
            Some(Lengths::Each(each)) => Some(each.clone()),
            _ => None,
        };
        let deci = !dropped.is_empty()
            || each.is_some() && gguf.architecture().ok().flatten() == Some(deci::LLAMA);
        let mut keys = if deci {
            let map = map()?;
            let cut = |error| ConvertError::Shape {
                path: source.path().to_owned(),
                error,
            };
            let heads = Heads::new(source, &map, dropped).map_err(cut)?;
            heads.shape(&mut shapes);
            let length = map.layers.first().map_or(0, |layer| layer.key_length);
            deci::keys(gguf, |blocks| heads.head_counts(blocks), length, each)
                .map_err(InputError::content(source.path()))?
        } else {
            let mut keys = Keys::default();
            match lengths {
                Some(Lengths::Same(n)) => {
                    keys.numbers.insert("feed_forward_length".to_owned(), n);
                }
                Some(Lengths::Each(each)) => {
                    keys.arrays.insert("feed_forward_length", each);
                }
                None => {}
            }
            keys
        };
        silent.shape(&mut shapes);
        types.shape(plan, gguf, &mut shapes)?;
        keys.mixture = plan.choice.file_type;
        keys.quantized = types.are_quantized();
        keys.made_by = made_by;
        let made = Self::laid_out(source, shapes, keys);
        let made = made.map_err(InputError::content(source.path()))?;
        if plan.shares().next().is_some() {
            let map = AttentionMap::of(made.gguf());
            let map = map.map_err(|error| ConvertError::model(source, error))?;
            plan.check_made(&map)?;
        }
        Ok(made)
    }

    /// `source` with `types` for some of its tensors, whose rows are whole
    /// blocks of them.
    ///
    /// # Errors
    /// When its size overflows.
    pub fn with_types(source: &'a ModelFile, types: &Types) -> Result<Self, FormatError> {
        let (shapes, keys) = typed(&source.gguf, types);
        Self::laid_out(source, shapes, keys)
    }

    /// `source` as [`Types::fast`] has it: for statistics, where its own bytes are not
    /// what is asked about.
    ///
    /// # Errors
    /// When its size overflows.
    pub fn fast(source: &'a ModelFile) -> Result<Self, InputError> {
        let fast = Self::with_types(source, &Types::fast(&source.gguf));
        fast.map_err(InputError::content(source.path()))
    }

    /// `source` as [`Types::half`] has it: for probes of small errors.
    ///
    /// # Errors
    /// When its size overflows.
    pub fn half(source: &'a ModelFile) -> Result<Self, InputError> {
        let half = Self::with_types(source, &Types::half(&source.gguf));
        half.map_err(InputError::content(source.path()))
    }

    fn laid_out(
        source: &'a ModelFile,
        shapes: Shapes<'_>,
        keys: Keys,
    ) -> Result<Self, FormatError> {
        let (gguf, origins) = header(&source.gguf, shapes, keys)?;
        Ok(Self {
            source,
            gguf: Cow::Owned(gguf),
            origins,
            new: BTreeMap::new(),
            awaited: BTreeSet::new(),
            as_source: false,
        })
    }

    /// Puts new data in the place of tensors, by the names that they have here: of
    /// the type and shape that they have here.
    ///
    /// # Panics
    /// When there is no such tensor, or data are not as long as a tensor's.
    pub fn fill(&mut self, data: BTreeMap<String, Vec<u8>>) {
        for (name, data) in data {
            let tensor = self.tensor_named(&name);
            let len = self.gguf.tensors()[tensor].byte_len();
            assert_eq!(data.len() as u64, len, "new data is as long as the tensor");
            self.new.insert(tensor, data);
        }
    }

    /// Treats tensors, by the names that they have here, as if they had new data
    /// already: nothing is known of these but how long they are.
    ///
    /// # Panics
    /// When there is no such tensor.
    pub(super) fn wait_for<'n>(&mut self, names: impl Iterator<Item = &'n String>) {
        self.awaited = names.map(|name| self.tensor_named(name)).collect();
    }

    fn tensor_named(&self, name: &str) -> usize {
        let tensor = self.gguf.tensor_index(name);
        tensor.unwrap_or_else(|| panic!("there is a tensor {name}"))
    }

    /// Whether the data of `tensor` are neither the source's nor made of them.
    fn is_new(&self, tensor: usize) -> bool {
        self.new.contains_key(&tensor) || self.awaited.contains(&tensor)
    }

    /// Lets it say `made_by` of itself, under [`MADE_BY`], in the place of what it
    /// said before.
    ///
    /// # Errors
    /// When its size overflows.
    pub(super) fn say(&mut self, made_by: &str) -> Result<(), FormatError> {
        let header = self.header_saying(made_by);
        let old = &self.gguf;
        let end = old.file_len() - old.data_offset();
        let data = align_up(header.len() as u64, old.alignment());
        let len = data.and_then(|data| data.checked_add(end));
        let len = len.ok_or_else(|| FormatError::unsupported("output", "its size overflows"))?;
        self.gguf = Cow::Owned(Gguf::parse_header(&header, len)?);
        Ok(())
    }

    /// Its header, were it to say that.
    pub(super) fn header_saying(&self, made_by: &str) -> Vec<u8> {
        let keys = Keys {
            made_by: Some(made_by.to_owned()),
            ..Keys::default()
        };
        let mut builder = keys.apply(&self.gguf);
        for info in self.gguf.tensors() {
            builder.tensor(info);
        }
        builder.finish()
    }

    /// Its header.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Bytes of its file, as a plain one.
    pub fn len(&self) -> u64 {
        self.gguf.file_len()
    }

    /// Whether it has no tensors.
    pub fn is_empty(&self) -> bool {
        self.gguf.tensors().is_empty()
    }

    /// Bytes of its tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.gguf.tensors().iter().map(TensorInfo::byte_len).sum()
    }

    /// Whether its header and the places of its tensors are the source's.
    pub fn is_as_source(&self) -> bool {
        self.as_source
    }

    /// The tensors whose data are neither rows nor columns of the source, nor zeros:
    /// encoded, or new.
    pub fn computed(&self) -> Vec<usize> {
        let encoded =
            |i: &usize| self.origins[*i].is_encoded(self.source, &self.gguf.tensors()[*i]);
        (0..self.origins.len())
            .filter(|i| self.is_new(*i) || encoded(i))
            .collect()
    }

    /// All rows of the tensors with new data.
    pub fn new_rows(&self) -> impl Iterator<Item = RowsRange> + '_ {
        let tensors = self.gguf.tensors().iter().enumerate();
        let new = tensors.filter(|(tensor, _)| self.is_new(*tensor));
        new.map(|(tensor, info)| RowsRange {
            tensor,
            offset: 0,
            len: info.byte_len(),
        })
    }

    /// Where the data of `tensor` come from; `None` where they are new.
    pub fn origin(&self, tensor: usize) -> Option<&Origin> {
        (!self.is_new(tensor)).then(|| &self.origins[tensor])
    }

    /// Hands `range` of the variant's file to `each`, which lies in one tensor
    /// or between tensors.
    ///
    /// # Errors
    /// When weights cannot be encoded, or those of `each`.
    pub fn stream<E: From<ConvertError>>(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some((tensor, start)) = self.tensor_at(range.start) else {
            // Nothing but the source's own has anything there.
            self.source.file.will_read(range.clone());
            return for_chunks(range, |range| each(self.source.bytes(range)));
        };
        let (info, origin) = (&self.gguf.tensors()[tensor], &self.origins[tensor]);
        let range = range.start - start..range.end - start;
        if let Some(data) = self.new.get(&tensor) {
            return for_chunks(range, |r| each(&data[r.start as usize..r.end as usize]));
        }
        if origin.is_copied(self.source, info) {
            for run in origin.runs(self.source, range) {
                for_chunks(run, |run| {
                    self.source.file.will_read(run.clone());
                    each(self.source.bytes(run))
                })?;
            }
            return Ok(());
        }
        let row = info.row_bytes();
        let at_a_time = (CHUNK / row.max(1)).max(1);
        let mut first = range.start / row;
        let end = range.end.div_ceil(row);
        while first < end {
            let rows = first..end.min(first + at_a_time);
            let data = origin
                .rows(self.source, info, rows.clone())
                .map_err(|error| ConvertError::Encode {
                    path: self.source.path().to_owned(),
                    tensor: info.name.clone(),
                    error,
                })?;
            let from = range.start.saturating_sub(rows.start * row) as usize;
            let to = (range.end.min(rows.end * row) - rows.start * row) as usize;
            each(&data[from..to])?;
            first = rows.end;
        }
        Ok(())
    }

    /// Fills `out` with the bytes of the variant's file from `at` on, which may
    /// lie anywhere in it.
    ///
    /// # Errors
    /// When weights cannot be encoded.
    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), ConvertError> {
        if self.as_source && self.new.is_empty() {
            let end = at + out.len() as u64;
            out.copy_from_slice(self.source.bytes(at..end));
            return Ok(());
        }
        let header = self.gguf.header_bytes();
        let (mut at, mut out) = (at, out);
        while !out.is_empty() {
            let left = out.len() as u64;
            let n = if at < header.len() as u64 {
                let n = left.min(header.len() as u64 - at);
                out[..n as usize].copy_from_slice(&header[at as usize..(at + n) as usize]);
                n
            } else if let Some((tensor, start)) = self.tensor_at(at) {
                let end = start + self.gguf.tensors()[tensor].byte_len();
                let n = left.min(end - at);
                let mut to = 0;
                self.stream::<ConvertError>(at..at + n, |bytes| {
                    out[to..to + bytes.len()].copy_from_slice(bytes);
                    to += bytes.len();
                    Ok(())
                })?;
                n
            } else {
                let starts = self.gguf.tensors().iter();
                let next = starts.map(|t| self.gguf.data_range(t).start);
                let next = next.filter(|&start| start > at).min();
                let n = next.map_or(left, |next| left.min(next - at));
                out[..n as usize].fill(0);
                n
            };
            at += n;
            out = &mut out[n as usize..];
        }
        Ok(())
    }

    /// All data of a tensor.
    ///
    /// # Errors
    /// When weights cannot be encoded.
    pub fn tensor_data(&self, tensor: usize) -> Result<Cow<'_, [u8]>, ConvertError> {
        let (info, origin) = (&self.gguf.tensors()[tensor], &self.origins[tensor]);
        if let Some(data) = self.new.get(&tensor) {
            return Ok(data.into());
        }
        if origin.is_copied(self.source, info) {
            return Ok(origin.bytes(self.source, 0..info.byte_len()));
        }
        let mut data = vec![0; info.byte_len() as usize];
        self.read(self.gguf.data_range(info).start, &mut data)?;
        Ok(data.into())
    }

    /// The rows of the source's matrix that are left of the one called `name`,
    /// where some are gone.
    pub fn kept_rows(&self, name: &str) -> Option<Vec<Range<u64>>> {
        let tensor = self.gguf.tensor_index(name)?;
        self.origins[tensor].rows.clone()
    }

    /// The weights that a tensor is made of, row after row, as the source has
    /// them: without what an encoding at another type loses.
    ///
    /// # Errors
    /// When their type has no numbers.
    pub fn source_weights(&self, tensor: usize) -> Result<Vec<f32>, QuantError> {
        self.origins[tensor].weights(self.source)
    }

    /// The tensor in whose data `at` lies, and where these begin.
    fn tensor_at(&self, at: u64) -> Option<(usize, u64)> {
        let tensors = self.gguf.tensors();
        let next = tensors.partition_point(|t| self.gguf.data_range(t).start <= at);
        // Empty tensors begin where the next one does.
        let found = (0..next).rev().find(|&i| tensors[i].byte_len() > 0)?;
        let place = self.gguf.data_range(&tensors[found]);
        place.contains(&at).then_some((found, place.start))
    }

    /// What tells whether rows are another's, without encoding them: how they
    /// are made of the source's, where they are not its bytes as such, and the
    /// bytes that they are made of. Equal answers for tensors of one type and
    /// row length mean equal data. `range` is whole rows.
    pub fn identity(&self, tensor: usize, range: Range<u64>) -> (Option<RowsMade>, Cow<'_, [u8]>) {
        let (info, origin) = (&self.gguf.tensors()[tensor], &self.origins[tensor]);
        if let Some(data) = self.new.get(&tensor) {
            return (None, data[range.start as usize..range.end as usize].into());
        }
        if origin.is_copied(self.source, info) {
            return (None, origin.bytes(self.source, range));
        }
        let from = &self.source.gguf.tensors()[origin.tensor];
        let row = |at: u64| at / info.row_bytes().max(1) * from.row_bytes();
        let made = RowsMade {
            ggml_type: from.ggml_type,
            columns: origin.columns.clone(),
            zeros: origin.zeros.clone(),
        };
        let rows = row(range.start)..row(range.end);
        (Some(made), origin.bytes(self.source, rows))
    }
}

impl VirtualFile for Variant<'_> {
    fn size(&self) -> u64 {
        self.len()
    }

    fn read_at(&self, at: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.read(at, out).map_err(std::io::Error::other)
    }
}

/// How rows are made of the source's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RowsMade {
    ggml_type: GgmlType,
    columns: Option<Vec<Range<u64>>>,
    zeros: Vec<Range<u64>>,
}

/// The header of the plain file with `types` for some tensors of the one whose
/// header is `gguf`.
///
/// # Errors
/// When its size overflows.
pub fn typed_header(gguf: &Gguf, types: &Types) -> Result<Gguf, FormatError> {
    let (shapes, keys) = typed(gguf, types);
    Ok(header(gguf, shapes, keys)?.0)
}

fn typed<'g>(gguf: &'g Gguf, types: &Types) -> (Shapes<'g>, Keys) {
    let mut shapes = Shapes::of(gguf);
    for (&tensor, &ggml_type) in &types.tensors {
        shapes.store(tensor, ggml_type);
    }
    types.untie(gguf, &mut shapes);
    let keys = Keys {
        quantized: types.are_quantized(),
        ..Keys::default()
    };
    (shapes, keys)
}

/// The header of a variant, and where its tensors come from.
fn header(
    old: &Gguf,
    shapes: Shapes<'_>,
    mut keys: Keys,
) -> Result<(Gguf, Vec<Origin>), FormatError> {
    let (mut infos, origins): (Vec<TensorInfo>, Vec<Origin>) = shapes.finish()?.into_iter().unzip();
    keys.file_type = store::file_type(old.tensors(), &infos);
    let overflows = || FormatError::unsupported("output", "its size overflows");
    let mut builder = keys.apply(old);
    let mut offset = 0;
    for info in &mut infos {
        info.offset = offset;
        builder.tensor(info);
        offset = align_up(offset + info.byte_len(), old.alignment()).ok_or_else(overflows)?;
    }
    let header = builder.finish();
    let data = align_up(header.len() as u64, old.alignment()).ok_or_else(overflows)?;
    let len = data.checked_add(offset).ok_or_else(overflows)?;
    Ok((Gguf::parse_header(&header, len)?, origins))
}

/// Names the first edit that narrows a layer.
fn narrow_error(plan: &Plan, why: String) -> PlanError {
    let edit = (plan.edits.iter()).position(|edit| matches!(edit, Edit::Narrow(_)));
    PlanError::field(plan.field_of(edit.unwrap_or(0), "channels"), why)
}
