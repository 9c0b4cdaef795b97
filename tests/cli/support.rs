//! Runs the program, and makes the files that it is run on.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headshare_testmodels::ModelSpec;
use serde_json::Value;

/// Runs the program with these arguments (strings and paths).
macro_rules! run {
    ($($arg:expr),* $(,)?) => {
        $crate::support::run(&[$(std::ffi::OsStr::new(&$arg)),*])
    };
}

/// How a run ended.
#[derive(Debug)]
pub struct Ran {
    /// For the messages of failed assertions.
    #[allow(dead_code)]
    pub args: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A command that runs the program, and fails when it hangs.
pub fn program() -> assert_cmd::Command {
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_headshare-gguf"));
    command.timeout(Duration::from_secs(60));
    command
}

pub fn run(args: &[&OsStr]) -> Ran {
    let shown: Vec<_> = args.iter().map(|a| a.to_string_lossy()).collect();
    Ran::of(program().args(args), shown.join(" "))
}

impl Ran {
    pub fn of(command: &mut assert_cmd::Command, args: String) -> Self {
        let output = command.output().expect("the program runs and ends");
        Self {
            args,
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
        }
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// What is on stdout: one JSON object on one line, and nothing else.
    #[track_caller]
    pub fn json(&self) -> Value {
        let line = self.stdout.strip_suffix('\n');
        let line = line.unwrap_or_else(|| panic!("no end of line: {self:#?}"));
        assert!(!line.contains('\n'), "{self:#?}");
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {self:#?}"));
        assert!(value.is_object(), "{self:#?}");
        value
    }

    /// Refused: this exit status, nothing on stdout, and on stderr one
    /// `error:` line with `parts` in it, perhaps followed by one `hint:` line.
    #[track_caller]
    pub fn refused(self, code: i32, parts: &[&str]) -> Self {
        let this = self.exits(code);
        assert_eq!(this.stdout, "", "{this:#?}");
        let lines: Vec<&str> = this.stderr.lines().collect();
        assert!(matches!(lines.len(), 1 | 2), "{this:#?}");
        assert!(lines[0].starts_with("error: "), "{this:#?}");
        assert!(
            lines.get(1).is_none_or(|l| l.starts_with("hint: ")),
            "{this:#?}"
        );
        for part in parts {
            assert!(lines[0].contains(part), "no {part:?} in {this:#?}");
        }
        this
    }

    /// The line after `hint:`; empty when there is none.
    pub fn hint(&self) -> &str {
        self.stderr
            .lines()
            .find_map(|l| l.strip_prefix("hint: "))
            .unwrap_or("")
    }
}

/// A folder of a test's own.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, bytes).expect("the file is written");
        path
    }

    /// The names in the folder, hidden ones too.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[track_caller]
pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Asserts that two files have the same bytes, without printing them.
#[track_caller]
pub fn assert_same(a: &Path, b: &Path) {
    assert_bytes(&read(a), &read(b), &format!("{a:?} and {b:?}"));
}

#[track_caller]
pub fn assert_bytes(a: &[u8], b: &[u8], what: &str) {
    if a != b {
        let at = a.iter().zip(b).position(|(a, b)| a != b);
        panic!(
            "{what} differ: {} and {} bytes, first difference at {at:?}",
            a.len(),
            b.len()
        );
    }
}

/// A real model, by its file name.
fn model(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("models")
        .join(name);
    assert!(
        path.is_file(),
        "{} is not there: run scripts/fetch-models.sh",
        path.display()
    );
    path
}

/// SmolLM2-135M-Instruct, Q4_1: 30 layers, 9 heads in 3 KV groups.
pub fn smollm2() -> PathBuf {
    model("SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// Gemma-3-270M, Q4_K_M: 18 layers, 4 heads in 1 KV group, five types.
pub fn gemma() -> PathBuf {
    model("gemma-3-270m-q4_k_m.gguf")
}

/// A ready-made shape.
pub fn preset(name: &str) -> ModelSpec {
    ModelSpec::preset(name).expect("a preset")
}

/// The preset in two layers and with few tokens, for tests with many files.
pub fn small(name: &str) -> ModelSpec {
    ModelSpec {
        n_layer: 2,
        n_vocab: 290,
        ..preset(name)
    }
}

pub const PAGE_SIZES: [&str; 3] = ["4096", "16384", "65536"];
