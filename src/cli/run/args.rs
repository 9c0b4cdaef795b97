//! The arguments of `run`, named as llama-cli names them where it has them.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use headshare_jobs::{Error, Resolve, Setup, read_input, without_line_end};
use headshare_runtime::SamplerParams;
use headshare_runtime::chat::BuiltinTemplate;

use super::escapes;
use crate::cli::llama_cpp::{Gpu, Log, OneModel, Threads, context_size};
use crate::cli::stdio;
use crate::cli::values::resolve;
use crate::input::text::{self, without_mark};

/// Tokens that are generated of a text when nothing is said.
const DEFAULT_N_PREDICT: u32 = 128;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true)
    .args(["prompt", "file_prompt", "chat"]))]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    pub(super) model: OneModel,
    /// The text to continue. Only the continuation is printed. With --chat, the
    /// first message.
    #[arg(short, long, allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Read the prompt from this file, without reading escapes; - reads
    /// standard input.
    #[arg(
        short = 'f',
        long = "file",
        value_name = "FILE",
        conflicts_with = "prompt"
    )]
    file_prompt: Option<PathBuf>,
    /// Talk with the model (-cnv). Each line is a message. In a terminal, /help
    /// lists the commands.
    #[arg(long, visible_alias = "conversation")]
    pub(super) chat: bool,
    /// Tokens to generate; -1 means until the model stops or the context is
    /// full [default: 128, in a chat -1]
    #[arg(short, long, alias = "predict", allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-1..))]
    n_predict: Option<i32>,
    /// Stop when the model writes this text, which is not printed. Can be given
    /// several times.
    #[arg(
        short = 'r',
        long = "stop",
        visible_alias = "reverse-prompt",
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    stops: Vec<String>,
    /// Read the escapes \n, \r, \t, \', \", \\ and \xHH in --prompt, --system
    /// and --stop (the default).
    #[arg(short, long, overrides_with = "no_escape")]
    escape: bool,
    /// Do not read escapes in --prompt, --system and --stop.
    #[arg(long)]
    no_escape: bool,
    /// How shared blocks of a converted file are loaded.
    #[arg(long, value_parser = resolve(), default_value = "auto")]
    resolve: Resolve,
    /// Keep the file's pages in memory after their content was copied.
    #[arg(long)]
    keep_pages: bool,
    /// Print timings and memory on stderr.
    #[arg(long)]
    pub(super) perf: bool,
    #[command(flatten)]
    pub(super) log: Log,
    /// Print one JSON object instead of the text.
    #[arg(long, conflicts_with_all = ["chat", "system", "system_prompt_file", "chat_template",
        "chat_template_file"])]
    pub(super) json: bool,
    #[command(flatten)]
    talk: TalkArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Chat")]
struct TalkArgs {
    /// The system prompt of the chat (-sys).
    #[arg(
        long = "system",
        visible_alias = "system-prompt",
        value_name = "TEXT",
        requires = "chat",
        allow_hyphen_values = true
    )]
    system: Option<String>,
    /// File with the system prompt of the chat (-sysf).
    #[arg(
        long,
        visible_alias = "system-file",
        value_name = "FILE",
        requires = "chat",
        conflicts_with = "system"
    )]
    system_prompt_file: Option<PathBuf>,
    /// The chat template to use instead of the model's own: the name of one of
    /// llama.cpp's (chatml, llama3, ...), or the template itself, as Jinja.
    #[arg(long, value_name = "NAME-OR-TEXT", requires = "chat")]
    chat_template: Option<String>,
    /// File with the chat template (Jinja).
    #[arg(
        long,
        value_name = "FILE",
        requires = "chat",
        conflicts_with = "chat_template"
    )]
    chat_template_file: Option<PathBuf>,
    /// Colour what is typed in a terminal.
    #[arg(long, value_name = "WHEN", value_enum, num_args = 0..=1, require_equals = true,
          default_value_t = Color::Off, default_missing_value = "on")]
    color: Color,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// In a terminal.
    #[value(alias = "auto")]
    On,
    /// Never.
    Off,
}

/// A chat template that was given.
pub(super) enum GivenTemplate {
    /// The name of one that llama.cpp has.
    Name(String),
    /// Jinja.
    Text(String),
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// Temperature; 0 always takes the most probable token.
    #[arg(
        long,
        alias = "temperature",
        default_value_t = 0.8,
        allow_negative_numbers = true
    )]
    temp: f32,
    /// Sample from this many of the most probable tokens; 0 means all.
    #[arg(long, default_value_t = 40, allow_negative_numbers = true)]
    top_k: i32,
    /// Sample from the most probable tokens that together have this
    /// probability; 1 means all.
    #[arg(long, default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f32,
    /// Sample from the tokens that have at least this part of the most probable
    /// token's probability; 0 means all.
    #[arg(long, default_value_t = 0.05, allow_negative_numbers = true)]
    min_p: f32,
    /// Locally typical sampling: sample from the tokens whose surprise is
    /// closest to the expected one and that together have this probability; 1
    /// means all.
    #[arg(
        long,
        alias = "typical-p",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    typical: f32,
    /// Penalty on tokens that occurred recently; 1 means none.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// How many of the last tokens the penalties look at; -1 means the whole
    /// context.
    #[arg(long, default_value_t = 64, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-1..))]
    repeat_last_n: i32,
    /// Subtracted from the logits of tokens that occurred recently; 0 means
    /// none.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtracted from the logits of recent tokens once for each occurrence; 0
    /// means none.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Seed of the random numbers; -1 picks one at random.
    #[arg(short, long, default_value_t = -1, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    seed: i64,
    /// Continue even if the model would end the text.
    #[arg(long)]
    ignore_eos: bool,
    /// Generate only text that this GBNF grammar allows.
    #[arg(long, value_name = "GBNF", conflicts_with = "grammar_file")]
    grammar: Option<String>,
    /// File with the grammar; - reads standard input.
    #[arg(long, value_name = "FILE")]
    grammar_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Context and threads")]
struct EngineArgs {
    /// Context size in tokens; 0 means what the model was trained with
    /// [default: 4096, or what the model was trained with if that is less]
    #[arg(short, long, value_parser = context_size(1..=u32::MAX))]
    ctx_size: Option<u32>,
    /// Most tokens of a prompt that are handed to llama.cpp at once.
    #[arg(short, long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Most tokens of a prompt that are computed at once (-ub).
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    ubatch_size: u32,
    #[command(flatten)]
    threads: Threads,
    /// Number of threads while a prompt is evaluated (-tb) [default: as
    /// --threads]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=512))]
    threads_batch: Option<u32>,
    #[command(flatten)]
    gpu: Gpu,
}

impl Args {
    /// Checks that standard input is read for one thing only.
    pub(super) fn check_stdin(&self) -> Result<(), Error> {
        let files = [
            ("--file", &self.file_prompt),
            ("--grammar-file", &self.sampling.grammar_file),
            ("--system-prompt-file", &self.talk.system_prompt_file),
            ("--chat-template-file", &self.talk.chat_template_file),
        ];
        let files = (files.iter()).filter_map(|(flag, path)| Some((*flag, path.as_deref()?)));
        let messages = self.chat.then_some(("--chat", Path::new(text::STDIO)));
        stdio::check_inputs(files.chain(messages))
    }

    /// The text to go on from, or the first message of a chat.
    pub(super) fn prompt(&self) -> Result<Option<String>, Error> {
        match (&self.prompt, &self.file_prompt) {
            (Some(prompt), _) => self.unescape("--prompt", prompt).map(Some),
            (None, Some(path)) => {
                let text = read_input(path, "the prompt (--file)")?;
                Ok(Some(without_line_end(text)))
            }
            (None, None) => Ok(None),
        }
    }

    /// The system prompt of a chat.
    pub(super) fn system(&self) -> Result<Option<String>, Error> {
        match (&self.talk.system, &self.talk.system_prompt_file) {
            (Some(text), _) => self.unescape("--system", text).map(Some),
            (None, Some(path)) => {
                let text = read_input(path, "the system prompt (--system-prompt-file)")?;
                Ok(Some(without_line_end(text)))
            }
            (None, None) => Ok(None),
        }
    }

    /// The chat template that was given instead of the model's.
    pub(super) fn chat_template(&self) -> Result<Option<GivenTemplate>, Error> {
        if let Some(path) = &self.talk.chat_template_file {
            let text = read_input(path, "the chat template (--chat-template-file)")?;
            return Ok(Some(GivenTemplate::Text(text)));
        }
        let Some(given) = &self.talk.chat_template else {
            return Ok(None);
        };
        let names = BuiltinTemplate::names();
        if names.contains(given) {
            return Ok(Some(GivenTemplate::Name(given.clone())));
        }
        if ["{{", "{%"].iter().any(|mark| given.contains(mark)) {
            return Ok(Some(GivenTemplate::Text(without_mark(given).to_owned())));
        }
        let known = names.join(", ");
        let message =
            format!("--chat-template {given}: neither Jinja nor the name of a template: {known}");
        Err(Error::usage(message).hint("--chat-template-file FILE takes one from a file"))
    }

    /// Whether what is typed is to be coloured.
    pub(super) fn color(&self) -> bool {
        self.talk.color == Color::On
    }

    /// The texts that end the output.
    pub(super) fn stops(&self) -> Result<Vec<String>, Error> {
        self.stops
            .iter()
            .map(|stop| self.unescape("--stop", stop))
            .collect()
    }

    fn unescape(&self, flag: &str, text: &str) -> Result<String, Error> {
        let text = without_mark(text);
        if self.no_escape {
            return Ok(text.to_owned());
        }
        escapes::process(text).map_err(|_| {
            let message = format!("{flag} is not UTF-8 with its escapes (\\x) carried out");
            Error::usage(message).hint("--no-escape takes it as it is")
        })
    }

    /// Tokens to generate; `None` goes on until something else ends it.
    pub(super) fn n_predict(&self) -> Option<u32> {
        match self.n_predict {
            Some(n) => u32::try_from(n).ok(),
            None => (!self.chat).then_some(DEFAULT_N_PREDICT),
        }
    }

    /// How tokens are picked.
    pub(super) fn sampling(&self) -> Result<SamplerParams, Error> {
        let args = &self.sampling;
        let grammar = match (&args.grammar, &args.grammar_file) {
            (Some(text), _) => Some(without_mark(text).to_owned()),
            (None, Some(path)) => Some(read_input(path, "the grammar (--grammar-file)")?),
            (None, None) => None,
        };
        Ok(SamplerParams {
            temp: args.temp,
            top_k: args.top_k,
            typical_p: args.typical,
            top_p: args.top_p,
            min_p: args.min_p,
            penalty_last_n: args.repeat_last_n,
            penalty_repeat: args.repeat_penalty,
            penalty_freq: args.frequency_penalty,
            penalty_present: args.presence_penalty,
            ignore_eos: args.ignore_eos,
            seed: u32::try_from(args.seed).ok(),
            grammar,
        })
    }

    /// The model, and how it is run.
    pub(super) fn setup(&self) -> Setup {
        Setup {
            file: self.model.path().to_owned(),
            resolve: self.resolve,
            keep_pages: self.keep_pages,
            ctx_size: self.engine.ctx_size,
            batch_size: self.engine.batch_size,
            ubatch_size: self.engine.ubatch_size,
            threads: self.engine.threads.threads,
            threads_batch: self.engine.threads_batch,
        }
    }

    /// What a GPU is to do.
    pub(super) fn gpu(&self) -> &Gpu {
        &self.engine.gpu
    }
}
