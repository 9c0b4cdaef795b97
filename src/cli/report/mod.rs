//! `report`: arguments, what is checked before any long work, and the order of
//! things. [`work`] goes from cell to cell, [`make`] says how files come to be
//! and [`measures`] what is measured of them; what is made of it all is in
//! [`crate::report`].

mod make;
mod measures;
mod speed;
mod stdin;
mod work;
mod worker;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use headshare_format::alias::format_digest;
use headshare_stitch::MappedFile;
use serde_json::{Value, json};

use self::stdin::Stdin;
use self::work::Work;
use super::Exit;
use super::bench::TestArgs;
use super::eval::{KindArg, read_text};
use super::loading::{self, Resolve};
use super::output::Output;
use super::plan::{MatchArgs, parse_ratio};
use super::repair::RepairArgs;
use super::stdio;
use crate::convert;
use crate::eval::choice::encode::encode;
use crate::eval::choice::{Kind, Task};
use crate::eval::perplexity::{self, MIN_CTX};
use crate::input::{InputError, ModelFile, text};
use crate::repair::choose::Units;
use crate::report::cells::Store;
use crate::report::lower::Lowering;
use crate::report::overlap::share_in;
use crate::report::verdict::{summary, verdicts};
use crate::report::{File, Report, Series, Settings, markdown, picture};

pub(super) use self::worker::Args as WorkerArgs;
use crate::analyze::picture::Format;

/// Measure what sharing does to a model, next to what else could be done for
/// the same bytes.
///
/// Converts SRC at each ratio and measures each file: bytes, resident bytes of
/// the weights, perplexity and divergence from the source, tasks, and speed in
/// turns with the source. Beside each stands its rival: the plain file that is
/// as small because part of its tensors are stored one type lower.
///
/// DIR holds the result (report.md, report.json, quality.svg, quality.png) and
/// what was measured (cells). The same command goes on where it was stopped;
/// what changed inputs make stale is measured again, and nothing else. Another
/// build of this program makes all of it stale.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Ratio 0 shares nothing but what is byte-equal: in self-merges, that is a lot.
A text that was used to choose or repair anything cannot tell how good it became.
Speed and memory are those of a machine with nothing else to do: while another
program has the model mapped, pages count half.")]
pub(super) struct Args {
    /// The model, a plain GGUF file.
    src: PathBuf,
    /// Shares of the units, from 0 to 1, that use another unit's weights.
    #[arg(long, value_name = "A,...", required = true, value_delimiter = ',',
        value_parser = parse_ratio, allow_negative_numbers = true)]
    ratios: Vec<f64>,
    /// The text that perplexity is of, UTF-8; - reads standard input.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Questions for eval choice: jsonl, or the zip of MMLU or C-Eval; - reads
    /// standard input. May be given several times.
    #[arg(long = "task", value_name = "FILE")]
    tasks: Vec<PathBuf>,
    /// How to score the questions, where the fields do not tell (see eval
    /// choice --help).
    #[arg(long, value_enum, requires = "tasks")]
    kind: Option<KindArg>,
    /// The folder of the report; a report that is in it is continued.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    matching: MatchArgs,
    #[command(flatten)]
    repair: RepairArgs,
    /// Tokens of a window of the text.
    #[arg(short, long, value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(i64::from(MIN_CTX)..=1 << 24))]
    ctx: u32,
    /// Evaluate only this many windows, from the beginning.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    chunks: Option<u64>,
    /// Only the first questions of each task, and of each subject.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[command(flatten)]
    test: TestArgs,
    /// Threads [default: one a physical core, fewer while other programs are busy]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    /// Times that speed is measured.
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,
    /// Keep the models that were made, in DIR/files.
    #[arg(long)]
    keep: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// The inputs, with their digests.
struct Inputs {
    source: File,
    text: File,
    tasks: Vec<File>,
    repair: Option<File>,
    /// The digest of this program.
    build: String,
    stdin: Stdin,
}

impl Inputs {
    /// A cell's key: the programs, the measure, and what else its value depends
    /// on.
    fn key(&self, measure: &str, on: Value) -> Value {
        json!({
            "tool": crate::TOOL,
            "build": self.build,
            "llama_cpp": headshare_runtime::backend::llama_cpp_revision(),
            "measure": measure,
            "on": on,
        })
    }
}

impl Args {
    pub(super) fn run(mut self, out: &Output) -> anyhow::Result<Exit> {
        self.ratios.sort_by(f64::total_cmp);
        self.ratios.dedup();
        let inputs = self.check(out)?;
        let store = Store::open(&self.output)?;
        let gguf = ModelFile::open(&self.src)?.gguf;
        let lowering = Lowering::of(&gguf);
        let mut work = Work::new(&self, &inputs, &store, &lowering, out)?;
        let (rows, source_load_modes) = work.rows()?;
        store.tidy();
        let verdicts = verdicts(&rows);
        let report = Report {
            tool: crate::TOOL.to_owned(),
            llama_cpp: headshare_runtime::backend::llama_cpp_revision().to_owned(),
            settings: self.settings(),
            series: self.series(),
            source_load_modes,
            summary: summary(&rows, &verdicts),
            verdicts,
            rows,
            source: inputs.source,
            text: inputs.text,
            tasks: inputs.tasks,
        };
        let scene = picture::picture(&report);
        store.write("quality.svg", &scene.encode(Format::Svg))?;
        store.write("quality.png", &scene.encode(Format::Png))?;
        let mut json = serde_json::to_string_pretty(&report)?;
        json.push('\n');
        store.write("report.json", json.as_bytes())?;
        let text = markdown::render(&report, "quality.svg");
        store.write("report.md", text.as_bytes())?;
        out.result(&report, self.json, |_| text)?;
        Ok(Exit::Done)
    }

    /// The ways to convert, the plain one first: it tells whether there is
    /// anything to repair. A new way is one more of these, and its arguments in
    /// [`convert_arguments`](Self::convert_arguments).
    fn series(&self) -> Vec<Series> {
        let function = self.matching.function();
        let mut all = vec![Series {
            name: "shared",
            title: format!("DirectShare, match {function}"),
        }];
        if self.repair.path().is_some() {
            let (name, title) = match self.repair.units() {
                _ if !self.measures() => (
                    "repaired",
                    "the same, then the layers after it refitted (convert --repair)",
                ),
                Units::Share => (
                    "repaired",
                    "units that share chosen by measuring, the layers after them refitted (convert --repair)",
                ),
                Units::Drop => (
                    "dropped",
                    "units that go chosen by measuring, the layers after them refitted (convert --repair --units drop)",
                ),
                Units::Auto => (
                    "auto",
                    "units that share or go, for the same bytes, chosen by measuring, the layers after them refitted (convert --repair --units auto)",
                ),
            };
            all.push(Series {
                name,
                title: title.to_owned(),
            });
        }
        all
    }

    /// Whether a repair chooses by measuring.
    fn measures(&self) -> bool {
        let measures = self.repair.measures(self.matching.is_given(), false);
        measures.unwrap_or(false)
    }

    /// What a series adds to `convert SRC --ratio A`, paths left out.
    fn convert_arguments(&self, series: &str) -> Vec<String> {
        let measures = self.measures() && series != "shared";
        let mut all = Vec::new();
        if !measures {
            all.extend(["--match".to_owned(), self.matching.function().to_string()]);
        }
        if series != "shared" {
            all.extend(self.repair.arguments(measures));
        }
        all
    }

    /// The way of scoring that all tasks are forced to.
    fn kind(&self) -> Option<Kind> {
        self.kind.map(Kind::from)
    }

    fn settings(&self) -> Settings {
        Settings {
            function: self.matching.function().to_string(),
            ratios: self.ratios.clone(),
            ctx: self.ctx,
            chunks: self.chunks,
            limit: self.limit,
            kind: self.kind(),
            n_prompt: self.test.n_prompt,
            n_gen: self.test.n_gen,
            repetitions: self.repetitions,
            threads: self.threads,
            cpu: headshare_runtime::threads::processor_name(),
        }
    }

    /// Whatever can be wrong with the inputs, before any long work.
    fn check(&self, out: &Output) -> anyhow::Result<Inputs> {
        stdio::refuse(&self.output, "-o", "a report is a folder")?;
        self.repair.check_outputs()?;
        let texts = std::iter::once(("--text", self.text.as_path()));
        let tasks = self.tasks.iter().map(|path| ("--task", path.as_path()));
        let given: Vec<_> = texts.chain(tasks).chain(self.repair.streams()).collect();
        stdio::check_inputs(given.iter().copied())?;
        Store::check(&self.output)?;
        self.test.test()?;
        let source = ModelFile::open_plain(&self.src)?;
        convert::attention_map(&source)?;
        headshare_jobs::check_generates(&source)?;
        let stdin = Stdin::of(given.into_iter().map(|(_, path)| path))?;
        let read = read_text(stdin.path(&self.text), "--text")?;
        let limit = self.limit.map(|n| n as usize);
        let tasks = (self.tasks.iter())
            .map(|path| Task::read(stdin.path(path), self.kind(), limit).context("--task"))
            .collect::<anyhow::Result<Vec<_>>>()?;
        {
            let loaded = loading::load(&self.src, Resolve::Auto, true, &mut |_| true, out)?;
            perplexity::check(&loaded.model, &read, self.ctx)
                .with_context(|| format!("{} (--text)", text::name(&self.text)))?;
            let n_ctx = headshare_jobs::item_context(&loaded.model, 0) as usize;
            for (task, path) in tasks.iter().zip(&self.tasks) {
                encode(task, &loaded.model.vocab(), n_ctx)
                    .with_context(|| format!("{} (--task)", text::name(path)))?;
            }
        }
        self.repair.measures(self.matching.is_given(), false)?;
        let fitted = self.repair.path().map(|path| stdin.path(path));
        let fitted = fitted.map(headshare_jobs::read_text).transpose()?;
        self.repair.check(&source, fitted.clone(), out)?;
        if let Some(fitted) = fitted {
            warn_of_overlap(&read, &fitted, out);
        }
        let digested_input = |path: &Path| {
            let file = digested(stdin.path(path))?;
            let path = text::name(path);
            anyhow::Ok(File { path, ..file })
        };
        Ok(Inputs {
            source: File {
                path: self.src.display().to_string(),
                bytes: source.len(),
                digest: convert::digest_of(&source),
            },
            text: digested_input(&self.text)?,
            tasks: (self.tasks.iter())
                .map(|path| digested_input(path))
                .collect::<anyhow::Result<_>>()?,
            repair: self.repair.path().map(digested_input).transpose()?,
            build: digested(&std::env::current_exe().context("cannot find this program")?)?.digest,
            stdin,
        })
    }
}

/// Texts may have so much in common by chance, or by quoting a third.
const OVERLAP: f64 = 0.05;

/// Says so when the model is judged by what it is fitted to.
fn warn_of_overlap(text: &str, fitted: &str, out: &Output) {
    let (text, fitted) = (text.as_bytes(), fitted.as_bytes());
    let what = match (share_in(text, fitted), share_in(fitted, text)) {
        (seen, _) if seen > OVERLAP => {
            format!(
                "{:.0}% of --text is in what --repair fits the model to",
                seen * 100.0
            )
        }
        (_, used) if used > OVERLAP => {
            format!(
                "{:.0}% of what --repair fits the model to is in --text",
                used * 100.0
            )
        }
        _ => return,
    };
    out.warning(&format!(
        "{what}: its perplexity will flatter; give --text another text"
    ));
}

fn digested(path: &Path) -> anyhow::Result<File> {
    let file = MappedFile::open(path).map_err(InputError::from)?;
    Ok(File {
        path: path.display().to_string(),
        bytes: file.len() as u64,
        digest: format_digest(&blake3::hash(&file)),
    })
}
