//! The paper's method once more, as plainly as it can be written: every vector
//! concatenated, every cosine in `f64`, Algorithm 1 as nested loops.

use std::collections::BTreeMap;

use headshare_gguf::matching::MatchFunction;
use headshare_gguf::model::UnitId;

use super::synthetic::Synthetic;

/// (unit, parts) -> (matched, donor, score).
pub type Shares = BTreeMap<(UnitId, &'static str), (UnitId, UnitId, f64)>;

/// The cosine of two units' concatenated parts (0 q, 1 k, 2 v).
pub fn cosine(blocks: &Synthetic, parts: &[usize], a: usize, b: usize) -> f64 {
    let flat = |unit: usize| -> Vec<f64> {
        let parts = parts.iter().flat_map(|&part| &blocks.weights[unit][part]);
        parts.map(|&weight| f64::from(weight)).collect()
    };
    let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
    let (a, b) = (flat(a), flat(b));
    let norms = dot(&a, &a) * dot(&b, &b);
    if norms == 0.0 {
        0.0
    } else {
        dot(&a, &b) / norms.sqrt()
    }
}

/// What must be shared when the first `n` candidates are.
pub fn shares(blocks: &Synthetic, function: MatchFunction, n: usize) -> Shares {
    match function {
        MatchFunction::Qk => algorithm_1(blocks, &[0, 1], &[0, 1, 2], "qkv", n),
        MatchFunction::Q => algorithm_1(blocks, &[0], &[0, 1, 2], "qkv", n),
        MatchFunction::K => algorithm_1(blocks, &[1], &[0, 1, 2], "qkv", n),
        MatchFunction::V => algorithm_1(blocks, &[2], &[0, 1, 2], "qkv", n),
        MatchFunction::Qkv => algorithm_1(blocks, &[0, 1, 2], &[0, 1, 2], "qkv", n),
        MatchFunction::Separate => {
            let mut all = algorithm_1(blocks, &[0], &[0], "q", n);
            all.extend(algorithm_1(blocks, &[1], &[1], "k", n));
            all.extend(algorithm_1(blocks, &[2], &[2], "v", n));
            all
        }
    }
}

fn algorithm_1(
    blocks: &Synthetic,
    scored: &[usize],
    shared: &[usize],
    name: &'static str,
    n: usize,
) -> Shares {
    let units = blocks.ids.len();
    let mut candidates = Vec::new();
    for i in 0..units {
        let mut best = -1.0;
        let mut matched = None;
        for j in 0..units {
            let fits = shared
                .iter()
                .all(|&p| blocks.classes[i][p] == blocks.classes[j][p]);
            if blocks.ids[j].layer < blocks.ids[i].layer && fits {
                let score = cosine(blocks, scored, i, j);
                if score > best {
                    best = score;
                    matched = Some(j);
                }
            }
        }
        if let Some(j) = matched {
            candidates.push((i, j, best));
        }
    }
    // Stable, so equal scores stay in (layer, unit) order.
    candidates.sort_by(|a, b| b.2.partial_cmp(&a.2).unwrap());
    candidates.truncate(n);
    let chosen: BTreeMap<usize, usize> = candidates.iter().map(|&(i, j, _)| (i, j)).collect();
    let mut shares = Shares::new();
    for &(i, j, score) in &candidates {
        let mut root = j;
        while let Some(&next) = chosen.get(&root) {
            root = next;
        }
        shares.insert(
            (blocks.ids[i], name),
            (blocks.ids[j], blocks.ids[root], score),
        );
    }
    shares
}
