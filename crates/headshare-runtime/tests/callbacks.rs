//! Watching a forward pass: what an observer is asked and shown, and how it
//! ends one.

mod support;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use headshare_runtime::callbacks::{Node, NodeError, Observer, Op};
use headshare_runtime::{Context, ContextError, ContextParams, FlashAttention, Model, Token};
use headshare_testmodels::fetched::SMOLLM2;
use headshare_testmodels::needs;
use support::load;

const LAYERS: u32 = 30;
const HEADS: u64 = 9;

fn context(model: &Arc<Model>, observable: bool) -> Context {
    let params = ContextParams {
        n_ctx: Some(64),
        n_threads: Some(1),
        flash_attention: FlashAttention::Off,
        observable,
        ..ContextParams::default()
    };
    Context::new(model, &params).unwrap()
}

fn tokens(model: &Model) -> Vec<Token> {
    let text = "The capital of France is Paris, and that of Italy is Rome.";
    model.vocab().tokenize(text, true, true).unwrap()
}

/// Checks every attention map, and ends the pass after `last`.
struct Maps {
    tokens: usize,
    seen: BTreeSet<u32>,
    last: u32,
}

impl Observer for Maps {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        if let Some(layer) = node.layer_of("kq_soft_max")
            && node.op() == Op::SOFT_MAX
        {
            assert_eq!(node.f32s(), Err(NodeError::NoData(node.name().into())));
            assert_eq!(node.src(0).unwrap().layer_of("kq"), Some(layer));
            return true;
        }
        false
    }

    fn observe(&mut self, node: &Node<'_>) -> ControlFlow<()> {
        let layer = node.layer_of("kq_soft_max").unwrap();
        assert!(self.seen.insert(layer), "layer {layer} twice");
        let [columns, tokens, heads, streams] = node.dims();
        assert_eq!((tokens, heads, streams), (self.tokens as u64, HEADS, 1));
        let map = node.f32s().unwrap();
        assert_eq!(map.len() as u64, node.elements());
        for (i, row) in map.chunks_exact(columns as usize).enumerate() {
            let (seen, future) = row.split_at(i % self.tokens + 1);
            let sum: f64 = seen.iter().map(|&p| f64::from(p)).sum();
            assert!((sum - 1.0).abs() < 1e-4, "layer {layer}, row {i}: {sum}");
            assert!(seen.iter().all(|&p| (0.0..=1.0).contains(&p)));
            assert!(future.iter().all(|&p| p == 0.0), "layer {layer}, row {i}");
        }
        if layer == self.last {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

#[test]
fn attention_maps_are_causal_and_their_rows_sum_to_one() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let tokens = tokens(&model);
    let mut watched = context(&model, true);
    let mut maps = Maps {
        tokens: tokens.len(),
        seen: BTreeSet::new(),
        last: LAYERS,
    };
    watched.decode_observed(&tokens, &mut maps).unwrap();
    assert_eq!(maps.seen, (0..LAYERS).collect());
    // Watching changes nothing.
    let mut plain = context(&model, false);
    plain.decode(&tokens).unwrap();
    assert_eq!(watched.logits(), plain.logits());
    assert_eq!(
        plain.decode_observed(&tokens, &mut maps),
        Err(ContextError::NotObservable)
    );
    // A watched context also evaluates unwatched.
    watched.clear();
    watched.decode(&tokens).unwrap();
    assert_eq!(watched.logits(), plain.logits());
}

#[test]
fn an_observer_can_end_the_pass() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let tokens = tokens(&model);
    let mut context = context(&model, true);
    let mut maps = Maps {
        tokens: tokens.len(),
        seen: BTreeSet::new(),
        last: 3,
    };
    let halted = context.decode_observed(&tokens, &mut maps);
    assert_eq!(halted, Err(ContextError::Halted));
    assert_eq!(maps.seen, (0..=3).collect());
    assert_eq!((context.n_past(), context.logits()), (0, None));
    // And the next pass is a whole one.
    maps.seen.clear();
    maps.last = LAYERS;
    context.decode_observed(&tokens, &mut maps).unwrap();
    assert_eq!(maps.seen, (0..LAYERS).collect());
}

/// Panics when asked, or when shown, the `countdown`th node.
struct Panics {
    countdown: u32,
    asked: bool,
}

impl Panics {
    fn count(&mut self) {
        self.countdown -= 1;
        assert!(self.countdown > 0, "boom");
    }
}

impl Observer for Panics {
    fn wants(&mut self, _: &Node<'_>) -> bool {
        if self.asked {
            self.count();
        }
        true
    }

    fn observe(&mut self, _: &Node<'_>) -> ControlFlow<()> {
        if !self.asked {
            self.count();
        }
        ControlFlow::Continue(())
    }
}

#[test]
fn a_panic_crosses_llama_cpp_and_leaves_a_usable_context() {
    needs!(SMOLLM2);
    let model = load(SMOLLM2);
    let tokens = tokens(&model);
    let mut context = context(&model, true);
    for asked in [true, false] {
        let mut observer = Panics {
            countdown: 40,
            asked,
        };
        let caught = catch_unwind(AssertUnwindSafe(|| {
            context.decode_observed(&tokens, &mut observer)
        }));
        let panic = caught.unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"boom"));
        assert_eq!(context.n_past(), 0);
    }
    context.decode(&tokens).unwrap();
    assert!(context.logits().is_some());
}
