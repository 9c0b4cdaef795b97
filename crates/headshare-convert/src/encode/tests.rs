use faer::{Mat, Par};
use headshare_runtime::quants;

use super::affine::Affine;
use super::descent::descend;
use super::gptq::quantize;
use super::level_type::LevelType;
use super::single_scale::SingleScale;
use super::super_blocks::SuperBlocks;
use super::{Coder, requantize};

/// Small numbers without pattern, from -1 to 1.
pub(super) fn numbers(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        })
        .collect()
}

/// The Gram matrix of correlated inputs, as activations are.
pub(super) fn gram(p: usize) -> Mat<f64> {
    let rows = 3 * p;
    let noise = numbers(rows * p, 5);
    let shared = numbers(rows, 6);
    let input = Mat::from_fn(rows, p, |t, i| {
        noise[t * p + i] + 2.0 * shared[t] * ((i % 7) as f64 / 7.0)
    });
    let mut gram = input.transpose() * &input;
    for i in 0..p {
        gram[(i, i)] += 0.01 * rows as f64;
    }
    gram
}

fn cost(hessian: &Mat<f64>, wanted: &Mat<f64>, got: &Mat<f64>) -> f64 {
    let off = wanted - got;
    let image = hessian * &off;
    (0..off.ncols())
        .map(|j| {
            (0..off.nrows())
                .map(|i| off[(i, j)] * image[(i, j)])
                .sum::<f64>()
        })
        .sum()
}

fn by_name(name: &str) -> quants::TypeInfo {
    quants::type_by_name(name).expect("ggml has it")
}

#[test]
fn bytes_are_what_ggml_reads_and_cost_less_than_rounding() {
    let (p, n) = (512, 8);
    let hessian = gram(p);
    let values = numbers(p * n, 9);
    let wanted = Mat::from_fn(p, n, |i, j| values[j * p + i] * 0.05 + 0.002);
    let rows: Vec<f32> = (0..n)
        .flat_map(|j| (0..p).map(move |i| (i, j)))
        .map(|at| wanted[at] as f32)
        .collect();
    for name in OURS {
        let info = by_name(name);
        let coder = Coder::of(info.id).expect("a type");
        let made = quantize(wanted.clone(), &hessian, &coder, None, Par::Seq).expect("quantized");
        let mut read = vec![0f32; p * n];
        quants::dequantize_row(info.id, &made.bytes, &mut read).expect("whole blocks");
        for j in 0..n {
            for i in 0..p {
                let stated = made.weights[(i, j)] as f32;
                assert_eq!(read[j * p + i], stated, "{name}: row {j}, column {i}");
            }
        }
        let plain = quants::quantize_rows(info.id, &rows, p, None).expect("quantized");
        quants::dequantize_row(info.id, &plain, &mut read).expect("whole blocks");
        let plain = Mat::from_fn(p, n, |i, j| f64::from(read[j * p + i]));
        let (ours, theirs) = (
            cost(&hessian, &wanted, &made.weights),
            cost(&hessian, &wanted, &plain),
        );
        println!("{name}: {} of ggml's plain rounding", ours / theirs);
        assert!(ours < 0.8 * theirs, "{name}: {ours} against {theirs}");
    }
}

#[test]
fn plain_types_are_rounded() {
    // The last columns are fewer than are taken at a time.
    let (p, n) = (76, 3);
    let values = numbers(p * n, 2);
    let wanted = Mat::from_fn(p, n, |i, j| f64::from(values[j * p + i] as f32));
    for name in ["f32", "f16", "bf16"] {
        let info = by_name(name);
        let coder = Coder::of(info.id).expect("a type");
        let made = quantize(wanted.clone(), &gram(p), &coder, None, Par::Seq).expect("quantized");
        let tolerance = if name == "f32" { 1e-7 } else { 1e-2 };
        let off = &made.weights - &wanted;
        assert!(off.norm_max() <= tolerance, "{name}: {}", off.norm_max());
        let mut read = vec![0f32; p * n];
        quants::dequantize_row(info.id, &made.bytes, &mut read).expect("whole rows");
        for j in 0..n {
            for i in 0..p {
                assert_eq!(f64::from(read[j * p + i]), made.weights[(i, j)], "{name}");
            }
        }
    }
}

#[test]
fn rows_of_zeros_and_wrong_shapes() {
    let coder = Coder::of(by_name("q4_1").id).expect("a type");
    let zeros = Mat::zeros(32, 2);
    let made = quantize(zeros, &gram(32), &coder, None, Par::Seq).expect("quantized");
    assert_eq!(made.weights.norm_max(), 0.0);
    assert!(quantize(Mat::zeros(33, 2), &gram(33), &coder, None, Par::Seq).is_err());
    assert!(
        quantize(
            Mat::zeros(32, 2),
            &Mat::zeros(32, 32),
            &coder,
            None,
            Par::Seq
        )
        .is_err()
    );
}

#[test]
fn what_is_on_the_old_grid_stays_as_it_is() {
    let p = 256;
    for name in [
        "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q6_k", "f16",
    ] {
        let coder = Coder::of(by_name(name).id).expect("a type");
        let any = Mat::from_fn(p, 3, |i, j| ((i * 7 + j * 13) % 31) as f64 / 31.0 - 0.4);
        let first = quantize(any, &gram(p), &coder, None, Par::Seq).expect("quantized");
        let stored = Some(first.bytes.as_slice());
        let again =
            quantize(first.weights.clone(), &gram(p), &coder, stored, Par::Seq).expect("quantized");
        assert_eq!(again.weights, first.weights, "{name}");
        let short = Some(&first.bytes[1..]);
        assert!(quantize(first.weights, &gram(p), &coder, short, Par::Seq).is_err());
    }
}

/// The types that we encode ourselves.
const OURS: [&str; 16] = [
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_K", "q5_K", "q6_K", "q3_K", "q2_K", "iq4_nl",
    "iq4_xs", "mxfp4", "nvfp4", "q2_0", "q1_0",
];

/// What is checked of each of them.
trait Check {
    fn check<T: LevelType>(&self, name: &str, of: &T);

    fn all(&self) {
        for name in OURS {
            if let Some(of) = Affine::of(name) {
                self.check(name, &of);
            } else if let Some(of) = SuperBlocks::of(name) {
                self.check(name, &of);
            } else {
                self.check(name, &SingleScale::of(name).expect("one of ours"));
            }
        }
    }
}

/// Weights that are stored, and others a fraction of a step away from them.
fn moved_a_little(p: usize, n: usize, name: &str) -> (Vec<u8>, Mat<f64>, Mat<f64>) {
    let info = by_name(name);
    let values: Vec<f32> = numbers(p * n, 3).iter().map(|v| *v as f32 * 0.1).collect();
    let stored = quants::quantize_rows(info.id, &values, p, None).expect("quantized");
    let mut read = vec![0f32; p * n];
    quants::dequantize_row(info.id, &stored, &mut read).expect("whole blocks");
    let before = Mat::from_fn(p, n, |i, j| f64::from(read[j * p + i]));
    let by = numbers(p * n, 4);
    let scale = match name {
        "q8_0" => 0.0004,
        "q2_K" | "q2_0" | "q1_0" => 0.03,
        _ => 0.003,
    };
    let wanted = Mat::from_fn(p, n, |i, j| before[(i, j)] + by[j * p + i] * scale);
    (stored, before, wanted)
}

#[test]
fn blocks_are_read_as_ggml_reads_them_and_written_back() {
    struct Reading;
    impl Check for Reading {
        fn check<T: LevelType>(&self, name: &str, of: &T) {
            let (p, n) = (256, 5);
            let (stored, values, _) = moved_a_little(p, n, name);
            let in_row = p / of.width();
            let mut back = Vec::new();
            assert_eq!(stored.len(), n * in_row * of.block_bytes(), "{name}");
            for (i, bytes) in stored.chunks(of.block_bytes()).enumerate() {
                let block = of.unpack(bytes);
                for j in 0..of.width() {
                    let value = values[((i % in_row) * of.width() + j, i / in_row)];
                    let read = f64::from(of.value(&block, j));
                    assert_eq!(read, value, "{name}: block {i}, weight {j}");
                }
                of.pack(&block, &mut back);
            }
            // ggml stores a negative zero in MXFP4, which is a zero as well.
            let mut read = vec![0f32; p * n];
            quants::dequantize_row(by_name(name).id, &back, &mut read).expect("whole blocks");
            let read = Mat::from_fn(p, n, |i, j| f64::from(read[j * p + i]));
            assert_eq!(read, values, "{name}");
            assert!(back == stored || name.ends_with("fp4"), "{name}");
        }
    }
    Reading.all();
}

#[test]
fn descent_ends_where_no_single_level_helps() {
    struct Ending;
    impl Check for Ending {
        fn check<T: LevelType>(&self, name: &str, of: &T) {
            let (p, n) = (256, 3);
            let hessian = gram(p);
            let (stored, before, wanted) = moved_a_little(p, n, name);
            let made = descend(of, &stored, &wanted, &hessian, Par::Seq).expect("whole blocks");
            let reached = cost(&hessian, &wanted, &made.weights);
            let least = cost(&hessian, &wanted, &before);
            println!("{name}: {} of what was stored", reached / least);
            assert!(reached < 0.95 * least, "{name}: {reached} against {least}");
            let (lowest, highest) = of.levels().ends();
            let in_row = p / of.width();
            for (i, bytes) in made.bytes.chunks(of.block_bytes()).enumerate() {
                let mut block = of.unpack(bytes);
                for j in 0..of.width() {
                    let (part, k) = (j / of.part(), j % of.part());
                    let scale = of.scale(&block, part);
                    let has = f64::from(*of.level_mut(&mut block, part, k));
                    // The levels next to it.
                    for by in [-1.0, 1.0] {
                        let step = (1..=256).map(|m| has + by * f64::from(m));
                        let mut step = step.take_while(|l| (lowest..=highest).contains(l));
                        let next = step.find(|&l| f64::from(of.levels().nearest(l)) == l);
                        let Some(next) = next else { continue };
                        let mut other = made.weights.clone();
                        let at = ((i % in_row) * of.width() + j, i / in_row);
                        other[at] += (next - has) * scale;
                        let there = cost(&hessian, &wanted, &other);
                        // It stops when a whole sweep gains hardly anything.
                        assert!(there > reached * 0.998, "{name}: {there} against {reached}");
                    }
                }
            }
            let short = &stored[1..];
            assert!(descend(of, short, &wanted, &hessian, Par::Seq).is_err());
        }
    }
    Ending.all();
}

#[test]
fn no_row_costs_more_than_as_it_was_stored() {
    let (p, n) = (256, 6);
    let hessian = gram(p);
    for name in OURS.into_iter().chain(["f16"]) {
        let coder = Coder::of(by_name(name).id).expect("a type");
        let (stored, before, wanted) = moved_a_little(p, n, name);
        let made = requantize(&wanted, &hessian, &coder, &stored, Par::Seq).expect("quantized");
        for row in 0..n {
            let one = |of: &Mat<f64>| Mat::from_fn(p, 1, |i, _| of[(i, row)]);
            let was = cost(&hessian, &one(&wanted), &one(&before));
            let is = cost(&hessian, &one(&wanted), &one(&made.weights));
            assert!(is <= was, "{name}, row {row}: {is} against {was}");
        }
        let mut read = vec![0f32; p * n];
        quants::dequantize_row(by_name(name).id, &made.bytes, &mut read).expect("whole blocks");
        let read = Mat::from_fn(p, n, |i, j| f64::from(read[j * p + i]));
        assert_eq!(read, made.weights, "{name}");
        // What is wanted and stored already stays.
        let same = requantize(&before, &hessian, &coder, &stored, Par::Seq).expect("quantized");
        assert_eq!(same.weights, before, "{name}");
    }
}
