//! `run`: generates text with llama.cpp.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Context as _;
use headshare_runtime::{
    Context, ContextParams, GenerateError, Generator, ModelError, Sampler, SamplerError,
    SamplerParams, StopReason, Timings, Token, Utf8Stream, log,
};
use serde::Serialize;

use super::loading::{Memory, Resolve, from_model, load, measure};
use super::output::Output;
use super::{Exit, interrupt};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["prompt", "file_prompt"]))]
pub(super) struct Args {
    /// A GGUF file, plain or converted.
    #[arg(value_name = "FILE")]
    model: PathBuf,
    /// Text to go on from.
    #[arg(short, long)]
    prompt: Option<String>,
    /// File with the text to go on from; - reads standard input.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file_prompt: Option<PathBuf>,
    /// Tokens to generate; -1 goes on until the model ends or the context is full.
    #[arg(short, long, default_value_t = 128, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-1..))]
    n_predict: i32,
    /// Temperature; 0 always takes the most probable token.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    temp: f32,
    /// Pick among this many of the most probable tokens; 0 means all.
    #[arg(long, default_value_t = 40)]
    top_k: i32,
    /// Pick among the most probable tokens up to this summed probability; 1 means all.
    #[arg(long, default_value_t = 0.95)]
    top_p: f32,
    /// Pick among tokens at least this probable relative to the most probable; 0 means all.
    #[arg(long, default_value_t = 0.05)]
    min_p: f32,
    /// Makes the last 64 tokens less probable; 1 changes nothing.
    #[arg(long, default_value_t = 1.0)]
    repeat_penalty: f32,
    /// Seed of the random numbers; -1 takes a fresh one.
    #[arg(short, long, default_value_t = -1, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    seed: i64,
    /// Generate only text of this GBNF grammar.
    #[arg(long, value_name = "GBNF", conflicts_with = "grammar_file")]
    grammar: Option<String>,
    /// File with the grammar.
    #[arg(long, value_name = "FILE")]
    grammar_file: Option<PathBuf>,
    /// Tokens of context [default: 4096, or what the model was trained with if that is less]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..))]
    ctx_size: Option<u32>,
    /// Threads [default: one a physical core]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    /// How the shared blocks of a converted file are brought into memory.
    #[arg(long, value_enum, default_value_t = Resolve::Auto)]
    resolve: Resolve,
    /// Keep the file's pages in memory after their content was copied elsewhere.
    #[arg(long)]
    keep_pages: bool,
    /// Print how long it took and what it took of memory, on stderr.
    #[arg(long)]
    perf: bool,
    /// Print llama.cpp's log on stderr.
    #[arg(short, long)]
    verbose: bool,
    /// Print one JSON object instead of the text.
    #[arg(long)]
    json: bool,
}

/// What `run` has to say; the shape of its JSON.
#[derive(Debug, Serialize)]
struct Report {
    text: String,
    tokens: Vec<Token>,
    prompt_tokens: usize,
    stop: &'static str,
    seed: u32,
    load_ms: f64,
    prefill_tps: f64,
    decode_tps: f64,
    resolve: &'static str,
    memory: Memory,
}

/// A mistake in how `run` was used, or in the model that it was given.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct RunError {
    message: String,
    hint: Option<&'static str>,
    exit: Exit,
}

impl RunError {
    pub(super) fn usage(message: impl ToString, hint: Option<&'static str>) -> Self {
        Self {
            message: message.to_string(),
            hint,
            exit: Exit::Usage,
        }
    }

    pub(super) fn bad_input(message: impl ToString) -> Self {
        Self {
            message: message.to_string(),
            hint: None,
            exit: Exit::BadInput,
        }
    }

    pub(super) fn hint(&self) -> Option<&str> {
        self.hint
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit
    }
}

impl Args {
    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        let prompt = self.read_prompt()?;
        let sampling = self.sampling()?;
        log::set_verbose(self.verbose);
        let stop = interrupt::stop_flag();

        let started = Instant::now();
        let bar = out.bar("load", 100, false);
        let loaded = load(
            &self.model,
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
        let params = ContextParams {
            n_ctx: self.ctx_size,
            n_threads: self.threads,
            stop: Arc::clone(&stop),
            ..ContextParams::default()
        };
        let mut context = Context::new(&model, &params)?;
        context.check_generative().map_err(RunError::bad_input)?;
        let load_ms = started.elapsed().as_secs_f64() * 1000.0;
        let trained = model.n_ctx_train();
        let beyond = |n_ctx| trained > 0 && n_ctx > trained && model.n_positions().is_none();
        if self.ctx_size.is_some_and(beyond) {
            out.warning(&format!(
                "the model was trained with {trained} tokens of context; beyond that text degrades"
            ));
        }

        let prompt = model
            .vocab()
            .tokenize(&prompt, true, true)
            .map_err(RunError::bad_input)?;
        let mut sampler = Sampler::new(&model, &sampling).map_err(from_sampler)?;
        let done = self.generate(&mut context, &mut sampler, &prompt)?;

        let report = Report {
            text: done.text,
            tokens: done.tokens,
            prompt_tokens: prompt.len(),
            stop: done.stop.as_str(),
            seed: sampler.seed(),
            load_ms,
            prefill_tps: done.timings.prefill_tps(),
            decode_tps: done.timings.decode_tps(),
            resolve: loaded.resolve,
            memory: measure(&model, &loaded.weights, loaded.shared_bytes),
        };
        if self.json {
            out.result(&report, true, |_| String::new())?;
        }
        if done.stop == StopReason::ContextFull {
            let full = format!("the context of {} tokens is full", context.n_ctx_seq());
            out.remark(&match model.n_positions() {
                Some(n) if n == context.n_ctx_seq() => full + ", and the model knows no larger",
                _ => full + "; -c makes it larger",
            });
        }
        if self.perf {
            // Asked for, so -q does not silence it.
            let _ = writeln!(io::stderr(), "{}", perf(&report, &done.timings));
        }
        Ok(Exit::Done)
    }

    fn read_prompt(&self) -> anyhow::Result<String> {
        if let Some(prompt) = &self.prompt {
            return Ok(prompt.clone());
        }
        let path = self.file_prompt.as_deref().unwrap_or(Path::new("-"));
        let mut bytes = Vec::new();
        if path == Path::new("-") {
            io::stdin()
                .lock()
                .read_to_end(&mut bytes)
                .context("cannot read the prompt from standard input")?;
        } else {
            bytes = std::fs::read(path)
                .with_context(|| format!("cannot read the prompt from {}", path.display()))?;
        }
        let mut text = String::from_utf8(bytes).map_err(|_| {
            RunError::usage(
                format!("the prompt in {} is not UTF-8", path.display()),
                None,
            )
        })?;
        // A file ends with a line end that is not meant, as for llama.cpp.
        if text.ends_with('\n') {
            text.pop();
        }
        Ok(text)
    }

    fn sampling(&self) -> anyhow::Result<SamplerParams> {
        let grammar = match (&self.grammar, &self.grammar_file) {
            (Some(text), _) => Some(text.clone()),
            (None, Some(path)) => Some(std::fs::read_to_string(path).with_context(|| {
                format!(
                    "cannot read the grammar (--grammar-file) from {}",
                    path.display()
                )
            })?),
            (None, None) => None,
        };
        Ok(SamplerParams {
            temp: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            penalty_repeat: self.repeat_penalty,
            seed: u32::try_from(self.seed).ok(),
            grammar,
            ..SamplerParams::default()
        })
    }

    /// Generates, and streams the text to stdout unless JSON was asked for.
    fn generate(
        &self,
        context: &mut Context,
        sampler: &mut Sampler,
        prompt: &[Token],
    ) -> anyhow::Result<Done> {
        let n_predict = usize::try_from(self.n_predict).ok();
        let mut generator =
            Generator::new(context, sampler, prompt, n_predict).map_err(from_generate)?;
        let mut stream = Utf8Stream::new();
        let mut stdout = io::stdout().lock();
        // False when the reader is gone, who then had enough.
        let mut show = |piece: &str| -> anyhow::Result<bool> {
            if self.json || piece.is_empty() {
                return Ok(true);
            }
            match stdout
                .write_all(piece.as_bytes())
                .and_then(|()| stdout.flush())
            {
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
                result => result
                    .map(|()| true)
                    .context("standard output: cannot write"),
            }
        };
        let (mut tokens, mut text) = (Vec::new(), String::new());
        while let Some(token) = generator.next_token().map_err(from_generate)? {
            tokens.push(token);
            let piece = stream.push(&generator.piece(token).map_err(from_generate)?);
            text += &piece;
            if !show(&piece)? {
                break;
            }
        }
        let mut rest = stream.finish();
        text += &rest;
        if !text.is_empty() && !text.ends_with('\n') {
            rest.push('\n');
        }
        show(&rest)?;
        Ok(Done {
            text,
            tokens,
            stop: generator.stop_reason().unwrap_or(StopReason::Interrupted),
            timings: generator.timings(),
        })
    }
}

struct Done {
    text: String,
    tokens: Vec<Token>,
    stop: StopReason,
    timings: Timings,
}

fn perf(report: &Report, timings: &Timings) -> String {
    let mib = |bytes: Option<u64>| {
        bytes.map_or_else(
            || "unknown".to_owned(),
            |bytes| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        )
    };
    let memory = &report.memory;
    format!(
        "load     {:10.1} ms\n\
         prefill  {:10.1} tokens/s ({} tokens)\n\
         decode   {:10.1} tokens/s ({} tokens)\n\
         sampling {:10.3} ms/token (seed {})\n\
         memory   {} PSS, {} of it weights, {} mappings",
        report.load_ms,
        report.prefill_tps,
        timings.n_prefill,
        report.decode_tps,
        timings.n_decode,
        timings.sample.as_secs_f64() * 1000.0 / timings.n_sample.max(1) as f64,
        report.seed,
        mib(memory.pss_bytes),
        mib(memory.weights_pss_bytes),
        memory.vmas.unwrap_or(0),
    )
}

fn from_sampler(error: SamplerError) -> anyhow::Error {
    let message = match &error {
        SamplerError::Parameter { name, range, value } => {
            let flag = match *name {
                "temp" => "--temp",
                "top_p" => "--top-p",
                "min_p" => "--min-p",
                "penalty_repeat" => "--repeat-penalty",
                other => other,
            };
            format!("{flag} must be {range}, not {value}")
        }
        SamplerError::Grammar(_) => error.to_string(),
        _ => return error.into(),
    };
    RunError::usage(message, None).into()
}

fn from_generate(error: GenerateError) -> anyhow::Error {
    match error {
        GenerateError::EmptyPrompt => RunError::usage(
            error,
            Some("give it something to go on from: -p \"Once upon a time\""),
        )
        .into(),
        GenerateError::PromptTooLong { .. } => RunError::usage(
            error,
            Some("-c TOKENS makes the context larger, or shorten the prompt"),
        )
        .into(),
        GenerateError::Model(ModelError::NotGenerative { .. }) => RunError::bad_input(error).into(),
        other => other.into(),
    }
}
