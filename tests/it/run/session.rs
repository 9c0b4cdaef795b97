//! What of a conversation is evaluated, kept and forgotten.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use headshare_gguf::chat::{Answer, ChatError, ChatTemplate, Session};
use headshare_runtime::{Context, ContextParams, Model, ModelParams, SamplerParams, StopReason};

use crate::support::{SMOLLM2, needs, smollm2};

fn load() -> Arc<Model> {
    Arc::new(Model::load(&smollm2(), &ModelParams::default(), None).unwrap())
}

/// A greedy conversation with a template, the model's own if it is `None`.
fn session(model: &Arc<Model>, n_ctx: u32, n_predict: usize, template: Option<&str>) -> Session {
    let sampling = SamplerParams {
        temp: 0.0,
        ..SamplerParams::default()
    };
    sampled(model, n_ctx, n_predict, template, sampling)
}

fn sampled(
    model: &Arc<Model>,
    n_ctx: u32,
    n_predict: usize,
    template: Option<&str>,
    sampling: SamplerParams,
) -> Session {
    let params = ContextParams {
        n_ctx: Some(n_ctx),
        n_threads: Some(1),
        ..ContextParams::default()
    };
    let own = model.chat_template(None).unwrap();
    Session::new(
        Context::new(model, &params).unwrap(),
        ChatTemplate::new(template.unwrap_or(&own), "<|im_start|>", "<|im_end|>").unwrap(),
        sampling,
        Vec::new(),
        Some(n_predict),
        None,
    )
    .unwrap()
}

fn ask(session: &mut Session, message: &str) -> Answer {
    let question = session.prepare(message).unwrap();
    session.answer(question, |_| Ok(true)).unwrap()
}

#[test]
fn only_what_is_new_is_evaluated() {
    needs!(SMOLLM2);
    let model = load();
    let mut session = session(&model, 512, 12, None);
    let first = ask(&mut session, "What is gravity?");
    assert_eq!(first.kept_tokens, 0);
    let held = session.context().n_past() as usize;
    // The last token is not evaluated: nothing follows it yet.
    assert_eq!(
        held,
        first.generated.timings.n_prefill + first.generated.tokens.len() - 1
    );
    let second = ask(&mut session, "Who found it?");
    assert_eq!(second.kept_tokens, held);
    assert!(second.generated.timings.n_prefill < 30);

    // A new conversation keeps what all of them begin with, and is as the first.
    session.reset();
    let again = ask(&mut session, "What is gravity?");
    assert!(again.kept_tokens > 10);
    assert!(again.generated.timings.n_prefill >= 1);
    assert_eq!(again.generated.tokens, first.generated.tokens);
    session.set_system(Some("You are a poet.".into()));
    let poet = ask(&mut session, "What is gravity?");
    assert!(poet.kept_tokens < again.kept_tokens);
}

#[test]
fn the_same_question_again_is_another_draw() {
    needs!(SMOLLM2);
    let model = load();
    let sampling = SamplerParams {
        seed: Some(7),
        ..SamplerParams::default()
    };
    let mut session = sampled(&model, 512, 12, None, sampling);
    let first = ask(&mut session, "Hello").generated.text;
    session.reset();
    assert_ne!(ask(&mut session, "Hello").generated.text, first);
}

#[test]
fn a_template_that_rewrites_what_was_said_is_followed() {
    needs!(SMOLLM2);
    let model = load();
    // The model sees how often it was asked, and the last message alone.
    let rewriting = "{{ '<|im_start|>system\nMessage ' ~ messages | length ~ '<|im_end|>\n' }}\
        {{ '<|im_start|>user\n' ~ messages[-1].content ~ '<|im_end|>\n<|im_start|>assistant\n' }}";
    let mut talked = session(&model, 512, 12, Some(rewriting));
    ask(&mut talked, "What is gravity?");
    let second = ask(&mut talked, "Tell me about cats.");
    // "<|im_start|>system\nMessage ".
    assert!(
        (2..8).contains(&second.kept_tokens),
        "{}",
        second.kept_tokens
    );
    let alone = rewriting.replace("messages | length", "3");
    let mut fresh = session(&model, 512, 12, Some(&alone));
    let expected = ask(&mut fresh, "Tell me about cats.");
    assert_eq!(second.generated.tokens, expected.generated.tokens);
}

#[test]
fn the_oldest_is_forgotten_when_the_context_is_full() {
    needs!(SMOLLM2);
    let model = load();
    let mut session = session(&model, 256, 12, None);
    let message = format!("Tell me of {}old cats.", "very ".repeat(40));
    let mut forgotten = 0;
    for _ in 0..5 {
        let question = session.prepare(&message).unwrap();
        forgotten += question.forgets();
        let answer = session.answer(question, |_| Ok(true)).unwrap();
        assert_ne!(answer.generated.stop, StopReason::ContextFull);
        assert!(session.context().n_past() <= 256);
    }
    assert!(forgotten >= 1);
    // A long message takes all there is, and one that is too long changes
    // nothing.
    let long = session.prepare(&"word ".repeat(180)).unwrap();
    assert!(long.forgets() >= 1);
    let held = session.context().n_past();
    let error = session.prepare(&"word ".repeat(250)).unwrap_err();
    assert!(
        matches!(error, ChatError::TooLong { n_ctx: 256, n_tokens } if n_tokens > 256),
        "{error}"
    );
    assert_eq!(session.context().n_past(), held);
    assert!(ask(&mut session, "And dogs?").kept_tokens > 10);
}

#[test]
fn an_answer_that_never_began_is_not_remembered() {
    needs!(SMOLLM2);
    let model = load();
    let mut session = session(&model, 512, 12, None);
    let first = ask(&mut session, "What is gravity?");
    session.reset();
    let stop = Arc::clone(session.context().stop_flag());
    stop.store(true, Ordering::Relaxed);
    let stopped = ask(&mut session, "Tell me about cats.");
    assert_eq!(stopped.generated.stop, StopReason::Interrupted);
    assert_eq!(stopped.generated.text, "");
    stop.store(false, Ordering::Relaxed);
    let again = ask(&mut session, "What is gravity?");
    assert_eq!(again.generated.tokens, first.generated.tokens);
    // In the middle of one, what there is counts.
    let question = session.prepare("Tell me about cats.").unwrap();
    let mut pieces = 0;
    let flag = Arc::clone(&stop);
    let cut = session
        .answer(question, |_| {
            pieces += 1;
            flag.store(pieces == 3, Ordering::Relaxed);
            Ok(true)
        })
        .unwrap();
    assert_eq!(cut.generated.stop, StopReason::Interrupted);
    assert_ne!(cut.generated.text, "");
    stop.store(false, Ordering::Relaxed);
    let held = session.context().n_past() as usize;
    let next = ask(&mut session, "And dogs?");
    assert!(
        next.kept_tokens >= held - 1,
        "{} of {held}",
        next.kept_tokens
    );
}
