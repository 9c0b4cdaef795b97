//! A report that is stopped goes on; inputs that change invalidate what depends
//! on them, and nothing else.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;

use super::{command, model, report};
use crate::support::{Folder, PROGRAM, Ran, questions, read, valley, wait_until};

/// The cells that there are: names, and what changes when one is written again.
fn cells(folder: &Folder) -> BTreeMap<String, (u64, i64, i64)> {
    let Ok(entries) = std::fs::read_dir(folder.file("out/cells")) else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let metadata = entry.metadata().ok()?;
            let stamp = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
            (!name.starts_with('.')).then_some((name, stamp))
        })
        .collect()
}

/// Measures that were taken from cells, and those that were taken anew.
pub(super) fn kept_and_new(ran: &Ran) -> (usize, usize) {
    let measures = |line: &&str| {
        let what = line.rsplit(": ").next().unwrap();
        ["perplexity", "speed", "question"]
            .iter()
            .any(|m| what.starts_with(m))
    };
    let lines = ran.stderr.lines().filter(measures);
    let (kept, new): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.ends_with("(kept)"));
    (kept.len(), new.len())
}

/// Processes of the program that run in `folder`, by their arguments.
fn at_work(folder: &Path) -> Vec<String> {
    let folder = folder.canonicalize().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let here = processes.filter(|entry| {
        let folder_of = std::fs::read_link(entry.path().join("cwd"));
        folder_of.is_ok_and(|of| of == folder)
    });
    here.filter_map(|entry| {
        let arguments = std::fs::read(entry.path().join("cmdline")).ok()?;
        let program = PROGRAM.as_bytes();
        let is_ours = arguments.starts_with(program);
        is_ours.then(|| String::from_utf8_lossy(&arguments).replace('\0', " "))
    })
    .collect()
}

#[test]
fn killed_half_way_it_goes_on_and_measures_nothing_twice() {
    let folder = Folder::new();
    let model = model(&folder);
    let more = ["--ratios", "0.25,0.5"];
    let mut child = command(&model, &folder, &more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    let mut workers = 0;
    // The source's three cells, and the first conversion's file.
    wait_until("four cells are there", || {
        assert!(child.try_wait().unwrap().is_none(), "it was too fast");
        let here = at_work(folder.path());
        workers += here.iter().filter(|a| a.ends_with(" worker ")).count();
        cells(&folder).len() >= 4
    });
    assert!(workers > 0, "nobody worked for it");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!folder.file("out/report.json").exists());
    // Whoever worked for it ends, too.
    wait_until("no worker goes on", || at_work(folder.path()).is_empty());
    let before = cells(&folder);

    let ran = report(&model, &folder, &more).ok();
    let after = cells(&folder);
    for (name, stamp) in &before {
        assert_eq!(after.get(name), Some(stamp), "{name} was measured again");
    }
    assert!(after.len() > before.len());
    let (kept, new) = kept_and_new(&ran);
    assert!(kept >= 2 && new >= 6, "{ran:#?}");

    // Once it is done, nothing is left to do.
    let again = report(&model, &folder, &more).ok();
    assert_eq!(kept_and_new(&again), (kept + new, 0), "{again:#?}");
    let made = [": converted", ": requantized"];
    assert!(
        made.iter().all(|made| ran.stderr.contains(made)),
        "{ran:#?}"
    );
    assert!(
        !made.iter().any(|made| again.stderr.contains(made)),
        "{again:#?}"
    );
    assert_eq!(again.stdout, ran.stdout);
    assert_eq!(cells(&folder), after);
}

#[test]
fn what_changes_is_measured_again_and_nothing_else() {
    let folder = Folder::new();
    let model = model(&folder);
    let text = folder.write("text.txt", read(&valley()));
    let run = |ctx: &str, task: bool, repetitions: &str| {
        let task_file = questions();
        let mut more = vec!["--ratios", "0.5", "--ctx", ctx, "-r", repetitions];
        if task {
            more.extend(["--task", task_file.to_str().unwrap()]);
        }
        let mut command = command(&model, &folder, &[]);
        // Replaces what `command` gives: the last ones count.
        let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = std::process::Command::new(command.get_program());
        let mut skip = false;
        for arg in args {
            let drop = ["--ctx", "-r", "--text"].iter().any(|flag| arg == *flag);
            if !skip && !drop {
                command.arg(&arg);
            }
            skip = drop;
        }
        let output = command
            .args(more)
            .arg("--text")
            .arg(&text)
            .output()
            .unwrap();
        let ran = Ran {
            args: String::new(),
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        kept_and_new(&ran.ok())
    };
    // Source, conversion, plain alternative: perplexity and speed of each, and
    // perplexity of the conversion against that alternative.
    assert_eq!(run("64", false, "1"), (0, 7));
    assert_eq!(run("64", false, "1"), (7, 0));
    assert_eq!(run("32", false, "1"), (3, 4));
    assert_eq!(run("64", true, "1"), (7, 3));
    assert_eq!(run("64", false, "2"), (4, 3));
    // Back again: what was measured then is still there.
    assert_eq!(run("64", false, "1"), (7, 0));
    std::fs::write(&text, &read(&valley())[100..]).unwrap();
    assert_eq!(run("64", true, "1"), (6, 4));
    // Another model: everything.
    headshare_testmodels::ModelSpec {
        n_embd: 128,
        seed: 2,
        ..crate::support::preset("tiny-gqa")
    }
    .write(&model)
    .unwrap();
    assert_eq!(run("64", true, "1"), (0, 10));
}

#[test]
fn tasks_are_known_by_what_they_hold() {
    let folder = Folder::new();
    let model = model(&folder);
    let all = String::from_utf8(read(&questions())).unwrap();
    let (first, rest) = all.split_once('\n').unwrap();
    let names = |tasks: [(&str, &str); 2]| {
        let paths = tasks.map(|(name, text)| folder.write(name, text));
        let paths = paths.each_ref().map(|path| path.to_str().unwrap());
        let more = ["--ratios", "0", "--task", paths[0], "--task", paths[1]];
        let counts = kept_and_new(&report(&model, &folder, &more).ok());
        let json = read(&folder.file("out/report.json"));
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let row = json["rows"][0]["tasks"].as_array().unwrap();
        let named = row
            .iter()
            .map(|task| task["task"].as_str().unwrap().to_owned());
        let n = row.iter().map(|task| task["n"].as_u64().unwrap());
        (counts, named.collect::<Vec<_>>(), n.collect::<Vec<_>>())
    };
    let lines = rest.lines().count() as u64;
    let (counts, named, n) = names([("question-a.jsonl", first), ("question-b.jsonl", rest)]);
    assert_eq!(named, ["question-a", "question-b"]);
    assert_eq!(n, [1, lines]);
    // Source and conversion: perplexity, two tasks and speed of each.
    assert_eq!(counts, (0, 8));
    // The other way round and under other names, nothing is measured again.
    let (counts, named, n) = names([("question-c.jsonl", rest), ("question-a.jsonl", first)]);
    assert_eq!((counts, n), ((8, 0), vec![lines, 1]));
    assert_eq!(named, ["question-c", "question-a"]);
}

#[test]
fn what_comes_through_a_pipe_is_known_again_by_what_it_holds() {
    let folder = Folder::new();
    let model = model(&folder);
    let ran = |piped: &str, file: &Path| {
        let task = questions();
        let mut all: Vec<std::ffi::OsString> = vec!["report".into(), (&model).into()];
        all.extend(
            [
                "--ratios", "0.5", "--limit", "2", "--ctx", "64", "--chunks", "2",
            ]
            .map(Into::into),
        );
        all.extend(["-t", "1", "-p", "8", "-n", "2", "-r", "1"].map(Into::into));
        all.extend(["-o".into(), folder.file("out").into()]);
        for (flag, path) in [("--text", valley()), ("--task", task)] {
            let path = if flag == piped { "-".into() } else { path };
            all.extend([flag.into(), path.into()]);
        }
        let mut command = crate::support::program();
        command.args(all).write_stdin(read(file));
        Ran::of(&mut command, piped.to_owned()).ok()
    };
    let text = ran("--text", &valley());
    let (kept, new) = kept_and_new(&text);
    assert!(kept == 0 && new > 0, "{text:#?}");
    let report: serde_json::Value =
        serde_json::from_slice(&read(&folder.file("out/report.json"))).unwrap();
    assert_eq!(report["text"]["path"], "standard input");
    let before = cells(&folder);
    // All is there already, whichever of the inputs is piped, or none.
    for (piped, file) in [
        ("--text", valley()),
        ("--task", questions()),
        ("none", questions()),
    ] {
        let again = ran(piped, &file);
        assert_eq!(kept_and_new(&again).1, 0, "{again:#?}");
        assert_eq!(cells(&folder), before);
    }
}
