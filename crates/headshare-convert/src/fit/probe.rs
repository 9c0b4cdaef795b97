//! What an error in a tensor does to the model's predictions, measured on the running
//! model.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use headshare_format::GgmlType;

use super::error::FitError;
use super::moves::Movable;
use super::running::Running;
use super::trial::Losses;
use crate::convert::variant::{Types, Variant, can_untie};
use crate::convert::{ConvertError, write_plain_to_scratch};
use crate::engine::{Options, Windows};
use crate::input::{InputError, ModelFile};
use crate::model::in_layer;
use crate::stats::Reference;

/// Tokens whose logits are compared, at most, and the bytes of those.
const MAX_TOKENS: u64 = 512;
const MAX_LOGITS_BYTES: u64 = 256 << 20;

/// Relative errors below this one do too little to be measured: they drown in the rounding
/// of the computation itself.
const COARSE: f64 = 2e-4;
/// The relative error that a probe should make: small enough that the divergence grows with
/// its square still, and large enough to be measured well.
const AIM: f64 = 1e-2;
/// Divergences count as no less than this where others are predicted from them.
pub(super) const NOISE: f64 = 1e-9;

/// What was measured of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// The type that it was rounded to.
    pub to: GgmlType,
    /// Mean divergence of the predictions from the original's, in nats.
    pub divergence: f64,
    /// The same of the table alone and of the output head alone, where the tensor is both at
    /// once, and llama.cpp reads a head of its own.
    pub apart: Option<[f64; 2]>,
    /// Nothing was measured: it is what others like it say.
    pub is_estimated: bool,
}

/// Rounds each of these tensors, whose moves lose `losses`, alone to a type that changes
/// something but not much, and measures what that does. All that is quantized is F16 meanwhile,
/// before and after: numbers that are close enough, and inputs that ggml does not round. (Where it
/// does, a small error changes how inputs are rounded. That alone makes a divergence larger than
/// that of many tensors.) After the `deadline`, what has no like yet is still measured, and all
/// others are estimated.
///
/// # Errors
/// When a model cannot be run, or gives no numbers.
pub fn measure(
    source: &ModelFile,
    (movable, losses): (&[Movable], &[Losses]),
    (windows, options): (&Windows, &Options),
    deadline: Option<Instant>,
    progress: &dyn Fn(f64),
) -> Result<Vec<Probe>, FitError> {
    let tokens = picked(windows);
    let rows = tokens.len();
    let half = Variant::half(source).map_err(ConvertError::from)?;
    let scratch = write_plain_to_scratch(&half)?;
    drop(half);
    let source = &ModelFile::open_plain(scratch.path()).map_err(ConvertError::from)?;
    let logits = |variant: &Variant<'_>| Running::load(variant)?.logits(&tokens, windows, options);
    let original = logits(&Variant::unchanged(source))?;
    let reference = Reference::new(original, rows);
    let measure = |tensor: &Movable, losses: &Losses, to: GgmlType| {
        let index = source.gguf.tensor_index(&tensor.name);
        let probe = |to: GgmlType, untied_head: Option<GgmlType>| {
            let types = Types {
                tensors: index.into_iter().map(|i| (i, to)).collect(),
                untied_head,
            };
            let variant = Variant::with_types(source, &types)
                .map_err(InputError::content(source.path()))
                .map_err(ConvertError::from)?;
            Ok::<f64, FitError>(reference.divergence(&logits(&variant)?))
        };
        let divergence = probe(to, None)?;
        let can_untie = !losses.rows.is_empty() && can_untie(&source.gguf).is_ok();
        let has = index.map(|i| source.gguf.tensors()[i].ggml_type);
        let apart = match has.filter(|_| can_untie) {
            Some(has) => Some([probe(to, Some(has))?, probe(has, Some(to))?]),
            None => None,
        };
        let all = apart.into_iter().flatten().chain([divergence]);
        if !all.into_iter().all(f64::is_finite) {
            return Err(FitError::NotFinite {
                tensor: tensor.name.clone(),
                ggml_type: to.to_string(),
            });
        }
        Ok(Probe {
            to,
            divergence,
            apart,
            is_estimated: false,
        })
    };
    let mut done = 0;
    let is_late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
    let probes = in_rounds(movable, &is_late, &mut |i| {
        let (tensor, losses) = (&movable[i], &losses[i]);
        let probe = match probed_type(tensor, losses) {
            Some(to) => Some(measure(tensor, losses, to)?),
            None => None,
        };
        done += 1;
        progress(f64::from(done) / movable.len() as f64);
        Ok::<_, FitError>(probe)
    })?;
    Ok(with_estimates(movable, losses, probes))
}

/// Probes the tensors in the order of their [`rounds`], until it is late: then those only whose
/// kind nothing is known of yet. A `probe` that has nothing to measure is none, since others say
/// nothing of its tensor, nor it of others.
fn in_rounds<E>(
    movable: &[Movable],
    is_late: &dyn Fn() -> bool,
    probe: &mut dyn FnMut(usize) -> Result<Option<Probe>, E>,
) -> Result<Vec<Option<Probe>>, E> {
    let mut probes: Vec<Option<Probe>> = vec![None; movable.len()];
    let mut known = BTreeSet::new();
    for i in rounds(movable).into_iter().flatten() {
        let (kind, _) = kind(&movable[i].name);
        if is_late() && known.contains(kind) {
            continue;
        }
        probes[i] = Some(match probe(i)? {
            Some(probe) => {
                known.insert(kind);
                probe
            }
            None => unchanged(&movable[i]),
        });
    }
    Ok(probes)
}

/// The type that a probe rounds a tensor to; `None` where rounding changes nothing.
fn probed_type(tensor: &Movable, losses: &Losses) -> Option<GgmlType> {
    let distance = |loss: f64| (loss / AIM).ln().abs();
    let losses = losses.outputs.iter().map(|loss| loss.rounded);
    // Rounding it to the type that it has changes nothing.
    let others = || {
        tensor
            .tried()
            .zip(losses.clone())
            .filter(|(to, _)| *to != tensor.has)
    };
    let coarse = others().filter(|(_, loss)| *loss >= COARSE);
    let closest = coarse.min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
    let most = || others().max_by(|a, b| a.1.total_cmp(&b.1));
    let (closest, _) = closest.or_else(most).filter(|(_, loss)| *loss > 0.0)?;
    Some(closest)
}

/// Of a tensor that no type changes.
fn unchanged(tensor: &Movable) -> Probe {
    Probe {
        to: tensor.has,
        divergence: 0.0,
        apart: None,
        is_estimated: false,
    }
}

/// What a tensor is, and in which layer.
fn kind(name: &str) -> (&str, u32) {
    in_layer(name).map_or((name, 0), |(layer, kind)| (kind, layer))
}

/// The order in which tensors are probed: first one of each kind, then always those that are
/// furthest from what was probed of their kind.
fn rounds(movable: &[Movable]) -> Vec<Vec<usize>> {
    let mut kinds: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, tensor) in movable.iter().enumerate() {
        kinds.entry(kind(&tensor.name).0).or_default().push(i);
    }
    let mut rounds: Vec<Vec<usize>> = Vec::new();
    for mut tensors in kinds.into_values() {
        tensors.sort_by_key(|&i| kind(&movable[i].name).1);
        for (round, at) in halving(tensors.len()).into_iter().enumerate() {
            if rounds.len() == round {
                rounds.push(Vec::new());
            }
            rounds[round].push(tensors[at]);
        }
    }
    rounds
}

/// The numbers below `count`: the middle one, both ends, then what halves the gaps.
fn halving(count: usize) -> Vec<usize> {
    let Some(last) = count.checked_sub(1) else {
        return Vec::new();
    };
    let mut order = vec![last / 2, 0, last];
    let mut gaps = VecDeque::from([(0, last / 2), (last / 2, last)]);
    while let Some((a, b)) = gaps.pop_front() {
        if b - a > 1 {
            let middle = a.midpoint(b);
            order.push(middle);
            gaps.extend([(a, middle), (middle, b)]);
        }
    }
    let mut seen = BTreeSet::new();
    order.retain(|&i| seen.insert(i));
    order
}

/// `probes`, and for the tensors that have none what those of their kind in the nearest
/// layers say: the divergence for each unit of what is lost, between two of them as the
/// geometric interpolation has it.
fn with_estimates(
    movable: &[Movable],
    losses: &[Losses],
    probes: Vec<Option<Probe>>,
) -> Vec<Probe> {
    let lost = |i: usize, to: GgmlType| {
        let at = movable[i].tried().position(|tried| tried == to);
        at.map_or(0.0, |at| losses[i].outputs[at].rounded)
    };
    let mut known: BTreeMap<&str, BTreeMap<u32, f64>> = BTreeMap::new();
    for (i, probe) in probes.iter().enumerate() {
        let Some(probe) = probe else { continue };
        let (kind, layer) = kind(&movable[i].name);
        let lost = lost(i, probe.to);
        if lost > 0.0 {
            let sensitivity = probe.divergence.max(NOISE) / lost;
            known.entry(kind).or_default().insert(layer, sensitivity);
        }
    }
    let estimate = |i: usize| {
        let (tensor, (kind, layer)) = (&movable[i], kind(&movable[i].name));
        let of_kind = known.get(kind)?;
        let below = of_kind.range(..layer).next_back();
        let above = of_kind.range(layer..).next();
        let sensitivity = match (below, above) {
            (Some((&a, of_a)), Some((&b, of_b))) => {
                let part = f64::from(layer - a) / f64::from(b - a);
                (of_a.ln() * (1.0 - part) + of_b.ln() * part).exp()
            }
            (one, other) => *one.or(other)?.1,
        };
        let to = probed_type(tensor, &losses[i])?;
        Some(Probe {
            to,
            divergence: sensitivity * lost(i, to),
            apart: None,
            is_estimated: true,
        })
    };
    let all = probes.into_iter().enumerate();
    all.map(|(i, probe)| {
        probe
            .or_else(|| estimate(i))
            .unwrap_or_else(|| unchanged(&movable[i]))
    })
    .collect()
}

/// The tokens of some windows, evenly spread.
fn picked(windows: &Windows) -> Vec<i32> {
    let row = 4 * u64::from(windows.vocabulary.max(1));
    let most = MAX_TOKENS.min(MAX_LOGITS_BYTES / row).max(1);
    let window = windows.window as usize;
    let count = (most as usize / window).clamp(1, windows.count as usize);
    let length = window.min(most as usize);
    (0..count)
        .flat_map(|i| {
            let first = i * windows.count as usize / count * window;
            windows.tokens[first..first + length].iter().copied()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::moves::Move;
    use super::super::trial::Loss;
    use super::*;

    #[test]
    fn what_is_probed_halves_the_gaps() {
        assert_eq!(halving(0), [0; 0]);
        assert_eq!(halving(1), [0]);
        assert_eq!(halving(2), [0, 1]);
        assert_eq!(halving(9), [4, 0, 8, 2, 6, 1, 3, 5, 7]);
        for count in 0..40 {
            let mut all = halving(count);
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }

    fn tensor(name: &str) -> Movable {
        let [has, to] = ["f16", "q4_0"].map(|name| GgmlType::named(name).unwrap());
        Movable {
            name: name.to_owned(),
            has,
            bytes: 2,
            moves: vec![Move { to, bytes: 1 }],
            probes: Vec::new(),
        }
    }

    #[test]
    fn of_each_kind_something_is_known_however_late_it_is() {
        let names = ["attn_q", "ffn_down"]
            .iter()
            .flat_map(|kind| (0..5).map(move |layer| format!("blk.{layer}.{kind}.weight")));
        let movable: Vec<Movable> = names.map(|name| tensor(&name)).collect();
        let of = |name: &str| movable.iter().position(|m| m.name == name).unwrap();
        // Nothing can be measured of the ones that come first and second.
        let dead = ["blk.2.ffn_down.weight", "blk.0.ffn_down.weight"].map(of);
        let mut asked = Vec::new();
        let probes = in_rounds(&movable, &|| true, &mut |i| {
            asked.push(i);
            let probe = Probe {
                to: movable[i].moves[0].to,
                divergence: 0.5,
                apart: None,
                is_estimated: false,
            };
            Ok::<_, FitError>((!dead.contains(&i)).then_some(probe))
        });
        let probes = probes.unwrap();
        let last = of("blk.4.ffn_down.weight");
        asked.sort_unstable();
        let mut expected = vec![of("blk.2.attn_q.weight"), dead[0], dead[1], last];
        expected.sort_unstable();
        assert_eq!(asked, expected);
        let loss = || Losses {
            outputs: vec![Loss {
                rounded: 0.01,
                encoded: 0.0,
            }],
            rows: Vec::new(),
            alone: Vec::new(),
        };
        let losses: Vec<Losses> = movable.iter().map(|_| loss()).collect();
        let all = with_estimates(&movable, &losses, probes);
        for (i, probe) in all.iter().enumerate() {
            assert_eq!(
                probe.is_estimated,
                !asked.contains(&i),
                "{}",
                movable[i].name
            );
            assert_eq!(probe.divergence, if dead.contains(&i) { 0.0 } else { 0.5 });
        }
    }

    #[test]
    fn what_was_not_probed_is_like_its_kind_in_the_nearest_layers() {
        let names = [
            "blk.0.attn_q.weight",
            "blk.1.attn_q.weight",
            "blk.10.attn_q.weight",
            "blk.2.attn_q.weight",
            "blk.4.attn_q.weight",
            "blk.4.ffn_up.weight",
            "token_embd.weight",
        ];
        let movable: Vec<Movable> = names.iter().map(|name| tensor(name)).collect();
        // Layers are ordered by their numbers, not by their digits.
        let order = rounds(&movable);
        assert_eq!(order[0].len(), 3);
        assert_eq!(order[1..], [vec![0], vec![2], vec![1], vec![4]]);
        assert!(order[0].contains(&3));
        let losses: Vec<Losses> = (1..=7)
            .map(|i| Losses {
                outputs: vec![Loss {
                    rounded: f64::from(i) * 0.01,
                    encoded: 0.0,
                }],
                rows: Vec::new(),
                alone: Vec::new(),
            })
            .collect();
        let probe = |divergence| {
            Some(Probe {
                to: movable[0].moves[0].to,
                divergence,
                apart: None,
                is_estimated: false,
            })
        };
        // Sensitivities of 1, 0.01 and 0.04 in layers 0, 2 and 10.
        let probes = vec![
            probe(0.01),
            None,
            probe(0.0012),
            probe(0.0004),
            None,
            None,
            None,
        ];
        let all = with_estimates(&movable, &losses, probes);
        let sensitivity = |i: usize| all[i].divergence / losses[i].outputs[0].rounded;
        assert!((sensitivity(1) - 0.1).abs() < 1e-12);
        assert!((sensitivity(4) - 0.01 * 4f64.powf(0.25)).abs() < 1e-12);
        assert_eq!(all[5].divergence, 0.0);
        let estimated: Vec<bool> = all.iter().map(|p| p.is_estimated).collect();
        assert_eq!(estimated, [false, true, false, false, true, false, false]);
        // Above the last one, and below the first, it is what is nearest.
        let probes = vec![None, None, probe(0.0012), probe(0.0004), None, None, None];
        let all = with_estimates(&movable, &losses, probes);
        assert!((all[0].divergence - 0.01 * 0.01).abs() < 1e-12);
    }
}
