//! Self-merges: a model whose layers are another one's, in a stated order.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use headshare_format::TensorInfo;
use headshare_format::gguf::{ArrayView, Gguf, HeaderBuilder, Kv, Value, ValueType, align_up};

/// Reads a list of layers such as `0-19,10-29` or `0,0,1` (ranges include
/// their end).
///
/// # Errors
/// When it is no such list.
pub fn parse_layer_list(text: &str) -> Result<Vec<u32>> {
    let mut layers = Vec::new();
    for part in text.split(',') {
        let number = |n: &str| {
            n.trim()
                .parse::<u32>()
                .with_context(|| format!("{n:?} in {text:?} is no layer number"))
        };
        match part.split_once('-') {
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                ensure!(first <= last, "range {part:?} runs backwards");
                layers.extend(first..=last);
            }
            None => layers.push(number(part)?),
        }
    }
    Ok(layers)
}

/// Writes to `out` the model at `source` with the layers `layers` of it, in
/// that order.
///
/// The block count and arrays with one element per layer are adapted, tensors
/// are renamed; everything else stays as it is.
///
/// # Errors
/// When `source` is no GGUF with `blk.N.` tensors, or a layer is not in it.
pub fn self_merge(source: &Path, layers: &[u32], out: &Path) -> Result<()> {
    let file = File::open(source).with_context(|| format!("opening {}", source.display()))?;
    // SAFETY: the map is read only, by this function; that nobody truncates a
    // test's source meanwhile is the caller's business.
    let map = unsafe { memmap2::Mmap::map(&file) }
        .with_context(|| format!("mapping {}", source.display()))?;
    let gguf = Gguf::parse(&map).map_err(|e| anyhow!("{}: {e}", source.display()))?;
    let file = File::create(out).with_context(|| format!("creating {}", out.display()))?;
    let mut writer = BufWriter::with_capacity(4 << 20, file);
    merge(&gguf, &map, layers, &mut writer)
        .and_then(|()| Ok(writer.flush()?))
        .with_context(|| format!("merging {}", source.display()))
}

fn merge(gguf: &Gguf, file: &[u8], layers: &[u32], out: &mut impl Write) -> Result<()> {
    let arch = gguf
        .architecture()?
        .context("the source states no architecture")?;
    let arch_prefix = format!("{arch}.");
    let count_key = format!("{arch_prefix}block_count");
    let n_layer = gguf
        .u64_value(&count_key)?
        .with_context(|| format!("the source has no {count_key}"))?;
    if let Some(layer) = layers.iter().find(|&&l| u64::from(l) >= n_layer) {
        bail!("layer {layer} is not one of the source's {n_layer}");
    }
    let tensors = merged_tensors(gguf, layers)?;

    let mut header = HeaderBuilder::new(gguf.version());
    for kv in gguf.kvs() {
        match gguf.value_of(kv) {
            _ if kv.key == count_key => header.record(&scalar_record(kv, layers.len())?),
            Value::Array(array) if array.len == n_layer && kv.key.starts_with(&arch_prefix) => {
                header.record(&array_record(&kv.key, &array, layers));
            }
            _ => header.record(gguf.record(kv)),
        }
    }
    let mut end = 0;
    for (info, _) in &tensors {
        let offset = align_up(end, gguf.alignment()).context("the size overflows")?;
        end = offset + info.byte_len();
        header.tensor(&TensorInfo {
            offset,
            ..info.clone()
        });
    }
    let header = header.finish();
    out.write_all(&header)?;
    let pad = |out: &mut _, len: u64| pad_to(out, len, gguf.alignment());
    pad(out, header.len() as u64)?;
    for (_, origin) in &tensors {
        let data = gguf.data_range(origin);
        out.write_all(&file[data.start as usize..data.end as usize])?;
        pad(out, origin.byte_len())?;
    }
    Ok(())
}

/// The merged model's tensors, each with the source's tensor it is a copy of.
fn merged_tensors<'a>(gguf: &'a Gguf, layers: &[u32]) -> Result<Vec<(TensorInfo, &'a TensorInfo)>> {
    let first = gguf
        .tensors()
        .iter()
        .position(|t| layer_of(&t.name).is_some())
        .context("the source has no blk.N. tensors")?;
    let outside = |list: &'a [TensorInfo]| {
        list.iter()
            .filter(|t| layer_of(&t.name).is_none())
            .map(|t| (t.clone(), t))
    };
    let mut tensors: Vec<_> = outside(&gguf.tensors()[..first]).collect();
    for (new, &layer) in layers.iter().enumerate() {
        for tensor in gguf.tensors() {
            if let Some((of, rest)) = layer_of(&tensor.name)
                && of == layer
            {
                let name = format!("blk.{new}.{rest}");
                tensors.push((
                    TensorInfo {
                        name,
                        ..tensor.clone()
                    },
                    tensor,
                ));
            }
        }
    }
    tensors.extend(outside(&gguf.tensors()[first..]));
    Ok(tensors)
}

/// The layer number in a tensor's name, and what follows it.
fn layer_of(name: &str) -> Option<(u32, &str)> {
    let (number, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

fn record_start(key: &str, value_type: ValueType) -> Vec<u8> {
    let mut record = (key.len() as u64).to_le_bytes().to_vec();
    record.extend_from_slice(key.as_bytes());
    record.extend_from_slice(&(value_type as u32).to_le_bytes());
    record
}

/// The record of an integer key, with another value of the same type.
fn scalar_record(kv: &Kv, value: usize) -> Result<Vec<u8>> {
    let size = match kv.value_type {
        ValueType::U32 | ValueType::I32 => 4,
        ValueType::U64 | ValueType::I64 => 8,
        other => bail!("{} is a {}; it must be an integer", kv.key, other.name()),
    };
    let mut record = record_start(&kv.key, kv.value_type);
    record.extend_from_slice(&(value as u64).to_le_bytes()[..size]);
    Ok(record)
}

/// The record of an array with one element per layer, for other layers.
fn array_record(key: &str, array: &ArrayView<'_>, layers: &[u32]) -> Vec<u8> {
    let mut elements = Vec::new();
    let mut rest = array.bytes();
    for _ in 0..array.len {
        let len = array.elem.size().unwrap_or_else(|| {
            let len: [u8; 8] = rest[..8].try_into().expect("eight bytes");
            8 + u64::from_le_bytes(len) as usize
        });
        let (element, tail) = rest.split_at(len);
        elements.push(element);
        rest = tail;
    }
    let mut record = record_start(key, ValueType::Array);
    record.extend_from_slice(&(array.elem as u32).to_le_bytes());
    record.extend_from_slice(&(layers.len() as u64).to_le_bytes());
    for &layer in layers {
        record.extend_from_slice(elements[layer as usize]);
    }
    record
}

/// Zeros after `len` bytes, up to the alignment.
fn pad_to(out: &mut impl Write, len: u64, alignment: u64) -> Result<()> {
    let padding = align_up(len, alignment).context("the size overflows")? - len;
    out.write_all(&vec![0; padding as usize])?;
    Ok(())
}
