//! What becomes of each tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use faer::Mat;
use headshare_format::Gguf;

use crate::massive;
use crate::matrix::read;
use crate::rotation::{Random, rotation};

/// Tensors that changed, by name.
pub(crate) type Changed = BTreeMap<String, Mat<f64>>;

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// The residual stream was turned, but for this many massive channels.
    Turned {
        /// Channels that stayed.
        massive: usize,
        /// All of them.
        channels: usize,
    },
    /// Scales were moved, and value heads turned.
    Scaled,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Turned { massive, channels } => write!(
                f,
                "the residual stream is turned, but for {massive} massive ones of its {channels} channels"
            ),
            Self::Scaled => f.write_str("scales are moved and value heads turned"),
        }
    }
}

/// How far scales are moved: the deviation of their logarithm.
const SCALE_DEVIATION: f64 = 0.15;

/// The changed tensors of the model at `path`.
pub(crate) fn transform(
    gguf: &Gguf,
    file: &[u8],
    path: &Path,
    seed: u64,
) -> Result<(Changed, How)> {
    let model = Source { gguf, file };
    let arch = gguf.architecture()?.context("it states no architecture")?;
    let number = |key: &str| -> Result<usize> {
        let key = format!("{arch}.{key}");
        let value = gguf.u64_value(&key)?;
        Ok(value.with_context(|| format!("it has no {key}"))? as usize)
    };
    let (layers, n) = (number("block_count")?, number("embedding_length")?);
    for layer in 0..layers {
        for matrix in [
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
        ] {
            let name = format!("blk.{layer}.{matrix}.weight");
            ensure!(
                gguf.tensor(&name).is_some(),
                "it has no {name}: only plain llama-like layers are supported"
            );
        }
        for norm in ["attn_norm", "ffn_norm"] {
            ensure!(
                gguf.tensor(&format!("blk.{layer}.{norm}.bias")).is_none(),
                "its norms have biases"
            );
        }
    }
    let mut random = Random::new(seed);
    if gguf.tensor("blk.0.post_attention_norm.weight").is_some() {
        let heads = number("attention.head_count")?;
        let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
        return Ok((
            model.scaled(layers, heads, kv_heads, &mut random)?,
            How::Scaled,
        ));
    }
    let massive = massive::channels(path, n)?;
    let turned: Vec<usize> = (0..n).filter(|&i| !massive[i]).collect();
    let r = rotation(n, &turned, &mut random);
    let how = How::Turned {
        massive: n - turned.len(),
        channels: n,
    };
    Ok((model.turned(layers, &r)?, how))
}

struct Source<'a> {
    gguf: &'a Gguf,
    file: &'a [u8],
}

impl Source<'_> {
    fn read(&self, name: &str) -> Result<Mat<f64>> {
        read(self.gguf, self.file, name)?.with_context(|| format!("it has no {name}"))
    }

    /// The model with its residual stream turned by `r`.
    fn turned(&self, layers: usize, r: &Mat<f64>) -> Result<Changed> {
        let mut changed = Changed::new();
        let embedding = self.read("token_embd.weight")?;
        let head = match self.gguf.tensor("output.weight") {
            Some(_) => self.read("output.weight")?,
            None => embedding.clone(),
        };
        changed.insert("token_embd.weight".into(), &embedding * r);
        for layer in 0..layers {
            let name = |what: &str| format!("blk.{layer}.{what}");
            for (norm, readers) in [
                ("attn_norm.weight", &["attn_q", "attn_k", "attn_v"][..]),
                ("ffn_norm.weight", &["ffn_gate", "ffn_up"]),
            ] {
                let (gain, through) = self.through(&name(norm), r)?;
                for reader in readers {
                    let reader = name(&format!("{reader}.weight"));
                    let turned = &self.read(&reader)? * &through;
                    changed.insert(reader, turned);
                }
                changed.insert(name(norm), gain);
            }
            for writer in ["attn_output", "ffn_down"] {
                let weight = name(&format!("{writer}.weight"));
                let turned = r.transpose() * self.read(&weight)?;
                changed.insert(weight, turned);
                let bias = name(&format!("{writer}.bias"));
                if self.gguf.tensor(&bias).is_some() {
                    let turned = self.read(&bias)? * r;
                    changed.insert(bias, turned);
                }
            }
        }
        let (gain, through) = self.through("output_norm.weight", r)?;
        changed.insert("output_norm.weight".into(), gain);
        changed.insert("output.weight".into(), &head * &through);
        Ok(changed)
    }

    /// The new gain of a norm, g', and diag(g) R diag(1/g').
    fn through(&self, norm: &str, r: &Mat<f64>) -> Result<(Mat<f64>, Mat<f64>)> {
        let gain = self.read(norm)?;
        let n = r.nrows();
        ensure!(
            gain.nrows() == 1 && gain.ncols() == n,
            "{norm} has another length"
        );
        let new = Mat::from_fn(1, n, |_, j| {
            let square: f64 = (0..n)
                .map(|i| gain[(0, i)].powi(2) * r[(i, j)].powi(2))
                .sum();
            // A channel that no norm lets through stays one.
            if square > 0.0 { square.sqrt() } else { 1.0 }
        });
        let through = Mat::from_fn(n, n, |i, j| gain[(0, i)] * r[(i, j)] / new[(0, j)]);
        Ok((new, through))
    }

    /// The model with scales moved between gains and columns, up and down, and each
    /// value head turned.
    fn scaled(
        &self,
        layers: usize,
        heads: usize,
        kv_heads: usize,
        random: &mut Random,
    ) -> Result<Changed> {
        let mut changed = Changed::new();
        for layer in 0..layers {
            let name = |what: &str| format!("blk.{layer}.{what}.weight");
            for (norm, readers) in [
                ("attn_norm", &["attn_q", "attn_k", "attn_v"][..]),
                ("ffn_norm", &["ffn_gate", "ffn_up"]),
            ] {
                let gain = self.read(&name(norm))?;
                let scales = scales(gain.ncols(), random);
                for reader in readers {
                    let weight = self.read(&name(reader))?;
                    let new = scale_columns(&weight, |j| 1.0 / scales[j]);
                    changed.insert(name(reader), new);
                }
                changed.insert(name(norm), scale_columns(&gain, |j| scales[j]));
            }
            let down = self.read(&name("ffn_down"))?;
            let scales = scales(down.ncols(), random);
            let up = changed
                .remove(&name("ffn_up"))
                .context("ffn_up was read above")?;
            let up = Mat::from_fn(up.nrows(), up.ncols(), |i, j| up[(i, j)] * scales[i]);
            changed.insert(name("ffn_up"), up);
            changed.insert(name("ffn_down"), scale_columns(&down, |j| 1.0 / scales[j]));
            self.turn_values(&name, heads, kv_heads, random, &mut changed)?;
        }
        Ok(changed)
    }

    /// Turns each value head against the columns of `attn_output` that read it.
    fn turn_values(
        &self,
        name: &dyn Fn(&str) -> String,
        heads: usize,
        kv_heads: usize,
        random: &mut Random,
        changed: &mut Changed,
    ) -> Result<()> {
        let mut v = changed
            .remove(&name("attn_v"))
            .context("attn_v was read above")?;
        let mut output = self.read(&name("attn_output"))?;
        let rows = v.nrows() / kv_heads.max(1);
        if rows * heads != output.ncols() || !heads.is_multiple_of(kv_heads) {
            bail!(
                "{} does not read {heads} heads of {rows}",
                name("attn_output")
            );
        }
        if self
            .gguf
            .tensor(&name("attn_v").replace(".weight", ".bias"))
            .is_some()
        {
            bail!("its values have a bias");
        }
        let all: Vec<usize> = (0..rows).collect();
        for kv in 0..kv_heads {
            let r = rotation(rows, &all, random);
            let part = v.subrows(kv * rows, rows).to_owned();
            v.subrows_mut(kv * rows, rows).copy_from(&r * part);
            for head in kv * heads / kv_heads..(kv + 1) * heads / kv_heads {
                let part = output.subcols(head * rows, rows).to_owned();
                output
                    .subcols_mut(head * rows, rows)
                    .copy_from(part * r.transpose());
            }
        }
        changed.insert(name("attn_v"), v);
        changed.insert(name("attn_output"), output);
        Ok(())
    }
}

fn scales(n: usize, random: &mut Random) -> Vec<f64> {
    (0..n)
        .map(|_| (SCALE_DEVIATION * random.normal()).exp())
        .collect()
}

fn scale_columns(of: &Mat<f64>, by: impl Fn(usize) -> f64) -> Mat<f64> {
    Mat::from_fn(of.nrows(), of.ncols(), |i, j| of[(i, j)] * by(j))
}
