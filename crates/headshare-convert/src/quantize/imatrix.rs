//! Importance matrices as llama-imatrix writes them and llama-quantize reads them: a
//! GGUF of type `imatrix` with two tensors for each matrix NAME of the model,
//! `NAME.in_sum2` (a sum of squares for each column, of each expert) and
//! `NAME.counts` (how many rows that is the sum of, for each expert).

use std::collections::BTreeMap;
use std::path::Path;

use headshare_files::{AtomicFile, FileError};
use headshare_format::gguf::{HeaderBuilder, align_up};
use headshare_format::{FormatError, GgmlType, Gguf, TensorInfo};

use super::importance::{Importances, SquaredInputs};
use crate::input::{InputError, ModelFile};

const TYPE: &str = "general.type";
const IMATRIX: &str = "imatrix";
const DATASETS: &str = "imatrix.datasets";
const CHUNKS: &str = "imatrix.chunk_count";
const CHUNK: &str = "imatrix.chunk_size";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Reads the importance matrix in `file`.
///
/// # Errors
/// When it is none, or is damaged.
pub fn read(file: &ModelFile) -> Result<Importances, InputError> {
    let (gguf, path) = (&file.gguf, file.path());
    let bad = |field: &str, problem: String| {
        InputError::content(path)(FormatError::unsupported(field, problem))
    };
    let stated = gguf.str_value(TYPE).map_err(InputError::content(path))?;
    if stated != Some(IMATRIX) {
        let problem = format!(
            "it is {}, not {IMATRIX}: an importance matrix of llama-imatrix, as GGUF, is wanted",
            stated.unwrap_or("a model")
        );
        return Err(bad(TYPE, problem));
    }
    let values = |info: &TensorInfo| -> Result<Vec<f32>, InputError> {
        if info.ggml_type != GgmlType::F32 {
            return Err(bad(
                &info.name,
                format!("it is {}, not f32", info.ggml_type),
            ));
        }
        let bytes = file.bytes(gguf.data_range(info));
        let values: Vec<f32> = (bytes.as_chunks::<4>().0.iter())
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        match values.iter().all(|v| v.is_finite() && *v >= 0.0) {
            true => Ok(values),
            false => Err(bad(
                &info.name,
                "it has values that are no sums of squares".into(),
            )),
        }
    };
    let mut all = Importances::new();
    for info in gguf.tensors() {
        let Some(name) = info.name.strip_suffix(SUMS) else {
            continue;
        };
        let counts = format!("{name}{COUNTS}");
        let of_counts = (gguf.tensor(&counts))
            .ok_or_else(|| bad(&info.name, format!("there is no {counts} to it")))?;
        let squares = values(info)?;
        let counts = values(of_counts)?;
        let rows = info.rows() as usize;
        if counts.len() != rows || rows == 0 {
            let problem = format!("{} counts for {rows} sums", counts.len());
            return Err(bad(&info.name, problem));
        }
        let counts = counts.iter().map(|&n| n.round() as u64).collect();
        all.insert(name.to_owned(), SquaredInputs { squares, counts });
    }
    match all.is_empty() {
        true => Err(bad("tensors", format!("none is called NAME{SUMS}"))),
        false => Ok(all),
    }
}

/// The first matrix of `of` that `gguf` has not, or in another shape, in words.
pub fn mismatch(of: &Importances, gguf: &Gguf) -> Option<String> {
    of.iter().find_map(|(name, inputs)| {
        let Some(info) = gguf.tensor(name) else {
            return Some(format!("the model has no {name}"));
        };
        let experts = info.dims.get(2..).unwrap_or_default().iter().product::<u64>();
        let (columns, matrices) = (info.row_elems() as usize, experts as usize);
        let fits =
            inputs.counts.len() == matrices && inputs.squares.len() == columns * matrices;
        (!fits).then(|| {
            format!(
                "{name} has {} inputs of {} matrices there, and {columns} of {matrices} in the model",
                inputs.squares.len() / inputs.counts.len().max(1),
                inputs.counts.len(),
            )
        })
    })
}

/// Writes `of`, measured on `chunks` windows of `chunk` tokens of the text at
/// `dataset`, to `path`.
///
/// # Errors
/// When it cannot be written.
pub fn write(
    of: &Importances,
    dataset: &str,
    (chunks, chunk): (u32, u32),
    path: &Path,
    force: bool,
) -> Result<(), FileError> {
    const VERSION: u32 = 3;
    const ALIGNMENT: u64 = 32;
    let mut header = HeaderBuilder::new(VERSION);
    header.str(TYPE, IMATRIX);
    header.strs(DATASETS, [dataset].into_iter());
    header.u32(CHUNKS, chunks);
    header.u32(CHUNK, chunk);
    let mut data: Vec<u8> = Vec::new();
    for (name, inputs) in of {
        let matrices = inputs.counts.len() as u64;
        let columns = inputs.squares.len() as u64 / matrices.max(1);
        let counts: Vec<f32> = inputs.counts.iter().map(|&n| n as f32).collect();
        let tensors: [(&str, u64, &[f32]); 2] =
            [(SUMS, columns, &inputs.squares), (COUNTS, 1, &counts)];
        for (suffix, columns, values) in tensors {
            let start = align_up(data.len() as u64, ALIGNMENT).unwrap_or(u64::MAX);
            data.resize(start as usize, 0);
            header.tensor(&TensorInfo {
                name: format!("{name}{suffix}"),
                dims: vec![columns, matrices],
                ggml_type: GgmlType::F32,
                offset: start,
            });
            data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
    }
    let mut bytes = header.finish();
    let start = align_up(bytes.len() as u64, ALIGNMENT).unwrap_or(u64::MAX);
    bytes.resize(start as usize, 0);
    bytes.extend(data);
    let end = align_up(bytes.len() as u64, ALIGNMENT).unwrap_or(u64::MAX);
    bytes.resize(end as usize, 0);
    AtomicFile::write(path, &bytes, force, &[])
}

/// The same, added up over matrices that share rows: what is stored once is rounded
/// for all who use it. `in_common` are pairs of names.
pub fn pooled(of: &Importances, in_common: &[(String, String)]) -> Importances {
    let mut groups: BTreeMap<&str, &str> = BTreeMap::new();
    for (user, donor) in in_common {
        groups.insert(user, donor);
    }
    let mut all = of.clone();
    for (user, donor) in groups {
        let Some(theirs) = of.get(user) else { continue };
        if let Some(sum) = all
            .get_mut(donor)
            .filter(|sum| sum.squares.len() == theirs.squares.len())
        {
            sum.squares
                .iter_mut()
                .zip(&theirs.squares)
                .for_each(|(a, b)| *a += b);
            sum.counts
                .iter_mut()
                .zip(&theirs.counts)
                .for_each(|(a, b)| *a += b);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(squares: &[f32], counts: &[u64]) -> Importances {
        let inputs = SquaredInputs {
            squares: squares.to_vec(),
            counts: counts.to_vec(),
        };
        [("blk.0.attn_q.weight".to_owned(), inputs)].into()
    }

    #[test]
    fn what_is_written_is_read_again_and_broken_files_say_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imatrix.gguf");
        let all = of(&[1.0, 2.0, 3.0, 4.0], &[7, 0]);
        write(&all, "text", (3, 64), &path, false).unwrap();
        let read = |path: &Path| read(&ModelFile::open_plain(path)?);
        assert_eq!(read(&path).unwrap(), all);
        let good = std::fs::read(&path).unwrap();
        let broken = |what: &str, bytes: Vec<u8>, says: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{what}: {error}");
        };
        let with = |old: &[u8], new: &[u8]| {
            let at = good.windows(old.len()).position(|w| w == old).unwrap();
            let mut bytes = good.clone();
            bytes[at..at + new.len()].copy_from_slice(new);
            bytes
        };
        broken(
            "another type",
            with(b"\x07\0\0\0\0\0\0\0imatrix", b"\x07\0\0\0\0\0\0\0unknown"),
            "general.type",
        );
        broken("no counts", with(b".counts", b".amount"), ".in_sum2");
        broken("no sums", with(b".in_sum2", b".in_sum3"), "tensors");
        broken(
            "not finite",
            with(&4f32.to_le_bytes(), &f32::NAN.to_le_bytes()),
            ".in_sum2",
        );
        broken(
            "negative",
            with(&3f32.to_le_bytes(), &(-3f32).to_le_bytes()),
            ".in_sum2",
        );
        broken("cut", good[..good.len() - 64].to_vec(), "imatrix.gguf");
    }

    #[test]
    fn matrices_that_are_stored_once_are_rounded_for_all_users() {
        let name = |layer: u32| format!("blk.{layer}.attn_q.weight");
        let mut all = of(&[1.0, 2.0], &[3]);
        all.insert(name(1), of(&[10.0, 20.0], &[4]).remove(&name(0)).unwrap());
        let pooled = pooled(&all, &[(name(1), name(0))]);
        assert_eq!(pooled[&name(0)].squares, [11.0, 22.0]);
        assert_eq!(pooled[&name(0)].counts, [7]);
        assert_eq!(pooled[&name(1)], all[&name(1)]);
    }
}
