//! Writing a synthetic model, a buffer at a time.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use headshare_format::TensorInfo;
use headshare_format::gguf::{DEFAULT_ALIGNMENT, HeaderBuilder, align_up};

use crate::fill::{Filler, Random};
use crate::{FileEnd, ModelSpec, metadata, tensors};

/// Bytes filled and written at a time, at most.
const CHUNK: u64 = 4 << 20;

impl ModelSpec {
    /// Writes the model to the file `path`, replacing what is there.
    ///
    /// # Errors
    /// When the numbers do not fit together, or writing fails.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut file =
            File::create(path).with_context(|| format!("creating {}", path.display()))?;
        self.write_to(&mut file)
            .with_context(|| format!("writing {}", path.display()))
    }

    /// The model as bytes, for small ones.
    ///
    /// # Errors
    /// When the numbers do not fit together.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes the model to `out`, in large writes.
    ///
    /// # Errors
    /// When the numbers do not fit together, or writing fails.
    pub fn write_to(&self, out: &mut impl Write) -> Result<()> {
        self.check()?;
        let alignment = self.alignment.map_or(DEFAULT_ALIGNMENT, u64::from);
        let planned = tensors::plan(self, alignment)?;
        let mut header = HeaderBuilder::new(self.version);
        metadata::write(self, &mut header);
        for tensor in &planned {
            header.tensor(&tensor.info);
        }
        let header = header.finish();
        out.write_all(&header)?;
        let mut end = header.len() as u64;
        let mut padding = Random::named(self.seed, "padding");
        let mut pad = |out: &mut _, len: u64| self.filler_bytes(out, &mut padding, len);
        pad(out, padding_after(end, alignment))?;

        let mut buffer = Vec::new();
        end = 0;
        for (i, tensor) in planned.iter().enumerate() {
            if i > 0 {
                pad(out, tensor.info.offset - end)?;
            }
            let random = Random::named(self.seed, &tensor.origin);
            let mut filler = Filler::new(random, &tensor.info, tensor.content);
            for len in chunks(&tensor.info) {
                buffer.resize(len as usize, 0);
                filler.fill(&mut buffer);
                out.write_all(&buffer)?;
            }
            end = tensor.info.offset + tensor.info.byte_len();
        }
        match self.end {
            FileEnd::Padded => pad(out, padding_after(end, alignment))?,
            FileEnd::Unpadded => {}
            FileEnd::Trailing(len) => {
                pad(out, padding_after(end, alignment))?;
                let mut bytes = vec![0; len as usize];
                Random::named(self.seed, "trailing").fill(&mut bytes);
                out.write_all(&bytes)?;
            }
        }
        out.flush()?;
        Ok(())
    }

    fn filler_bytes(&self, out: &mut impl Write, random: &mut Random, len: u64) -> Result<()> {
        let mut bytes = vec![0; len as usize];
        if self.random_padding {
            random.fill(&mut bytes);
        }
        out.write_all(&bytes)?;
        Ok(())
    }
}

fn padding_after(end: u64, alignment: u64) -> u64 {
    align_up(end, alignment).expect("models are smaller than u64") - end
}

/// The lengths of the pieces that `info`'s data is written in: whole blocks.
fn chunks(info: &TensorInfo) -> impl Iterator<Item = u64> {
    let block = info.ggml_type.block_bytes();
    // A multiple of 8 too, so that pieces draw whole random words.
    let chunk = CHUNK / (8 * block) * (8 * block);
    let mut rest = info.byte_len();
    std::iter::from_fn(move || {
        let len = rest.min(chunk);
        rest -= len;
        (len > 0).then_some(len)
    })
}
