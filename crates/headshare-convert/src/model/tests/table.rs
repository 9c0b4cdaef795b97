//! The table against the list of names in llama.cpp's llama-arch.cpp.

use crate::model::{ARCHITECTURES, Attention, HeadSize, Layout, Residual, architecture};

/// `LLM_ARCH_NAMES` of the bundled llama.cpp, in its order, without the last
/// entry, "(unknown)". To be renewed with each new llama.cpp.
const LLAMA_CPP: &str = "
    clip llama llama4 deci falcon grok gpt2 gptj gptneox mpt baichuan
    starcoder refact bert modern-bert nomic-bert nomic-bert-moe neo-bert
    jina-bert-v2 jina-bert-v3 eurobert bloom stablelm qwen qwen2 qwen2moe
    qwen2vl qwen3 qwen3moe qwen3next qwen3vl qwen3vlmoe qwen35 qwen35moe
    clef qwen4exp phi2 phi3 phimoe plamo plamo2 plamo3 codeshell orion
    internlm2 minicpm minicpm3 gemma gemma2 gemma3 gemma3n gemma4
    gemma4-assistant gemma-embedding starcoder2 mamba mamba2 maple jamba
    falcon-h1 xverse command-r cohere2 cohere2moe dbrx olmo olmo2 olmoe
    muse-glimmer openelm arctic deepseek deepseek2 deepseek2-ocr deepseek32
    deepseek4 chatglm glm4 glm4moe glm-dsa bitnet t5 t5encoder jais jais2
    nemotron nemotron_h nemotron_h_moe exaone exaone4 exaone-moe rwkv6
    rwkv6qwen2 rwkv7 arwkv7 granite granitemoe granitehybrid graniteswitch
    granite_swa chameleon wavtokenizer-dec plm bailingmoe bailingmoe2
    bailingmoe3 dots1 dots3note arcee afmoe laguna ernie4_5 ernie4_5-moe
    hunyuan-moe hunyuan-dense hunyuan_vl hy_v3 hy_v4 smollm3 gpt-oss lfm2
    lfm2moe dream smallthinker llada llada-moe seed_oss grovemoe apertus
    minimax-01 hrm_text minimax-m2 minimax-m3 cogvlm rnd1 pangu-embedded
    mistral3 eagle3 dflash mistral4 paddleocr mimo2 step35 spark2_5
    llama-embed maincoder kimi-linear kimi-k3 glm5-next talkie mellum
    nanbeige qwen3tts pockettts
";

#[test]
fn is_complete() {
    let known: Vec<&str> = LLAMA_CPP.split_whitespace().collect();
    for name in &known {
        assert_eq!(architecture(name).map(|a| a.name), Some(*name));
    }
    assert_eq!(ARCHITECTURES.len(), known.len());
}

#[test]
fn is_sorted_and_unique() {
    assert!(ARCHITECTURES.windows(2).all(|w| w[0].name < w[1].name));
}

#[test]
fn reasons_are_clauses() {
    for row in ARCHITECTURES {
        if let Attention::NotShareable(reason) = row.attention {
            assert!(!reason.is_empty() && !reason.ends_with('.'), "{}", row.name);
        }
    }
}

#[test]
fn rows_say_what_llama_cpp_does() {
    let row = |name| architecture(name).expect("a row");
    let layout = |name| row(name).attention;
    assert_eq!(layout("llama"), Attention::Shareable(Layout::Either));
    assert_eq!(layout("gpt2"), Attention::Shareable(Layout::Fused));
    assert_eq!(layout("bitnet"), Attention::Shareable(Layout::Separate));
    assert_eq!(row("falcon").residual, Residual::Parallel);
    assert_eq!(row("gptneox").residual, Residual::Varies);
    assert_eq!(row("qwen2").residual, Residual::Sequential);
    assert!(row("gemma3").post_norms && !row("gemma").post_norms);
    assert!(row("bert").encoder_only && !row("llama").encoder_only);
    assert_eq!(row("gpt-oss").head_size, HeadSize::RopeDimensions);
    assert!(row("deci").headless_layers && !row("llama").headless_layers);
    let shareable = ARCHITECTURES
        .iter()
        .filter(|a| matches!(a.attention, Attention::Shareable(_)))
        .count();
    assert_eq!(shareable, 101);
}
