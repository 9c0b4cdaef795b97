//! Gradients of every operation against finite differences, ours and candle's, and
//! both against each other.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor, Var};

use super::*;

/// Numbers between -1 and 1.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    let one = |i: usize| ((i * 7919 + seed * 104_729 + i * i * 13) % 2003) as f32;
    (0..n).map(|i| one(i) / 1001.0 - 1.0).collect()
}

fn tensor(rows: usize, columns: usize, seed: usize) -> Tensor {
    Tensor::from_vec(numbers(rows * columns, seed), (rows, columns), &Device::Cpu).unwrap()
}

fn weight(shape: &[usize], seed: usize) -> Weight {
    let n = shape.iter().product();
    let values = numbers(n, seed);
    let tensor = Tensor::from_slice(&values, shape, &Device::Cpu).unwrap();
    Weight {
        values: Arc::new(Numbers::new(values)),
        range: 0..n,
        rows: if shape.len() == 2 { shape[0] } else { 1 },
        sum: Some(Arc::new(Mutex::new(vec![0.0; n]))),
        tensor: Some(Var::from_tensor(&tensor).unwrap().as_tensor().clone()),
    }
}

/// The values, and the gradients of inputs and weights, of a sum of the results with
/// arbitrary weights.
type Seen = (Vec<f32>, Vec<Vec<f32>>);

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn seen(
    kernels: Kernels,
    inputs: &[Tensor],
    weights: &[Weight],
    run: &dyn Fn(Kernels, &[Tensor]) -> Tensor,
) -> Seen {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|x| Var::from_tensor(x).unwrap())
        .collect();
    let given: Vec<Tensor> = vars.iter().map(|x| x.as_tensor().clone()).collect();
    for weight in weights {
        weight.add_gradient(|sum| sum.fill(0.0));
    }
    let y = run(kernels, &given);
    let g = numbers(y.elem_count(), 99);
    let g = Tensor::from_vec(g, y.dims(), &Device::Cpu).unwrap();
    let grads = kernels.start(&y, &g).unwrap().backward().unwrap();
    let mut found: Vec<Vec<f32>> = vars.iter().map(|x| flat(grads.get(x).unwrap())).collect();
    for weight in weights {
        found.push(match kernels {
            Kernels::Own => lock(weight.sum.as_ref().unwrap()).clone(),
            Kernels::Candle => flat(grads.get(weight.tensor.as_ref().unwrap()).unwrap()),
        });
    }
    (flat(&y), found)
}

/// Holds both kinds of an operation against each other and against differences.
fn check(
    name: &str,
    inputs: &[Tensor],
    weights: &[Weight],
    run: impl Fn(Kernels, &[Tensor], &[Weight]) -> Tensor,
) {
    let same = |kernels, inputs: &[Tensor]| run(kernels, inputs, weights);
    let own = seen(Kernels::Own, inputs, weights, &same);
    let plain = seen(Kernels::Candle, inputs, weights, &same);
    let close = |a: &[f32], b: &[f32], what: &str| {
        assert_eq!(a.len(), b.len());
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let off = (a - b).abs();
            assert!(off < 2e-5 + 2e-5 * b.abs(), "{name}: {what} {i}: {a} {b}");
        }
    };
    close(&own.0, &plain.0, "value");
    for (own, plain) in own.1.iter().zip(&plain.1) {
        close(own, plain, "gradient");
    }
    // Along a random direction of everything at once.
    let loss = |step: f64| {
        let moved = |values: &[f32], seed: usize| -> Vec<f32> {
            let along = numbers(values.len(), seed + 1000);
            let pairs = values.iter().zip(along);
            pairs
                .map(|(v, d)| (f64::from(*v) + step * f64::from(d)) as f32)
                .collect()
        };
        let inputs: Vec<Tensor> = (inputs.iter().enumerate())
            .map(|(i, x)| Tensor::from_vec(moved(&flat(x), i), x.dims(), x.device()).unwrap())
            .collect();
        let weights: Vec<Weight> = (weights.iter().enumerate())
            .map(|(i, w)| Weight {
                values: Arc::new(Numbers::new(moved(w.values(), 50 + i))),
                ..w.clone()
            })
            .collect();
        let y = flat(&run(Kernels::Own, &inputs, &weights));
        let g = numbers(y.len(), 99);
        let terms = y.iter().zip(g).map(|(y, g)| f64::from(*y) * f64::from(g));
        terms.sum::<f64>()
    };
    let step = 1e-2;
    let slopes = [step, step / 2.0].map(|h| (loss(h) - loss(-h)) / (2.0 * h));
    // Richardson's extrapolation takes the error of the third derivative off.
    let expected = (4.0 * slopes[1] - slopes[0]) / 3.0;
    let seeds = (0..inputs.len()).chain((0..weights.len()).map(|i| 50 + i));
    let found: f64 = (own.1.iter().zip(seeds))
        .map(|(g, seed)| {
            let along = numbers(g.len(), seed + 1000);
            g.iter()
                .zip(along)
                .map(|(g, d)| f64::from(*g) * f64::from(d))
                .sum::<f64>()
        })
        .sum();
    let off = (found - expected).abs() / expected.abs().max(1.0);
    assert!(off < 1e-3, "{name}: {found} {expected}");
}

#[test]
fn linear_has_its_gradient() {
    let weights = [weight(&[5, 7], 1), weight(&[5], 2)];
    check("linear", &[tensor(70, 7, 3)], &weights, |kernels, x, w| {
        let op = Linear {
            weight: w[0].clone(),
            bias: Some(w[1].clone()),
        };
        kernels.linear(&x[0], op).unwrap()
    });
}

#[test]
fn norms_have_their_gradients() {
    for kind in [NormKind::Rms, NormKind::Layer] {
        let weights = [weight(&[24], 1), weight(&[24], 2)];
        // Two norms a row, as those of heads.
        check("norm", &[tensor(40, 48, 3)], &weights, |kernels, x, w| {
            let op = Norm {
                kind,
                epsilon: 1e-5,
                weight: w[0].clone(),
                bias: Some(w[1].clone()),
            };
            kernels.norm(&x[0], op).unwrap()
        });
    }
}

#[test]
fn rope_has_its_gradient() {
    for pairs in [RopePairs::Adjacent, RopePairs::Halves] {
        for rotated in [8, 6] {
            let factors = [1.0, 2.0, 3.0, 4.0];
            let turns = (100.0, 0.5);
            let rotation = Rotation::new(pairs, 8, rotated, 20, turns, Some(&factors));
            let rotation = Arc::new(rotation);
            check("rope", &[tensor(40, 24, 3)], &[], |kernels, x, _| {
                kernels.rope(&x[0], &rotation).unwrap()
            });
        }
    }
}

#[test]
fn attention_has_its_gradient() {
    // More queries than a block has.
    for (softcap, sliding) in [(None, None), (Some(1.5), Some(9)), (None, Some(70))] {
        let op = Attention {
            window: 90,
            heads: 4,
            kv_heads: 2,
            key: 6,
            value: 6,
            scale: 0.7,
            softcap,
            sliding,
        };
        let inputs = [tensor(180, 24, 1), tensor(180, 12, 2), tensor(180, 12, 3)];
        check("attention", &inputs, &[], |kernels, x, _| {
            kernels.attention(&x[0], &x[1], &x[2], op.clone()).unwrap()
        });
    }
}

#[test]
fn activations_have_their_gradients() {
    for function in [Activation::Silu, Activation::Gelu] {
        let scaled = |seed| (tensor(30, 40, seed) * 3.0).unwrap();
        check("gated", &[scaled(1), scaled(2)], &[], |kernels, x, _| {
            kernels.gated(&x[0], &x[1], function).unwrap()
        });
        check("activation", &[scaled(3)], &[], |kernels, x, _| {
            kernels.activation(&x[0], function).unwrap()
        });
    }
}

#[test]
fn a_sum_has_its_gradient() {
    check(
        "add",
        &[tensor(30, 40, 1), tensor(30, 40, 2)],
        &[],
        |kernels, x, _| kernels.add(&x[0], &x[1]).unwrap(),
    );
}

#[test]
fn nothing_is_lost_where_no_gradient_is_wanted() {
    let x = tensor(3, 4, 1);
    let op = Linear {
        weight: Weight {
            sum: None,
            ..weight(&[2, 4], 1)
        },
        bias: None,
    };
    let y = Kernels::Own.linear(&x, op).unwrap();
    assert_eq!((y.dims(), y.dtype()), (&[3, 2][..], DType::F32));
}
