//! The batched path gives the scores of the plain one, to the last bit, and
//! both those of a naive one.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use headshare_gguf::eval::choice::Task;
use headshare_gguf::eval::choice::encode::{Encoded, encode};
use headshare_gguf::eval::choice::plan::{Limits, Plan};
use headshare_gguf::eval::choice::score::{DECODE, Scores, plan_alone, score, score_alone};
use headshare_gguf::eval::choice::summary::Summary;
use headshare_runtime::{Context, ContextParams, Model, ModelParams};

use crate::support::{data, gemma, shared, smollm2, tiny};

fn load(path: &Path) -> Arc<Model> {
    Arc::new(Model::load(path, &ModelParams::default(), None).unwrap())
}

fn context(model: &Arc<Model>, plan: &Plan) -> Context {
    let params = ContextParams {
        n_ctx: Some(plan.n_ctx.next_multiple_of(256) as u32),
        n_batch: DECODE as u32,
        n_ubatch: DECODE as u32,
        n_seq_max: plan.n_sequences as u32,
        kv_unified: true,
        n_threads: Some(1),
        ..ContextParams::default()
    };
    Context::new(model, &params).unwrap()
}

fn limits(tokens: usize) -> Limits {
    Limits {
        tokens,
        sequences: 64,
    }
}

fn batched(model: &Arc<Model>, items: &[Encoded], tokens: usize) -> Vec<Scores> {
    let plan = Plan::new(items, limits(tokens));
    let mut evaluated = 0;
    let scores = score(&mut context(model, &plan), items, &plan, &mut |_, n| {
        evaluated = n;
    });
    assert_eq!(evaluated, plan.n_tokens);
    scores.unwrap()
}

fn alone(model: &Arc<Model>, items: &[Encoded]) -> Vec<Scores> {
    let plan = plan_alone(items);
    score_alone(&mut context(model, &plan), items, &mut |_, _| {}).unwrap()
}

/// Token by token, each with the logits before it.
fn naive(model: &Arc<Model>, item: &Encoded, choice: usize) -> (f64, bool) {
    let params = ContextParams {
        n_threads: Some(1),
        ..ContextParams::default()
    };
    let mut context = Context::new(model, &params).unwrap();
    let (mut sum, mut greedy) = (0.0, true);
    for at in 0..item.len(choice) - 1 {
        context.decode(&[item.token(choice, at)]).unwrap();
        let logits = context.logits().unwrap();
        let next = item.token(choice, at + 1) as usize;
        if at + 1 >= item.scored_from(choice) {
            let all: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            sum += f64::from(logits[next]) - all.ln();
            greedy &= logits.iter().all(|l| *l <= logits[next]);
        }
    }
    (sum, greedy)
}

/// Questions of made-up words, with a beginning that all have in common.
fn made_up(folder: &Path, words_in_common: usize) -> Task {
    let path = folder.join(format!("made-up-{words_in_common}.jsonl"));
    let mut file = std::fs::File::create(&path).unwrap();
    let word = |i: usize| ["ab", "cab", "dad", "fog", "be", "hi"][i % 6];
    let lead: Vec<_> = (0..words_in_common).map(|i| word(i * i)).collect();
    for i in 0..9 {
        let choices: Vec<String> = (0..2 + i % 3)
            .map(|c| format!("{} {} {}", word(i), word(i + c * c), word(c)))
            .collect();
        let query = format!("{} {} {}", lead.join(" "), word(i + 1), word(i / 2));
        let row = serde_json::json!({"query": query, "choices": choices, "gold": 0});
        writeln!(file, "{row}").unwrap();
    }
    Task::read(&path, None, None).unwrap()
}

#[test]
fn smollm2_scores_the_same_in_batches_and_alone() {
    let model = load(&smollm2());
    for name in ["question.jsonl", "partial.jsonl", "last-word.jsonl"] {
        let task = Task::read(&data(name), None, None).unwrap();
        let items = encode(&task, &model.vocab(), 2048).unwrap();
        let wanted = alone(&model, &items);
        for tokens in [1, 480] {
            assert_eq!(batched(&model, &items, tokens), wanted, "{name} {tokens}");
        }
    }
}

/// What all items begin with, evaluated once and kept from batch to batch.
#[test]
fn real_models_score_the_same_after_a_common_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let task = made_up(folder.path(), 40);
    for path in [smollm2(), gemma()] {
        let model = load(&path);
        let items = encode(&task, &model.vocab(), 2048).unwrap();
        let items = &items[..4];
        let plan = Plan::new(items, limits(20));
        assert_eq!(plan.groups.len(), 1);
        assert!(plan.groups[0].shared > 32 && plan.groups[0].batches.len() > 1);
        assert_eq!(batched(&model, items, 20), alone(&model, items), "{path:?}");
    }
}

#[test]
fn what_items_begin_with_in_common_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let task = made_up(folder.path(), 24);
    for preset in ["tiny-gqa", "tiny-gpt2", "tiny-gemma3", "tiny-qwen3"] {
        let model = load(&tiny(folder.path(), preset));
        let items = encode(&task, &model.vocab(), 200).unwrap();
        let plan = Plan::new(&items, limits(80));
        assert_eq!(plan.groups.len(), 1);
        assert!(plan.groups[0].shared > 32 && plan.groups[0].batches.len() > 1);
        let wanted = alone(&model, &items);
        assert_eq!(batched(&model, &items, 80), wanted, "{preset}");
    }
}

#[test]
fn a_naive_implementation_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let task = made_up(folder.path(), 3);
    for preset in ["tiny-llama", "tiny-phi3"] {
        let model = load(&tiny(folder.path(), preset));
        let items = encode(&task, &model.vocab(), 200).unwrap();
        let scores = batched(&model, &items, 480);
        for (item, scores) in items.iter().zip(&scores) {
            for choice in 0..item.n_choices() {
                let (sum, greedy) = naive(&model, item, choice);
                // Keys and values are in half precision.
                let off = (scores.log_probs[choice] - sum).abs();
                assert!(off < 1e-4 * sum.abs(), "{preset}: {off} off {sum}");
                assert_eq!(scores.greedy[choice], greedy);
            }
        }
    }
}

#[test]
fn smollm2_answers_better_than_chance() {
    let model = load(&smollm2());
    let Some(path) = shared("piqa.jsonl") else {
        return;
    };
    let task = Task::read(&path, None, Some(40)).unwrap();
    let items = encode(&task, &model.vocab(), 2048).unwrap();
    let summary = Summary::new(&task, &batched(&model, &items, 480), 0);
    assert!(summary.accuracy.accuracy_norm > 0.55, "{summary:?}");
}
