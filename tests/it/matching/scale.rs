//! What must hold on large shapes: memory within its bound, and the same bits
//! from any number of threads.

use headshare_gguf::matching::{
    MatchFunction, UnitBlocks, match_units, plan_slabs, score_matrices,
};
use headshare_gguf::model::Part;

use super::grid::Grid;
use super::synthetic::Synthetic;

const MIB: usize = 1 << 20;

/// Weights made up on the fly: any shape, no memory.
fn endless(layers: u32, units: u32, elements: usize) -> impl UnitBlocks {
    let read = move |part: Part, unit: usize, start: usize, out: &mut [f32]| {
        let seed = (unit * 3 + part as usize) * elements + start;
        for (at, weight) in out.iter_mut().enumerate() {
            let mut bits = ((seed + at) as u32).wrapping_mul(0x9e37_79b1);
            bits = (bits ^ (bits >> 15)).wrapping_mul(0x85eb_ca77);
            *weight = (bits ^ (bits >> 13)) as i32 as f32;
        }
    };
    Grid::new(layers, units, elements, 256, read)
}

#[test]
fn large_shapes_are_planned_within_the_memory_bound() {
    // 13B: 40 layers of 40 heads. 70B and 405B share KV groups, so they are
    // smaller; BLOOM-176B has 70 layers of 112 heads.
    for (units, granularity, bound) in [
        (40 * 40, 32, 64 * MIB),
        (40 * 40, 256, 64 * MIB),
        (40 * 40, 5120, 128 * MIB),
        (32 * 32, 256, 64 * MIB),
        (126 * 8, 256, 64 * MIB),
        (70 * 112, 256, 512 * MIB),
    ] {
        let plan = plan_slabs(units, granularity, 2);
        let sum = plan.slab_bytes + plan.gram_bytes + plan.pair_bytes + plan.scratch_bytes;
        assert_eq!(plan.total_bytes(), sum);
        assert!(plan.slab_elements.is_multiple_of(granularity));
        assert_eq!(plan.slab_bytes, units * plan.slab_elements * 4);
        assert!(plan.total_bytes() <= bound, "{units} units: {plan:?}");
    }
    assert_eq!(plan_slabs(0, 0, 0).slab_bytes, 2048 * 4);
    assert_eq!(
        plan_slabs(usize::MAX, usize::MAX, usize::MAX).total_bytes(),
        usize::MAX
    );
}

/// The largest anonymous memory that this process had, in bytes.
#[cfg(target_os = "linux")]
fn peak_resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .unwrap()
        * 1024
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "13B in full: about half a minute"]
fn thirteen_b_shape_matches_within_512_mib() {
    let blocks = endless(40, 40, 128 * 5120);
    let before = peak_resident();
    let matching = match_units(&blocks, MatchFunction::Qk, 0.3, &|_| ()).unwrap();
    assert_eq!(matching.aliases.len(), 480);
    let (peak, threads) = (peak_resident(), rayon::current_num_threads());
    let planned = plan_slabs(1600, 256, threads).total_bytes();
    println!(
        "peak {} MiB, before {} MiB, planned {} MiB",
        peak / MIB,
        before / MIB,
        planned / MIB
    );
    assert!(peak <= 512 * MIB, "{peak} bytes");
    assert!(
        peak - before <= planned + 32 * MIB,
        "{} of {planned} bytes",
        peak - before
    );
}

#[test]
fn outcome_is_the_same_to_the_bit_on_any_number_of_threads() {
    let mut blocks = Synthetic::uniform(31, 10, 30, [2600, 520, 520]);
    blocks.copy(3, 40, 1.0);
    blocks.copy(3, 70, 1.0);
    let outcome = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let mut bits = Vec::new();
            for function in [MatchFunction::Qk, MatchFunction::Separate] {
                let matching = match_units(&blocks, function, 0.5, &|_| ()).unwrap();
                for found in matching.aliases {
                    bits.push((
                        found.unit,
                        found.matched,
                        found.donor,
                        found.score.to_bits(),
                    ));
                }
            }
            let matrices = score_matrices(&blocks, MatchFunction::Qk, &|_| ()).unwrap();
            let rows = (0..blocks.ids.len()).flat_map(|unit| matrices[0].row(unit));
            let scores: Vec<u32> = rows.map(|score| score.to_bits()).collect();
            (bits, scores)
        })
    };
    let expected = outcome(1);
    assert_eq!(expected.0.len(), 600);
    for threads in [2, 3, 5] {
        assert_eq!(outcome(threads), expected, "{threads} threads");
    }
}

#[test]
fn source_of_endless_weights_matches_across_tiles() {
    let blocks = endless(10, 20, 2560);
    let matching = match_units(&blocks, MatchFunction::Qkv, 0.3, &|_| ()).unwrap();
    assert_eq!(matching.aliases.len(), 60);
}
