//! Runs the program, and reads what it says.

use std::ffi::OsStr;
use std::time::Duration;

use serde_json::Value;

/// Where the program is.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_headshare-gguf");

/// Runs the program with these arguments (strings and paths), and with a list of
/// more behind a semicolon.
macro_rules! run {
    ($($arg:expr),*; $more:expr) => {{
        let mut args = vec![$(std::ffi::OsStr::new(&$arg)),*];
        args.extend($more.iter().map(std::ffi::OsStr::new));
        $crate::support::run(&args)
    }};
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
    let mut command = assert_cmd::Command::new(PROGRAM);
    command.timeout(Duration::from_secs(300));
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

/// The one JSON object that `command` prints.
#[track_caller]
pub fn json(command: &mut assert_cmd::Command) -> Value {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
