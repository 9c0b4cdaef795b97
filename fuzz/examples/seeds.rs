//! Writes the files that fuzzing starts from: tiny plain and converted models.

use std::error::Error;
use std::path::{Path, PathBuf};

use headshare_format::alias::{Digests, Provenance, format_digest};
use headshare_format::layout::{self, SharedRows};
use headshare_format::{Gguf, PageSize};
use headshare_testmodels::{FileEnd, KeyOrder, ModelSpec, type_named};

fn main() -> Result<(), Box<dyn Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (i, spec) in specs()?.iter().enumerate() {
        let plain = spec.to_bytes()?;
        write(corpus.join("parse_gguf"), i, &plain)?;
        let converted = convert(&plain)?;
        write(corpus.join("parse_gguf"), 100 + i, &converted)?;
        write(corpus.join("read_alias_table"), i, &converted)?;
    }
    Ok(())
}

fn write(folder: PathBuf, number: usize, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("seed-{number:03}"));
    std::fs::write(&path, bytes)?;
    println!("{} ({} bytes)", path.display(), bytes.len());
    Ok(())
}

/// Models of a few kilobytes.
fn specs() -> Result<Vec<ModelSpec>, Box<dyn Error>> {
    let small = |name: &str| -> Result<ModelSpec, Box<dyn Error>> {
        Ok(ModelSpec {
            n_layer: 2,
            n_embd: 8,
            n_ff: 8,
            n_vocab: 4,
            n_ctx: 4,
            n_head: 2.into(),
            n_head_kv: 1.into(),
            key_length: Some(4),
            value_length: Some(4),
            ..ModelSpec::preset(name)?
        })
    };
    Ok(vec![
        small("tiny-llama")?,
        ModelSpec {
            repeat: 2,
            n_layer: 1,
            n_embd: 32,
            weight_type: type_named("q8_0").ok_or("no q8_0")?,
            n_ff: 32,
            n_head: 1.into(),
            key_length: Some(32),
            value_length: Some(32),
            ..small("tiny-gqa")?
        },
        ModelSpec {
            alignment: Some(64),
            random_padding: true,
            end: FileEnd::Trailing(9),
            key_order: KeyOrder::Reversed,
            version: 2,
            ..small("tiny-gpt2")?
        },
        ModelSpec {
            end: FileEnd::Unpadded,
            n_embd: 64,
            key_length: Some(16),
            value_length: Some(16),
            ..small("tiny-phi3")?
        },
    ])
}

/// Converts `plain`, with the first half of every second-layer tensor taken
/// from the first layer.
fn convert(plain: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let gguf = Gguf::parse(plain)?;
    let mut shared = Vec::new();
    for (alias, tensor) in gguf.tensors().iter().enumerate() {
        let Some(rest) = tensor.name.strip_prefix("blk.1.") else {
            continue;
        };
        let donor = gguf.tensor_index(&format!("blk.0.{rest}"));
        shared.push(SharedRows {
            alias,
            alias_offset: 0,
            donor: donor.ok_or("no such tensor in the first layer")?,
            donor_offset: 0,
            len: tensor.rows().div_ceil(2) * tensor.row_bytes(),
        });
    }
    let mut provenance = Provenance::lossless("seeds 0", format_digest(&blake3::hash(plain)));
    provenance.lossless = false;
    provenance.plan = Some("{}".to_owned());
    let layout = layout::plan(
        &gguf,
        &|r| {
            plain[r.start as usize..r.end as usize]
                .iter()
                .all(|&b| b == 0)
        },
        &shared,
        PageSize::KIB_4,
        provenance,
    )?;
    let mut data = vec![0; layout.data_len() as usize];
    let mut digests = Vec::new();
    for stored in &layout.stored {
        let start = stored.info.offset as usize;
        for piece in &stored.pieces {
            let bytes = &plain[piece.source.start as usize..piece.source.end as usize];
            let at = start + piece.offset as usize;
            data[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let end = start + stored.info.byte_len() as usize;
        digests.push(blake3::hash(&data[start..end]));
    }
    let digests = Digests::Known(&digests);
    let mut file = layout
        .table
        .encode(&gguf, &layout.infos(), layout.page, digests);
    file.resize(file.len().next_multiple_of(layout.page.to_usize()), 0);
    file.extend(data);
    Ok(file)
}
