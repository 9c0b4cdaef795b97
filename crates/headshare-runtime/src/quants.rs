//! Sizes, dequantization and quantization of every ggml tensor type.
//!
//! ggml's own functions index a table by the type's number and abort on
//! anything they do not expect; here every number and length is checked first
//! and a mistake is an error.

use std::ffi::CStr;

use ggml_sys as sys;

/// Elements handed to ggml at a time: bounds the copy made of unaligned input
/// and stays far from ggml's 32-bit block counts.
const CHUNK_ELEMS: usize = 1 << 16;

/// What ggml knows about one tensor type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeInfo {
    /// The type's number in a GGUF file.
    pub id: u32,
    /// ggml's name, such as `q4_K`.
    pub name: &'static str,
    /// Elements in a block; rows are a whole number of blocks. 1 for plain types.
    pub block_elems: usize,
    /// Bytes that a block takes.
    pub block_bytes: usize,
    /// Whether ggml counts it as quantized (F16 and BF16 are not).
    pub is_quantized: bool,
    /// Whether [`dequantize_row`] can read it.
    pub has_to_float: bool,
}

impl TypeInfo {
    /// Bytes of `elems` elements; `None` when they are not a whole number of
    /// blocks or the size overflows.
    pub fn bytes(&self, elems: usize) -> Option<usize> {
        if !elems.is_multiple_of(self.block_elems) {
            return None;
        }
        (elems / self.block_elems).checked_mul(self.block_bytes)
    }
}

/// Why a row could not be dequantized or quantized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantError {
    /// No such type, or one that ggml has removed.
    #[error("ggml has no tensor type {0}")]
    UnknownType(u32),
    /// ggml has no conversion from this type to F32.
    #[error("ggml cannot dequantize type {0}")]
    NotDequantizable(&'static str),
    /// ggml has no conversion from F32 to this type.
    #[error("ggml cannot quantize to type {0}")]
    NotQuantizable(&'static str),
    /// This type is meaningless without an importance matrix.
    #[error("quantizing to {0} needs an importance matrix")]
    NeedsImatrix(&'static str),
    /// The number of elements is not a whole number of blocks.
    #[error("{elems} elements are not a whole number of {name} blocks of {block_elems}")]
    PartialBlock {
        /// The type's name.
        name: &'static str,
        /// Elements asked for.
        elems: usize,
        /// Elements in a block.
        block_elems: usize,
    },
    /// Lengths that should agree do not.
    #[error("{what}: {expected} expected, {found} found")]
    Length {
        /// What was measured, and in which unit.
        what: &'static str,
        /// What it should have been.
        expected: usize,
        /// What it was.
        found: usize,
    },
    /// A weight or an importance is infinite or not a number; some of ggml's
    /// quantizers abort on those.
    #[error("element {0} is not a finite number")]
    NotFinite(usize),
    /// Blocks hold a scale that is infinite or not a number.
    #[error("values are too large for {0}, or so small that their scale is no number")]
    Overflow(&'static str),
}

/// One more than the largest type number that this ggml knows.
pub const TYPE_COUNT: u32 = sys::GGML_TYPE_COUNT;

/// What ggml knows about type number `id`; `None` for numbers out of range and
/// for types that ggml has removed.
pub fn type_info(id: u32) -> Option<TypeInfo> {
    let traits = traits(id)?;
    // SAFETY: the name is a string literal in ggml's table.
    let name = unsafe { CStr::from_ptr(traits.type_name) }.to_str().ok()?;
    Some(TypeInfo {
        id,
        name,
        block_elems: usize::try_from(traits.blck_size).ok()?,
        block_bytes: traits.type_size,
        is_quantized: traits.is_quantized,
        has_to_float: traits.to_float.is_some() || id == sys::GGML_TYPE_F32,
    })
}

/// The type with ggml's name for it, in any case (`q4_K`, `Q4_K`).
pub fn type_by_name(name: &str) -> Option<TypeInfo> {
    (0..TYPE_COUNT)
        .filter_map(type_info)
        .find(|info| info.name.eq_ignore_ascii_case(name))
}

fn traits(id: u32) -> Option<&'static sys::ggml_type_traits> {
    if id >= sys::GGML_TYPE_COUNT {
        return None;
    }
    // SAFETY: `id` is inside ggml's static table, which is never written to.
    let traits = unsafe { sys::ggml_get_type_traits(id).as_ref() }?;
    // Removed types keep a slot with empty sizes.
    let usable = traits.blck_size > 0 && traits.type_size > 0 && !traits.type_name.is_null();
    usable.then_some(traits)
}

/// Dequantizes consecutive blocks of type `id` into `out`.
///
/// `out.len()` elements, a whole number of blocks (so one row or several), are
/// read from `bytes`, which must hold exactly these; it may be unaligned.
pub fn dequantize_row(id: u32, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    let info = type_info(id).ok_or(QuantError::UnknownType(id))?;
    let expected = whole_blocks(&info, out.len())?;
    if bytes.len() != expected {
        return Err(QuantError::Length {
            what: "bytes to dequantize",
            expected,
            found: bytes.len(),
        });
    }
    if id == sys::GGML_TYPE_F32 {
        for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*raw);
        }
        return Ok(());
    }
    let Some(to_float) = traits(id).and_then(|traits| traits.to_float) else {
        return Err(QuantError::NotDequantizable(info.name));
    };
    let chunk_blocks = (CHUNK_ELEMS / info.block_elems).max(1);
    let chunk_bytes = chunk_blocks * info.block_bytes;
    // ggml reads blocks as structs of 1-, 2- and 4-byte fields, and a struct's
    // size is a multiple of its alignment.
    let aligned = if info.block_bytes.is_multiple_of(4) {
        bytes.as_ptr().cast::<u32>().is_aligned()
    } else {
        bytes.as_ptr().cast::<u16>().is_aligned()
    };
    let mut scratch = vec![0u64; if aligned { 0 } else { chunk_bytes.div_ceil(8) }];
    let chunks = bytes
        .chunks(chunk_bytes)
        .zip(out.chunks_mut(chunk_blocks * info.block_elems));
    for (source, target) in chunks {
        let from = if aligned {
            source.as_ptr()
        } else {
            let to = scratch.as_mut_ptr().cast::<u8>();
            // SAFETY: `scratch` holds at least `chunk_bytes` bytes, no chunk is
            // longer, and it overlaps no borrowed slice.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), to, source.len()) };
            to.cast_const()
        };
        // SAFETY: `from` holds the blocks of exactly `target.len()` elements,
        // `target` has room for them, and any bytes are valid blocks.
        unsafe { to_float(from.cast(), target.as_mut_ptr(), target.len() as i64) };
    }
    Ok(())
}

/// Quantizes rows of `n_per_row` elements to type `id`.
///
/// `src` holds whole rows, one after the other; so does the result. `imatrix`
/// holds the importance of each of the `n_per_row` columns; some types cannot
/// do without. Elements must be finite.
pub fn quantize_rows(
    id: u32,
    src: &[f32],
    n_per_row: usize,
    imatrix: Option<&[f32]>,
) -> Result<Vec<u8>, QuantError> {
    let info = type_info(id).ok_or(QuantError::UnknownType(id))?;
    // Exactly the types that can be read back can be written.
    if !info.has_to_float {
        return Err(QuantError::NotQuantizable(info.name));
    }
    let row_bytes = whole_blocks(&info, n_per_row)?;
    if n_per_row == 0 || !src.len().is_multiple_of(n_per_row) {
        return Err(QuantError::Length {
            what: "elements left over after the last whole row",
            expected: 0,
            found: src.len().checked_rem(n_per_row).unwrap_or(src.len()),
        });
    }
    if needs_importance(id) && imatrix.is_none() {
        return Err(QuantError::NeedsImatrix(info.name));
    }
    if let Some(imatrix) = imatrix {
        if imatrix.len() != n_per_row {
            return Err(QuantError::Length {
                what: "importances, one for each column",
                expected: n_per_row,
                found: imatrix.len(),
            });
        }
        all_finite(imatrix)?;
    }
    all_finite(src)?;
    let rows = src.len() / n_per_row;
    let mut out = vec![0u8; rows * row_bytes];
    // SAFETY: `src` holds `rows * n_per_row` finite elements, `out` room for
    // the same number of quantized ones, `imatrix` is NULL or one row long and
    // present where the type needs it: what ggml asserts, holds.
    let written = unsafe {
        sys::ggml_quantize_chunk(
            id,
            src.as_ptr(),
            out.as_mut_ptr().cast(),
            0,
            rows as i64,
            n_per_row as i64,
            imatrix.map_or(std::ptr::null(), <[f32]>::as_ptr),
        )
    };
    debug_assert_eq!(written, out.len());
    validate(id, &out)?;
    Ok(out)
}

/// Checks whole blocks of type `id`: all that they stand for must be finite. So is what
/// llama.cpp looks for when it is asked to check tensors (`ggml_validate_row_data`, which
/// prints what it finds).
///
/// # Errors
/// When a scale is infinite or not a number.
pub fn validate(id: u32, blocks: &[u8]) -> Result<(), QuantError> {
    let info = type_info(id).ok_or(QuantError::UnknownType(id))?;
    let mut values = vec![0f32; CHECKED * info.block_elems];
    for blocks in blocks.chunks(CHECKED * info.block_bytes) {
        let values = &mut values[..blocks.len() / info.block_bytes * info.block_elems];
        dequantize_row(id, blocks, values)?;
        if !values.iter().all(|v| v.is_finite()) {
            return Err(QuantError::Overflow(info.name));
        }
    }
    Ok(())
}

/// Blocks that are checked at a time.
const CHECKED: usize = 256;

/// Types that ggml's CPU backend multiplies with many columns at once about as fast as
/// F16, as measured on x86 (`docs/RESULTS.md`, "Reading a text, by type").
const FAST: &[&str] = &["f32", "f16", "bf16", "q4_0", "q8_0", "iq4_nl", "mxfp4"];

/// Whether ggml multiplies weights of type `id` with many columns at once about as fast
/// as F16 on the CPU. With other types a text is read up to several times as slowly.
pub fn multiplies_fast(id: u32) -> bool {
    type_info(id).is_some_and(|info| FAST.contains(&info.name))
}

/// Whether ggml quantizes to type `id` only with the importances of columns.
pub fn needs_importance(id: u32) -> bool {
    // SAFETY: any number is fine; it is compared with some types.
    unsafe { sys::ggml_quantize_requires_imatrix(id) }
}

fn whole_blocks(info: &TypeInfo, elems: usize) -> Result<usize, QuantError> {
    info.bytes(elems).ok_or(QuantError::PartialBlock {
        name: info.name,
        elems,
        block_elems: info.block_elems,
    })
}

fn all_finite(values: &[f32]) -> Result<(), QuantError> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(QuantError::NotFinite(at)),
        None => Ok(()),
    }
}
