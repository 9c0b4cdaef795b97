//! The weights that the matching gets to see.

use super::*;
use crate::matching::UnitBlocks;
use crate::matching::WeightBlocks;
use crate::model::Part;

/// Writes `weights`, counting from 0, into the F32 tensor at `index`.
fn number(file: &mut [u8], gguf: &Gguf, index: usize) {
    let range = gguf.data_range(&gguf.tensors()[index]);
    let data = &mut file[range.start as usize..range.end as usize];
    for (i, weight) in data.chunks_exact_mut(4).enumerate() {
        weight.copy_from_slice(&(i as f32).to_le_bytes());
    }
}

#[test]
fn are_those_of_the_rows() {
    let mut file = Model::new("phi3", 1, 32)
        .heads(4, 2)
        .fused(0, 32, 64)
        .bytes();
    let gguf = Gguf::parse(&file).unwrap();
    number(&mut file, &gguf, 0);
    let map = AttentionMap::of(&gguf).unwrap();
    let blocks = WeightBlocks::new(&gguf, &file, &map).unwrap();
    assert_eq!(blocks.units(), map.units());
    for (part, first_row, rows) in [(Part::Q, 16, 16), (Part::K, 40, 8), (Part::V, 56, 8)] {
        let first = first_row * 32;
        assert_eq!(blocks.elements(part, 1), rows * 32);
        let mut out = vec![0.0; rows * 32];
        blocks.read(part, 1, 0, &mut out).unwrap();
        assert!(
            out.iter()
                .enumerate()
                .all(|(i, &w)| w == (first + i) as f32)
        );
        let mut slab = vec![0.0; 32];
        blocks.read(part, 1, 100, &mut slab).unwrap();
        assert!(
            slab.iter()
                .enumerate()
                .all(|(i, &w)| w == (first + 100 + i) as f32)
        );
    }
}

#[test]
fn classes_tell_types_and_shapes_apart() {
    let file = Model::new("deci", 3, 32)
        .list("attention.head_count", &[4, 4, 4])
        .list("attention.head_count_kv", &[2, 2, 4])
        .qkv(0, 32, [32, 16, 16])
        .tensor("blk.1.attn_q.weight", Q8_0, &[32, 32])
        .matrix("blk.1.attn_k.weight", 32, 16)
        .matrix("blk.1.attn_v.weight", 32, 16)
        .qkv(2, 32, [32, 32, 32])
        .bytes();
    let gguf = Gguf::parse(&file).unwrap();
    let map = AttentionMap::of(&gguf).unwrap();
    let blocks = WeightBlocks::new(&gguf, &file, &map).unwrap();
    let class = |part, unit| blocks.class(part, unit);
    assert_eq!(class(Part::Q, 0), class(Part::Q, 1));
    assert_ne!(class(Part::Q, 0), class(Part::Q, 2), "type");
    assert_ne!(class(Part::Q, 0), class(Part::Q, 4), "rows");
    assert_eq!(class(Part::K, 0), class(Part::K, 2));
    assert_eq!(class(Part::K, 0), class(Part::K, 7));
    assert_eq!(blocks.granularity(Part::Q, 0), 1);
    assert_eq!(blocks.granularity(Part::Q, 2), 32);
    let classes = (0..8).flat_map(|u| Part::ALL.map(|p| class(p, u)));
    assert_eq!(classes.max(), Some(2), "dense");
}

#[test]
fn quantized_weights_are_dequantized() {
    let mut file = Model::new("phi3", 1, 32)
        .heads(4, 2)
        .tensor("blk.0.attn_qkv.weight", Q8_0, &[32, 64])
        .bytes();
    let gguf = Gguf::parse(&file).unwrap();
    let start = gguf.data_offset() as usize;
    for (row, bytes) in file[start..].chunks_exact_mut(34).enumerate() {
        bytes[..2].copy_from_slice(&0x3800u16.to_le_bytes()); // 0.5 as F16
        bytes[2..].fill(row as u8);
    }
    let map = AttentionMap::of(&gguf).unwrap();
    let blocks = WeightBlocks::new(&gguf, &file, &map).unwrap();
    let mut out = vec![0.0; 64];
    blocks.read(Part::K, 1, 32, &mut out).unwrap();
    assert!(out[..32].iter().all(|&w| w == 20.5));
    assert!(out[32..].iter().all(|&w| w == 21.0));
}

#[test]
fn types_that_ggml_cannot_read_are_refused() {
    let file = grouped().tensor("unused", F32, &[1]).bytes();
    let gguf = Gguf::parse(&file).unwrap();
    let map = AttentionMap::of(&gguf).unwrap();
    assert!(WeightBlocks::new(&gguf, &file[1..], &map).is_err());

    let file = Model::new("phi3", 1, 32)
        .heads(4, 2)
        .tensor("blk.0.attn_qkv.weight", I32, &[32, 64])
        .bytes();
    let gguf = Gguf::parse(&file).unwrap();
    let map = AttentionMap::of(&gguf).unwrap();
    let error = WeightBlocks::new(&gguf, &file, &map).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("tensor \"blk.0.attn_qkv.weight\": ggml cannot turn its type i32")
    );
}
