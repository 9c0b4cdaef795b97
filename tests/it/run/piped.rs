//! A chat whose messages come from a pipe, and what is refused.

use std::io::{BufRead, BufReader, Write};
use std::process::{Output, Stdio};

use super::started::{fed, interrupt, output, run, run_on};
use rustix::io::ioctl_fionread;

use crate::support::{GEMMA, SMOLLM2, gemma, needs, smollm2, text, wait_until};

fn chat(args: &[&str], input: &str) -> Output {
    fed(run().args(["--chat", "--temp", "0"]).args(args), input)
}

#[test]
fn a_line_is_a_message_and_a_line_is_an_answer() {
    needs!(SMOLLM2);
    let input = "What is gravity?\n\nWho found it?\r\n";
    let out = chat(&["--stop", ".", "-c", "512"], input);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let answers: Vec<&str> = text(&out.stdout).lines().collect();
    assert_eq!(answers.len(), 2, "{out:?}");
    assert!(
        answers[0].starts_with("Gravity is a fundamental"),
        "{out:?}"
    );
    assert_eq!(text(&out.stderr), "", "nobody needs to be asked or told");

    // Without the last end of line, and with one that goes on.
    let out = chat(&["-n", "4"], "What is \\\ngravity?");
    assert_eq!(text(&out.stdout).lines().count(), 1, "{out:?}");
    assert_eq!(text(&out.stderr), "");
    // -q says nothing but warnings.
    let out = chat(&["-q", "-n", "4"], "Hello");
    assert_eq!(text(&out.stderr), "", "{out:?}");
    let out = chat(&["--perf"], "");
    assert_eq!(text(&out.stdout), "");
    assert!(text(&out.stderr).contains("prefill"));
}

/// Text is text, whatever it looks like.
#[test]
fn a_line_that_begins_with_a_slash_is_a_message() {
    needs!(SMOLLM2);
    let lines = [
        "/etc is a folder",
        "/think",
        "/reset",
        "/quit",
        "/system Be brief.",
        "/",
    ];
    for line in lines {
        let out = chat(&["-n", "6"], &format!("{line}\nWhat is gravity?\n"));
        assert_eq!(out.status.code(), Some(0), "{line}: {out:?}");
        assert_eq!(text(&out.stderr), "", "{line}");
        assert_eq!(text(&out.stdout).lines().count(), 2, "{line}: {out:?}");
        let given = chat(&["-n", "6", "-p", line], "What is gravity?\n");
        assert_eq!(given.stdout, out.stdout, "{line}");
    }
}

#[test]
fn the_first_message_may_be_given() {
    needs!(SMOLLM2);
    let out = chat(&["--stop", "."], "What is gravity?\nWho found it?\n");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"What is gravity?\n").unwrap();
    let from_file = ["-f", file.path().to_str().unwrap()];
    for first in [&["-p", "What is gravity?"], &from_file] {
        let args = ["-cnv", "--temp", "0", "--stop", "."];
        let given = fed(run().args(args).args(first), "Who found it?\n");
        assert_eq!(given.stdout, out.stdout, "{given:?}");
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_message() {
    needs!(SMOLLM2);
    let plain = chat(&["-n", "6"], "What is gravity?\nWhat?\n");
    let marked = chat(&["-n", "6"], "\u{feff}What is gravity?\nWhat?\n");
    assert_eq!(marked.stdout, plain.stdout, "{marked:?}");
    // Only there: elsewhere it is a character as any other.
    let inside = chat(&["-n", "6"], "What is gravity?\n\u{feff}What?\n");
    assert_eq!(inside.status.code(), Some(0), "{inside:?}");
}

#[test]
fn the_system_prompt_tells_the_model_what_to_be() {
    needs!(SMOLLM2);
    let pirate = "You are a pirate.";
    let ask = |args: &[&str]| {
        let out = chat(&[&["-n", "12"], args].concat(), "Who are you?\n");
        assert_eq!(out.status.code(), Some(0), "{out:?}");
        text(&out.stdout).to_owned()
    };
    let told = ask(&["--system", pirate]);
    assert_ne!(told, ask(&[]));
    assert_eq!(told, ask(&["-sys", pirate]));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "\u{feff}{pirate}").unwrap();
    let path = file.path().to_str().unwrap();
    for name in ["-sysf", "--system-prompt-file"] {
        assert_eq!(told, ask(&[name, path]));
    }
    let lines = ask(&["-sys", "Two\\nlines"]);
    assert_ne!(lines, ask(&["--no-escape", "-sys", "Two\\nlines"]));
}

#[test]
fn a_template_may_be_given_by_name_or_as_text() {
    needs!(SMOLLM2, GEMMA);
    let ask = |args: &[&str]| {
        let out = chat(
            &[&["-n", "12", "-sys", "Be a poet."], args].concat(),
            "Hello\n",
        );
        assert_eq!(out.status.code(), Some(0), "{args:?}: {out:?}");
        text(&out.stdout).to_owned()
    };
    let own = ask(&[]);
    let chatml = "\u{feff}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                  {% endfor %}{{ '<|im_start|>assistant\\n' }}";
    for template in ["chatml", chatml] {
        assert_eq!(ask(&["--chat-template", template]), own, "{template}");
    }
    assert_ne!(ask(&["--chat-template", "vicuna"]), own);
    // A model without a template talks with one.
    let args = ["--chat", "--chat-template", "gemma", "-n", "4"];
    let out = fed(run_on(&gemma()).args(args), "Hello\n");
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    for unknown in ["chatml2", "template.jinja", ""] {
        let out = chat(&["--chat-template", unknown], "");
        assert_eq!(out.status.code(), Some(2), "{out:?}");
        let stderr = text(&out.stderr);
        assert!(
            stderr.contains("chatml, ") && stderr.contains("hint: --chat-template-file"),
            "{stderr}"
        );
    }
}

#[test]
fn a_grammar_shapes_each_answer() {
    needs!(SMOLLM2);
    let grammar = r#"root ::= ("yes" | "no") "!""#;
    let out = chat(&["--grammar", grammar], "Is it?\nAnd now?\n");
    let answers: Vec<&str> = text(&out.stdout).lines().collect();
    assert_eq!(answers.len(), 2, "{out:?}");
    for answer in answers {
        assert!(["yes!", "no!"].contains(&answer), "{out:?}");
    }
}

#[test]
fn a_full_context_is_said_and_the_oldest_is_forgotten() {
    needs!(SMOLLM2);
    let long = |n: usize| format!("Tell me of {}old dogs.\n", "very ".repeat(n));
    let out = chat(
        &["-c", "256", "-n", "70", "--ignore-eos"],
        &(long(160) + "Another one.\n"),
    );
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert_eq!(
        text(&out.stderr),
        "the context of 256 tokens is full, which ends this answer; -c makes it larger\n\
         the context of 256 tokens is full: the oldest exchange is forgotten; -c makes it larger\n"
    );
    let out = chat(&["-c", "256"], &(long(300) + "Hello\n"));
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    let stderr = text(&out.stderr);
    assert!(
        stderr.contains("the context holds 256") && stderr.contains("hint: -c"),
        "{stderr}"
    );
    assert_eq!(text(&out.stdout), "");
}

#[test]
fn a_model_without_a_template_needs_one() {
    needs!(GEMMA);
    let out = fed(run_on(&gemma()).arg("--chat"), "Hello\n");
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    let stderr = text(&out.stderr);
    assert!(
        stderr.contains("gemma-3-270m-q4_k_m.gguf has no chat template"),
        "{stderr}"
    );
    assert!(stderr.contains("hint: --chat-template NAME"), "{stderr}");

    let mut template = tempfile::NamedTempFile::new().unwrap();
    let lines = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    template.write_all(lines.as_bytes()).unwrap();
    let path = template.path().to_str().unwrap();
    let given = ["--chat", "--chat-template-file", path, "-n", "4"];
    let out = fed(run_on(&gemma()).args(given), "The capital of France?\n");
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert!(!out.stdout.is_empty());
}

#[test]
fn bad_templates_are_one_message_and_a_hint() {
    needs!(SMOLLM2);
    for (source, message) in [
        ("{% for %}", "the chat template cannot be read"),
        ("{{ raise_exception('not today') }}", "not today"),
    ] {
        let mut template = tempfile::NamedTempFile::new().unwrap();
        template.write_all(source.as_bytes()).unwrap();
        let path = template.path().to_str().unwrap();
        let out = chat(&["--chat-template-file", path], "Hello\n");
        assert_eq!(out.status.code(), Some(3), "{out:?}");
        let stderr = text(&out.stderr);
        assert!(
            stderr.starts_with("error: ") && stderr.contains(message),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 2, "{stderr}");
    }
    let out = chat(&["--chat-template-file", "no/such/file"], "");
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    assert!(text(&out.stderr).contains("no/such/file"));
}

#[test]
fn what_does_not_go_with_a_chat_is_refused() {
    needs!(SMOLLM2);
    let cases: [(&[&str], &str); 8] = [
        (&["--chat", "--json"], "'--json'"),
        (&["-p", "x", "--system", "y"], "--chat"),
        (&["-p", "x", "-sysf", "y"], "--chat"),
        (&["-p", "x", "--chat-template", "chatml"], "--chat"),
        (&["-f", "x", "--chat-template-file", "y"], "--chat"),
        (&["--chat", "-sys", "x", "-sysf", "y"], "'--system <TEXT>'"),
        (
            &[
                "--chat",
                "--chat-template",
                "x",
                "--chat-template-file",
                "y",
            ],
            "'--chat-template <NAME-OR-TEXT>'",
        ),
        (&["--chat", "--grammar", "root ::= ("], "grammar"),
    ];
    for (args, message) in cases {
        let out = output(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {out:?}");
        assert!(text(&out.stderr).contains(message), "{args:?}: {out:?}");
        assert_eq!(text(&out.stdout), "", "{args:?}");
    }
}

#[test]
fn a_reader_that_has_enough_ends_the_chat() {
    needs!(SMOLLM2);
    let mut child = run()
        .args(["--chat", "--temp", "0", "--ignore-eos"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Tell me a story.\nMore.\n").unwrap();
    let mut stdout = child.stdout.take().unwrap();
    std::io::Read::read_exact(&mut stdout, &mut [0]).unwrap();
    drop(stdout);
    let out = child.wait_with_output().unwrap();
    drop(stdin);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert_eq!(text(&out.stderr), "");
}

#[cfg(unix)]
#[test]
fn ctrl_c_while_it_waits_ends_the_program() {
    needs!(SMOLLM2);
    let mut child = run()
        .args(["--chat", "--temp", "0", "--stop", "."])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"What is gravity?\n").unwrap();
    let mut answer = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut answer).unwrap();
    assert_ne!(answer, "");
    // Half a message: once that is read, this waits for the rest.
    stdin.write_all(b"Who").unwrap();
    wait_until("it reads on", || ioctl_fionread(&stdin).unwrap() == 0);
    interrupt(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn chats_differ_with_the_seed_alone() {
    needs!(SMOLLM2);
    let ask = |seed: &str| {
        let args = ["--chat", "-n", "12", "--seed", seed];
        let out = fed(run_on(&smollm2()).args(args), "Hello\nHello\n");
        text(&out.stdout).to_owned()
    };
    let seven = ask("7");
    assert_eq!(seven, ask("7"));
    assert_ne!(seven, ask("8"));
}
