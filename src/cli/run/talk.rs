//! `--chat`: messages in, answers out, until the messages end.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use headshare_runtime::{Context, GenerateError, Model, SamplerParams, StopReason, Timings};

use super::super::interrupt;
use super::super::output::Output;
use super::args::{Args, GivenTemplate, Opening};
use super::error::{RunError, from_chat, from_generate};
use super::input::Input;
use super::stream::Stream;
use crate::chat::{ChatError, ChatTemplate, Session};

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

/// Talks until the messages end, of which the first may be given; returns the
/// conversation, and how long the answers took together.
pub(super) fn talk(
    args: &Args,
    opening: Opening,
    model: &Model,
    context: Context,
    sampling: SamplerParams,
    stop: &Arc<AtomicBool>,
    out: &Output,
) -> anyhow::Result<(Session, Timings)> {
    let Opening {
        prompt: mut first,
        system,
        template: given,
    } = opening;
    let from_chat = |error| from_chat(model, error);
    let template = template(given, args, model)?;
    let n_ctx = context.n_ctx();
    let mut session = Session::new(
        context,
        template,
        sampling,
        args.stops()?,
        args.n_predict(),
        system,
    )
    .map_err(from_chat)?;
    interrupt::remember_terminal();
    let mut input = Input::new(args.color())?;
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
        end.map_err(|error| from_generate(model, GenerateError::Show(error)))?;
        timings += answer.generated.timings;
        match answer.generated.stop {
            StopReason::ContextFull => out.remark(&format!(
                "the context of {n_ctx} tokens is full, which ends this answer; -c makes it larger"
            )),
            StopReason::Interrupted => input.answer_was_stopped(),
            _ => {}
        }
    }
    Ok((session, timings))
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
fn template(
    given: Option<GivenTemplate>,
    args: &Args,
    model: &Model,
) -> anyhow::Result<ChatTemplate> {
    let source = match given {
        Some(GivenTemplate::Text(source)) => source,
        Some(GivenTemplate::Name(name)) => {
            return ChatTemplate::builtin(&name)
                .ok_or_else(|| RunError::usage(format!("--chat-template {name}"), None).into());
        }
        None => model.chat_template(None).ok_or_else(|| {
            RunError::bad_input(format!(
                "{} has no chat template (tokenizer.chat_template)",
                args.model.path().display()
            ))
            .with_hint(
                "--chat-template NAME or --chat-template-file FILE gives one; a model that was \
                 not trained to talk goes on from -p",
            )
        })?,
    };
    let vocab = model.vocab();
    let text = |token| -> anyhow::Result<String> {
        let Some(token) = token else {
            return Ok(String::new());
        };
        let bytes = vocab.token_to_piece(token, true)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let template = ChatTemplate::new(&source, &text(vocab.bos())?, &text(vocab.eos())?);
    template.map_err(|error| from_chat(model, error.into()))
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
