//! Files that do not load or do not generate are errors with llama.cpp's reason.

mod support;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use headshare_runtime::{
    Context, ContextError, ContextParams, GenerateError, Generator, Model, ModelError, ModelParams,
    Sampler, SamplerParams, VocabError,
};
use headshare_testmodels::fetched::{GEMMA, SMOLLM2};
use headshare_testmodels::needs;
use support::load;

fn try_load(path: &Path) -> ModelError {
    Model::load(path, &ModelParams::default(), None).unwrap_err()
}

fn with_bytes(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn what_is_not_there_says_so() {
    let message = try_load(Path::new("no/such/model.gguf")).to_string();
    assert!(message.contains("no/such/model.gguf"), "{message}");
    assert!(message.contains("No such file"), "{message}");
    let folder = try_load(Path::new(env!("CARGO_MANIFEST_DIR"))).to_string();
    assert!(folder.contains("directory"), "{folder}");
    let nul = try_load(Path::new("a\0b"));
    assert!(matches!(nul, ModelError::Open { .. }), "{nul}");
}

#[test]
fn garbage_is_refused_with_llama_cpps_reason() {
    let file = with_bytes(b"certainly not a model, and long enough to be read as one");
    let message = try_load(file.path()).to_string();
    assert!(message.contains("magic"), "{message}");
    assert!(
        message.contains(&*file.path().to_string_lossy()),
        "{message}"
    );

    let empty = try_load(with_bytes(b"").path()).to_string();
    assert!(!empty.contains("gives no reason"), "{empty}");
}

#[test]
fn a_cut_file_is_refused_with_llama_cpps_reason() {
    needs!(SMOLLM2);
    let mut start = Vec::new();
    std::fs::File::open(SMOLLM2.path())
        .unwrap()
        .take(8 << 20)
        .read_to_end(&mut start)
        .unwrap();
    let message = try_load(with_bytes(&start).path()).to_string();
    assert!(
        message.contains("not within the file bounds") || message.contains("corrupted"),
        "{message}"
    );
}

#[test]
fn an_unknown_architecture_is_named() {
    let bytes = support::TinyGguf::default()
        .str("general.architecture", "headshare")
        .bytes();
    let message = try_load(with_bytes(&bytes).path()).to_string();
    assert!(message.contains("headshare"), "{message}");
    assert!(message.contains("unknown model architecture"), "{message}");
}

#[test]
fn bert_loads_but_does_not_generate() {
    let file = with_bytes(&support::tiny_bert());
    let model = Arc::new(Model::load(file.path(), &ModelParams::default(), None).unwrap());
    assert_eq!(model.architecture(), "bert");
    assert!(!model.vocab().exists());
    assert_eq!(
        model.vocab().tokenize("x", true, true),
        Err(VocabError::NoVocabulary)
    );
    assert_eq!(
        model.vocab().token_to_piece(1, false),
        Err(VocabError::NoVocabulary)
    );
    let mut context = Context::new(&model, &ContextParams::default()).unwrap();
    assert!(!context.is_generative());
    assert!(matches!(
        context.decode(&[1]),
        Err(ContextError::NotGenerative { .. })
    ));
    let mut sampler = Sampler::new(&model, &SamplerParams::default()).unwrap();
    let Err(error) = Generator::new(&mut context, &mut sampler, &[1], None) else {
        panic!("a BERT generates");
    };
    assert!(matches!(
        error,
        GenerateError::Context(ContextError::NotGenerative { .. })
    ));
    assert!(error.to_string().contains("bert"), "{error}");
}

#[test]
fn loading_can_be_stopped_and_panics_come_through() {
    needs!(SMOLLM2);
    let path = SMOLLM2.path();
    let mut calls = 0;
    let stopped = Model::load(
        &path,
        &ModelParams::default(),
        Some(&mut |part| {
            calls += 1;
            part < 0.3
        }),
    );
    assert!(matches!(stopped, Err(ModelError::Interrupted)));
    assert!(calls > 1);
    let panicked = std::panic::catch_unwind(|| {
        Model::load(
            &path,
            &ModelParams::default(),
            Some(&mut |_| panic!("in the callback")),
        )
    });
    let payload = panicked.unwrap_err();
    assert_eq!(
        payload.downcast_ref::<&str>().copied(),
        Some("in the callback")
    );
}

#[test]
fn every_way_of_loading_gives_the_same_model() {
    needs!(SMOLLM2);
    let path = SMOLLM2.path();
    let mut all = Vec::new();
    for (use_mmap, use_extra_bufts) in [(true, true), (false, true), (true, false)] {
        let params = ModelParams {
            use_mmap,
            use_extra_bufts,
            check_tensors: true,
            ..ModelParams::default()
        };
        let model = Model::load(&path, &params, None).unwrap();
        all.push((model.n_params(), model.size_bytes(), model.n_layer()));
    }
    all.dedup();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].2, 30);
}

#[test]
fn what_a_model_says_of_itself() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    assert_eq!(model.architecture(), "llama");
    assert_eq!(model.n_embd(), 576);
    assert_eq!(
        model.meta("llama.attention.head_count").as_deref(),
        Some("9")
    );
    assert_eq!(model.meta("no.such.key"), None);
    assert_eq!(model.meta("in\0valid"), None);
    assert!(model.chat_template(None).unwrap().contains("<|im_start|>"));
    assert!(model.has_decoder() && !model.has_encoder());
    // Longer than the first buffer.
    let template = model.meta("tokenizer.chat_template").unwrap();
    assert!(template.len() > 256);
}

#[test]
fn text_and_tokens_go_both_ways() {
    needs!(SMOLLM2, GEMMA);
    for name in [SMOLLM2, GEMMA] {
        let model = load(name);
        let vocab = model.vocab();
        for text in [
            "",
            "Hello world",
            "gr\u{fc}\u{df}e \u{1f980}\u{1f1f3}\u{1f1ff} \u{4f60}\u{597d}\n\ttab",
            &"long ".repeat(2000),
        ] {
            let tokens = vocab.tokenize(text, false, false).unwrap();
            assert_eq!(vocab.detokenize(&tokens).unwrap(), text, "{name:?}");
            let bytes: Vec<u8> = tokens
                .iter()
                .flat_map(|&token| vocab.token_to_piece(token, false).unwrap())
                .collect();
            assert_eq!(String::from_utf8(bytes).unwrap(), text, "{name:?}");
        }
        let with_bos = vocab.tokenize("x", true, true).unwrap();
        let first = with_bos.first().copied();
        assert_eq!(first.filter(|_| first == vocab.bos()), vocab.leading_bos());
        for token in [-1, vocab.n_tokens(), i32::MAX, i32::MIN] {
            assert!(matches!(
                vocab.token_to_piece(token, true),
                Err(VocabError::UnknownToken { .. })
            ));
            assert!(vocab.detokenize(&[token]).is_err());
        }
    }
    let model = load(SMOLLM2);
    let vocab = model.vocab();
    let special = vocab.tokenize("<|im_end|>", false, true).unwrap();
    assert_eq!(special.len(), 1);
    assert!(vocab.is_eog(special[0]));
    assert_eq!(vocab.token_to_piece(special[0], false).unwrap(), b"");
    assert_eq!(
        vocab.token_to_piece(special[0], true).unwrap(),
        b"<|im_end|>"
    );
    assert!(vocab.tokenize("<|im_end|>", false, false).unwrap().len() > 1);
}
