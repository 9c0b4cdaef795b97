//! One configuration loaded and run once, in a process of its own, and how
//! `bench` starts such a process and hears from it.
//!
//! The worker is this program under a hidden subcommand. It writes one JSON
//! object a line, a [`Message`], to stdout. Its stdin is a pipe that nothing is
//! written to: when the other end closes, the worker ends too.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum;
use headshare_jobs::Advice;
use headshare_runtime::preflight;
use headshare_runtime::threads::{physical_cores, processor_time};
use headshare_runtime::{Context, ContextParams, Model, ModelParams, Token, Vocab};
use serde::{Deserialize, Serialize};

use crate::cli::Exit;
use crate::cli::child::{self, ChildError};
use crate::cli::failure::{self, Failure};
use crate::cli::loading::{self, Loaded, Memory, Resolve};
use crate::cli::output::Output;

/// The worker's subcommand.
pub(super) const COMMAND: &str = "bench-worker";

/// How a file is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LoadMode {
    /// llama.cpp's own loading, which maps the file.
    StockMmap,
    /// llama.cpp's own loading, which reads the file.
    StockRead,
    /// As `run` does, with `--resolve auto`.
    Auto,
    /// As `run` does, with `--resolve fold`.
    Fold,
    /// As `run` does, with `--resolve map`.
    Map,
    /// As `run` does, with `--resolve expand`.
    Expand,
}

impl LoadMode {
    pub(super) fn resolving(resolve: Resolve) -> Self {
        match resolve {
            Resolve::Auto => Self::Auto,
            Resolve::Fold => Self::Fold,
            Resolve::Map => Self::Map,
            Resolve::Expand => Self::Expand,
        }
    }

    fn resolve(self) -> Option<Resolve> {
        match self {
            Self::StockMmap | Self::StockRead => None,
            Self::Auto => Some(Resolve::Auto),
            Self::Fold => Some(Resolve::Fold),
            Self::Map => Some(Resolve::Map),
            Self::Expand => Some(Resolve::Expand),
        }
    }

    fn name(self) -> String {
        let value = self.to_possible_value();
        value.expect("no value is skipped").get_name().to_owned()
    }
}

/// What is run, the same for every configuration; llama-bench's flags.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct Test {
    /// Tokens of the prompt; 0 leaves prefill out.
    #[arg(short = 'p', long, default_value_t = 512)]
    pub(in crate::cli) n_prompt: u32,
    /// Tokens to generate; 0 leaves decode out.
    #[arg(short = 'n', long, default_value_t = 128)]
    pub(in crate::cli) n_gen: u32,
    /// Tokens of the prompt handed to llama.cpp at once.
    #[arg(short, long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) batch_size: u32,
    /// Tokens computed at once (-ub).
    #[arg(long, visible_alias = "ub", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) ubatch_size: u32,
}

impl Test {
    /// Whether there is anything to measure.
    pub(in crate::cli) fn check(&self) -> anyhow::Result<()> {
        if self.n_prompt == 0 && self.n_gen == 0 {
            let error = headshare_jobs::Error::usage("-p 0 -n 0 leaves nothing to measure");
            return Err(error.advise(Advice::MeasureSomething).into());
        }
        Ok(())
    }

    /// The arguments that ask for this.
    pub(in crate::cli) fn arguments(&self) -> Vec<String> {
        let all = [
            ("--n-prompt", self.n_prompt),
            ("--n-gen", self.n_gen),
            ("--batch-size", self.batch_size),
            ("--ubatch-size", self.ubatch_size),
        ];
        all.into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value.to_string()])
            .collect()
    }
}

/// Loads and runs one configuration, for `bench`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    file: PathBuf,
    #[arg(long = "way")]
    load_mode: LoadMode,
    #[arg(long)]
    threads: Option<u32>,
    #[command(flatten)]
    test: Test,
}

/// What a worker has to say, in this order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Loaded(LoadedModel),
    Prefill(Took),
    Decode(Took),
    Finished {
        memory: Memory,
    },
    Failed {
        message: String,
        hint: Option<String>,
    },
}

/// Time by the clock, and of all processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Took {
    pub(super) ns: u64,
    pub(super) cpu_ns: Option<u64>,
}

impl Took {
    pub(super) fn ms(self) -> f64 {
        self.ns as f64 / 1e6
    }
}

/// Measures what something takes.
struct Clock {
    started: Instant,
    cpu: Option<Duration>,
}

impl Clock {
    fn start() -> Self {
        Self {
            cpu: processor_time(),
            started: Instant::now(),
        }
    }

    fn took(&self) -> Took {
        let ns = self.started.elapsed().as_nanos() as u64;
        let cpu = processor_time().zip(self.cpu);
        Took {
            ns,
            cpu_ns: cpu.map(|(now, then)| now.saturating_sub(then).as_nanos() as u64),
        }
    }
}

/// A model that is loaded, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LoadedModel {
    pub(super) load: Took,
    pub(super) resolve: String,
    pub(super) memory: Memory,
    pub(super) model_type: String,
    pub(super) model_size: u64,
    pub(super) model_n_params: u64,
    pub(super) n_threads: u32,
}

/// What one worker measured.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) loaded: LoadedModel,
    pub(super) prefill: Option<Took>,
    pub(super) decode: Option<Took>,
    /// After generation.
    pub(super) memory: Memory,
}

impl Args {
    /// The worker itself.
    pub(in crate::cli) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        child::work_for_parent(say_failed);
        if let Err(error) = self.measure(out) {
            let failure = failure::describe(&error);
            say_failed(&failure)?;
            return Ok(failure.exit);
        }
        Ok(Exit::Done)
    }

    fn measure(&self, out: &Output) -> anyhow::Result<()> {
        let test = &self.test;
        if self.load_mode.resolve().is_none() {
            preflight::check_file(&self.file).map_err(|error| {
                headshare_jobs::Error::bad_input(format!("{}: {error}", self.file.display()))
            })?;
        }
        let clock = Clock::start();
        let loaded = self.load(out)?;
        let (resolve, shared_bytes, weights) =
            (loaded.resolve, loaded.shared_bytes, loaded.weights);
        let model = Arc::new(loaded.model);
        model.check_generative().map_err(loading::from_model)?;
        let params = ContextParams {
            n_ctx: Some(test.n_prompt.max(test.n_gen)),
            // What llama.cpp loads by itself also runs as llama.cpp does it.
            n_threads: match self.load_mode.resolve() {
                None => Some(self.threads.unwrap_or_else(physical_cores)),
                Some(_) => self.threads,
            },
            n_batch: test.batch_size,
            n_ubatch: test.ubatch_size,
            ..ContextParams::default()
        };
        let mut context = Context::new(&model, &params)?;
        let load = clock.took();
        context
            .check_generative()
            .map_err(headshare_jobs::Error::bad_input)?;
        let memory = || loading::measure(&model, &weights, shared_bytes);
        say(&Message::Loaded(LoadedModel {
            load,
            resolve: resolve.to_owned(),
            memory: memory(),
            model_type: model.description(),
            model_size: model.size_bytes(),
            model_n_params: model.n_params(),
            n_threads: context.n_threads(),
        }))?;

        // Once unmeasured: every weight is touched, every buffer is there.
        let mut tokens = RandomTokens::new(model.vocab())?;
        prefill(
            &mut context,
            &mut tokens,
            test.n_prompt.min(test.ubatch_size),
        )?;
        decode(&mut context, &mut tokens, test.n_gen.min(1))?;
        if test.n_prompt > 0 {
            say(&Message::Prefill(prefill(
                &mut context,
                &mut tokens,
                test.n_prompt,
            )?))?;
        }
        if test.n_gen > 0 {
            say(&Message::Decode(decode(
                &mut context,
                &mut tokens,
                test.n_gen,
            )?))?;
        }
        say(&Message::Finished { memory: memory() })?;
        Ok(())
    }

    fn load(&self, out: &Output) -> anyhow::Result<Loaded> {
        if let Some(resolve) = self.load_mode.resolve() {
            return loading::load(&self.file, resolve, true, &mut |_| true, out);
        }
        let params = ModelParams {
            use_mmap: self.load_mode == LoadMode::StockMmap,
            // Done before: stock llama.cpp does not.
            check_metadata: false,
            ..ModelParams::default()
        };
        let model = Model::load(&self.file, &params, None).map_err(loading::from_model)?;
        Ok(Loaded::stock(model))
    }
}

/// Evaluates a prompt of `count` tokens in an empty context.
fn prefill(context: &mut Context, tokens: &mut RandomTokens, count: u32) -> anyhow::Result<Took> {
    let prompt = tokens.text(count);
    context.clear();
    let clock = Clock::start();
    let part = context.n_batch().min(context.n_ubatch());
    for batch in prompt.chunks(part as usize) {
        context.decode(batch)?;
    }
    Ok(clock.took())
}

/// Evaluates `count` tokens one after the other in an empty context.
fn decode(context: &mut Context, tokens: &mut RandomTokens, count: u32) -> anyhow::Result<Took> {
    let text = tokens.text(count);
    context.clear();
    let clock = Clock::start();
    for token in text {
        context.decode(&[token])?;
    }
    Ok(clock.took())
}

/// Random tokens, the same in every worker; a text begins with BOS where the
/// model adds one.
struct RandomTokens {
    bos: Option<Token>,
    n_tokens: u64,
    state: u64,
}

impl RandomTokens {
    fn new(vocab: Vocab<'_>) -> anyhow::Result<Self> {
        let n_tokens = u64::try_from(vocab.n_tokens()).unwrap_or(0);
        if n_tokens == 0 {
            return Err(headshare_jobs::Error::bad_input("the model has no vocabulary").into());
        }
        Ok(Self {
            bos: vocab.leading_bos(),
            n_tokens,
            state: 1,
        })
    }

    fn text(&mut self, len: u32) -> Vec<Token> {
        (0..len)
            .map(|i| match self.bos {
                Some(bos) if i == 0 => bos,
                _ => (self.next() % self.n_tokens) as Token,
            })
            .collect()
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn say_failed(failure: &Failure) -> io::Result<()> {
    say(&Message::Failed {
        message: failure.message.clone(),
        hint: failure.hint.clone(),
    })
}

fn say(message: &Message) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, message)?;
    stdout.write_all(b"\n")?;
    stdout.flush()?;
    Ok(())
}

/// Has a worker load and run `file`, and waits for it. What it writes to
/// stderr is passed on, but for lines in `known`, which grows.
pub(super) fn measure(
    file: &Path,
    load_mode: LoadMode,
    threads: Option<u32>,
    test: &Test,
    known: &mut BTreeSet<String>,
) -> anyhow::Result<Measured> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.arg(COMMAND).args(["--way", &load_mode.name()]);
    if let Some(threads) = threads {
        command.args(["--threads", &threads.to_string()]);
    }
    let mut child = command
        .args(test.arguments())
        .arg("--")
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start a worker")?;
    // Taken out: `wait` would close it, and the worker end before its time.
    let alive = child.stdin.take();
    let mut stderr = child.stderr.take().expect("piped");
    let errors = crate::cli::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })?;
    let heard = listen(BufReader::new(child.stdout.take().expect("piped")));
    let status = child.wait().context("cannot wait for a worker")?;
    drop(alive);
    let errors = errors.join().unwrap_or_default();
    for line in errors
        .lines()
        .filter(|line| known.insert((*line).to_owned()))
    {
        let _ = writeln!(io::stderr(), "{line}");
    }
    match heard? {
        Heard::All(measured) => Ok(*measured),
        Heard::Failure(message, hint) => Err(ChildError {
            message,
            hint,
            exit: Exit::from_code(status.code()),
        }
        .into()),
        Heard::Silence => Err(child::ended_early(&file.display().to_string(), status)),
    }
}

enum Heard {
    All(Box<Measured>),
    Failure(String, Option<String>),
    Silence,
}

fn listen(lines: impl BufRead) -> anyhow::Result<Heard> {
    let (mut loaded, mut prefill, mut decode) = (None, None, None);
    for line in lines.lines() {
        let line = line.context("cannot read from a worker")?;
        match serde_json::from_str(&line).with_context(|| format!("a worker said {line:?}"))? {
            Message::Loaded(model) => loaded = Some(model),
            Message::Prefill(took) => prefill = Some(took),
            Message::Decode(took) => decode = Some(took),
            Message::Failed { message, hint } => return Ok(Heard::Failure(message, hint)),
            Message::Finished { memory } => {
                let Some(loaded) = loaded.take() else { break };
                return Ok(Heard::All(Box::new(Measured {
                    loaded,
                    prefill,
                    decode,
                    memory,
                })));
            }
        }
    }
    Ok(Heard::Silence)
}
