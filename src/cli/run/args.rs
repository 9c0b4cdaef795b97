//! The arguments of `run`, named as llama-cli names them where it has them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;
use headshare_runtime::{ContextParams, SamplerParams};

use super::error::RunError;
use super::escapes;
use crate::cli::loading::Resolve;
use crate::cli::stdio;
use crate::input::text;

/// Tokens that are generated of a text when nothing is said.
const DEFAULT_N_PREDICT: usize = 128;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true)
    .args(["prompt", "file_prompt", "chat"]))]
pub(in crate::cli) struct Args {
    /// A GGUF file, plain or converted.
    #[arg(value_name = "FILE")]
    pub(super) model: PathBuf,
    /// Text to go on from; the output holds only what follows it.
    #[arg(short, long, allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with the text to go on from, taken as it is; - reads standard input.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file_prompt: Option<PathBuf>,
    /// Talk with the model: a line is a message, /help lists the commands.
    #[arg(long, visible_alias = "conversation")]
    pub(super) chat: bool,
    /// Tokens to generate; -1 goes on until the model ends or the context is
    /// full [default: 128, and -1 in a chat]
    #[arg(short, long, alias = "predict", allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-1..))]
    n_predict: Option<i32>,
    /// Text that ends the output, and is not part of it; can be given several
    /// times.
    #[arg(
        short = 'r',
        long = "stop",
        visible_alias = "reverse-prompt",
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    stops: Vec<String>,
    /// Read \n, \r, \t, \', \", \\ and \xHH in --prompt, --system and --stop as
    /// the characters they stand for; this is the default.
    #[arg(short, long, overrides_with = "no_escape")]
    escape: bool,
    /// Take --prompt, --system and --stop as they are.
    #[arg(long)]
    no_escape: bool,
    /// How the shared blocks of a converted file are brought into memory.
    #[arg(long, value_enum, default_value_t = Resolve::Auto)]
    pub(super) resolve: Resolve,
    /// Keep the file's pages in memory after their content was copied elsewhere.
    #[arg(long)]
    pub(super) keep_pages: bool,
    /// Print how long it took and what it took of memory, on stderr.
    #[arg(long)]
    pub(super) perf: bool,
    /// Print llama.cpp's log on stderr.
    #[arg(short, long)]
    pub(super) verbose: bool,
    /// Print one JSON object instead of the text.
    #[arg(long, conflicts_with = "chat")]
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
    /// What the model is told before the conversation (-sys).
    #[arg(
        long = "system",
        visible_alias = "system-prompt",
        value_name = "TEXT",
        conflicts_with_all = ["prompt", "file_prompt"],
        allow_hyphen_values = true
    )]
    system: Option<String>,
    /// File with the chat template (Jinja) to use instead of the model's own.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "file_prompt"])]
    chat_template_file: Option<PathBuf>,
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
    /// Pick among this many of the most probable tokens; 0 means all.
    #[arg(long, default_value_t = 40, allow_negative_numbers = true)]
    top_k: i32,
    /// Pick among the most probable tokens up to this summed probability; 1 means all.
    #[arg(long, default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f32,
    /// Pick among tokens at least this probable relative to the most probable; 0 means all.
    #[arg(long, default_value_t = 0.05, allow_negative_numbers = true)]
    min_p: f32,
    /// Pick among the tokens that are about as surprising as expected, up to
    /// this summed probability; 1 means all.
    #[arg(
        long,
        alias = "typical-p",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    typical: f32,
    /// Makes recent tokens less probable; 1 changes nothing.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// How many tokens are recent, for the penalties; -1 means the whole context.
    #[arg(long, default_value_t = 64, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-1..))]
    repeat_last_n: i32,
    /// Taken off the logits of recent tokens; 0 changes nothing.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Taken off the logits of recent tokens for each time that they came; 0
    /// changes nothing.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Seed of the random numbers; -1 takes a fresh one.
    #[arg(short, long, default_value_t = -1, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    seed: i64,
    /// Go on where the model would end its text.
    #[arg(long)]
    ignore_eos: bool,
    /// Generate only text of this GBNF grammar.
    #[arg(long, value_name = "GBNF", conflicts_with = "grammar_file")]
    grammar: Option<String>,
    /// File with the grammar; - reads standard input.
    #[arg(long, value_name = "FILE")]
    grammar_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Context and threads")]
struct EngineArgs {
    /// Tokens of context [default: 4096, or what the model was trained with if that is less]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..))]
    ctx_size: Option<u32>,
    /// Tokens of a prompt that are handed to llama.cpp at once.
    #[arg(short, long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Tokens of a prompt that are computed at once (-ub).
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    ubatch_size: u32,
    /// Threads [default: one a physical core, fewer while other programs are busy]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    /// Threads while a prompt is evaluated [default: as many] (-tb)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=512))]
    threads_batch: Option<u32>,
}

/// llama.cpp's short options of more than one letter, which clap has not, and
/// the commands that have them.
const SHORT_NAMES: [(&str, &str, &[&str]); 4] = [
    ("-cnv", "--chat", &["run"]),
    ("-sys", "--system", &["run"]),
    ("-tb", "--threads-batch", &["run"]),
    ("-ub", "--ubatch-size", &["run", "bench", "report"]),
];

/// Spells out those short options in the arguments of their commands.
pub(in crate::cli) fn spell_out(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let is_option = |arg: &OsString| arg.to_string_lossy().starts_with('-');
    let Some(at) = args.iter().skip(1).position(|arg| !is_option(arg)) else {
        return args;
    };
    let command = args[at + 1].to_string_lossy().into_owned();
    for arg in args[at + 2..].iter_mut().take_while(|arg| *arg != "--") {
        let name = SHORT_NAMES
            .iter()
            .find(|(short, _, commands)| *arg == *short && commands.contains(&&*command));
        if let Some((_, long, _)) = name {
            *arg = long.into();
        }
    }
    args
}

impl Args {
    /// Checks that standard input is read for one thing only.
    pub(super) fn check_stdin(&self) -> anyhow::Result<()> {
        let files = [
            ("--file", &self.file_prompt),
            ("--grammar-file", &self.sampling.grammar_file),
            ("--chat-template-file", &self.talk.chat_template_file),
        ];
        let files = (files.iter()).filter_map(|(flag, path)| Some((*flag, path.as_deref()?)));
        let messages = self.chat.then_some(("--chat", Path::new(text::STDIO)));
        Ok(stdio::check_inputs(files.chain(messages))?)
    }

    /// The text to go on from.
    pub(super) fn read_prompt(&self) -> anyhow::Result<String> {
        if let Some(prompt) = &self.prompt {
            return self.unescape("--prompt", prompt);
        }
        let path = self
            .file_prompt
            .as_deref()
            .unwrap_or(Path::new(text::STDIO));
        let bytes = text::read(path)
            .with_context(|| format!("cannot read the prompt from {}", text::name(path)))?;
        let mut text = String::from_utf8(bytes).map_err(|_| {
            RunError::usage(
                format!("the prompt in {} is not UTF-8", text::name(path)),
                None,
            )
        })?;
        // A file ends with a line end that is not meant, as for llama.cpp.
        if text.ends_with('\n') {
            text.pop();
        }
        Ok(text)
    }

    /// The system prompt of a chat.
    pub(super) fn system(&self) -> anyhow::Result<Option<String>> {
        let system = self.talk.system.as_deref();
        system
            .map(|text| self.unescape("--system", text))
            .transpose()
    }

    /// The chat template that was given instead of the model's.
    pub(super) fn chat_template(&self) -> anyhow::Result<Option<String>> {
        let path = self.talk.chat_template_file.as_deref();
        path.map(|path| read_text(path, "the chat template (--chat-template-file)"))
            .transpose()
    }

    /// The texts that end the output.
    pub(super) fn stops(&self) -> anyhow::Result<Vec<String>> {
        self.stops
            .iter()
            .map(|stop| self.unescape("--stop", stop))
            .collect()
    }

    fn unescape(&self, flag: &str, text: &str) -> anyhow::Result<String> {
        if self.no_escape {
            return Ok(text.to_owned());
        }
        escapes::process(text).map_err(|_| {
            RunError::usage(
                format!("{flag} is not UTF-8 with its escapes (\\x) carried out"),
                Some("--no-escape takes it as it is"),
            )
            .into()
        })
    }

    /// Tokens to generate; `None` goes on until something else ends it.
    pub(super) fn n_predict(&self) -> Option<usize> {
        match self.n_predict {
            Some(n) => usize::try_from(n).ok(),
            None => (!self.chat).then_some(DEFAULT_N_PREDICT),
        }
    }

    /// How tokens are picked.
    pub(super) fn sampling(&self) -> anyhow::Result<SamplerParams> {
        let args = &self.sampling;
        let grammar = match (&args.grammar, &args.grammar_file) {
            (Some(text), _) => Some(text.clone()),
            (None, Some(path)) => Some(read_text(path, "the grammar (--grammar-file)")?),
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

    /// The context to make.
    pub(super) fn context(&self, stop: &Arc<AtomicBool>) -> ContextParams {
        ContextParams {
            n_ctx: self.engine.ctx_size,
            n_batch: self.engine.batch_size,
            n_ubatch: self.engine.ubatch_size,
            n_threads: self.engine.threads,
            n_threads_batch: self.engine.threads_batch,
            stop: Arc::clone(stop),
            ..ContextParams::default()
        }
    }

    /// The context size that was asked for.
    pub(super) fn ctx_size(&self) -> Option<u32> {
        self.engine.ctx_size
    }
}

fn read_text(path: &Path, what: &str) -> anyhow::Result<String> {
    let read = || Ok::<_, anyhow::Error>(String::from_utf8(text::read(path)?)?);
    read().with_context(|| format!("cannot read {what} from {}", text::name(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(args: &[&str]) -> Vec<OsString> {
        spell_out(args.iter().map(OsString::from))
    }

    #[test]
    fn short_names_of_llama_cpp_are_spelled_out_for_their_commands() {
        assert_eq!(
            spelled(&[
                "p", "-q", "run", "m", "-cnv", "-sys", "-x", "-tb", "2", "--", "-tb"
            ]),
            [
                "p",
                "-q",
                "run",
                "m",
                "--chat",
                "--system",
                "-x",
                "--threads-batch",
                "2",
                "--",
                "-tb"
            ]
        );
        assert_eq!(
            spelled(&["p", "bench", "m", "-ub", "8", "-tb", "2"]),
            ["p", "bench", "m", "--ubatch-size", "8", "-tb", "2"]
        );
        let other = ["p", "exec", "--", "run", "-tb", "2"];
        assert_eq!(spelled(&other), other);
        assert_eq!(spelled(&["p"]), ["p"]);
    }
}
