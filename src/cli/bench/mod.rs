//! `bench`: speed, load time and memory of several files or ways to load one,
//! side by side.
//!
//! Each measurement is one process of its own (see [`worker`]): it loads one
//! configuration, runs it once unmeasured and once measured, and ends. So at
//! any time one model is in memory, its memory is nobody else's, and the page
//! cache is as warm for one as for the other. Configurations take turns, every
//! second round in the opposite order: what slows the machine down for a while
//! slows all of them down, and ratios are taken within a round.

mod busy;
mod render;
pub(super) mod report;
mod worker;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;

use self::busy::Busy;
use self::report::{Report, Row};
use self::worker::{LoadMode, Measured};
use super::Exit;
use super::llama_cpp::Gpu;
use super::loading::Resolve;
use super::output::Output;
use crate::input::ModelFile;
use crate::model::architecture;

pub(super) use self::worker::{Args as WorkerArgs, Test};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF files, plain or converted.
    #[arg(value_name = "FILE", required_unless_present_any = ["stock", "models"])]
    files: Vec<PathBuf>,
    /// One more, as llama-bench takes it.
    #[arg(short, long = "model", value_name = "FILE")]
    models: Vec<PathBuf>,
    /// A plain file to compare with: loaded by llama.cpp as ever, with mmap and
    /// without, and as `run` loads it. The first of these is the reference.
    #[arg(long, value_name = "FILE")]
    stock: Option<PathBuf>,
    #[command(flatten)]
    test: Test,
    /// Threads; each of several numbers is a configuration. "auto" is one a
    /// physical core, and fewer while other programs are busy, as for `run`.
    #[arg(short, long, value_delimiter = ',', default_value = "auto", value_parser = threads)]
    threads: Vec<Threads>,
    /// Keep this many processors busy meanwhile, as other programs would.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=512))]
    busy: u32,
    #[command(flatten)]
    gpu: Gpu,
    /// Times that each configuration is measured.
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,
    /// How the shared blocks of converted files are brought into memory; each
    /// of several ways is a configuration.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "auto")]
    resolve: Vec<Resolve>,
    /// The form of the result.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For the terminal: a table of speeds, and one of memory.
    Table,
    /// One Markdown table, as llama-bench prints it.
    Md,
    /// A JSON array with llama-bench's field names.
    Json,
}

/// One file loaded in one way.
struct Configuration {
    label: String,
    file: PathBuf,
    file_bytes: u64,
    load_mode: LoadMode,
    threads: Threads,
}

/// A number of threads; `None` leaves it to the runtime.
type Threads = Option<u32>;

fn threads(text: &str) -> Result<Threads, String> {
    if text == "auto" {
        return Ok(None);
    }
    match text.parse() {
        Ok(n @ 1..=512) => Ok(Some(n)),
        _ => Err("it is not \"auto\" and no number from 1 to 512".to_owned()),
    }
}

impl Args {
    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        self.test.check()?;
        self.gpu.remark(out);
        let configurations = self.configurations()?;
        let mut measured: Vec<Vec<Measured>> = vec![Vec::new(); configurations.len()];
        let mut known = BTreeSet::new();
        let busy = Busy::start(self.busy)?;
        for round in 0..self.repetitions {
            let mut order: Vec<usize> = (0..configurations.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for i in order {
                let configuration = &configurations[i];
                read_through(&configuration.file)?;
                let one = worker::measure(
                    &configuration.file,
                    configuration.load_mode,
                    configuration.threads,
                    &self.test,
                    &mut known,
                )
                .with_context(|| configuration.label.clone())?;
                out.remark(&format!(
                    "{}/{} {}: {}",
                    round + 1,
                    self.repetitions,
                    configuration.label,
                    render::progress(&one, &self.test)
                ));
                measured[i].push(one);
            }
        }
        drop(busy);
        let rows = configurations
            .into_iter()
            .zip(measured)
            .map(|(configuration, measured)| Row::new(configuration, measured))
            .collect();
        let report = Report::new(rows, self.test, self.busy);
        let json = self.output == Form::Json;
        out.result(&report.elements(), json, |_| match self.output {
            Form::Md => render::markdown(&report),
            _ => render::table(&report),
        })?;
        Ok(Exit::Done)
    }

    /// What is measured, the reference first. Files are looked at before
    /// anything is run.
    fn configurations(&self) -> anyhow::Result<Vec<Configuration>> {
        let mut all: Vec<Configuration> = Vec::new();
        let several = self.threads.len() > 1;
        let mut add_one =
            |path: &Path, file: &ModelFile, what: &str, load_mode: LoadMode, threads| {
                let name = path.file_name().unwrap_or(path.as_os_str());
                let mut label = format!("{}: {what}", name.to_string_lossy());
                match threads {
                    _ if !several => {}
                    Some(n) => label += &format!(", -t {n}"),
                    None => label += ", -t auto",
                }
                let same = |c: &&Configuration| {
                    c.label == label || c.label.starts_with(&format!("{label} #"))
                };
                let label = match all.iter().filter(same).count() {
                    0 => label,
                    n => format!("{label} #{}", n + 1),
                };
                all.push(Configuration {
                    label,
                    file: path.to_owned(),
                    file_bytes: file.len(),
                    load_mode,
                    threads,
                });
            };
        let mut add = |path: &Path, file: &ModelFile, what: &str, load_mode: LoadMode| {
            for &threads in &self.threads {
                add_one(path, file, what, load_mode, threads);
            }
        };
        if let Some(path) = &self.stock {
            let file = ModelFile::open_plain(path)?;
            file.require_model()?;
            check_generates(&file)?;
            add(path, &file, "stock, mmap", LoadMode::StockMmap);
            add(path, &file, "stock, no mmap", LoadMode::StockRead);
            add(path, &file, "dropping", LoadMode::Auto);
        }
        for path in self.files.iter().chain(&self.models) {
            let file = ModelFile::open_model(path)?;
            check_generates(&file)?;
            if file.table.is_none() {
                add(path, &file, "dropping", LoadMode::Auto);
                continue;
            }
            for &resolve in &self.resolve {
                let name = resolve.to_possible_value().expect("no value is skipped");
                add(path, &file, name.get_name(), LoadMode::resolving(resolve));
            }
        }
        Ok(all)
    }
}

/// Refuses encoders; other models that do not generate are refused by the
/// worker, once llama.cpp has them.
pub(super) fn check_generates(file: &ModelFile) -> anyhow::Result<()> {
    let name = match &file.table {
        Some(table) => table.source.architecture.as_deref(),
        None => file.gguf.architecture().ok().flatten(),
    };
    let name = name.unwrap_or("");
    if architecture(name).is_some_and(|a| a.encoder_only) {
        let path = file.path().display();
        return Err(headshare_jobs::Error::bad_input(format!(
            "{path}: {name} models do not generate text: they are encoders"
        ))
        .into());
    }
    Ok(())
}

/// Brings the file into the page cache, so that load times do not depend on
/// who loaded last. Not mapped: pages that two processes map count half.
fn read_through(path: &Path) -> anyhow::Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                return Err(e).with_context(|| format!("cannot read {}", path.display()));
            }
        }
    }
}
