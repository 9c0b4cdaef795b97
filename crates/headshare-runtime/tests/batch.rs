//! Batches of several sequences against evaluating one text token by token.

mod support;

use std::sync::Arc;

use headshare_runtime::{
    Batch, Context, ContextError, ContextParams, Generator, Model, ModelParams, Sampler,
    SamplerParams, StopReason, Token,
};
use headshare_testmodels::ModelSpec;
use headshare_testmodels::fetched::{GEMMA, SMOLLM2};
use headshare_testmodels::needs;
use support::load;

const TEXT: &str = "The river rose in the night. In the morning the lower fields lay under \
                    water, and the old willow stood alone in the middle of a grey lake.";

/// One thread: tests run side by side, and ggml's threads spin while they wait
/// for each other.
fn context(model: &Arc<Model>, n_seq_max: u32, kv_unified: bool) -> Context {
    let params = ContextParams {
        n_ctx: Some(256 * n_seq_max),
        n_seq_max,
        kv_unified,
        n_threads: Some(1),
        ..ContextParams::default()
    };
    Context::new(model, &params).unwrap()
}

fn text(model: &Model) -> Vec<Token> {
    model.vocab().tokenize(TEXT, true, true).unwrap()
}

/// The logits of every token of `tokens`, evaluated one after the other.
fn one_by_one(model: &Arc<Model>, tokens: &[Token]) -> Vec<Vec<f32>> {
    let mut context = context(model, 1, false);
    tokens
        .iter()
        .map(|&token| {
            context.decode(&[token]).unwrap();
            context.logits().unwrap().to_vec()
        })
        .collect()
}

/// How far apart two tokens' logits are, as a part of their spread.
fn apart(left: &[f32], right: &[f32]) -> f64 {
    assert_eq!(left.len(), right.len());
    let mean = |v: &[f32]| v.iter().map(|&x| f64::from(x)).sum::<f64>() / v.len() as f64;
    let (m, n) = (mean(left), mean(right));
    let (mut error, mut spread) = (0.0, 0.0);
    for (&a, &b) in left.iter().zip(right) {
        error += (f64::from(a) - m - f64::from(b) + n).powi(2);
        spread += (f64::from(b) - n).powi(2);
    }
    (error / spread).sqrt()
}

/// Kernels for one and for many tokens may sum in other orders. SmolLM2's give
/// the same bits on the machine that this was written on.
const NOISE: f64 = 1e-4;
/// Gemma's round activations to 8 bits in blocks of 256, which makes more of
/// it: 0.04.
const NOISE_GEMMA3: f64 = 0.1;

#[track_caller]
fn assert_close(left: &[f32], right: &[f32], noise: f64, what: &str) {
    let off = apart(left, right);
    assert!(off < noise, "{what}: off by {off}");
}

/// A batch of whole texts, one a sequence, with the logits of every token.
fn side_by_side(texts: &[&[Token]]) -> Batch {
    let mut batch = Batch::new();
    for (sequence, text) in (0..).zip(texts) {
        for (position, &token) in (0..).zip(*text) {
            batch.add(token, position, &[sequence], true);
        }
    }
    batch
}

#[test]
fn a_batch_gives_the_logits_of_every_token() {
    needs!(SMOLLM2, GEMMA);
    for (name, noise) in [(SMOLLM2, NOISE), (GEMMA, NOISE_GEMMA3)] {
        let model = load(name);
        let tokens = text(&model);
        let expected = one_by_one(&model, &tokens);
        let mut context = context(&model, 1, false);
        context.decode_batch(&side_by_side(&[&tokens])).unwrap();
        assert_eq!(context.n_outputs(), tokens.len());
        assert_eq!(context.n_past() as usize, tokens.len());
        for (i, expected) in expected.iter().enumerate() {
            let logits = context.logits_at(i).unwrap();
            assert_close(logits, expected, noise, &format!("{name:?}, token {i}"));
        }
        for pair in expected.windows(2) {
            let apart = apart(&pair[0], &pair[1]);
            assert!(apart > 0.25, "{name:?}: {apart}");
        }
        assert!(context.logits_at(tokens.len()).is_none());
    }
}

#[test]
fn the_same_shape_gives_the_same_bits() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let tokens = text(&model);
    let mut plain = context(&model, 1, false);
    plain.decode(&tokens).unwrap();
    let mut batch = Batch::new();
    for (position, &token) in (0..).zip(&tokens) {
        batch.add(token, position, &[0], position as usize + 1 == tokens.len());
    }
    let mut batched = context(&model, 1, false);
    batched.decode_batch(&batch).unwrap();
    assert_eq!(batched.n_outputs(), 1);
    assert_eq!(batched.logits(), plain.logits());
    assert_eq!(batched.logits_at(0), plain.logits());
    // And both ways of evaluating mix.
    plain.decode(&[tokens[3]]).unwrap();
    batched.decode(&[tokens[3]]).unwrap();
    assert_eq!(batched.logits(), plain.logits());
}

#[test]
fn sequences_do_not_see_each_other() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let tokens = text(&model);
    let (first, second) = tokens.split_at(tokens.len() / 2);
    let expected = [one_by_one(&model, first), one_by_one(&model, second)].concat();
    for unified in [false, true] {
        let mut context = context(&model, 2, unified);
        context
            .decode_batch(&side_by_side(&[first, second]))
            .unwrap();
        for (i, expected) in expected.iter().enumerate() {
            let logits = context.logits_at(i).unwrap();
            assert_close(
                logits,
                expected,
                NOISE,
                &format!("unified {unified}, token {i}"),
            );
        }
        assert_eq!(context.seq_end(0) as usize, first.len());
        assert_eq!(context.seq_end(1) as usize, second.len());
    }
}

/// llama.cpp evaluates one sequence after the other; the logits come in the
/// order of the batch.
#[test]
fn logits_come_in_the_order_of_the_batch() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let tokens = text(&model);
    let (first, second) = (&tokens[..8], &tokens[8..16]);
    let expected = [one_by_one(&model, first), one_by_one(&model, second)];
    let mut batch = Batch::new();
    for position in 0..8 {
        for (sequence, text) in [(1, second), (0, first)] {
            // Every other token.
            let wanted = position % 2 == 1;
            batch.add(text[position as usize], position, &[sequence], wanted);
        }
    }
    let mut context = context(&model, 2, false);
    context.decode_batch(&batch).unwrap();
    assert_eq!(context.n_outputs(), 8);
    for (i, position) in [1, 3, 5, 7].into_iter().enumerate() {
        for (j, sequence) in [1, 0].into_iter().enumerate() {
            let logits = context.logits_at(2 * i + j).unwrap();
            let what = format!("sequence {sequence}, position {position}");
            assert_close(logits, &expected[sequence][position], NOISE, &what);
        }
    }
}

#[test]
fn a_common_beginning_is_evaluated_once() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let tokens = text(&model);
    let (prefix, rest) = tokens.split_at(12);
    let endings = [&rest[..3], &rest[3..7], &rest[7..9]];
    for unified in [true, false] {
        let mut context = context(&model, 4, unified);
        context.decode(prefix).unwrap();
        let mut batch = Batch::new();
        for (sequence, ending) in (1..).zip(endings) {
            context.seq_cp(0, sequence, ..).unwrap();
            for (position, &token) in (12..).zip(ending) {
                batch.add(token, position, &[sequence], true);
            }
        }
        context.decode_batch(&batch).unwrap();
        let mut i = 0;
        for (n, ending) in endings.iter().enumerate() {
            let whole = [prefix, ending].concat();
            for expected in &one_by_one(&model, &whole)[12..] {
                let what = format!("unified {unified}, ending {n}, output {i}");
                assert_close(context.logits_at(i).unwrap(), expected, NOISE, &what);
                i += 1;
            }
        }
        assert_eq!(context.n_outputs(), i);
    }
}

#[test]
fn what_is_removed_can_be_evaluated_again() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let tokens = text(&model);
    let mut context = context(&model, 3, true);
    context.decode(&tokens[..10]).unwrap();
    context.decode(&tokens[10..16]).unwrap();
    let once = context.logits().unwrap().to_vec();
    context.seq_rm(0, 10..).unwrap();
    assert_eq!(context.n_past(), 10);
    context.decode(&tokens[10..16]).unwrap();
    assert_eq!(context.logits().unwrap(), once);

    context.seq_cp(0, 1, ..4).unwrap();
    context.seq_cp(0, 2, ..).unwrap();
    assert_eq!([0, 1, 2].map(|s| context.seq_end(s)), [16, 4, 16]);
    context.seq_keep(1).unwrap();
    assert_eq!([0, 1, 2].map(|s| context.seq_end(s)), [0, 4, 0]);
    assert_eq!(context.n_past(), 0);
}

#[test]
fn keeping_one_sequence_forgets_the_others_in_parts_of_their_own_too() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let tokens = text(&model);
    let mut context = context(&model, 2, false);
    context
        .decode_batch(&side_by_side(&[&tokens[..5], &tokens[5..9]]))
        .unwrap();
    context.seq_keep(1).unwrap();
    assert_eq!([0, 1].map(|s| context.seq_end(s)), [0, 4]);
    assert_eq!(context.n_past(), 0);
}

#[test]
fn bad_batches_are_errors_and_change_nothing() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let tokens = text(&model);
    let mut context = context(&model, 2, false);
    context.decode(&tokens[..4]).unwrap();
    let bad = |token, position, sequences: &[u32]| {
        let mut batch = Batch::new();
        batch.add(token, position, sequences, true);
        batch
    };
    for (batch, reason) in [
        (Batch::new(), "0 tokens"),
        (bad(-1, 4, &[0]), "outside the vocabulary"),
        (bad(i32::MAX, 4, &[0]), "outside the vocabulary"),
        (bad(5, 4, &[]), "no sequence"),
        (bad(5, 4, &[2]), "sequence 2, where there can be 2"),
        (bad(5, u32::MAX, &[0]), "4294967295"),
        // llama.cpp's own checks.
        (bad(5, 3, &[0]), "positions"),
        (bad(5, 6, &[0]), "positions"),
    ] {
        let message = context.decode_batch(&batch).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
        assert_eq!(context.n_past(), 4);
        assert!(context.logits().is_none() && context.logits_at(0).is_none());
    }
    let mut long = Batch::new();
    for position in 0..=context.n_batch() {
        long.add(5, position, &[1], false);
    }
    assert!(matches!(
        context.decode_batch(&long),
        Err(ContextError::Batch(_))
    ));
    context.decode(&tokens[4..5]).unwrap();
    assert!(context.logits().is_some());
}

#[test]
fn a_sequence_too_long_for_its_part_is_an_error() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let mut context = context(&model, 2, false);
    assert_eq!(context.n_ctx_seq(), 256);
    let mut batch = Batch::new();
    for position in 0..300 {
        batch.add(5, position, &[1], false);
    }
    assert!(matches!(
        context.decode_batch(&batch),
        Err(ContextError::Full { .. })
    ));
    assert!(matches!(
        context.decode(&[5; 300]),
        Err(ContextError::Full { n_ctx: 256 })
    ));
}

#[test]
fn impossible_sequence_operations_are_errors() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let tokens = text(&model);
    let mut parts = context(&model, 2, false);
    parts.decode(&tokens[..8]).unwrap();
    let partly = parts.seq_cp(0, 1, ..4).unwrap_err().to_string();
    assert!(partly.contains("kv_unified"), "{partly}");
    parts.seq_cp(0, 1, ..8).unwrap();
    let twice = parts.seq_cp(0, 1, ..).unwrap_err().to_string();
    assert!(twice.contains("not empty"), "{twice}");
    for error in [
        parts.seq_cp(0, 2, ..),
        parts.seq_cp(2, 0, ..),
        parts.seq_rm(2, ..),
        parts.seq_keep(2),
    ] {
        let message = error.unwrap_err().to_string();
        assert!(message.contains("sequence 2"), "{message}");
    }
    assert_eq!(parts.seq_end(2), 0);
    for n_seq_max in [0, 257] {
        let params = ContextParams {
            n_ctx: Some(256),
            n_seq_max,
            ..ContextParams::default()
        };
        let Err(error) = Context::new(&model, &params) else {
            panic!("a context of {n_seq_max} sequences");
        };
        assert!(error.to_string().contains("n_seq_max"), "{error}");
    }
}

/// GPT-2 has learned what each of its positions means, and llama.cpp ends the
/// process at the first beyond them.
#[test]
fn a_model_of_learned_positions_ends_with_the_last() {
    needs!(SMOLLM2);
    let file = tempfile::NamedTempFile::new().unwrap();
    let spec = ModelSpec::preset("tiny-gpt2").unwrap();
    spec.write(file.path()).unwrap();
    let model = Model::load(file.path(), &ModelParams::default(), None).unwrap();
    let model = Arc::new(model);
    assert_eq!(model.n_positions(), Some(256));
    assert_eq!(load(SMOLLM2).n_positions(), None);
    let mut context = context(&model, 4, true);
    assert_eq!((context.n_ctx(), context.n_ctx_seq()), (1024, 256));
    assert!(matches!(
        context.decode(&[5; 257]),
        Err(ContextError::Full { n_ctx: 256 })
    ));
    let mut batch = Batch::new();
    for position in 200..257 {
        batch.add(5, position, &[3], false);
    }
    assert!(matches!(
        context.decode_batch(&batch),
        Err(ContextError::Full { n_ctx: 256 })
    ));
    let mut sampler = Sampler::new(
        &model,
        &SamplerParams {
            temp: 0.0,
            ..SamplerParams::default()
        },
    )
    .unwrap();
    let mut generator = Generator::new(&mut context, &mut sampler, &[5; 250], None).unwrap();
    let mut n_generated = 0;
    while generator.next_token().unwrap().is_some() {
        n_generated += 1;
    }
    // The last token that is picked needs no position.
    assert!(n_generated <= 7);
    assert!(matches!(
        generator.stop_reason(),
        Some(StopReason::ContextFull | StopReason::EndOfGeneration)
    ));
}
