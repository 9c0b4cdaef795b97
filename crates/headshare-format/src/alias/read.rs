//! Reading an alias table: every rule of `docs/FORMAT.md` is checked here,
//! before any of the table is used. `R<n>` names the rule.
//!
//! The order of the checks matters: each relies on the ones before it, so
//! that none can overflow or look beyond an array.

use std::collections::{HashMap, HashSet};

use super::encode::metadata_digest;
use super::fields::{
    check_digest_form, required_array, required_bool, required_digest, required_str, required_u32,
    required_u32s, required_u64, required_u64s, same_length,
};
use super::source::{lay_out, source_header};
use super::{
    ARCHITECTURE, AliasTable, FILLER, HEADER_CHANGED, METADATA_DIGEST_HEX_LEN, PAGE_SIZES, POOL,
    Provenance, RESERVED_PREFIX, Segment, SourceLayout, VERSION, is_converted, keys,
};
use crate::gguf::{
    DEFAULT_ALIGNMENT, Gguf, KEY_ALIGNMENT, MAX_ALIGNMENT, MAX_TENSOR_NAME, align_up,
};
use crate::{Advice, ErrorKind, FormatError, GgmlType, PageSize, Rule, TensorInfo};

impl AliasTable {
    /// Reads and validates the alias table of a physical file; `None` for a
    /// plain GGUF.
    ///
    /// # Errors
    /// The first rule of the format that does not hold.
    pub fn read(physical: &Gguf) -> Result<Option<Self>, FormatError> {
        if !is_converted(physical) {
            return Ok(None);
        }
        check_known(physical).map_err(|e| match e.advice {
            Some(Advice::UseNewer) => e,
            _ => broken(1)(e),
        })?;
        Self::read_known(physical)
            .map(Some)
            .map_err(|broken| blame(physical, broken))
    }

    fn read_known(physical: &Gguf) -> Result<Self, FormatError> {
        check_container(physical).map_err(broken(1))?;
        let mut tensors = read_tensors(physical).map_err(broken(2))?;
        let source = read_source(physical, &mut tensors).map_err(broken(3))?;
        let segments = read_segments(physical, tensors.len()).map_err(broken(5))?;
        check_coverage(&tensors, &segments)?;
        check_stored(physical, &tensors, &segments)?;
        check_size(physical, &source, &tensors).map_err(broken(12))?;
        let provenance = read_provenance(physical, &tensors).map_err(broken(13))?;
        Ok(Self {
            source,
            provenance,
            tensors,
            segments,
        })
    }
}

/// Marks an error as breaking rule R`number`, unless it is marked already.
fn broken(number: u8) -> impl Fn(FormatError) -> FormatError {
    move |error| match error.kind {
        ErrorKind::Malformed(Rule::Table(_)) => error,
        _ => error.breaking(Rule::Table(number)),
    }
}

/// What to say of a broken rule. In a header that is not as it was written, the
/// rule is a consequence: what broke it is that somebody wrote to the header.
fn blame(physical: &Gguf, broken: FormatError) -> FormatError {
    match metadata_is_intact(physical) {
        Ok(false) => FormatError::new(broken.kind, "file", format!("{HEADER_CHANGED} ({broken})"))
            .advise(Advice::EditPlainFile),
        _ => broken,
    }
}

/// The digests of the stored tensors, as the file states them.
///
/// # Errors
/// When they are not there in the right form (R13).
pub fn stored_digests(physical: &Gguf) -> Result<Vec<&str>, FormatError> {
    let digests = required_array(physical, keys::DIGEST_STORED)?
        .strs()
        .ok_or_else(|| FormatError::key(keys::DIGEST_STORED, "expected an array of strings"))?;
    if digests.len() != physical.tensors().len() {
        return Err(FormatError::key(
            keys::DIGEST_STORED,
            format!(
                "{} digests for {} stored tensors",
                digests.len(),
                physical.tensors().len()
            ),
        ));
    }
    for digest in &digests {
        check_digest_form(keys::DIGEST_STORED, digest)?;
    }
    Ok(digests)
}

/// Whether the header is what its digest says.
///
/// # Errors
/// When the digest is not there in the right form (R13).
pub fn metadata_is_intact(physical: &Gguf) -> Result<bool, FormatError> {
    let stated = required_digest(physical, keys::DIGEST_METADATA)?;
    let kv = physical
        .kv(keys::DIGEST_METADATA)
        .expect("its value was just read");
    let end = physical.value_range(kv).end;
    let actual = metadata_digest(physical.header_bytes(), end - METADATA_DIGEST_HEX_LEN..end);
    Ok(super::format_digest(&actual) == stated)
}

// R1: a version of the format that we know.
fn check_known(physical: &Gguf) -> Result<(), FormatError> {
    let version = required_u32(physical, keys::VERSION)?;
    if version == VERSION {
        return Ok(());
    }
    Err(FormatError::key(
        keys::VERSION,
        format!("format version {version} is unknown; this program reads version {VERSION}"),
    )
    .of(ErrorKind::Unsupported)
    .advise(Advice::UseNewer))
}

// R1: a version of GGUF, and a page size that we know.
fn check_container(physical: &Gguf) -> Result<(), FormatError> {
    if physical.version() != 3 {
        return Err(FormatError::unsupported(
            "version",
            format!(
                "a headshare file is GGUF version 3, this one is version {}",
                physical.version()
            ),
        ));
    }
    if PageSize::new(physical.alignment()).is_none_or(|page| !PAGE_SIZES.contains(&page)) {
        return Err(FormatError::key(
            KEY_ALIGNMENT,
            format!(
                "{} is no page size of the format ({PAGE_SIZES:?})",
                physical.alignment()
            ),
        ));
    }
    Ok(())
}

// R2: the arrays that describe the logical tensors.
fn read_tensors(physical: &Gguf) -> Result<Vec<TensorInfo>, FormatError> {
    let names = required_array(physical, keys::TENSOR_NAMES)?
        .strs()
        .ok_or_else(|| {
            FormatError::key(keys::TENSOR_NAMES, "expected an array of UTF-8 strings")
        })?;
    let types = required_u32s(physical, keys::TENSOR_TYPES)?;
    let n_dims = required_u32s(physical, keys::TENSOR_N_DIMS)?;
    let dims = required_u64s(physical, keys::TENSOR_DIMS)?;
    same_length(
        keys::TENSOR_TYPES,
        types.len(),
        keys::TENSOR_NAMES,
        names.len(),
    )?;
    same_length(
        keys::TENSOR_N_DIMS,
        n_dims.len(),
        keys::TENSOR_NAMES,
        names.len(),
    )?;
    let stated: u64 = n_dims.iter().map(|&n| u64::from(n)).sum();
    if stated != dims.len() as u64 {
        return Err(FormatError::key(
            keys::TENSOR_DIMS,
            format!(
                "{} dimensions, but {} states {stated}",
                dims.len(),
                keys::TENSOR_N_DIMS
            ),
        ));
    }

    describe(names, types, n_dims, &dims).map_err(broken(4))
}

// R4: each logical tensor. Offsets are filled in by `read_source`.
fn describe(
    names: Vec<&str>,
    types: Vec<u32>,
    n_dims: Vec<u32>,
    dims: &[u64],
) -> Result<Vec<TensorInfo>, FormatError> {
    let mut seen = HashSet::new();
    let mut rest = dims;
    let mut tensors = Vec::with_capacity(names.len());
    for ((name, type_id), n_dims) in names.into_iter().zip(types).zip(n_dims) {
        if name.len() as u64 >= MAX_TENSOR_NAME || name.starts_with(RESERVED_PREFIX) {
            return Err(FormatError::key(
                keys::TENSOR_NAMES,
                format!(
                    "{name:?} is no tensor name: at most {} bytes, not beginning with {RESERVED_PREFIX:?}",
                    MAX_TENSOR_NAME - 1
                ),
            ));
        }
        if !seen.insert(name) {
            return Err(FormatError::key(
                keys::TENSOR_NAMES,
                format!("{name:?} stands twice"),
            ));
        }
        let ggml_type = GgmlType::from_id(type_id).ok_or_else(|| {
            FormatError::key(keys::TENSOR_TYPES, format!("unknown ggml type {type_id}"))
        })?;
        let (dims, tail) = rest.split_at(n_dims as usize);
        rest = tail;
        let tensor = TensorInfo {
            name: name.to_owned(),
            ggml_type,
            dims: dims.to_vec(),
            offset: 0,
        };
        tensor
            .validate()
            .map_err(|e| FormatError::new(e.kind, format!("logical {}", e.field), e.problem))?;
        tensors.push(tensor);
    }
    Ok(tensors)
}

// R3: the source's layout, and with it the logical tensors' offsets.
fn read_source(physical: &Gguf, tensors: &mut [TensorInfo]) -> Result<SourceLayout, FormatError> {
    let version = required_u32(physical, keys::SOURCE_VERSION)?;
    if !matches!(version, 2 | 3) {
        return Err(FormatError::key(
            keys::SOURCE_VERSION,
            format!("GGUF version {version}; 2 and 3 are possible"),
        ));
    }
    let alignment = u64::from(required_u32(physical, keys::SOURCE_ALIGNMENT)?);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(FormatError::key(
            keys::SOURCE_ALIGNMENT,
            format!("{alignment} is no power of two of at most {MAX_ALIGNMENT}"),
        ));
    }
    let has_alignment_key = required_bool(physical, keys::SOURCE_HAS_ALIGNMENT_KEY)?;
    if !has_alignment_key && alignment != DEFAULT_ALIGNMENT {
        return Err(FormatError::key(
            keys::SOURCE_ALIGNMENT,
            format!("{alignment} needs a key in the source, which is said to have none"),
        ));
    }
    let architecture = physical.str_value(keys::ARCHITECTURE)?;
    if architecture == Some(ARCHITECTURE) {
        return Err(FormatError::key(
            keys::ARCHITECTURE,
            "the source of a headshare file is no headshare file",
        ));
    }
    lay_out(tensors, alignment)?;
    Ok(SourceLayout {
        version,
        architecture: architecture.map(str::to_owned),
        alignment,
        has_alignment_key,
        size: required_u64(physical, keys::SOURCE_SIZE)?,
    })
}

// R5: the segment arrays.
fn read_segments(physical: &Gguf, n_tensors: usize) -> Result<Vec<Segment>, FormatError> {
    let tensors = required_u32s(physical, keys::SEGMENT_TENSORS)?;
    let offsets = required_u64s(physical, keys::SEGMENT_OFFSETS)?;
    let lengths = required_u64s(physical, keys::SEGMENT_LENGTHS)?;
    let stored = required_u32s(physical, keys::SEGMENT_STORED)?;
    let stored_offsets = required_u64s(physical, keys::SEGMENT_STORED_OFFSETS)?;
    let n = tensors.len();
    for (key, len) in [
        (keys::SEGMENT_OFFSETS, offsets.len()),
        (keys::SEGMENT_LENGTHS, lengths.len()),
        (keys::SEGMENT_STORED, stored.len()),
        (keys::SEGMENT_STORED_OFFSETS, stored_offsets.len()),
    ] {
        same_length(key, len, keys::SEGMENT_TENSORS, n)?;
    }
    let segments: Vec<Segment> = (0..n)
        .map(|i| Segment {
            tensor: tensors[i],
            offset: offsets[i],
            len: lengths[i],
            stored: stored[i],
            stored_offset: stored_offsets[i],
        })
        .collect();
    for (i, segment) in segments.iter().enumerate() {
        if segment.tensor as usize >= n_tensors {
            return Err(FormatError::key(
                keys::SEGMENT_TENSORS,
                format!(
                    "segment {i} belongs to tensor {}, but there are {n_tensors}",
                    segment.tensor
                ),
            ));
        }
    }
    Ok(segments)
}

// R6, R7: whole rows, each byte of each logical tensor exactly once, in order.
fn check_coverage(tensors: &[TensorInfo], segments: &[Segment]) -> Result<(), FormatError> {
    let mut rest = segments.iter().enumerate().peekable();
    for (index, tensor) in tensors.iter().enumerate() {
        let row = tensor.row_bytes();
        let mut covered = 0u64;
        while let Some((i, segment)) = rest.next_if(|(_, s)| s.tensor as usize == index) {
            let fail = |rule: u8, problem: String| {
                let problem = format!("segment {i} of {:?}: {problem}", tensor.name);
                Err(broken(rule)(FormatError::key(
                    keys::SEGMENT_OFFSETS,
                    problem,
                )))
            };
            if segment.len == 0
                || !segment.len.is_multiple_of(row)
                || !segment.offset.is_multiple_of(row)
            {
                return fail(
                    6,
                    format!(
                        "offset {} and length {} are not whole rows of {row} bytes",
                        segment.offset, segment.len
                    ),
                );
            }
            if segment.offset != covered {
                return fail(
                    7,
                    format!(
                        "begins at byte {}, but the segments before it cover {covered} bytes",
                        segment.offset
                    ),
                );
            }
            covered = match covered.checked_add(segment.len) {
                Some(end) if end <= tensor.byte_len() => end,
                _ => {
                    return fail(
                        7,
                        format!("ends past the tensor's {} bytes", tensor.byte_len()),
                    );
                }
            };
        }
        if covered != tensor.byte_len() {
            return Err(FormatError::key(
                keys::SEGMENT_OFFSETS,
                format!(
                    "the segments of {:?} cover {covered} of its {} bytes",
                    tensor.name,
                    tensor.byte_len()
                ),
            )
            .breaking(Rule::Table(7)));
        }
    }
    if let Some((i, _)) = rest.next() {
        return Err(FormatError::key(
            keys::SEGMENT_TENSORS,
            format!("segment {i} is not in the order of the tensors"),
        )
        .breaking(Rule::Table(7)));
    }
    Ok(())
}

// R8, R9: every segment lies in a stored tensor, and every stored tensor is
// one that the format has.
fn check_stored(
    physical: &Gguf,
    tensors: &[TensorInfo],
    segments: &[Segment],
) -> Result<(), FormatError> {
    let mut by_stored: Vec<Vec<&Segment>> = vec![Vec::new(); physical.tensors().len()];
    for (i, segment) in segments.iter().enumerate() {
        let Some(stored) = physical.tensors().get(segment.stored as usize) else {
            return Err(FormatError::key(
                keys::SEGMENT_STORED,
                format!(
                    "segment {i} points to stored tensor {}, but there are {}",
                    segment.stored,
                    physical.tensors().len()
                ),
            )
            .breaking(Rule::Table(8)));
        };
        if segment
            .stored_offset
            .checked_add(segment.len)
            .is_none_or(|end| end > stored.byte_len())
        {
            return Err(FormatError::key(
                keys::SEGMENT_STORED_OFFSETS,
                format!(
                    "segment {i}: {} bytes at {} lie outside {:?} of {} bytes",
                    segment.len,
                    segment.stored_offset,
                    stored.name,
                    stored.byte_len()
                ),
            )
            .breaking(Rule::Table(8)));
        }
        by_stored[segment.stored as usize].push(segment);
    }

    let by_name: HashMap<&str, usize> = tensors
        .iter()
        .enumerate()
        .map(|(i, t)| (t.name.as_str(), i))
        .collect();
    for (stored, mut users) in physical.tensors().iter().zip(by_stored) {
        users.sort_by_key(|s| (s.stored_offset, s.tensor, s.offset));
        let is_ours = stored.name == POOL || stored.name == FILLER;
        if is_ours && (stored.ggml_type != GgmlType::I8 || stored.dims.len() != 1) {
            return Err(
                FormatError::tensor(&stored.name, "must be one dimension of i8")
                    .breaking(Rule::Table(9)),
            );
        }
        match stored.name.as_str() {
            POOL => check_pool(tensors, &users).map_err(broken(11))?,
            FILLER => {
                if let Some(segment) = users.first() {
                    return Err(FormatError::tensor(
                        FILLER,
                        format!("is used by a segment of tensor {}", segment.tensor),
                    )
                    .breaking(Rule::Table(9)));
                }
            }
            name => {
                let Some(&owner) = by_name.get(name) else {
                    return Err(FormatError::tensor(
                        name,
                        "is stored, but no logical tensor has its name",
                    )
                    .breaking(Rule::Table(9)));
                };
                check_named(stored, owner, tensors, &users).map_err(broken(10))?;
            }
        }
    }
    Ok(())
}

// R10: a stored tensor with a logical tensor's name holds rows of it and no
// others, and all its users see the same rows.
fn check_named(
    stored: &TensorInfo,
    owner: usize,
    tensors: &[TensorInfo],
    users: &[&Segment],
) -> Result<(), FormatError> {
    let mut covered = 0u64;
    for segment in users {
        let tensor = &tensors[segment.tensor as usize];
        if tensor.ggml_type != stored.ggml_type
            || tensor.row_elems() != stored.row_elems()
            || !segment.stored_offset.is_multiple_of(stored.row_bytes())
        {
            return Err(FormatError::tensor(
                &stored.name,
                format!(
                    "stored as {} with rows of {}, used at byte {} by {:?} as {} with rows of {}",
                    stored.ggml_type,
                    stored.row_elems(),
                    segment.stored_offset,
                    tensor.name,
                    tensor.ggml_type,
                    tensor.row_elems()
                ),
            ));
        }
        if segment.tensor as usize == owner && segment.stored_offset <= covered {
            covered = covered.max(segment.stored_offset + segment.len);
        }
    }
    if covered < stored.byte_len() {
        return Err(FormatError::tensor(
            &stored.name,
            format!(
                "its bytes from {covered} on are stored, but belong to no segment of the logical tensor of its name"
            ),
        ));
    }
    Ok(())
}

// R11: segments that share pool bytes see the same rows there.
fn check_pool(tensors: &[TensorInfo], users: &[&Segment]) -> Result<(), FormatError> {
    let mut group: Option<(&Segment, u64)> = None;
    for segment in users {
        let end = segment.stored_offset + segment.len;
        group = match group {
            Some((first, group_end)) if segment.stored_offset < group_end => {
                let a = &tensors[first.tensor as usize];
                let b = &tensors[segment.tensor as usize];
                let phase = segment.stored_offset - first.stored_offset;
                if a.ggml_type != b.ggml_type
                    || a.row_elems() != b.row_elems()
                    || !phase.is_multiple_of(a.row_bytes())
                {
                    return Err(FormatError::tensor(
                        POOL,
                        format!(
                            "bytes at {} are rows of {:?} ({} of {}) and of {:?} ({} of {}) that do not agree",
                            segment.stored_offset,
                            a.name,
                            a.ggml_type,
                            a.row_elems(),
                            b.name,
                            b.ggml_type,
                            b.row_elems()
                        ),
                    ));
                }
                Some((first, group_end.max(end)))
            }
            _ => Some((segment, end)),
        };
    }
    Ok(())
}

// R12: the source's size follows from its tensors, its padding and the filler.
fn check_size(
    physical: &Gguf,
    source: &SourceLayout,
    tensors: &[TensorInfo],
) -> Result<(), FormatError> {
    let header_end = source_header(physical, source, tensors).len() as u64;
    let fail = |problem: String| Err(FormatError::key(keys::SOURCE_SIZE, problem));
    let data_offset = align_up(header_end, source.alignment)
        .ok_or_else(|| FormatError::key(keys::SOURCE_SIZE, "the expanded size overflows"))?;
    let data: u64 = tensors.iter().map(TensorInfo::byte_len).sum();
    let data_end = match tensors.last() {
        Some(last) => data_offset + last.offset + last.byte_len(),
        None => header_end,
    };
    if source.size < data_end {
        return fail(format!(
            "{} bytes, but header and tensors need {data_end}",
            source.size
        ));
    }
    let filler = source.size - header_end - data;
    match physical.tensor(FILLER) {
        Some(stored) if stored.byte_len() != filler => fail(format!(
            "leaves {filler} bytes between and after the tensors, but {FILLER:?} has {}",
            stored.byte_len()
        )),
        None if source.size > align_up(data_end, source.alignment).unwrap_or(u64::MAX) => {
            fail(format!(
                "{} bytes are more than header, tensors and padding need, and no {FILLER:?} holds the rest",
                source.size
            ))
        }
        _ => Ok(()),
    }
}

// R13: provenance and digests are there and have the right form.
fn read_provenance(physical: &Gguf, tensors: &[TensorInfo]) -> Result<Provenance, FormatError> {
    stored_digests(physical)?;
    required_digest(physical, keys::DIGEST_METADATA)?;
    let lossless = required_bool(physical, keys::LOSSLESS)?;
    Ok(Provenance {
        tool: required_str(physical, keys::TOOL)?.to_owned(),
        lossless,
        source_digest: required_digest(physical, keys::SOURCE_DIGEST)?.to_owned(),
        plan: physical.str_value(keys::PLAN)?.map(str::to_owned),
        replaced: super::fields::replaced(physical, tensors, lossless)?,
    })
}
