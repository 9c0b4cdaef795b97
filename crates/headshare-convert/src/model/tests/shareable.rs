//! Files whose heads are found, and where.

use super::*;
use crate::model::{AttentionLayer, RowsRange};
use crate::model::{Part, UnitId};

fn unit(layer: u32, unit: u32) -> UnitId {
    UnitId { layer, unit }
}

/// (tensor, first row, rows) of a unit's part, for F32 rows of `row` elements.
fn rows(map: &AttentionMap, id: UnitId, part: Part, row: u64) -> (usize, u64, u64) {
    let RowsRange {
        tensor,
        offset,
        len,
    } = map.block(id, part).expect("a unit");
    (tensor, offset / (row * 4), len / (row * 4))
}

/// Heads of (q, k, v) of a layer.
fn shape(layer: &AttentionLayer) -> (u32, u32, u64, u64) {
    (
        layer.n_head,
        layer.n_head_kv,
        layer.key_length,
        layer.value_length,
    )
}

#[test]
fn separate_multi_head() {
    let map = Model::new("llama", 1, 32)
        .key("attention.head_count", 4)
        .qkv(0, 32, [32, 32, 32])
        .map()
        .unwrap();
    assert_eq!(shape(&map.layers[0]), (4, 4, 8, 8));
    assert!(!map.is_grouped());
    for (part, tensor) in Part::ALL.into_iter().zip(0..) {
        assert_eq!(rows(&map, unit(0, 3), part, 32), (tensor, 24, 8));
    }
    assert_eq!(map.describe(), "llama, 1 layer of 4 heads, 4 units");
}

#[test]
fn separate_grouped_query() {
    let map = grouped().map().unwrap();
    assert!(map.is_grouped());
    assert_eq!(
        map.units(),
        [unit(0, 0), unit(0, 1), unit(1, 0), unit(1, 1)]
    );
    assert_eq!(map.unit_count(), 4);
    assert_eq!(rows(&map, unit(1, 1), Part::Q, 32), (3, 16, 16));
    assert_eq!(rows(&map, unit(1, 1), Part::K, 32), (4, 8, 8));
    assert_eq!(rows(&map, unit(1, 1), Part::V, 32), (5, 8, 8));
    assert_eq!(map.block(unit(1, 2), Part::Q), None);
    assert_eq!(map.block(unit(2, 0), Part::Q), None);
    assert_eq!(
        map.describe(),
        "llama, 2 layers of 4 query heads in 2 KV groups, 4 units"
    );
}

#[test]
fn head_blocks_cover_every_row_once() {
    for map in [
        grouped().map().unwrap(),
        Model::new("phi3", 1, 32)
            .heads(4, 2)
            .fused(0, 32, 64)
            .map()
            .unwrap(),
    ] {
        let mut blocks: Vec<_> = map.head_blocks().map(|b| b.rows).collect();
        assert_eq!(blocks.len(), map.layers.len() * (4 + 2 + 2));
        blocks.sort();
        let mut ends = std::collections::HashMap::new();
        for block in blocks {
            let end = ends.entry(block.tensor).or_insert(0);
            assert_eq!(block.offset, *end);
            *end += block.len;
        }
        let covered: u64 = ends.values().sum();
        assert_eq!(covered, map.layers.len() as u64 * 64 * 32 * 4);
    }
}

#[test]
fn fused_multi_head_gpt2() {
    let map = Model::new("gpt2", 1, 32)
        .key("attention.head_count", 4)
        .fused(0, 32, 96)
        .tensor("blk.0.attn_qkv.bias", F32, &[96])
        .map()
        .unwrap();
    assert!(map.layers[0].is_fused());
    assert_eq!(rows(&map, unit(0, 1), Part::Q, 32), (0, 8, 8));
    assert_eq!(rows(&map, unit(0, 1), Part::K, 32), (0, 40, 8));
    assert_eq!(rows(&map, unit(0, 1), Part::V, 32), (0, 72, 8));
}

#[test]
fn fused_multi_query_falcon() {
    let map = Model::new("falcon", 1, 32)
        .heads(4, 1)
        .fused(0, 32, 48)
        .map()
        .unwrap();
    assert_eq!(map.units(), [unit(0, 0)]);
    assert_eq!(rows(&map, unit(0, 0), Part::Q, 32), (0, 0, 32));
    assert_eq!(rows(&map, unit(0, 0), Part::K, 32), (0, 32, 8));
    assert_eq!(rows(&map, unit(0, 0), Part::V, 32), (0, 40, 8));
}

#[test]
fn fused_grouped_query_phi3() {
    let map = Model::new("phi3", 1, 32)
        .heads(4, 2)
        .fused(0, 32, 64)
        .map()
        .unwrap();
    assert_eq!(rows(&map, unit(0, 1), Part::Q, 32), (0, 16, 16));
    assert_eq!(rows(&map, unit(0, 1), Part::K, 32), (0, 40, 8));
    assert_eq!(rows(&map, unit(0, 1), Part::V, 32), (0, 56, 8));
}

#[test]
fn layout_is_decided_by_layer() {
    let map = Model::new("phi3", 2, 32)
        .heads(4, 2)
        .fused(0, 32, 64)
        .qkv(1, 32, [32, 16, 16])
        .map()
        .unwrap();
    assert!(map.layers[0].is_fused());
    assert!(!map.layers[1].is_fused());
}

#[test]
fn head_counts_by_layer_openelm() {
    let map = Model::new("openelm", 2, 32)
        .list("attention.head_count", &[4, 6])
        .list("attention.head_count_kv", &[2, 3])
        .key("attention.key_length", 8)
        .key("attention.value_length", 8)
        .fused(0, 32, (4 + 2 + 2) * 8)
        .fused(1, 32, (6 + 3 + 3) * 8)
        .map()
        .unwrap();
    assert_eq!(shape(&map.layers[0]), (4, 2, 8, 8));
    assert_eq!(shape(&map.layers[1]), (6, 3, 8, 8));
    assert_eq!(map.unit_count(), 5);
    assert_eq!(rows(&map, unit(1, 2), Part::K, 32), (1, 48 + 16, 8));
    assert_eq!(
        map.describe(),
        "openelm, 2 layers of 4 to 6 query heads in 2 to 3 KV groups, 5 units"
    );
}

#[test]
fn layers_without_heads_deci() {
    let map = Model::new("deci", 4, 32)
        .list("attention.head_count", &[4, 4, 0, 4])
        .list("attention.head_count_kv", &[2, 0, 0, 4])
        .qkv(0, 32, [32, 16, 16])
        .matrix("blk.1.attn_output.weight", 32, 32)
        .matrix("blk.2.ffn_up.weight", 32, 64)
        .qkv(3, 32, [32, 32, 32])
        .map()
        .unwrap();
    assert_eq!(map.headless_layers, 2);
    let layers: Vec<u32> = map.layers.iter().map(|l| l.layer).collect();
    assert_eq!(layers, [0, 3]);
    assert_eq!(map.units().last(), Some(&unit(3, 3)));
    assert_eq!(map.block(unit(1, 0), Part::Q), None);
}

#[test]
fn key_length_overrides_embedding_over_heads() {
    // gemma-3-270m in small: 640 / 4 is not 256.
    let map = Model::new("gemma3", 1, 640)
        .heads(4, 1)
        .key("attention.key_length", 256)
        .key("attention.value_length", 256)
        .qkv(0, 640, [1024, 256, 256])
        .map()
        .unwrap();
    assert_eq!(shape(&map.layers[0]), (4, 1, 256, 256));
    assert_eq!(rows(&map, unit(0, 0), Part::Q, 640), (0, 0, 1024));
}

#[test]
fn key_and_value_length_may_differ() {
    let model = Model::new("mimo2", 2, 32)
        .heads(4, 2)
        .key("attention.key_length", 12)
        .key("attention.value_length", 8)
        .fused(0, 32, 4 * 12 + 2 * 12 + 2 * 8)
        .qkv(1, 32, [48, 24, 16]);
    let map = model.map().unwrap();
    assert_eq!(shape(&map.layers[0]), (4, 2, 12, 8));
    assert_eq!(rows(&map, unit(0, 1), Part::K, 32), (0, 48 + 12, 12));
    assert_eq!(rows(&map, unit(0, 1), Part::V, 32), (0, 48 + 24 + 8, 8));
    assert_eq!(shape(&map.layers[1]), (4, 2, 12, 8));
}

#[test]
fn sliding_window_layers_may_have_heads_of_their_own_size() {
    let map = Model::new("mimo2", 2, 32)
        .heads(4, 2)
        .key("attention.key_length", 12)
        .key("attention.value_length", 8)
        .key("attention.key_length_swa", 8)
        .key("attention.value_length_swa", 4)
        .qkv(0, 32, [32, 16, 8])
        .qkv(1, 32, [48, 24, 16])
        .map()
        .unwrap();
    assert_eq!(shape(&map.layers[0]), (4, 2, 8, 4));
    assert_eq!(shape(&map.layers[1]), (4, 2, 12, 8));
}

#[test]
fn gpt_oss_sizes_heads_by_rope_dimensions() {
    let map = Model::new("gpt-oss", 1, 32)
        .heads(4, 2)
        .key("attention.key_length", 8)
        .key("rope.dimension_count", 16)
        .qkv(0, 32, [64, 32, 32])
        .map()
        .unwrap();
    assert_eq!(shape(&map.layers[0]), (4, 2, 16, 16));
}

#[test]
fn biases_norms_and_sinks_change_nothing() {
    let plain = grouped().map().unwrap();
    let adorned = grouped()
        .tensor("blk.0.attn_q.bias", F32, &[32])
        .tensor("blk.0.attn_k.bias", F32, &[16])
        .tensor("blk.0.attn_q_norm.weight", F32, &[8])
        .tensor("blk.0.attn_sinks.weight", F32, &[4])
        .tensor("blk.0.attn_q.input_scale", F32, &[1])
        .map()
        .unwrap();
    assert_eq!(plain.layers, adorned.layers);
}

#[test]
fn types_may_differ_between_parts_and_layers() {
    let map = Model::new("llama", 1, 32)
        .heads(4, 2)
        .tensor("blk.0.attn_q.weight", Q8_0, &[32, 32])
        .tensor("blk.0.attn_k.weight", F16, &[32, 16, 1])
        .tensor("blk.0.attn_v.weight", F32, &[32, 16])
        .map()
        .unwrap();
    let len = |part| map.block(unit(0, 0), part).unwrap().len;
    assert_eq!(len(Part::Q), 16 * 34);
    assert_eq!(len(Part::K), 8 * 64);
    assert_eq!(len(Part::V), 8 * 128);
}

#[test]
fn draft_layers_are_left_out() {
    let map = Model::new("glm4moe", 2, 32)
        .heads(4, 2)
        .key("nextn_predict_layers", 1)
        .qkv(0, 32, [32, 16, 16])
        .qkv(1, 32, [32, 16, 16])
        .map()
        .unwrap();
    assert_eq!(map.draft_layers, 1);
    assert_eq!(map.units(), [unit(0, 0), unit(0, 1)]);
}

#[test]
fn encoders_have_heads_too() {
    let map = Model::new("bert", 1, 32)
        .key("attention.head_count", 4)
        .qkv(0, 32, [32, 32, 32])
        .map()
        .unwrap();
    assert!(map.architecture.encoder_only);
    assert_eq!(map.unit_count(), 4);
}
