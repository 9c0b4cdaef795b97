//! Matching against the plain matrix product of the same FLOPs.
//!
//! The shape is a 64th of a Llama-2-7B in Q4_0: 32 layers of 32 heads, blocks
//! of 128 x 4096 / 64 weights. Rates are FLOP/s of the lower triangle over q
//! and k (U^2 x weights a unit). `HEADSHARE_BENCH_FULL=1` measures the full 7B
//! once and prints it.

use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use headshare_gguf::matching::{MatchFunction, UnitBlocks, match_units, score_matrices};
use headshare_gguf::model::Part;

#[path = "../tests/it/matching/grid.rs"]
mod grid;

use grid::Grid;

const QUANTS: usize = 32;
const BLOCK_BYTES: usize = 2 + QUANTS / 2;
const UNITS: usize = 32 * 32;

/// Weights of q or of k in a unit, in a 64th of a Llama-2-7B.
const ELEMENTS: usize = 128 * 4096 / 64;

/// Random blocks in the layout of Q4_0, dequantized on reading.
fn quantized(elements: usize) -> impl UnitBlocks {
    let mut state = 1u64;
    let bytes: Vec<u8> = (0..UNITS * 2 * elements / QUANTS * BLOCK_BYTES)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    let read = move |part: Part, unit: usize, start: usize, out: &mut [f32]| {
        let first = ((unit * 2 + part as usize) * elements + start) / QUANTS;
        let blocks = bytes[first * BLOCK_BYTES..].chunks_exact(BLOCK_BYTES);
        for (weights, block) in out.chunks_exact_mut(QUANTS).zip(blocks) {
            // A scale between 1 and 2 from the bits of the half.
            let scale = f32::from_bits(0x3f80_0000 | u32::from(block[0]) << 8);
            let (low, high) = weights.split_at_mut(QUANTS / 2);
            for ((low, high), &quants) in low.iter_mut().zip(high).zip(&block[2..]) {
                *low = (f32::from(quants & 15) - 8.0) * scale;
                *high = (f32::from(quants >> 4) - 8.0) * scale;
            }
        }
    };
    Grid::new(32, 32, elements, QUANTS, read)
}

fn flops(elements: usize) -> f64 {
    (UNITS as f64).powi(2) * 2.0 * elements as f64
}

fn matching(criterion: &mut Criterion) {
    let blocks = quantized(ELEMENTS);
    let mut group = criterion.benchmark_group("7B_over_64");
    group.sample_size(10);
    group.throughput(Throughput::Elements(flops(ELEMENTS) as u64));

    // The lower triangle's FLOPs as one square product of half the depth.
    let (units, depth) = (UNITS, ELEMENTS);
    let matrix: Vec<f32> = (0..units * depth)
        .map(|i| (i % 1021) as f32 / 512.0 - 1.0)
        .collect();
    let matrix = MatRef::from_row_major_slice(&matrix, units, depth);
    let mut product = vec![0.0f32; units * units];
    group.bench_function("plain_gemm", |bencher| {
        bencher.iter(|| {
            let target = MatMut::from_row_major_slice_mut(&mut product, units, units);
            let par = Par::rayon(0);
            matmul(target, Accum::Replace, matrix, matrix.transpose(), 1.0, par);
        });
    });
    group.bench_function("score_matrix", |bencher| {
        bencher.iter(|| score_matrices(&blocks, MatchFunction::Qk, &|_| ()).unwrap());
    });
    group.bench_function("match_units", |bencher| {
        bencher.iter(|| match_units(&blocks, MatchFunction::Qk, 0.3, &|_| ()).unwrap());
    });
    group.finish();
}

criterion_group!(benches, matching);

fn main() {
    if std::env::var_os("HEADSHARE_BENCH_FULL").is_some() {
        let elements = 128 * 4096;
        let blocks = quantized(elements);
        let start = Instant::now();
        let matching = match_units(&blocks, MatchFunction::Qk, 0.3, &|_| ()).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let rate = flops(elements) / seconds / 1e9;
        println!(
            "7B, qk: {} aliases, {seconds:.1} s, {rate:.0} GFLOP/s",
            matching.aliases.len()
        );
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
