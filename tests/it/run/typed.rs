//! A chat in a terminal, as a person has it.

use std::path::Path;
use std::process::Command;

use headshare_testmodels::{parse_layer_list, self_merge};
use rustix::process::Signal;

use super::started::{ENDLESS, run_on};
use super::terminal::{CTRL_C, CTRL_D, Terminal};
use crate::support::{PROGRAM, SMOLLM2, needs, smollm2};

/// A greedy chat, whose answers end with their first sentence.
fn chat(path: &Path, more: &[&str]) -> Terminal {
    chat_with(
        path,
        &[&["--temp", "0", "-c", "512", "--stop", "."], more].concat(),
    )
}

/// A chat with these options alone.
fn chat_with(path: &Path, options: &[&str]) -> Terminal {
    let mut command = run_on(path);
    command.arg("--chat").args(options);
    let mut terminal = Terminal::start(&command);
    terminal.wait_for("/help lists the commands");
    terminal.wait_for_prompt();
    terminal
}

const QUESTION: &str = "What is gravity?";

fn a_conversation(path: &Path) {
    let mut terminal = chat(path, &["--perf"]);
    let first = terminal.ask(QUESTION);
    assert!(first.contains("Gravity is a fundamental"), "{first:?}");
    assert!(!first.contains('.'), "{first:?}");
    // A conversation goes on from what was said.
    let second = terminal.ask(QUESTION);
    assert_ne!(second, "");
    assert!(terminal.ask("/reset").contains("a new conversation"));
    assert_eq!(terminal.ask(QUESTION), first);
    // With another system prompt it begins anew.
    assert!(
        terminal
            .ask("/system You are a pirate.")
            .contains("another system prompt")
    );
    assert_ne!(terminal.ask(QUESTION), first);
    assert!(terminal.ask("/system").contains("a new conversation"));
    assert_eq!(terminal.ask(QUESTION), first);
    // What is no command is a message.
    let answer = terminal.ask("/etc is a folder");
    assert!(
        !answer.is_empty() && !answer.contains("command"),
        "{answer:?}"
    );
    assert!(terminal.ask("/help").contains("/system TEXT"));
    terminal.enter("/quit");
    let ended = terminal.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for measured in ["prefill", "decode", "PSS"] {
        assert!(ended.rest.contains(measured), "{ended:?}");
    }
}

#[test]
fn a_conversation_with_a_plain_model() {
    needs!(SMOLLM2);
    a_conversation(&smollm2());
}

#[test]
fn a_conversation_with_a_deduplicated_self_merge() {
    needs!(SMOLLM2);
    let folder = tempfile::tempdir().unwrap();
    let (merge, shared) = (folder.path().join("merge"), folder.path().join("shared"));
    let layers = parse_layer_list("0-19,10-29").unwrap();
    self_merge(&smollm2(), &layers, &merge).unwrap();
    let status = Command::new(PROGRAM)
        .args(["-q", "convert", "--lossless", "-o"])
        .args([&shared, &merge])
        .output()
        .unwrap()
        .status;
    assert!(status.success());
    std::fs::remove_file(merge).unwrap();
    a_conversation(&shared);
}

#[test]
fn ctrl_c_stops_an_answer_and_then_the_program() {
    needs!(SMOLLM2);
    let mut terminal = chat(&smollm2(), &["--grammar", ENDLESS]);
    for _ in 0..2 {
        terminal.enter("Tell me a story");
        // Text comes while it is generated.
        terminal.wait_for("e");
        terminal.press(CTRL_C);
        terminal.wait_for_prompt();
    }
    // Nothing that is typed is lost to it.
    terminal.press("half a li");
    terminal.wait_for("li");
    terminal.press(CTRL_C);
    terminal.wait_for_prompt();
    terminal.press(CTRL_C);
    terminal.wait_for("Ctrl-C again");
    terminal.wait_for_prompt();
    terminal.enter("Another story");
    terminal.wait_for("e");
    terminal.press(CTRL_C);
    terminal.wait_for_prompt();
    terminal.press(CTRL_C);
    let ended = terminal.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_second_signal_ends_an_answer_that_does_not_stop() {
    needs!(SMOLLM2);
    let mut terminal = chat(&smollm2(), &["--grammar", ENDLESS]);
    terminal.enter("Tell me a story");
    terminal.wait_for("e");
    // Held, so that it has not stopped at the first when the second comes.
    terminal.signal(Signal::STOP);
    terminal.signal(Signal::INT);
    terminal.signal(Signal::TERM);
    terminal.signal(Signal::CONT);
    let ended = terminal.end();
    assert_eq!(ended.code, Some(143), "{ended:?}");
    assert!(ended.cooked);
}

#[test]
fn a_signal_while_a_line_is_edited_leaves_the_terminal_as_it_was() {
    needs!(SMOLLM2);
    let mut terminal = chat(&smollm2(), &[]);
    terminal.press("half a line");
    terminal.wait_for("line");
    assert!(!terminal.is_cooked());
    terminal.signal(Signal::TERM);
    let ended = terminal.end();
    assert_eq!(ended.code, Some(143), "{ended:?}");
    assert!(ended.cooked);
}

#[test]
fn a_request_to_end_does_not_wait_for_the_answer() {
    needs!(SMOLLM2);
    let mut terminal = chat(&smollm2(), &["--grammar", ENDLESS]);
    terminal.enter("Tell me a story");
    terminal.wait_for("e");
    terminal.signal(Signal::TERM);
    let ended = terminal.end();
    assert_eq!(ended.code, Some(143), "{ended:?}");
    assert!(ended.cooked);
}

#[test]
fn a_first_message_may_be_given_and_typing_has_a_colour() {
    needs!(SMOLLM2);
    let mut command = run_on(&smollm2());
    command.args(["-cnv", "-p", QUESTION, "--color", "on"]);
    command.args(["--temp", "0", "-c", "512", "--stop", "."]);
    let mut terminal = Terminal::start(&command);
    terminal.wait_for(&format!("> \u{1b}[1;32m{QUESTION}\u{1b}[0m"));
    let answer = terminal.wait_for_prompt();
    assert!(answer.contains("Gravity is a fundamental"), "{answer:?}");
    terminal.press("Wh");
    terminal.wait_for("\u{1b}[1;32mWh\u{1b}[0m");
    // The first message is remembered as one that was typed.
    terminal.press(CTRL_C);
    terminal.wait_for_prompt();
    terminal.press("\u{1b}[A");
    terminal.wait_for(QUESTION);
    terminal.press(CTRL_C);
    terminal.wait_for_prompt();
    terminal.press(CTRL_D);
    let ended = terminal.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn lines_are_edited_continued_and_remembered() {
    needs!(SMOLLM2);
    let mut terminal = chat(&smollm2(), &[]);
    let answer = terminal.ask(QUESTION);
    terminal.ask("/reset");
    // Typed wrongly, and corrected with backspace and the arrow keys.
    assert_eq!(
        terminal.ask("hat is gravityy\u{7f}?\u{1b}[H\u{1b}[1~W"),
        answer
    );
    terminal.ask("/reset");
    // The line before the one before.
    assert_eq!(terminal.ask("\u{1b}[A\u{1b}[A"), answer);
    terminal.ask("/reset");
    // A blank line is nothing, a backslash is not the end.
    assert_eq!(terminal.ask(""), "");
    terminal.enter("Tell me \\");
    terminal.wait_for_prompt();
    terminal.wait_for(". ");
    let continued = terminal.ask("about cats.");
    assert!(continued.to_lowercase().contains("cat"), "{continued:?}");
    // Ctrl-D deletes in a line, and ends the chat on an empty one.
    terminal.press(CTRL_D);
    let ended = terminal.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn commands_are_obeyed() {
    needs!(SMOLLM2);
    const PIRATE: &str = "You are a pirate.";
    let who = |terminal: &mut Terminal| terminal.ask("Who are you?");
    let mut told = chat(&smollm2(), &["-sys", PIRATE]);
    let mut terminal = chat(&smollm2(), &[]);
    assert!(terminal.ask("/help").contains("/system TEXT"));
    assert_ne!(who(&mut terminal), who(&mut told));
    told.ask("/reset");
    terminal.ask(&format!("/system {PIRATE}"));
    assert_eq!(who(&mut terminal), who(&mut told));
}

/// The sampler goes on with its random numbers when a conversation begins anew.
#[test]
fn the_same_question_again_is_another_draw() {
    needs!(SMOLLM2);
    let mut terminal = chat_with(&smollm2(), &["-n", "12", "--seed", "7"]);
    let first = terminal.ask("Hello");
    terminal.ask("/reset");
    assert_ne!(terminal.ask("Hello"), first);
}
