//! The evaluation: log-probabilities of continuations, as a [`Schedule`] says.

use headshare_runtime::{Batch, Context, ContextError, Token};
use rayon::prelude::*;

use super::encode::{ChoiceError, Encoded, Tokenizer};
use super::item::Task;
use super::schedule::{Limits, Node, STEP, Schedule, Tree};

/// Tokens that llama.cpp is handed at once, at most; contexts that score must
/// allow as many, and need not allow more.
///
/// From 64 tokens on, ggml's flash attention on CPUs sums in another order (and
/// precision), so that a score would depend on what else is in the batch: by
/// 0.3 for a sequence of 40 tokens of a 4-bit model, enough to change some
/// answers. Below, each token's sum goes over its own sequence in order,
/// wherever that lies in the cache. Larger batches are hardly faster.
pub const DECODE: usize = 48;

/// Logits that are kept at once, at most, unless one token's are more: 64 MiB.
const MAX_LOGITS: usize = 16 << 20;

/// What the model says of an item's choices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Of each choice, the sum of the natural logarithms of its tokens'
    /// probabilities.
    pub log_probs: Vec<f64>,
    /// Of each choice, whether every token is the most probable one.
    pub greedy: Vec<bool>,
}

impl Scores {
    fn blank(choices: usize) -> Self {
        Self {
            log_probs: vec![0.0; choices],
            greedy: vec![true; choices],
        }
    }
}

/// Called after each batch with the scores of all items so far and the tokens
/// that were evaluated.
pub type OnScores<'a> = &'a mut dyn FnMut(&[Scores], usize);

/// Scores items in batches, as `schedule` says. The context must have a unified KV
/// cache, and room for what the schedule needs.
///
/// # Errors
/// What llama.cpp fails at.
pub fn score(
    context: &mut Context,
    items: &[Encoded],
    schedule: &Schedule,
    watch: OnScores<'_>,
) -> Result<Vec<Scores>, ContextError> {
    let mut scores = Vec::with_capacity(items.len());
    let mut evaluated = 0;
    for group in &schedule.groups {
        context.clear();
        let first = group.batches.first().map_or(0, |batch| batch.start);
        let shared = &items[first].lead()[..group.shared];
        evaluated += keep(context, shared)?;
        let first_leaf = u32::from(group.shared > 0);
        for batch in &group.batches {
            let tree = Tree::new(items, batch.clone(), group.shared);
            for leaf in 0..tree.leaves as u32 * first_leaf {
                context.seq_cp(0, leaf + first_leaf, ..)?;
            }
            let choices = items[batch.clone()].iter().map(Encoded::n_choices);
            scores.extend(choices.map(Scores::blank));
            evaluate(context, &tree.nodes, first_leaf, &mut scores)?;
            if group.shared > 0 {
                context.seq_keep(0)?;
            } else {
                context.clear();
            }
            evaluated += tree.nodes.len();
            watch(&scores, evaluated);
        }
    }
    Ok(scores)
}

/// Scores items choice by choice, each from an empty context: the plain way,
/// which [`score`] must equal.
///
/// # Errors
/// What llama.cpp fails at.
pub fn score_alone(
    context: &mut Context,
    items: &[Encoded],
    watch: OnScores<'_>,
) -> Result<Vec<Scores>, ContextError> {
    let mut scores = Vec::with_capacity(items.len());
    let mut evaluated = 0;
    for item in items {
        let mut all = Scores::default();
        for choice in 0..item.n_choices() {
            context.clear();
            let tree = Tree::new(&[item.only(choice)], 0..1, 0);
            let mut one = [Scores::blank(1)];
            evaluate(context, &tree.nodes, 0, &mut one)?;
            all.log_probs.extend(&one[0].log_probs);
            all.greedy.extend(&one[0].greedy);
            evaluated += tree.nodes.len();
        }
        scores.push(all);
        watch(&scores, evaluated);
    }
    Ok(scores)
}

/// What [`score_alone`] needs of a context.
pub fn schedule_alone(items: &[Encoded]) -> Schedule {
    let limits = Limits {
        tokens: 1,
        sequences: 1,
    };
    let alone: Vec<Encoded> = (items.iter())
        .flat_map(|item| (0..item.n_choices()).map(|choice| item.only(choice)))
        .collect();
    // Item by item, so that nothing is shared.
    (alone.iter()).fold(Schedule::default(), |all, item| {
        let one = Schedule::new(std::slice::from_ref(item), limits);
        Schedule {
            groups: Vec::new(),
            n_ctx: all.n_ctx.max(one.n_ctx),
            n_sequences: all.n_sequences.max(one.n_sequences),
            n_tokens: all.n_tokens + one.n_tokens,
        }
    })
}

/// Refuses scores that are no numbers.
///
/// # Errors
/// [`ChoiceError::NotANumber`] for the first such item.
pub fn check(task: &Task, scores: &[Scores]) -> Result<(), ChoiceError> {
    for (item, scores) in task.items().zip(scores) {
        if scores.log_probs.iter().any(|sum| sum.is_nan()) {
            let origin = item.origin.clone();
            return Err(ChoiceError::NotANumber { origin });
        }
    }
    Ok(())
}

/// How many are missing to a multiple of [`STEP`].
fn missing(count: usize) -> usize {
    count.next_multiple_of(STEP) - count
}

/// Evaluates a batch, filled up by `outputs` more outputs at most.
fn decode(context: &mut Context, batch: &mut Batch, outputs: usize) -> Result<(), ContextError> {
    let spare = context.n_seq_max() - 1;
    let first = context.model().vocab().instead_of_nothing().unwrap_or(0);
    let filling = missing(batch.len());
    for i in 0..filling {
        batch.add(first, i as u32, &[spare], i < outputs);
    }
    context.decode_batch(batch)?;
    if filling > 0 {
        context.seq_rm(spare, ..)?;
    }
    Ok(())
}

/// Evaluates the beginning that several items share, as sequence 0.
fn keep(context: &mut Context, tokens: &[Token]) -> Result<usize, ContextError> {
    let mut batch = Batch::new();
    for (chunk, first) in tokens.chunks(DECODE).zip((0u32..).step_by(DECODE)) {
        batch.clear();
        for (token, position) in chunk.iter().zip(first..) {
            batch.add(*token, position, &[0], false);
        }
        decode(context, &mut batch, 0)?;
    }
    Ok(tokens.len())
}

/// Evaluates a tree's tokens and adds what they answer to the scores of their
/// items.
fn evaluate(
    context: &mut Context,
    nodes: &[Node],
    first_leaf: u32,
    scores: &mut [Scores],
) -> Result<(), ContextError> {
    let n_vocab = context.model().vocab().n_tokens().unsigned_abs() as usize;
    let max_outputs = (MAX_LOGITS / n_vocab.max(1)).clamp(STEP, DECODE) / STEP * STEP;
    let mut batch = Batch::new();
    let mut rest = nodes;
    while !rest.is_empty() {
        batch.clear();
        let mut asked = 0;
        let fits = |node: &&Node| {
            asked += usize::from(!node.asks.is_empty());
            asked <= max_outputs
        };
        let taken = rest.iter().take(DECODE).take_while(fits).count();
        let (nodes, others) = rest.split_at(taken);
        rest = others;
        let asked = nodes.iter().filter(|node| !node.asks.is_empty()).count();
        let mut filling = missing(asked);
        let mut outputs: Vec<&Node> = Vec::new();
        for node in nodes {
            let fills = node.asks.is_empty() && filling > 0;
            filling -= usize::from(fills);
            let output = fills || !node.asks.is_empty();
            let leaves: Vec<u32> = node.leaves.clone().map(|leaf| leaf + first_leaf).collect();
            batch.add(node.token, node.position, &leaves, output);
            outputs.extend(output.then_some(node));
        }
        decode(context, &mut batch, filling)?;
        let rows: Vec<(&Node, &[f32])> = (outputs.into_iter().enumerate())
            .filter(|(_, node)| !node.asks.is_empty())
            .filter_map(|(i, node)| Some((node, context.logits_at(i)?)))
            .collect();
        let answers: Vec<Vec<(f64, bool)>> = (rows.par_iter())
            .map(|(node, logits)| answer(node, logits))
            .collect();
        for ((node, _), answers) in rows.iter().zip(answers) {
            for (ask, (log_prob, greedy)) in node.asks.iter().zip(answers) {
                let scores = &mut scores[ask.item];
                scores.log_probs[ask.choice] += log_prob;
                scores.greedy[ask.choice] &= greedy;
            }
        }
    }
    Ok(())
}

/// Log-probability of each token that a node is asked for, and whether it is
/// the most probable one.
fn answer(node: &Node, logits: &[f32]) -> Vec<(f64, bool)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    let log_sum = f64::from(max) + sum.ln();
    let greedy = logits.iter().position(|logit| *logit == max);
    (node.asks.iter())
        .map(|ask| {
            let at = ask.token as usize;
            let log_prob = logits.get(at).map_or(f64::NAN, |l| f64::from(*l) - log_sum);
            (log_prob, greedy == Some(at))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::choice::schedule::Ask;

    #[test]
    fn answers_are_log_probabilities() {
        let ask = |token| Ask {
            item: 0,
            choice: 0,
            token,
        };
        let node = Node {
            token: 0,
            position: 0,
            leaves: 0..1,
            asks: vec![ask(0), ask(2), ask(9)],
        };
        let logits = [1000.0, 1000.0, 1000.0 + 2f32.ln(), f32::NEG_INFINITY];
        let answers = answer(&node, &logits);
        assert!((answers[0].0 - 0.25f64.ln()).abs() < 1e-4);
        assert!((answers[1].0 - 0.5f64.ln()).abs() < 1e-4);
        assert_eq!((answers[0].1, answers[1].1), (false, true));
        assert!(answers[2].0.is_nan());
    }
}
