//! What a context that is to be reproducible does when threads are taken away.

use headshare_testmodels::ModelSpec;

use super::*;
use crate::model::ModelParams;

/// Logits of a token after some numbers of others, by threads that the governor
/// has decided on: `now` for one token, of `all`.
fn logits(model: &Arc<Model>, now: u32, all: u32) -> (Vec<Vec<f32>>, ThreadUse) {
    let params = ContextParams {
        n_ctx: Some(1024),
        flash_attention: FlashAttention::On,
        reproducible: true,
        ..ContextParams::default()
    };
    let mut context = Context::new(model, &params).unwrap();
    context.governor = Some(Governor::decided(now, all));
    let mut logits = Vec::new();
    for end in [8, 250, 300, 511, 600] {
        let text: Vec<Token> = (context.n_past()..end)
            .map(|i| Token::try_from(3 + i % 200).unwrap())
            .collect();
        context.decode(&text).unwrap();
        context.decode(&[5]).unwrap();
        logits.push(context.logits().unwrap().to_vec());
    }
    (logits, context.thread_use())
}

#[test]
fn what_others_do_changes_no_bit_where_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let spec = ModelSpec::preset("tiny-llama").unwrap();
    spec.write(&path).unwrap();
    let model = Arc::new(Model::load(&path, &ModelParams::default(), None).unwrap());
    let (idle, used) = logits(&model, 3, 3);
    assert_eq!(used.tokens, [(3, 601)], "all tokens on all threads");
    let (busy, used) = logits(&model, 1, 3);
    assert_eq!(busy, idle);
    // Of single tokens the first two on one thread, and those after 256 and more
    // on all; batches on one more than all.
    assert_eq!(used.tokens, [(1, 2), (3, 3), (4, 596)]);
}
