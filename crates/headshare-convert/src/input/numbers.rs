//! That weights are numbers: what is computed with others shows up somewhere else, in a tensor
//! that is not to blame.

use headshare_format::TensorInfo;
use headshare_runtime::quants;
use rayon::prelude::*;

use super::{InputError, ModelFile};

/// About as many weights are looked at together.
const TOGETHER: u64 = 1 << 18;

impl ModelFile {
    /// Refuses a model with weights, or other numbers of its tensors, that are not finite.
    /// They are looked at once.
    ///
    /// # Errors
    /// Names the first such tensor.
    pub fn require_numbers(&self) -> Result<(), InputError> {
        let broken = self.not_numbers.get_or_init(|| {
            let broken = (self.gguf.tensors().iter()).find(|info| !self.has_numbers(info));
            broken.map(|info| info.name.clone())
        });
        match broken {
            None => Ok(()),
            Some(tensor) => Err(InputError::NotNumbers {
                path: self.path().to_owned(),
                tensor: tensor.clone(),
            }),
        }
    }

    /// Whether all of what is stored in `info` is finite, as far as ggml can tell.
    fn has_numbers(&self, info: &TensorInfo) -> bool {
        let id = info.ggml_type.id();
        let columns = info.row_elems();
        if !quants::type_info(id).is_some_and(|of| of.has_to_float) || columns == 0 {
            return true;
        }
        let bytes = self.bytes(self.gguf.data_range(info));
        let row = (bytes.len() as u64 / info.rows().max(1)) as usize;
        let rows = TOGETHER.div_ceil(columns) as usize;
        bytes.par_chunks((row * rows).max(1)).all(|some| {
            let mut values = vec![0f32; some.len() / row.max(1) * columns as usize];
            // What cannot be read is an error of whoever needs it.
            quants::dequantize_row(id, some, &mut values).is_err()
                || values.iter().all(|value| value.is_finite())
        })
    }
}
