//! Generating with real models: deterministic where it must be, bounded by
//! limit, context, grammar and the stop flag.

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use headshare_runtime::callbacks::{Node, Observer};
use headshare_runtime::{
    Context, ContextError, ContextParams, GenerateError, Generator, Model, Sampler, SamplerError,
    SamplerParams, StopReason, Token, Utf8Stream,
};
use headshare_testmodels::fetched::{GEMMA, SMOLLM2};
use headshare_testmodels::needs;
use support::load;

const PROMPT: &str = "The capital of France is";

fn greedy() -> SamplerParams {
    SamplerParams {
        temp: 0.0,
        ..SamplerParams::default()
    }
}

/// One thread each: tests run side by side, and ggml's threads spin while they
/// wait for each other.
fn context(model: &Arc<Model>, n_ctx: u32) -> Context {
    let params = ContextParams {
        n_ctx: Some(n_ctx),
        n_threads: Some(1),
        ..ContextParams::default()
    };
    Context::new(model, &params).unwrap()
}

fn run(
    context: &mut Context,
    params: &SamplerParams,
    prompt: &str,
    n_predict: Option<usize>,
) -> Result<(Vec<Token>, String, StopReason), GenerateError> {
    context.clear();
    let model = Arc::clone(context.model());
    let prompt = model.vocab().tokenize(prompt, true, true)?;
    let mut sampler = Sampler::new(&model, params)?;
    let mut generator = Generator::new(context, &mut sampler, &prompt, n_predict)?;
    let mut stream = Utf8Stream::new();
    let (mut tokens, mut text) = (Vec::new(), String::new());
    while let Some(token) = generator.next_token()? {
        tokens.push(token);
        text += &stream.push(&generator.piece(token)?);
    }
    text += &stream.finish();
    assert_eq!(generator.next_token()?, None, "the end stays the end");
    let reason = generator.stop_reason().unwrap();
    let timings = generator.timings();
    assert_eq!(timings.n_prefill, prompt.len());
    assert!(timings.n_decode <= timings.n_sample);
    Ok((tokens, text, reason))
}

#[test]
fn greedy_is_sensible_and_the_same_every_time() {
    needs!(SMOLLM2, GEMMA);
    for (name, expected) in [(SMOLLM2, "Paris"), (GEMMA, "France")] {
        let model = load(name);
        let mut first = context(&model, 256);
        let (tokens, text, reason) = run(&mut first, &greedy(), PROMPT, Some(24)).unwrap();
        assert!(text.contains(expected), "{name:?}: {text}");
        assert!(tokens.len() == 24 || reason == StopReason::EndOfGeneration);
        let again = run(&mut first, &greedy(), PROMPT, Some(24)).unwrap();
        assert_eq!(again.0, tokens, "{name:?}, the same context");
        let mut second = context(&model, 512);
        let other = run(&mut second, &greedy(), PROMPT, Some(24)).unwrap();
        assert_eq!(other.0, tokens, "{name:?}, another context");
    }
}

#[test]
fn a_prompt_in_small_batches_gives_the_same_text() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let prompt = "One day a little girl went into the forest to look for berries. ".repeat(4);
    let whole = run(&mut context(&model, 256), &greedy(), &prompt, Some(16)).unwrap();
    let params = ContextParams {
        n_ctx: Some(256),
        n_batch: 32,
        n_ubatch: 32,
        n_threads: Some(1),
        ..ContextParams::default()
    };
    let mut narrow = Context::new(&model, &params).unwrap();
    let split = run(&mut narrow, &greedy(), &prompt, Some(16)).unwrap();
    assert_eq!(whole.0, split.0);
}

#[test]
fn a_seed_repeats_and_another_differs() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let mut context = context(&model, 256);
    let mut with_seed = |seed| {
        let params = SamplerParams {
            temp: 1.2,
            seed: Some(seed),
            ..SamplerParams::default()
        };
        run(&mut context, &params, "Once upon a time", Some(24))
            .unwrap()
            .0
    };
    let first = with_seed(7);
    assert_eq!(first, with_seed(7));
    assert_ne!(first, with_seed(8));
    let fresh = Sampler::new(&model, &SamplerParams::default())
        .unwrap()
        .seed();
    let other = Sampler::new(&model, &SamplerParams::default())
        .unwrap()
        .seed();
    assert_ne!(fresh, other);
}

#[test]
fn a_repeat_penalty_changes_the_text() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let mut context = context(&model, 512);
    let plain = run(&mut context, &greedy(), "la la la la la la", Some(24)).unwrap();
    let params = SamplerParams {
        penalty_repeat: 1.5,
        ..greedy()
    };
    let penalised = run(&mut context, &params, "la la la la la la", Some(24)).unwrap();
    assert_ne!(plain.0, penalised.0);
}

#[test]
fn the_other_penalties_and_typical_sampling_change_the_text() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let mut context = context(&model, 512);
    let plain = run(&mut context, &greedy(), "la la la la la la", Some(24)).unwrap();
    let changes: [fn(&mut SamplerParams); 2] =
        [|p| p.penalty_freq = 2.0, |p| p.penalty_present = 4.0];
    for change in changes {
        let mut params = greedy();
        change(&mut params);
        let penalised = run(&mut context, &params, "la la la la la la", Some(24)).unwrap();
        assert_ne!(plain.0, penalised.0);
        // Without any token to look back at they do nothing.
        params.penalty_last_n = 0;
        let same = run(&mut context, &params, "la la la la la la", Some(24)).unwrap();
        assert_eq!(plain.0, same.0);
    }
    let with_typical = |typical_p| SamplerParams {
        typical_p,
        temp: 2.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: Some(5),
        ..SamplerParams::default()
    };
    let free = run(&mut context, &with_typical(1.0), PROMPT, Some(8)).unwrap();
    let typical = run(&mut context, &with_typical(0.2), PROMPT, Some(8)).unwrap();
    assert_ne!(free.0, typical.0);
}

#[test]
fn the_end_of_a_text_can_be_ignored() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let mut context = context(&model, 256);
    let ending = "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\nHi!";
    let params = SamplerParams {
        ignore_eos: true,
        ..greedy()
    };
    let (tokens, _, reason) = run(&mut context, &params, ending, Some(200)).unwrap();
    assert_eq!((tokens.len(), reason), (200, StopReason::Limit));
    assert!(!tokens.iter().any(|&token| model.vocab().is_eog(token)));
    // A grammar that has come to its end leaves nothing else.
    let params = SamplerParams {
        grammar: Some(r#"root ::= " yes""#.into()),
        ..params
    };
    let (_, text, reason) = run(&mut context, &params, PROMPT, Some(8)).unwrap();
    assert_eq!(
        (text.as_str(), reason),
        (" yes", StopReason::EndOfGeneration)
    );
}

#[test]
fn a_text_goes_on_from_any_prefix_that_is_kept() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let mut context = context(&model, 256);
    let (fresh, ..) = run(&mut context, &greedy(), PROMPT, Some(12)).unwrap();
    let prompt = model.vocab().tokenize(PROMPT, true, true).unwrap();
    let n_prompt = prompt.len() as u32;
    assert!(context.n_past() > n_prompt);
    assert_eq!(context.keep(1000), context.n_past());
    assert!(context.logits().is_some());
    for kept in [n_prompt - 1, 2, 0] {
        assert_eq!(context.keep(kept), kept);
        assert_eq!(context.n_past(), kept);
        assert!(context.logits().is_none());
        let mut sampler = Sampler::new(&model, &greedy()).unwrap();
        let generator = Generator::new(
            &mut context,
            &mut sampler,
            &prompt[kept as usize..],
            Some(12),
        )
        .unwrap();
        let generated = generator.write_text(&[], |_| Ok(true)).unwrap();
        assert_eq!(generated.tokens, fresh, "{kept} kept");
    }
}

#[test]
fn stop_strings_end_a_text_and_are_not_shown() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let mut context = context(&model, 256);
    let (_, whole, _) = run(&mut context, &greedy(), PROMPT, Some(24)).unwrap();
    // In the middle of a word, so it is no whole token.
    let stop = "ited Sta".to_owned();
    let before = &whole[..whole.find(&stop).unwrap_or_else(|| panic!("{whole}"))];
    let prompt = model.vocab().tokenize(PROMPT, true, true).unwrap();
    context.clear();
    let mut sampler = Sampler::new(&model, &greedy()).unwrap();
    let generator = Generator::new(&mut context, &mut sampler, &prompt, Some(24)).unwrap();
    let mut shown = String::new();
    let generated = generator
        .write_text(&["###".into(), stop], |piece| {
            shown += piece;
            Ok(true)
        })
        .unwrap();
    assert_eq!(shown, before);
    assert_eq!(generated.text, before);
    assert_eq!(generated.stop, StopReason::StopString);
}

#[test]
fn a_grammar_is_obeyed() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let mut context = context(&model, 256);
    for temp in [0.0, 1.5] {
        let params = SamplerParams {
            temp,
            seed: Some(1),
            grammar: Some(r#"root ::= " " ("yes" | "no") "!" [0-9] [0-9]"#.into()),
            ..SamplerParams::default()
        };
        let (_, text, reason) = run(&mut context, &params, PROMPT, Some(32)).unwrap();
        assert!(
            (text.starts_with(" yes!") || text.starts_with(" no!"))
                && text[text.len() - 2..].bytes().all(|b| b.is_ascii_digit()),
            "{text}"
        );
        assert_eq!(reason, StopReason::EndOfGeneration);
    }
    // Characters of several bytes, which this vocabulary has only in pieces.
    let params = SamplerParams {
        grammar: Some("root ::= [\u{13000}-\u{13010}] [\u{13000}-\u{13010}]".into()),
        ..greedy()
    };
    let (_, text, _) = run(&mut context, &params, PROMPT, Some(32)).unwrap();
    assert_eq!(text.chars().count(), 2, "{text}");
    assert!(
        text.chars()
            .all(|c| ('\u{13000}'..='\u{13010}').contains(&c))
    );
}

#[test]
fn a_bad_grammar_is_an_error() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    for grammar in [
        "",
        "root ::= (",
        "root ::= missing",
        "other ::= \"x\"",
        "root ::= root \"x\"",
        "root ::= \"a\0b\"",
        "\u{feff}",
    ] {
        let params = SamplerParams {
            grammar: Some(grammar.into()),
            ..greedy()
        };
        match Sampler::new(&model, &params) {
            Err(SamplerError::Grammar(_)) => {}
            Err(other) => panic!("{grammar:?}: {other}"),
            Ok(_) => panic!("{grammar:?} is accepted"),
        }
    }
}

#[test]
fn parameters_out_of_range_are_errors() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let wrong: [fn(&mut SamplerParams); 10] = [
        |p| p.temp = f32::NAN,
        |p| p.temp = f32::INFINITY,
        |p| p.top_p = -0.1,
        |p| p.top_p = 1.1,
        |p| p.min_p = f32::NAN,
        |p| p.penalty_repeat = 0.0,
        |p| p.penalty_repeat = -1.0,
        |p| p.typical_p = 1.5,
        |p| p.penalty_freq = f32::NAN,
        |p| p.penalty_present = f32::INFINITY,
    ];
    for change in wrong {
        let mut params = SamplerParams::default();
        change(&mut params);
        assert!(matches!(
            Sampler::new(&model, &params),
            Err(SamplerError::Parameter { .. })
        ));
    }
    // Everything switched off is plain sampling.
    let params = SamplerParams {
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        penalty_last_n: -1,
        seed: Some(3),
        ..SamplerParams::default()
    };
    let mut context = context(&model, 256);
    assert_eq!(
        run(&mut context, &params, PROMPT, Some(4)).unwrap().0.len(),
        4
    );
}

#[test]
fn broken_logits_are_an_error() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let mut sampler = Sampler::new(&model, &greedy()).unwrap();
    let mut logits = vec![0.0; model.vocab().n_tokens() as usize];
    logits[5] = 1.0;
    assert_eq!(sampler.sample(&logits), Ok(5));
    for bad in [f32::NAN, f32::INFINITY] {
        logits[9] = bad;
        assert_eq!(sampler.sample(&logits), Err(SamplerError::NotANumber));
    }
    assert!(sampler.sample(&[]).is_err());
    assert!(sampler.accept(-1, true).is_err());
}

#[test]
fn limits_end_a_generation() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let mut context = context(&model, 256);
    let (tokens, text, reason) = run(&mut context, &greedy(), PROMPT, Some(0)).unwrap();
    assert_eq!((tokens.len(), text.as_str()), (0, ""));
    assert_eq!(reason, StopReason::Limit);

    let n_prompt = model.vocab().tokenize(PROMPT, true, true).unwrap().len();
    let params = SamplerParams {
        // Never ends by itself.
        grammar: Some("root ::= [a-z ]+ root2\nroot2 ::= \"\u{1}\"".into()),
        ..greedy()
    };
    let (tokens, _, reason) = run(&mut context, &params, PROMPT, None).unwrap();
    assert_eq!(reason, StopReason::ContextFull);
    // The last token is given out although there is no room to evaluate it.
    assert_eq!(tokens.len(), context.n_ctx() as usize - n_prompt + 1);
}

#[test]
fn prompts_that_do_not_fit_are_errors() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let mut context = context(&model, 256);
    assert_eq!(model.vocab().leading_bos(), None);
    assert!(matches!(
        run(&mut context, &greedy(), "", Some(1)),
        Err(GenerateError::EmptyPrompt)
    ));
    let error = run(&mut context, &greedy(), &"word ".repeat(300), Some(1)).unwrap_err();
    assert!(matches!(
        error,
        GenerateError::PromptTooLong { n_ctx: 256, .. }
    ));
    let n_batch = context.n_batch() as usize;
    assert!(matches!(context.decode(&[]), Err(ContextError::Batch(_))));
    assert!(matches!(
        context.decode(&vec![1; n_batch + 1]),
        Err(ContextError::Batch(_))
    ));
    assert!(matches!(context.decode(&[-1]), Err(ContextError::Batch(_))));
    assert!(matches!(
        context.decode(&[model.vocab().n_tokens()]),
        Err(ContextError::Batch(_))
    ));
    assert!(context.logits().is_none());
}

#[test]
fn an_empty_prompt_starts_from_bos_where_there_is_one() {
    needs!(GEMMA);
    let model = load(GEMMA);
    assert!(model.vocab().leading_bos().is_some());
    let (tokens, ..) = run(&mut context(&model, 256), &greedy(), "", Some(4)).unwrap();
    assert!(!tokens.is_empty());
}

#[test]
fn the_stop_flag_interrupts() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let mut context = context(&model, 512);
    let stop = Arc::clone(context.stop_flag());
    let prompt = model.vocab().tokenize(PROMPT, true, true).unwrap();
    let mut sampler = Sampler::new(&model, &greedy()).unwrap();
    let mut generator = Generator::new(&mut context, &mut sampler, &prompt, None).unwrap();
    for _ in 0..3 {
        assert!(generator.next_token().unwrap().is_some());
    }
    stop.store(true, Ordering::Relaxed);
    assert_eq!(generator.next_token().unwrap(), None);
    assert_eq!(generator.stop_reason(), Some(StopReason::Interrupted));

    // Also before the prompt is evaluated.
    context.clear();
    let mut generator = Generator::new(&mut context, &mut sampler, &prompt, None).unwrap();
    assert_eq!(generator.next_token().unwrap(), None);
    assert_eq!(generator.stop_reason(), Some(StopReason::Interrupted));
}

/// Sets the flag while a pass runs: at its first node.
struct Stopping(Arc<AtomicBool>);

impl Observer for Stopping {
    fn wants(&mut self, _: &Node<'_>) -> bool {
        self.0.store(true, Ordering::Relaxed);
        false
    }

    fn observe(&mut self, node: &Node<'_>) -> ControlFlow<()> {
        unreachable!("{} is not wanted", node.name())
    }
}

#[test]
fn the_stop_flag_interrupts_a_pass_that_runs_and_the_context_is_usable_after_it() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let params = ContextParams {
        n_ctx: Some(512),
        n_threads: Some(1),
        observable: true,
        ..ContextParams::default()
    };
    let mut context = Context::new(&model, &params).unwrap();
    let stop = Arc::clone(context.stop_flag());
    let vocab = model.vocab();
    let long = vocab.tokenize(&"word ".repeat(400), true, true).unwrap();
    let mut stopping = Stopping(Arc::clone(&stop));
    assert_eq!(
        context.decode_observed(&long, &mut stopping),
        Err(ContextError::Interrupted)
    );
    stop.store(false, Ordering::Relaxed);
    assert!(
        run(&mut context, &greedy(), PROMPT, Some(8))
            .unwrap()
            .1
            .contains("Paris")
    );
}

#[test]
fn contexts_of_one_model_work_in_parallel() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let texts: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let params = ContextParams {
                        n_ctx: Some(256),
                        n_threads: Some(1),
                        ..ContextParams::default()
                    };
                    let mut context = Context::new(&model, &params).unwrap();
                    run(&mut context, &greedy(), PROMPT, Some(12)).unwrap().1
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(texts.iter().all(|text| text == &texts[0]), "{texts:?}");
}
