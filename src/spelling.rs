//! Words with one dash and several letters, as llama.cpp's programs have them:
//! the ones that this program knows are spelled out before clap sees them, and
//! all others are refused by name. clap alone would read a word as a cluster of
//! letters, the last of them with the rest as its value: `-rea` as `-r ea`.

use std::ffi::{OsStr, OsString};

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{Arg, ArgAction, Command};

/// llama.cpp's words for options of ours; they hold for every command that has
/// the option.
const WORDS: [(&str, &str); 6] = [
    ("-cnv", "chat"),
    ("-ngl", "n-gpu-layers"),
    ("-sys", "system"),
    ("-sysf", "system-prompt-file"),
    ("-tb", "threads-batch"),
    ("-ub", "ubatch-size"),
];

/// Spells out the words of `args`, the arguments of `program`.
///
/// # Errors
/// A word that is no option.
pub(crate) fn spell_out(
    mut program: Command,
    args: impl IntoIterator<Item = OsString>,
) -> Result<Vec<OsString>, Error> {
    program.build();
    let mut command = &program;
    let mut args = args.into_iter();
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    let mut args = args.peekable();
    while let Some(word) = args.next() {
        if word == "--" {
            out.push(word);
            break;
        }
        if !is_option(&word) {
            if let Some(subcommand) = command.find_subcommand(&word) {
                command = subcommand;
            } else if takes_only_what_is_last(command) {
                // The command line of another program, without its `--`.
                out.push(word);
                break;
            }
            out.push(word);
            continue;
        }
        let (option, mut spelled) = look_up(command, &word)?;
        if let Some(option) = option
            && let Some(value) = args.next_if(|next| is_value(option, next))
        {
            if option.is_require_equals_set() {
                spelled.push("=");
                spelled.push(value);
                out.push(spelled);
            } else {
                out.extend([spelled, value]);
            }
        } else {
            out.push(spelled);
        }
    }
    out.extend(args);
    Ok(out)
}

/// The option that `word` is, if its value may stand in the next word, and the
/// word as clap shall see it.
fn look_up<'c>(command: &'c Command, word: &OsStr) -> Result<(Option<&'c Arg>, OsString), Error> {
    let as_it_is = word.to_owned();
    let text = word.to_string_lossy();
    if let Some(name) = text.strip_prefix("--") {
        let option = match name.contains('=') {
            true => None,
            false => long(command, name),
        };
        return Ok((option, as_it_is));
    }
    let known = WORDS.iter().find(|(short, _)| *short == text);
    if let Some((_, name)) = known
        && let Some(option) = long(command, name)
    {
        return Ok((Some(option), format!("--{name}").into()));
    }
    let mut letters = text[1..].chars();
    let option = letters.next().and_then(|letter| short(command, letter));
    match letters.as_str() {
        "" => Ok((option, as_it_is)),
        value if option.is_some_and(takes_value) && may_be_joined(value) => Ok((None, as_it_is)),
        // No option of anyone's, and for clap to refuse.
        _ if is_number(&text) => Ok((None, as_it_is)),
        _ => Err(unknown(command, &text)),
    }
}

fn is_option(word: &OsStr) -> bool {
    word.len() > 1 && word.as_encoded_bytes().starts_with(b"-")
}

fn takes_only_what_is_last(command: &Command) -> bool {
    let mut positionals = command.get_positionals().peekable();
    positionals.peek().is_some() && positionals.all(Arg::is_last_set)
}

fn long<'c>(command: &'c Command, name: &str) -> Option<&'c Arg> {
    command.get_arguments().find(|arg| {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        arg.get_long() == Some(name) || aliases.contains(&name)
    })
}

fn short(command: &Command, letter: char) -> Option<&Arg> {
    command.get_arguments().find(|arg| {
        let aliases = arg.get_all_short_aliases().unwrap_or_default();
        arg.get_short() == Some(letter) || aliases.contains(&letter)
    })
}

fn takes_value(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::Set | ArgAction::Append)
}

/// Whether clap takes `next` as the value of `option`. Where a value needs not
/// be given, only one of those that there are is.
fn is_value(option: &Arg, next: &OsStr) -> bool {
    if !takes_value(option) {
        return false;
    }
    let text = next.to_string_lossy();
    if option.is_require_equals_set() {
        let values = option.get_possible_values();
        return values.iter().any(|value| value.matches(&text, false));
    }
    !is_option(next)
        || option.is_allow_hyphen_values_set()
        || (option.is_allow_negative_numbers_set() && is_number(&text))
}

/// Whether a value may follow its letter without a space: `-n5`, `-n=x`.
fn may_be_joined(value: &str) -> bool {
    value.starts_with('=') || is_number(value)
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') && digits.parse::<f64>().is_ok()
}

fn unknown(command: &Command, word: &str) -> Error {
    let mut error = Error::new(ErrorKind::UnknownArgument).with_cmd(command);
    error.insert(
        ContextKind::InvalidArg,
        ContextValue::String(word.to_owned()),
    );
    let tip = match long(command, &word[1..]) {
        Some(_) => format!("a similar argument exists: '-{word}'"),
        None => "one letter follows one dash; longer names have two dashes".to_owned(),
    };
    error.insert(
        ContextKind::Suggested,
        ContextValue::StyledStrs(vec![StyledStr::from(tip)]),
    );
    let usage = command.clone().render_usage();
    error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    error
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn program() -> Command {
        let set = |long: &'static str| Arg::new(long).long(long).action(ArgAction::Set);
        let flag = |long: &'static str| Arg::new(long).long(long).action(ArgAction::SetTrue);
        #[derive(Clone, ValueEnum)]
        enum When {
            On,
            Off,
        }
        let when = clap::value_parser!(When);
        let color = set("color").num_args(0..=1).require_equals(true);
        let run = Command::new("run")
            .arg(Arg::new("file"))
            .arg(flag("chat"))
            .arg(set("system").allow_hyphen_values(true))
            .arg(set("stop").short('r').allow_hyphen_values(true))
            .arg(
                set("temp")
                    .short('n')
                    .alias("temperature")
                    .allow_negative_numbers(true),
            )
            .arg(set("threads-batch"))
            .arg(color.value_parser(when).default_missing_value("on"));
        let exec = Command::new("exec")
            .arg(set("model"))
            .arg(Arg::new("command").num_args(1..).last(true));
        let deep = Command::new("eval").subcommand(
            Command::new("choice")
                .arg(Arg::new("file"))
                .arg(set("n-gpu-layers")),
        );
        Command::new("p")
            .arg(flag("quiet").short('q').global(true))
            .subcommands([run, exec, deep])
    }

    fn spelled(args: &str) -> Result<String, String> {
        let words = args.split(' ').map(OsString::from);
        let words = spell_out(program(), words).map_err(|error| error.to_string())?;
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        Ok(words.join(" "))
    }

    #[test]
    fn words_of_llama_cpp_are_spelled_out_for_the_commands_that_have_them() {
        for (args, expected) in [
            ("p", "p"),
            (
                "p -q run m -cnv -sys -x -tb 2 -- -tb",
                "p -q run m --chat --system -x --threads-batch 2 -- -tb",
            ),
            (
                "p eval choice m -ngl 99 -q",
                "p eval choice m --n-gpu-layers 99 -q",
            ),
            ("p exec -- run -tb 2", "p exec -- run -tb 2"),
            // Without `--`, for clap to say so.
            ("p exec run -tb 2", "p exec run -tb 2"),
        ] {
            assert_eq!(spelled(args).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn values_are_not_words() {
        for args in [
            "p run --stop -rea m",
            "p run -r -rea m",
            "p run --stop=-rea -n -1 m",
            "p run -n5 -n-1 -n.5 -n=5 -r=ea m",
            "p run --temperature -1 --temp -.5 -",
            "p run m -- -rea",
            "p run -1",
        ] {
            assert_eq!(spelled(args).as_deref(), Ok(args));
        }
    }

    #[test]
    fn other_words_are_refused_by_name() {
        for (args, word) in [
            ("p run m -rea", "'-rea'"),
            ("p run m -hf x", "'-hf'"),
            ("p -qh run", "'-qh'"),
            ("p run -qh", "'-qh'"),
            // A value that clap does not take as one.
            ("p run -n -rea", "'-rea'"),
            ("p run -tbx", "'-tbx'"),
            ("p run -ninf", "'-ninf'"),
            ("p run -chat", "'-chat'"),
            ("p run -n --stop -x -rea", "'-rea'"),
            // Known, but not to this command.
            ("p eval choice m -tb 2", "'-tb'"),
            ("p exec -cnv -- x", "'-cnv'"),
            ("p run -\u{fc}x", "'-\u{fc}x'"),
        ] {
            let error = spelled(args).unwrap_err();
            let first = error.lines().next().unwrap();
            assert!(
                first.starts_with("error: unexpected argument") && first.contains(word),
                "{args}: {error}"
            );
        }
        let error = spelled("p run -chat").unwrap_err();
        assert!(error.contains("'--chat'"), "{error}");
    }

    #[test]
    fn a_value_that_need_not_be_given_is_one_of_those_that_there_are() {
        for (args, expected) in [
            ("p run --color on m", "p run --color=on m"),
            ("p run --color m", "p run --color m"),
            ("p run --color=off m", "p run --color=off m"),
            ("p run --color --chat", "p run --color --chat"),
        ] {
            assert_eq!(spelled(args).as_deref(), Ok(expected));
        }
    }
}
