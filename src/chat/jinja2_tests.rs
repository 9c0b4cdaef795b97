//! What chat templates become, held to jinja2's own output: every template that
//! llama.cpp keeps for its tests, and the idioms of templates one by one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::template::{ChatTemplate, Message, Role};

const BOS: &str = "<s>";
const EOS: &str = "</s>";

/// Where something lies that scripts/setup.sh fetches: `variable` says it, or it
/// is in target/tools. `None`, with a remark, where it was not fetched; in CI
/// that is a failure.
fn fetched(test: &str, variable: &str, usual: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let must_be = named.is_some() || std::env::var_os("CI").is_some();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = named.unwrap_or_else(|| root.join("target/tools").join(usual));
    if path.exists() {
        return Some(path);
    }
    let message = format!(
        "{} is missing: `. scripts/setup.sh && setup_chat_templates` fetches it, or name it in \
         {variable}",
        path.display()
    );
    assert!(!must_be, "{message}");
    eprintln!("skipped: {test}: {message}");
    None
}

/// A template and a conversation.
struct Case {
    name: String,
    template: String,
    messages: Vec<Message>,
}

impl Case {
    /// What jinja2 gets: first that there are no tools as `transformers` says
    /// it, then as llama.cpp does.
    fn for_jinja2(&self) -> Value {
        let messages: Vec<Value> = (self.messages.iter())
            .map(|message| json!({"role": message.role.as_str(), "content": message.content}))
            .collect();
        let untold = json!({
            "messages": messages,
            "add_generation_prompt": true,
            "bos_token": BOS,
            "eos_token": EOS,
        });
        let mut none = untold.clone();
        none["tools"] = Value::Null;
        none["documents"] = Value::Null;
        json!({"template": self.template, "variables": [none, untold]})
    }

    /// What this program makes of it.
    fn render(&self) -> Result<String, String> {
        let now = jiff::civil::date(2024, 7, 26).at(13, 5, 9, 0);
        let now = now.to_zoned_datetime(jiff::tz::TimeZone::UTC).unwrap();
        let template = ChatTemplate::with_clock(&self.template, BOS, EOS, move || now.clone());
        template
            .and_then(|template| template.render_as_is(&self.messages))
            .map_err(|error| error.to_string())
    }
}

/// What jinja2 makes of them; an error is its text.
fn jinja2(python: &Path, cases: &[Case]) -> Vec<Result<String, String>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/jinja2_render.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input: Vec<Value> = cases.iter().map(Case::for_jinja2).collect();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(Value::from(input).to_string().as_bytes())
        .unwrap();
    drop(stdin);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", python.display());
    let answers: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(answers.len(), cases.len());
    let answer = |answer: &Value| match answer["text"].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(answer["error"].as_str().unwrap().to_owned()),
    };
    answers.iter().map(answer).collect()
}

/// Panics with all cases that do not become what jinja2 makes of them; an error
/// has to be one here, too.
#[track_caller]
fn assert_as_jinja2(python: &Path, cases: &[Case]) {
    let mut wrong = Vec::new();
    for (case, expected) in cases.iter().zip(jinja2(python, cases)) {
        let found = case.render();
        let same = match (&found, &expected) {
            (Ok(found), Ok(expected)) => found == expected,
            (found, expected) => found.is_err() && expected.is_err(),
        };
        if !same {
            wrong.push(format!(
                "{}\n  jinja2: {expected:?}\n  ours:   {found:?}",
                case.name
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} differ:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

/// One turn and two, with and without a system message, with what models of
/// today say before they answer, and with characters that are special somewhere.
fn conversations() -> Vec<(String, Vec<Message>)> {
    let user = |content: &str| Message::new(Role::User, content);
    let first = user("  Hi <b>& 'you'</b>, \"W\u{fc}rde\" {{ 1 }}? ");
    let two = |answer: &str| {
        let answer = Message::new(Role::Assistant, answer);
        vec![first.clone(), answer, user("Bye\n")]
    };
    let plain = [
        ("one turn", vec![first.clone()]),
        ("two turns", two("Hello.")),
        (
            "two turns, thought",
            two("<think>\nHm.\n</think>\n\nHello. "),
        ),
    ];
    let mut all = Vec::new();
    for (name, messages) in plain {
        let mut told = vec![Message::new(Role::System, "Be brief.\n\\n 'now' ")];
        told.extend_from_slice(&messages);
        all.push((name.to_owned(), messages));
        all.push((format!("{name}, system"), told));
    }
    all
}

#[test]
fn every_template_of_llama_cpp_becomes_what_jinja2_makes_of_it() {
    let name = "every_template_of_llama_cpp_becomes_what_jinja2_makes_of_it";
    let python = fetched(name, "HEADSHARE_JINJA2_PYTHON", "jinja2/bin/python");
    let folder = fetched(name, "HEADSHARE_CHAT_TEMPLATES", "chat-templates");
    let (Some(python), Some(folder)) = (python, folder) else {
        return;
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "jinja"))
        .collect();
    files.sort();
    assert!(files.len() >= 60, "{}: {}", folder.display(), files.len());
    let mut cases = Vec::new();
    for path in files {
        let template = std::fs::read_to_string(&path).unwrap();
        let file = path.file_name().unwrap().to_string_lossy();
        for (conversation, messages) in conversations() {
            cases.push(Case {
                name: format!("{file}: {conversation}"),
                template: template.clone(),
                messages,
            });
        }
    }
    assert_as_jinja2(&python, &cases);
}

#[test]
fn idioms_become_what_jinja2_makes_of_them() {
    let name = "idioms_become_what_jinja2_makes_of_them";
    let Some(python) = fetched(name, "HEADSHARE_JINJA2_PYTHON", "jinja2/bin/python") else {
        return;
    };
    let (_, messages) = conversations().pop().unwrap();
    let case = |line: &str| Case {
        name: line.to_owned(),
        template: line.replace("<br>", "\n"),
        messages: messages.clone(),
    };
    let idioms = include_str!("../../tests/data/chat/idioms.jinja");
    let cases: Vec<Case> = (idioms.lines())
        .filter(|line| !line.is_empty() && !line.starts_with("# "))
        .map(case)
        .collect();
    assert!(cases.len() > 100);
    assert_as_jinja2(&python, &cases);
}
