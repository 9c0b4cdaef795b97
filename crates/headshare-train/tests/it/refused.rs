//! What is not built is refused, and the error says what it is.

use candle_core::Device;
use headshare_convert::convert::variant::Variant;
use headshare_convert::plan::{Choice, Edit, Plan, Removed};
use headshare_testmodels::ModelSpec;
use headshare_train::{Model, Windows};

use crate::support::{llama_cpp, loaded, preset, windows, written};

fn refusal(spec: &ModelSpec) -> String {
    let (_folder, file) = written(spec);
    let error = Model::load(&Variant::unchanged(&file), &[], &Device::Cpu).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("model.gguf: "), "{error}");
    error
}

#[test]
fn architectures_and_details_that_are_not_built() {
    let with = |numbers: Vec<(&'static str, u32)>, floats: Vec<(&'static str, f32)>| ModelSpec {
        numbers,
        floats,
        ..preset("tiny-gqa")
    };
    let called = |arch: &str, spec: ModelSpec| ModelSpec {
        arch: arch.to_owned(),
        ..spec
    };
    for (spec, words) in [
        (
            preset("tiny-phi3"),
            "\"phi3\": its graph is not built; built are llama, deci,",
        ),
        (preset("tiny-falcon"), "\"falcon\": its graph"),
        (
            called("baichuan", preset("tiny-llama")),
            "key \"baichuan.block_count\": is not the 32 of Baichuan 7B",
        ),
        (preset("tiny-mamba"), "\"mamba\": recurrent"),
        (preset("tiny-moe"), "key \"llama.expert_count\": experts"),
        (
            with(vec![("nextn_predict_layers", 1)], vec![]),
            "key \"llama.nextn_predict_layers\": layers that only draft",
        ),
        (
            with(vec![], vec![("rope.scaling.attn_factor", 1.5)]),
            "key \"llama.rope.scaling.attn_factor\": a factor other than 1",
        ),
        (
            with(vec![("attention.key_length_swa", 8)], vec![]),
            "key \"llama.attention.key_length_swa\": other sizes",
        ),
        (
            // llama.cpp takes gemma's embedding as its head, whatever the file has.
            called("gemma", preset("tiny-gqa")),
            "tensor \"output.weight\": is not part of the graph",
        ),
        (
            ModelSpec {
                strings: vec![("rope.scaling.type", "yarn")],
                ..preset("tiny-gqa")
            },
            "key \"llama.rope.scaling.type\": rope scaling \"yarn\" is not built",
        ),
        (
            ModelSpec {
                numbers: vec![("attention.sliding_window", 0)],
                tied_output: true,
                ..called("gemma2", preset("tiny-gqa"))
            },
            "key \"gemma2.attention.sliding_window\": is 0",
        ),
        (
            // Only llama and deci have these.
            ModelSpec {
                rope_factors: true,
                ..preset("tiny-qwen2")
            },
            "tensor \"rope_freqs.weight\": is not part of the graph",
        ),
    ] {
        let error = refusal(&spec);
        assert!(error.contains(words), "{error}\nlacks {words}");
    }
}

#[test]
fn windows_that_do_not_fit() {
    let (_folder, file) = written(&preset("tiny-gpt2"));
    let model = loaded(&file);
    let error = model.hidden(&windows(320, 1, 300)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("300 tokens: the model has 256 positions"),
        "{error}"
    );
    let error = model
        .hidden(&Windows::new(vec![1, 320], 2).unwrap())
        .unwrap_err();
    assert!(
        error.to_string().contains("token 320 is outside"),
        "{error}"
    );
    for (tokens, length) in [
        (vec![], 4),
        (vec![1; 7], 4),
        (vec![1; 4], 1),
        (vec![1; 4], 0),
    ] {
        assert!(Windows::new(tokens, length).is_err());
    }
}

/// A changed model that is no file: a dropped unit makes a deci model.
#[test]
fn a_variant_is_loaded_as_it_would_be_written() {
    let (_folder, file) = written(&ModelSpec {
        key_length: Some(8),
        value_length: Some(8),
        ..preset("tiny-gqa")
    });
    let drops = [(1, 0), (2, 0), (2, 1)].map(|(layer, unit)| {
        Edit::Drop(Removed {
            layer,
            unit,
            score: None,
        })
    });
    let plan = Plan::new(String::new(), Choice::default(), drops.to_vec());
    let variant = Variant::new(&file, &plan, None).unwrap();
    let model = Model::load(&variant, &[], &Device::Cpu).unwrap();
    assert_eq!(model.config().kind.name, "deci");
    assert!(model.config().layers[2].heads.is_none());
    let windows = windows(320, 2, 16);
    let ours = model.logits(&windows).unwrap();
    let theirs = llama_cpp(&variant, &windows);
    for (a, b) in ours.iter().zip(&theirs) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    let objective = headshare_train::loss::Objective {
        language: 1.0,
        distillation: None,
    };
    let (_, sums) =
        headshare_train::loss::loss_and_gradients(&model, &windows, &objective).unwrap();
    for (i, parameter) in model.parameters().list().iter().enumerate() {
        let some = sums.with(i, |sum| sum.iter().any(|g| *g != 0.0)).unwrap();
        assert!(some, "{}", parameter.name);
    }
}
