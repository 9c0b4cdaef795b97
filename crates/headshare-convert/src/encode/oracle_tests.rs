//! GPTQ against the slowest way to say it: after each block of columns, the columns
//! after it go to where they give the outputs closest to what the weights gave, by
//! dense systems of equations that are solved anew each time.

use std::collections::BTreeMap;

use faer::{Mat, Par};
use headshare_runtime::quants;

use super::block::Block;
use super::feedback::Span;
use super::gptq::quantize;
use super::super_blocks;
use super::super_layout::IQ4;
use super::tests::{gram, numbers};
use super::{Coder, encode};

/// The inverse, by Gauss and Jordan; `of` must be positive definite.
fn inverse(of: &Mat<f64>) -> Mat<f64> {
    let n = of.nrows();
    let mut left = of.clone();
    let mut right = Mat::<f64>::identity(n, n);
    for i in 0..n {
        let pivot = left[(i, i)];
        for j in 0..n {
            left[(i, j)] /= pivot;
            right[(i, j)] /= pivot;
        }
        for k in (0..n).filter(|&k| k != i) {
            let factor = left[(k, i)];
            for j in 0..n {
                left[(k, j)] -= factor * left[(i, j)];
                right[(k, j)] -= factor * right[(i, j)];
            }
        }
    }
    right
}

/// U with U^T U = `of`, upper triangular.
fn upper(of: &Mat<f64>) -> Mat<f64> {
    let n = of.nrows();
    let mut u = Mat::<f64>::zeros(n, n);
    for i in 0..n {
        for j in i..n {
            let sum: f64 = (0..i).map(|k| u[(k, i)] * u[(k, j)]).sum();
            let rest = of[(i, j)] - sum;
            u[(i, j)] = if i == j {
                rest.sqrt()
            } else {
                rest / u[(i, i)]
            };
        }
    }
    u
}

fn part(of: &Mat<f64>, rows: &[usize], columns: &[usize]) -> Mat<f64> {
    Mat::from_fn(rows.len(), columns.len(), |i, j| of[(rows[i], columns[j])])
}

/// What is to be known of a block of columns.
struct Step {
    own: Vec<usize>,
    after: Vec<usize>,
    /// How far the columns after it move for an error in each of its own.
    making_up: Mat<f64>,
    block: Block,
}

/// The blocks of so many columns.
fn steps(hessian: &Mat<f64>, width: usize) -> Vec<Step> {
    let p = hessian.nrows();
    let step = |start: usize| {
        let own: Vec<usize> = (start..start + width).collect();
        let after: Vec<usize> = (start + width..p).collect();
        // An error e in the block costs e^T S e once the columns after it have made up
        // for it, with the Schur complement S.
        let across = part(hessian, &after, &own);
        let making_up = inverse(&part(hessian, &after, &after)) * &across;
        let schur = part(hessian, &own, &own) - across.transpose() * &making_up;
        let block = Block::new(upper(&inverse(&schur)).as_ref());
        Step {
            own,
            after,
            making_up,
            block,
        }
    };
    (0..p).step_by(width).map(step).collect()
}

/// What the blocks of `wanted` (transposed) become, one after the other.
fn slowly(wanted: &Mat<f64>, steps: &[Step], coder: &Coder) -> Mat<f64> {
    let (p, n) = (wanted.nrows(), wanted.ncols());
    let mut weights = wanted.clone();
    let mut result = Mat::zeros(p, n);
    for step in steps {
        let width = step.own.len();
        let blocks: Vec<f64> = (0..n)
            .flat_map(|row| step.own.iter().map(move |&i| (i, row)))
            .map(|at| weights[at])
            .collect();
        let coded = coder.encode(&blocks, &step.block, None).expect("encoded");
        for row in 0..n {
            let got = |i: usize| f64::from(coded.values[row * width + i]);
            let error: Vec<f64> = (0..width)
                .map(|i| blocks[row * width + i] - got(i))
                .collect();
            for (i, &at) in step.own.iter().enumerate() {
                result[(at, row)] = got(i);
            }
            for (j, &at) in step.after.iter().enumerate() {
                let moved: f64 = (0..width).map(|i| step.making_up[(j, i)] * error[i]).sum();
                weights[(at, row)] += moved;
            }
        }
    }
    result
}

#[test]
fn every_type_is_encoded_as_slowly_said() {
    let (p, n) = (512, 3);
    let hessian = gram(p);
    let values = numbers(p * n, 31);
    let wanted = Mat::from_fn(p, n, |i, j| values[j * p + i] * 0.05 + 0.002);
    let mut known: BTreeMap<usize, Vec<Step>> = BTreeMap::new();
    let mut types = 0;
    for id in 0..quants::TYPE_COUNT {
        let Some(info) = quants::type_info(id).filter(|t| t.is_quantized && t.has_to_float) else {
            continue;
        };
        let coder = Coder::of(id).expect("a type");
        let fast = quantize(wanted.clone(), &hessian, &coder, None, Par::Seq).expect("quantized");
        let width = coder.block_elems();
        let steps = known.entry(width).or_insert_with(|| steps(&hessian, width));
        let slow = slowly(&wanted, steps, &coder);
        // Rounding differs in the last digits, and a tie may fall the other way: of a level, or
        // of a grid that costs as little.
        let cost_of = |of: &Mat<f64>, row: usize| {
            let e = of.subcols(row, 1) - wanted.subcols(row, 1);
            (e.transpose() * &hessian * &e)[(0, 0)]
        };
        let mut same = 0;
        for row in 0..n {
            let differs = |at: &(usize, usize)| (fast.weights[*at] - slow[*at]).abs() > 1e-6;
            let off = (0..p).map(|i| (i, row)).filter(differs).count();
            let (a, b) = (cost_of(&fast.weights, row), cost_of(&slow, row));
            let is_near = (a - b).abs() < 0.05 * b;
            assert!(
                is_near || off <= p / 50,
                "{}: {off} differ, {a} and {b}",
                info.name
            );
            same += usize::from(off <= p / 50);
        }
        assert!(
            same * 3 >= n * 2,
            "{}: {same} of {n} rows are the same",
            info.name
        );
        // What is done afterwards costs no more.
        let descended = encode(&wanted, &hessian, &coder, None, Par::Seq).expect("encoded");
        let cost = |of: &Mat<f64>| {
            let e = of - &wanted;
            (e.transpose() * &hessian * &e)
                .diagonal()
                .column_vector()
                .iter()
                .sum::<f64>()
        };
        let (after, before) = (cost(&descended.weights), cost(&slow));
        assert!(
            after < 1.01 * before,
            "{}: {after} against {before}",
            info.name
        );
        types += 1;
    }
    assert!(types > 20, "{types} types");
}

/// Rounding columns one after the other, by dense systems of equations alone.
struct Slow {
    /// What errors cost: e^T S e.
    schur: Mat<f64>,
    /// For each column, where it is best for errors of 1 in each of those before it.
    making_up: Vec<Vec<f64>>,
}

impl Slow {
    fn new(schur: Mat<f64>) -> Self {
        let n = schur.nrows();
        let of_column = |i: usize| {
            let (before, after): (Vec<usize>, Vec<usize>) = (0..n).partition(|&k| k < i);
            let across = part(&schur, &after, &before);
            let best = inverse(&part(&schur, &after, &after)) * &across;
            (0..i).map(|k| -best[(0, k)]).collect()
        };
        Self {
            making_up: (0..n).map(of_column).collect(),
            schur,
        }
    }

    /// What `wanted` costs where weights are scale x level + base.
    fn cost(&self, wanted: &[f64], levels: &[f64], (scale, base): (f64, f64)) -> f64 {
        let mut errors: Vec<f64> = Vec::new();
        for (&wanted, making_up) in wanted.iter().zip(&self.making_up) {
            let moved: f64 = errors.iter().zip(making_up).map(|(e, m)| e * m).sum();
            let off = |level: &f64| scale * level + base - wanted;
            let closest = levels.iter().map(off);
            let closest = closest.min_by(|a, b| (a - moved).abs().total_cmp(&(b - moved).abs()));
            errors.push(closest.expect("a level"));
        }
        let e = Mat::from_fn(errors.len(), 1, |i, _| errors[i]);
        (e.transpose() * &self.schur * &e)[(0, 0)]
    }
}

/// Sums of what is between -1 and 1, which are about as weights are.
fn weights(n: usize, seed: u64) -> Vec<f64> {
    let all = numbers(4 * n, seed);
    all.chunks(4).map(|four| four.iter().sum()).collect()
}

/// The type, levels of a part, its columns, and whether it has bases.
const SEARCHED: [(&str, &[i8], usize, bool); 14] = [
    ("iq4_nl", &IQ4, 32, false),
    (
        "q4_0",
        &[-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7],
        32,
        false,
    ),
    ("q2_0", &[-1, 0, 1, 2], 64, false),
    // Its levels, doubled; its scales are powers of two.
    (
        "mxfp4",
        &[-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12],
        32,
        false,
    ),
    ("q5_0", &[-16, 15], 32, false),
    ("q8_0", &[-127, 127], 32, false),
    ("q4_1", &[0, 15], 32, true),
    ("q5_1", &[0, 31], 32, true),
    // Parts of K-types: what their scales and minimums are first aimed at.
    ("q2_K", &[0, 1, 2, 3], 16, true),
    ("q3_K", &[-4, -3, -2, -1, 0, 1, 2, 3], 16, false),
    ("q4_K", &[0, 15], 32, true),
    ("q5_K", &[0, 31], 32, true),
    ("iq4_xs", &IQ4, 32, false),
    ("q6_K", &[-32, 31], 16, false),
];

#[test]
fn scales_are_about_as_good_as_the_best_of_a_dense_search() {
    for (name, levels, n, with_base) in SEARCHED {
        let listed: Vec<f64> = match levels {
            [first, last] => (*first..=*last).map(f64::from).collect(),
            all => all.iter().map(|&level| f64::from(level)).collect(),
        };
        let columns: Vec<usize> = (0..n).collect();
        let slow = Slow::new(part(&gram(64), &columns, &columns));
        let block = Block::new(upper(&inverse(&slow.schur)).as_ref());
        let id = quants::type_by_name(name).expect("ggml has it").id;
        let coder = Coder::of(id).expect("a type");
        let (mut ours, mut best) = (0.0, 0.0);
        for seed in 40..46 {
            let wanted = weights(n, seed);
            let found = match super_blocks::SuperBlocks::of(name) {
                Some(parts) => {
                    let found = parts.search().best(Span::new(&block, 0, n), &wanted, &[]);
                    let found = found.expect("found");
                    slow.cost(&wanted, &listed, (found.scale, found.base))
                }
                None => {
                    let coded = coder.encode(&wanted, &block, None).expect("encoded");
                    block.cost(&wanted, &coded.values)
                }
            };
            ours += found;
            let low = wanted.iter().copied().fold(0.0, f64::min);
            let high = wanted.iter().copied().fold(0.0, f64::max);
            let (first, last) = (listed[0], listed[listed.len() - 1]);
            let covers = match with_base {
                true => (high - low) / (last - first),
                false => high.max(-low) / first.abs().max(last.abs()),
            };
            let (scales, bases) = if with_base { (80, 30) } else { (800, 0) };
            let dense = |i| covers * (0.35 + 1.25 * f64::from(i) / f64::from(scales));
            let scales: Vec<f64> = match name {
                "mxfp4" => (-16..4).map(|power| 2f64.powi(power)).collect(),
                _ => (0..=scales).map(dense).collect(),
            };
            let mut least = f64::INFINITY;
            for scale in scales {
                for j in 0..=bases {
                    let base = match with_base {
                        true => low * (0.3 + 0.8 * f64::from(j) / f64::from(bases)),
                        false => 0.0,
                    };
                    for sign in if with_base { &[1.0][..] } else { &[1.0, -1.0] } {
                        least = least.min(slow.cost(&wanted, &listed, (sign * scale, base)));
                    }
                }
            }
            best += least;
        }
        println!("{name}: {:.4} of the best {best:.3}", ours / best);
        assert!(ours < 1.05 * best, "{name}: {ours} against {best}");
    }
}
