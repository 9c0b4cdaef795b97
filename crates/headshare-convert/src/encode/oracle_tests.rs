//! GPTQ against the slowest way to say it: after each block of columns, the columns
//! after it go to where they give the outputs closest to what the weights gave, by
//! dense systems of equations that are solved anew each time.

use std::collections::BTreeMap;

use faer::{Mat, Par};
use headshare_runtime::quants;

use super::block::Block;
use super::gptq::quantize;
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
        // Rounding differs in the last digits, and a tie may fall the other way.
        let off = (0..p * n).filter(|k| {
            let at = (k % p, k / p);
            (fast.weights[at] - slow[at]).abs() > 1e-6
        });
        let off = off.count();
        assert!(
            off <= p * n / 50,
            "{}: {off} of {} differ",
            info.name,
            p * n
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
