//! The tensors of a variant in the making: what stays of each tensor of the
//! source, and at which type.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use headshare_format::{FormatError, GgmlType, Gguf, TensorInfo};

use super::data::Origin;

/// What changes about the source's tensors, which are named or counted as the
/// source does.
#[derive(Debug)]
pub(super) struct Shapes<'a> {
    gguf: &'a Gguf,
    rows: BTreeMap<usize, Vec<Range<u64>>>,
    columns: BTreeMap<usize, Vec<Range<u64>>>,
    zeros: BTreeMap<usize, Vec<Range<u64>>>,
    types: BTreeMap<usize, GgmlType>,
    gone: BTreeSet<usize>,
    /// Tensors that the source has under another name only.
    copies: Vec<(String, usize, GgmlType)>,
}

impl<'a> Shapes<'a> {
    pub fn of(gguf: &'a Gguf) -> Self {
        Self {
            gguf,
            rows: BTreeMap::new(),
            columns: BTreeMap::new(),
            zeros: BTreeMap::new(),
            types: BTreeMap::new(),
            gone: BTreeSet::new(),
            copies: Vec::new(),
        }
    }

    pub fn name(&self, tensor: usize) -> &'a str {
        &self.gguf.tensors()[tensor].name
    }

    /// The tensor goes, if there is one.
    pub fn remove(&mut self, name: &str) {
        self.gone.extend(self.gguf.tensor_index(name));
    }

    /// Of the tensor's rows (of a vector's elements) these stay, after those
    /// that were said before.
    pub fn keep_rows(&mut self, name: &str, rows: impl Iterator<Item = Range<u64>>) {
        if let Some(tensor) = self.gguf.tensor_index(name) {
            self.rows.entry(tensor).or_default().extend(rows);
        }
    }

    /// Of the tensor's columns these stay.
    pub fn keep_columns(&mut self, name: &str, columns: Vec<Range<u64>>) {
        if let Some(tensor) = self.gguf.tensor_index(name) {
            self.columns.insert(tensor, columns);
        }
    }

    /// In the tensor's columns, as the source counts them, zeros are.
    pub fn zero_columns(&mut self, name: &str, columns: Vec<Range<u64>>) {
        if let Some(tensor) = self.gguf.tensor_index(name) {
            self.zeros.insert(tensor, columns);
        }
    }

    /// The tensor is stored at this type.
    pub fn store(&mut self, tensor: usize, ggml_type: GgmlType) {
        self.types.insert(tensor, ggml_type);
    }

    /// The source's `tensor` once more, under another name.
    pub fn copy(&mut self, name: String, tensor: usize, ggml_type: GgmlType) {
        self.copies.push((name, tensor, ggml_type));
    }

    /// Elements of a row of what is left of `tensor`.
    pub fn row_elems(&self, tensor: usize) -> u64 {
        match self.columns.get(&tensor) {
            Some(columns) => columns.iter().map(|c| c.end - c.start).sum(),
            None => self.gguf.tensors()[tensor].row_elems(),
        }
    }

    /// The tensors, offsets not known yet, with where their data come from.
    ///
    /// # Errors
    /// When a tensor has not the rows or columns that are to stay, which others of its layer
    /// have; names it.
    pub fn finish(self) -> Result<Vec<(TensorInfo, Origin)>, FormatError> {
        let mut all = Vec::new();
        for (tensor, info) in self.gguf.tensors().iter().enumerate() {
            if self.gone.contains(&tensor) {
                continue;
            }
            let mut info = info.clone();
            let rows = self.rows.get(&tensor).cloned();
            let columns = self.columns.get(&tensor).cloned();
            let zeros = self.zeros.get(&tensor).cloned().unwrap_or_default();
            let row = usize::from(info.dims.len() > 1);
            // One without dimensions is one number.
            let has = info.dims.get(row).copied().unwrap_or(1);
            within(&info, "rows", rows.iter().flatten(), has)?;
            let of_columns = columns.iter().flatten().chain(&zeros);
            within(&info, "columns", of_columns, info.row_elems())?;
            if let Some(rows) = &rows {
                info.dims[row] = rows.iter().map(|r| r.end - r.start).sum();
            }
            if let Some(columns) = &columns {
                info.dims[0] = columns.iter().map(|c| c.end - c.start).sum();
            }
            if let Some(&ggml_type) = self.types.get(&tensor) {
                info.ggml_type = ggml_type;
            }
            all.push((
                info,
                Origin {
                    tensor,
                    rows,
                    columns,
                    zeros,
                },
            ));
        }
        for (name, tensor, ggml_type) in self.copies {
            let info = TensorInfo {
                name,
                ggml_type,
                ..self.gguf.tensors()[tensor].clone()
            };
            all.push((info, Origin::whole(tensor)));
        }
        Ok(all)
    }
}

/// Refuses ranges of the rows or columns of the tensor `info` beyond the `count` that it has.
fn within<'r>(
    info: &TensorInfo,
    what: &str,
    ranges: impl Iterator<Item = &'r Range<u64>>,
    count: u64,
) -> Result<(), FormatError> {
    let end = ranges.map(|range| range.end).max().unwrap_or(0);
    if end <= count {
        return Ok(());
    }
    let problem = format!("has {count} {what}, and the layer's other tensors ask for {end}");
    Err(FormatError::tensor(&info.name, problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::ModelFile;
    use headshare_testmodels::ModelSpec;

    #[test]
    fn rows_and_columns_that_are_not_there_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        ModelSpec::preset("tiny-qwen2")
            .unwrap()
            .write(&path)
            .unwrap();
        let source = ModelFile::open(&path).unwrap();
        let refused = |change: &dyn Fn(&mut Shapes<'_>)| {
            let mut shapes = Shapes::of(&source.gguf);
            change(&mut shapes);
            shapes.finish().map(drop).map_err(|error| error.to_string())
        };
        let (bias, output) = ("blk.1.attn_q.bias", "blk.1.attn_output.weight");
        let elements = source.gguf.tensor(bias).unwrap().row_elems();
        assert_eq!(
            refused(&|shapes| shapes.keep_rows(bias, std::iter::once(0..elements))),
            Ok(())
        );
        let beyond = || std::iter::once(elements - 8..elements + 8);
        let says = refused(&|shapes| shapes.keep_rows(bias, beyond())).unwrap_err();
        assert!(
            says.contains(bias) && says.contains("has 64 rows"),
            "{says}"
        );
        let columns = source.gguf.tensor(output).unwrap().row_elems();
        let all = || vec![0..32, 32..columns];
        let beyond = || vec![0..32, 32..columns + 1];
        for (whole, more) in [
            (
                refused(&|shapes| shapes.keep_columns(output, all())),
                refused(&|shapes| shapes.keep_columns(output, beyond())),
            ),
            (
                refused(&|shapes| shapes.zero_columns(output, all())),
                refused(&|shapes| shapes.zero_columns(output, beyond())),
            ),
        ] {
            let says = more.unwrap_err();
            assert!(whole.is_ok() && says.contains(output), "{says}");
            assert!(says.contains("columns"), "{says}");
        }
    }
}
