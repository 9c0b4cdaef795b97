//! The batched path gives the scores of the plain one, to the last bit, and
//! both those of a naive one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use headshare_gguf::eval::choice::Task;
use headshare_gguf::eval::choice::encode::{Encoded, encode};
use headshare_gguf::eval::choice::plan::{Limits, Plan};
use headshare_gguf::eval::choice::score::{DECODE, Scores, plan_alone, score, score_alone};
use headshare_gguf::eval::choice::summary::Summary;
use headshare_runtime::{Context, ContextParams, Model, ModelParams};
use serde_json::{Value, json};

use super::{data, eval, json as printed};
use crate::support::{GEMMA, SMOLLM2, gemma, needs, shared, smollm2, written};

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

/// [`naive`] of all choices.
fn all_naive(model: &Arc<Model>, items: &[Encoded]) -> Vec<Scores> {
    (items.iter())
        .map(|item| {
            let choices = (0..item.n_choices()).map(|choice| naive(model, item, choice));
            let (log_probs, greedy) = choices.unzip();
            Scores { log_probs, greedy }
        })
        .collect()
}

#[track_caller]
fn assert_agree(scores: &[Scores], naive: &[Scores], what: &str) {
    assert_eq!(scores.len(), naive.len(), "{what}");
    for (scores, naive) in scores.iter().zip(naive) {
        assert_eq!(scores.greedy, naive.greedy, "{what}");
        assert_eq!(scores.log_probs.len(), naive.log_probs.len(), "{what}");
        for (score, sum) in scores.log_probs.iter().zip(&naive.log_probs) {
            // Keys and values are in half precision.
            let off = (score - sum).abs();
            assert!(off < 1e-4 * sum.abs(), "{what}: {off} off {sum}");
        }
    }
}

const WORDS: [&str; 6] = ["ab", "cab", "dad", "fog", "be", "hi"];

fn word(i: usize) -> &'static str {
    WORDS[i % WORDS.len()]
}

fn write(path: PathBuf, rows: impl Iterator<Item = Value>) -> PathBuf {
    let lines: String = rows.map(|row| format!("{row}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    path
}

fn read(path: &Path) -> Task {
    Task::read(path, None, None).unwrap()
}

/// Questions of made-up words, with a beginning that all have in common.
fn made_up(folder: &Path, words_in_common: usize) -> PathBuf {
    let lead: Vec<_> = (0..words_in_common).map(|i| word(i * i)).collect();
    let rows = (0..9).map(|i| {
        let choices: Vec<String> = (0..2 + i % 3)
            .map(|c| format!("{} {} {}", word(i), word(i + c * c), word(c)))
            .collect();
        let query = format!("{} {} {}", lead.join(" "), word(i + 1), word(i / 2));
        json!({"query": query, "choices": choices, "gold": 0})
    });
    write(
        folder.join(format!("made-up-{words_in_common}.jsonl")),
        rows,
    )
}

/// What `eval choice` prints of a task, but for the time that it took.
#[track_caller]
fn figures(model: &Path, task: &Path, unbatched: bool) -> Value {
    let out = if unbatched {
        eval!("choice", model, "--task", task, "--json", "--unbatched")
    } else {
        eval!("choice", model, "--task", task, "--json")
    };
    let mut figures = printed(&out);
    let ms = figures.as_object_mut().unwrap().remove("ms");
    assert!(ms.is_some_and(|ms| ms.is_number()));
    figures
}

#[test]
fn smollm2_scores_the_same_in_batches_and_alone() {
    needs!(SMOLLM2);
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
    needs!(SMOLLM2, GEMMA);
    let folder = tempfile::tempdir().unwrap();
    let task = read(&made_up(folder.path(), 40));
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
    let task = read(&made_up(folder.path(), 24));
    for preset in ["tiny-gqa", "tiny-gpt2", "tiny-gemma3", "tiny-qwen3"] {
        let model = load(&written(folder.path(), preset));
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
    let task = read(&made_up(folder.path(), 3));
    for preset in ["tiny-llama", "tiny-phi3"] {
        let model = load(&written(folder.path(), preset));
        let items = encode(&task, &model.vocab(), 200).unwrap();
        let scores = batched(&model, &items, 480);
        assert_agree(&scores, &all_naive(&model, &items), preset);
    }
}

/// llama.cpp counts on an output for each sequence, so it must be allowed more
/// than the tokens that it is handed at once.
#[test]
fn more_sequences_than_tokens_at_once_score_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), "tiny-gqa");
    let rows = (0..24).map(|i| json!({"query": word(i), "choices": WORDS, "gold": i % 6}));
    let path = write(folder.path().join("short.jsonl"), rows);
    let model = load(&file);
    let items = encode(&read(&path), &model.vocab(), 200).unwrap();
    let plan = Plan::new(&items, limits(480));
    assert!(plan.n_sequences > DECODE, "{}", plan.n_sequences);
    assert_eq!(batched(&model, &items, 480), alone(&model, &items));
    // The program makes a context of its own.
    let [batched, alone] = [false, true].map(|unbatched| figures(&file, &path, unbatched));
    for name in ["accuracy", "accuracy_norm", "n"] {
        assert_eq!(batched[name], alone[name], "{name}");
    }
    assert!(batched["tokens"].as_u64() < alone["tokens"].as_u64());
}

/// Its states are not shared as a KV cache is, so it is scored choice by choice,
/// whether that is asked for or not.
#[test]
fn a_recurrent_model_is_scored_choice_by_choice() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), "tiny-mamba");
    let model = load(&file);
    assert!(model.keeps_states());
    // Last words have a perplexity, which depends on every score.
    let rows = (0..9).map(|i| {
        let context: Vec<_> = (0..18 + i).map(|w| word(w * w + i)).collect();
        json!({"context": context.join(" "), "continuation": format!(" {}", word(i))})
    });
    let last_words = write(folder.path().join("last-words.jsonl"), rows);
    for (path, has_perplexity) in [(made_up(folder.path(), 24), false), (last_words, true)] {
        let task = read(&path);
        let items = encode(&task, &model.vocab(), 256).unwrap();
        // So long that states go on from one batch to the next.
        assert!(items.iter().all(|item| item.len(0) > DECODE), "{path:?}");
        let naive = all_naive(&model, &items);
        assert_agree(&alone(&model, &items), &naive, &task.name);

        let figures = figures(&file, &path, false);
        let wanted = serde_json::to_value(Summary::new(&task, &naive, 0)).unwrap();
        for name in ["task", "n", "accuracy", "accuracy_norm", "truncated"] {
            assert_eq!(figures[name], wanted[name], "{name} of {path:?}");
        }
        let perplexity = |figures: &Value| figures["perplexity"].as_f64();
        assert_eq!(perplexity(&figures).is_some(), has_perplexity);
        if let (Some(got), Some(wanted)) = (perplexity(&figures), perplexity(&wanted)) {
            assert!((got / wanted - 1.0).abs() < 1e-3, "{got} for {wanted}");
        }
        assert_eq!(figures["tokens"], plan_alone(&items).n_tokens);
        assert_eq!(figures, self::figures(&file, &path, true));
    }
}

#[test]
fn smollm2_answers_better_than_chance() {
    needs!(SMOLLM2);
    let model = load(&smollm2());
    let Some(path) = shared("piqa.jsonl") else {
        return;
    };
    let task = Task::read(&path, None, Some(40)).unwrap();
    let items = encode(&task, &model.vocab(), 2048).unwrap();
    let summary = Summary::new(&task, &batched(&model, &items, 480), 0);
    assert!(summary.accuracy.accuracy_norm > 0.55, "{summary:?}");
}
