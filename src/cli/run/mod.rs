//! `run`: generates text with llama.cpp, once or in a chat.

mod args;
mod error;
mod escapes;
mod input;
mod once;
mod report;
mod stream;
mod talk;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use headshare_runtime::{Context, Generated, Sampler, StopReason, log};

pub(super) use args::Args;
pub(super) use error::RunError;
use error::{from_context, from_sampler, of_model};
use report::{Measured, Report};

use super::loading::{from_model, load, measure};
use super::output::Output;
use super::{Exit, interrupt};

impl Args {
    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        self.check_stdin()?;
        let opening = self.opening()?;
        let stops = self.stops()?;
        let mut sampling = self.sampling()?;
        self.gpu().remark(out);
        log::set_verbose(self.verbose);
        let stop = interrupt::stop_flag();

        let started = Instant::now();
        let bar = out.bar("load", 100, false);
        let loaded = load(
            self.model.path(),
            self.resolve,
            !self.keep_pages,
            &mut |part| {
                bar.set_position((part * 100.0) as u64);
                !stop.load(Ordering::Relaxed)
            },
            out,
        );
        bar.finish_and_clear();
        let loaded = loaded?;
        let model = Arc::new(loaded.model);
        model.check_generative().map_err(from_model)?;
        let from_context = |error| from_context(&model, error);
        let params = self.context(&model, &stop);
        let mut context = Context::new(&model, &params).map_err(from_context)?;
        context.check_generative().map_err(from_context)?;
        let load_ms = started.elapsed().as_secs_f64() * 1000.0;
        let trained = model.n_ctx_train();
        let beyond = |n_ctx| trained > 0 && n_ctx > trained && model.n_positions().is_none();
        if self.ctx_size().is_some_and(beyond) {
            out.warning(&format!(
                "the model was trained with {trained} tokens of context; beyond that text degrades"
            ));
        }
        if sampling.penalty_last_n < 0 {
            sampling.penalty_last_n = i32::try_from(context.n_ctx()).unwrap_or(i32::MAX);
        }
        let measured = |seed, timings, threads| Measured {
            load_ms,
            seed,
            timings,
            threads,
            memory: measure(&model, &loaded.weights, loaded.shared_bytes),
            resolved: loaded.how.clone(),
        };

        let ended = if self.chat {
            let (session, timings) =
                talk::talk(&self, opening, &model, context, sampling, &stop, out)?;
            measured(session.seed(), timings, session.thread_use())
        } else {
            let text = opening.prompt.unwrap_or_default();
            let prompt = model
                .vocab()
                .tokenize(&text, true, true)
                .map_err(|error| of_model(&model, error))?;
            if prompt.is_empty() && !text.is_empty() {
                let nothing = "its tokenizer makes no tokens of the prompt";
                return Err(of_model(&model, nothing));
            }
            let sampler = Sampler::new(&model, &sampling);
            let mut sampler = sampler.map_err(|error| from_sampler(&model, error))?;
            let done = once::generate(&self, &stops, &mut context, &mut sampler, &prompt)?;
            let ended = measured(sampler.seed(), done.timings, context.thread_use());
            self.report(done, prompt.len(), loaded.resolve, &ended, &context, out)?;
            ended
        };
        if self.perf {
            // Asked for, so -q does not silence it.
            let _ = writeln!(io::stderr(), "{}", ended.perf());
        }
        Ok(Exit::Done)
    }

    fn report(
        &self,
        done: Generated,
        prompt_tokens: usize,
        resolve: &'static str,
        measured: &Measured,
        context: &Context,
        out: &Output,
    ) -> anyhow::Result<()> {
        let is_full = done.stop == StopReason::ContextFull;
        if self.json {
            let report = Report::new(done, prompt_tokens, resolve, measured);
            out.result(&report, true, |_| String::new())?;
        }
        if is_full {
            let full = format!("the context of {} tokens is full", context.n_ctx_seq());
            out.remark(&match context.model().n_positions() {
                Some(n) if n == context.n_ctx_seq() => full + ", and the model knows no larger",
                _ => full + "; -c makes it larger",
            });
        }
        Ok(())
    }
}
