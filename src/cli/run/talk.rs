//! `--chat`: messages in, answers out, until the messages end.

use std::io::{self, Write};
use std::sync::atomic::Ordering;

use headshare_jobs::{Advice, Error, Setup, said_of, sampling_in};
use headshare_runtime::{Model, SamplerParams, StopReason, Timings, VocabError};

use super::args::{Args, GivenTemplate};
use super::input::Input;
use super::stream::Stream;
use crate::chat::{ChatError, ChatTemplate, Session};
use crate::process::interrupt;
use crate::process::output::{Output, cannot_write};
use crate::render::perf::Perf;

const HELP: &str = "\
/reset         forget what was said and begin anew (also /clear)
/system TEXT   begin anew with another system prompt; without TEXT, the template's own
/help          this list
/quit          end the chat (also /exit, Ctrl-D)
A line that ends with \\ is continued by the next.
Ctrl-C stops an answer; once more, it ends the chat.";

/// What a line that begins with a slash asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command<'t> {
    Reset,
    System(Option<&'t str>),
    Help,
    Quit,
}

impl<'t> Command<'t> {
    /// `None` for messages: all that is not exactly one of these.
    fn parse(text: &'t str) -> Option<Self> {
        let text = text.trim();
        let (name, rest) = text
            .split_once(char::is_whitespace)
            .map_or((text, ""), |(name, rest)| (name, rest.trim()));
        Some(match (name, rest) {
            ("/reset" | "/clear", "") => Self::Reset,
            ("/help", "") => Self::Help,
            ("/quit" | "/exit", "") => Self::Quit,
            ("/system", "") => Self::System(None),
            ("/system", text) => Self::System(Some(text)),
            _ => return None,
        })
    }
}

/// A chat that was asked for.
pub(super) struct Chat {
    setup: Setup,
    /// The first message, if it was given.
    first: Option<String>,
    system: Option<String>,
    template: Option<GivenTemplate>,
    stops: Vec<String>,
    n_predict: Option<usize>,
    sampling: SamplerParams,
    color: bool,
}

impl Chat {
    /// What `args` ask for.
    ///
    /// # Errors
    /// When a file that they name cannot be read, an escape is wrong, or there is no
    /// such template.
    pub(super) fn new(args: &Args) -> Result<Self, Error> {
        Ok(Self {
            setup: args.setup(),
            system: args.system()?,
            template: args.chat_template()?,
            first: args.prompt()?,
            stops: args.stops()?,
            n_predict: args.n_predict().map(|n| n as usize),
            sampling: args.sampling()?,
            color: args.color(),
        })
    }

    /// Talks until the messages end; returns what that took.
    pub(super) fn talk(self, out: &Output) -> Result<Perf, Error> {
        let stop = interrupt::stop_flag();
        let (loaded, context) = self.setup.load(&stop, out)?;
        let model = &loaded.model;
        let from_chat = |error| from_chat(model, error);
        let template = template(self.template, model)?;
        let n_ctx = context.n_ctx();
        let sampling = sampling_in(&context, &self.sampling);
        let mut session = Session::new(
            context,
            template,
            sampling,
            self.stops,
            self.n_predict,
            self.system,
        )
        .map_err(from_chat)?;
        let mut first = self.first;
        interrupt::remember_terminal();
        let mut input = Input::new(self.color)?;
        if input.is_interactive() {
            out.remark(&format!(
                "chat with {}: /help lists the commands, Ctrl-C stops an answer, /quit ends",
                model.description()
            ));
        }
        let mut stream = Stream::new();
        let mut timings = Timings::default();
        while !stream.is_gone() {
            // While nothing is generated, a signal ends the program.
            stop.store(true, Ordering::Relaxed);
            let (message, typed) = match first.take() {
                Some(message) => {
                    input.show(&message);
                    (message, false)
                }
                None => match input.message()? {
                    Some(message) => (message, input.is_interactive()),
                    None => break,
                },
            };
            // What comes from a pipe is text, whatever it looks like.
            match Command::parse(&message).filter(|_| typed) {
                Some(Command::Quit) => break,
                Some(command) => {
                    obey(command, &mut session, out);
                    continue;
                }
                None if message.trim().is_empty() => continue,
                None => {}
            }
            let question = match session.prepare(&message) {
                // A person can try again; a script has failed.
                Err(error @ ChatError::TooLong { .. }) if input.is_interactive() => {
                    out.warning(&format!("{error}; -c makes it larger"));
                    continue;
                }
                question => question.map_err(from_chat)?,
            };
            if question.forgets() > 0 {
                out.remark(&format!(
                "the context of {n_ctx} tokens is full: the oldest {} forgotten; -c makes it larger",
                match question.forgets() {
                    1 => "exchange is".to_owned(),
                    n => format!("{n} exchanges are"),
                }
            ));
            }
            stop.store(false, Ordering::Relaxed);
            let answer = session
                .answer(question, |piece| stream.show(piece))
                .map_err(from_chat)?;
            let end = match answer.generated.stop {
                StopReason::Interrupted if answer.generated.text.is_empty() => {
                    stream.show("\n").map(drop)
                }
                _ => stream.end_line(),
            };
            end.map_err(cannot_write)?;
            timings += answer.generated.timings;
            match answer.generated.stop {
            StopReason::ContextFull => out.remark(&format!(
                "the context of {n_ctx} tokens is full, which ends this answer; -c makes it larger"
            )),
            StopReason::Interrupted => input.answer_was_stopped(),
            _ => {}
        }
        }
        let (seed, threads) = (session.seed(), session.thread_use());
        Ok(Perf::of_chat(&loaded, seed, timings, threads))
    }
}

fn obey(command: Command<'_>, session: &mut Session, out: &Output) {
    match command {
        Command::Reset => {
            session.reset();
            out.remark("a new conversation");
        }
        Command::System(text) => {
            session.set_system(text.map(str::to_owned));
            // Does it leave room? A message would fail on it in the same way.
            match session.prepare("Hello") {
                Err(error) => out.warning(&error.to_string()),
                Ok(_) => out.remark("a new conversation, with another system prompt"),
            }
        }
        // Asked for, so -q does not silence it.
        Command::Help => {
            let _ = writeln!(io::stderr(), "{HELP}");
        }
        Command::Quit => {}
    }
}

/// The template that was given, or the model's own.
fn template(given: Option<GivenTemplate>, model: &Model) -> Result<ChatTemplate, Error> {
    let of_model = |error: VocabError| said_of(model, error);
    let source = match given {
        Some(GivenTemplate::Text(source)) => source,
        Some(GivenTemplate::Name(name)) => {
            return ChatTemplate::builtin(&name)
                .ok_or_else(|| Error::usage(format!("--chat-template {name}")));
        }
        None => model.chat_template(None).ok_or_else(|| {
            Error::bad_input(format!(
                "{} has no chat template (tokenizer.chat_template)",
                model.file().display()
            ))
            .hint(
                "--chat-template NAME or --chat-template-file FILE gives one; a model that was \
                 not trained to talk goes on from -p",
            )
        })?,
    };
    let vocab = model.vocab();
    let text = |token| -> Result<String, Error> {
        let Some(token) = token else {
            return Ok(String::new());
        };
        let bytes = vocab.token_to_piece(token, true).map_err(of_model)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let template = ChatTemplate::new(&source, &text(vocab.bos())?, &text(vocab.eos())?);
    template.map_err(|error| from_chat(model, error.into()))
}

/// What there is to say about an answer that does not come.
fn from_chat(model: &Model, error: ChatError) -> Error {
    match error {
        ChatError::Template(_) => {
            Error::bad_input(error).hint("--chat-template-file FILE gives another template")
        }
        ChatError::TooLong { .. } => {
            Error::usage(error).advise(Advice::LargerContextOrShorterPrompt)
        }
        ChatError::Generate(error) => said_of(model, error),
        ChatError::Sampler(error) => said_of(model, error),
        ChatError::Vocab(error) => said_of(model, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_messages() {
        for (text, command) in [
            ("/reset", Some(Command::Reset)),
            (" /clear ", Some(Command::Reset)),
            ("/quit", Some(Command::Quit)),
            ("/exit", Some(Command::Quit)),
            ("/help", Some(Command::Help)),
            ("/system", Some(Command::System(None))),
            (
                "/system  Be brief. ",
                Some(Command::System(Some("Be brief."))),
            ),
            ("/quit now", None),
            ("/think", None),
            ("/etc is a folder", None),
            ("/", None),
            ("/System", None),
            ("/etc/passwd, what is it?", None),
            ("/2 of it?", None),
            ("say /quit", None),
            ("", None),
        ] {
            assert_eq!(Command::parse(text), command, "{text:?}");
        }
    }
}
