//! Converted files and programs to run on them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use headshare_format::alias::AliasTable;
use headshare_format::{Gguf, LogicalLayout, VirtualGguf};
use headshare_testmodels::ModelSpec;

use crate::support::{PROGRAM, root};

/// A folder with a plain file and what `convert` makes of it.
pub struct Models {
    pub folder: tempfile::TempDir,
    pub plain: PathBuf,
    pub converted: PathBuf,
}

impl Models {
    /// The model `spec`, converted with these arguments.
    pub fn new(spec: &ModelSpec, convert: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain.gguf");
        spec.write(&plain).unwrap();
        Self::of(folder, plain, convert)
    }

    /// The file `plain`, in the folder, converted with these arguments.
    pub fn of(folder: tempfile::TempDir, plain: PathBuf, convert: &[&str]) -> Self {
        let converted = folder.path().join("converted.gguf");
        let out = Command::new(PROGRAM)
            .args(["-q", "convert"])
            .args([&plain, Path::new("-o"), &converted])
            .args(convert)
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        Self {
            folder,
            plain,
            converted,
        }
    }

    /// Two layers, twice, with blocks that are no whole pages: some logical
    /// pages are pages of the file, others are put together.
    pub fn small() -> Self {
        let spec = ModelSpec {
            n_layer: 2,
            repeat: 2,
            n_embd: 160,
            n_head: 5.into(),
            n_head_kv: 5.into(),
            n_ff: 416,
            n_vocab: 290,
            ..ModelSpec::preset("tiny-gqa").unwrap()
        };
        Self::new(&spec, &["--lossless"])
    }

    /// The bytes that a program is to see.
    pub fn logical(&self) -> Vec<u8> {
        let stored = std::fs::read(&self.converted).unwrap();
        let gguf = Gguf::parse(&stored).unwrap();
        let table = AliasTable::read(&gguf).unwrap().unwrap();
        let page = headshare_stitch::page_size();
        let view = VirtualGguf::new(&gguf, &table, LogicalLayout::Pages(page)).unwrap();
        let plan = view.stitch_plan(page);
        assert!(view.resident_saving(page) > 0 && plan.maps.len() > 2 && plan.copies.len() > 2);
        let mut bytes = vec![0; view.len() as usize];
        assert_eq!(view.read_at(&stored, 0, &mut bytes), bytes.len());
        bytes
    }

    /// `client.py WHAT CONVERTED [more]` through exec.
    pub fn client(&self, what: &str, more: &[&Path]) -> Output {
        let mut command = exec(&["python3"]);
        command
            .arg(client_script())
            .arg(what)
            .arg(&self.converted)
            .args(more);
        command.output().unwrap()
    }
}

pub fn client_script() -> PathBuf {
    root().join("tests/it/exec/client.py")
}

/// `headshare-gguf exec -- command`.
pub fn exec(command: &[&str]) -> Command {
    exec_with(&[], command)
}

/// `headshare-gguf exec options -- command`.
pub fn exec_with(options: &[&str], command: &[&str]) -> Command {
    let mut exec = Command::new(PROGRAM);
    exec.arg("exec").args(options).arg("--").args(command);
    exec
}

#[track_caller]
pub fn assert_quiet_success(out: &Output) {
    assert!(out.status.success() && out.stderr.is_empty(), "{out:#?}");
}

pub fn stderr(out: &Output) -> String {
    String::from_utf8(out.stderr.clone()).unwrap()
}

pub fn stdout(out: &Output) -> String {
    String::from_utf8(out.stdout.clone()).unwrap()
}
