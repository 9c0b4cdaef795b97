//! Speed, load time and memory of several files or ways to load one, side by side.
//!
//! Each [`Measure`] is one process of its own: it loads one configuration, runs it
//! once unmeasured and once measured, and ends. So at any time one model is in
//! memory, its memory is nobody else's, and the page cache is as warm for one as
//! for the other. Configurations take turns, every second round in the opposite
//! order: what slows the machine down for a while slows all of them down, and
//! ratios are taken within a round.

mod configuration;
mod measure;
mod row;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use headshare_convert::input::ModelFile;
use headshare_eval::bench::{Busy, Elapsed, SpeedTest};
use serde::{Deserialize, Serialize};

use self::configuration::Configuration;
pub(crate) use self::configuration::check_generates;
pub(crate) use self::measure::check_room;
pub use self::measure::{LoadMode, LoadedModel, Measure, Measured};
pub use self::row::BenchRow;
use self::row::Rounds;
use crate::error::Context as _;
use crate::load::Resolve;
use crate::worker;
use crate::{Advice, Error, Ui};

/// Measures several files or ways to load one, in turns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bench {
    /// A plain file to compare with: loaded by llama.cpp as ever, with mmap and
    /// without, and as the program loads it. The first of these is the reference.
    #[serde(with = "crate::path::option")]
    pub stock: Option<PathBuf>,
    /// Files, plain or converted; the first is the reference where there is no
    /// `stock`.
    #[serde(with = "crate::path::list")]
    pub files: Vec<PathBuf>,
    /// What is run.
    pub test: SpeedTest,
    /// Threads; each of several numbers is a configuration, and null leaves it to
    /// the runtime.
    pub threads: Vec<Option<u32>>,
    /// Processors that are kept busy meanwhile.
    pub busy: u32,
    /// Times that each configuration is measured.
    pub repetitions: u32,
    /// How the shared blocks of converted files are brought into memory; each of
    /// several ways is a configuration.
    pub resolve: Vec<Resolve>,
}

impl Bench {
    /// Does it: a row for each configuration and test, the reference first.
    ///
    /// # Errors
    /// When a file is bad, or there is nothing to measure.
    pub fn run(&self, ui: &dyn Ui) -> Result<Vec<BenchRow>, Error> {
        check_test(&self.test)?;
        let configurations = self.configurations()?;
        if configurations.is_empty() || self.repetitions == 0 {
            return Err(Error::usage(
                "without a file and a repetition there is nothing to measure",
            ));
        }
        let mut all: Vec<Rounds> = configurations.into_iter().map(Rounds::of).collect();
        let mut known = BTreeSet::new();
        let busy = Busy::start(self.busy).map_err(Error::failed)?;
        for round in 0..self.repetitions {
            let mut order: Vec<&mut Rounds> = all.iter_mut().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for rounds in order {
                let Configuration { label, measure, .. } = &rounds.configuration;
                read_through(&measure.file).map_err(Error::failed)?;
                let one = worker::ask(measure, Some(&mut known), ui).about(|| label)?;
                ui.remark(&format!(
                    "{}/{} {label}: {}",
                    round + 1,
                    self.repetitions,
                    in_a_line(&one, &self.test)
                ));
                rounds.measured.push(one);
            }
        }
        drop(busy);
        Ok(row::rows(&all, &self.test, self.busy))
    }

    /// What is measured, the reference first. Files are looked at before
    /// anything is run.
    fn configurations(&self) -> Result<Vec<Configuration>, Error> {
        let mut all: Vec<Configuration> = Vec::new();
        let mut add = |path: &Path, file: &ModelFile, load_mode: LoadMode| {
            for &threads in &self.threads {
                let measure = Measure {
                    file: path.to_owned(),
                    load_mode,
                    threads,
                    test: self.test,
                };
                let several = self.threads.len() > 1;
                let one = Configuration::new(measure, file, several, &all);
                all.push(one);
            }
        };
        let as_it_is = LoadMode::Resolve(Resolve::Auto);
        if let Some(path) = &self.stock {
            let file = ModelFile::open_plain(path)?;
            file.require_model()?;
            check_generates(&file)?;
            for load_mode in [LoadMode::StockMmap, LoadMode::StockRead, as_it_is] {
                add(path, &file, load_mode);
            }
        }
        for path in &self.files {
            let file = ModelFile::open_model(path)?;
            check_generates(&file)?;
            if file.table.is_none() {
                add(path, &file, as_it_is);
                continue;
            }
            for &resolve in &self.resolve {
                add(path, &file, LoadMode::Resolve(resolve));
            }
        }
        Ok(all)
    }
}

/// Whether there is anything to measure.
pub(crate) fn check_test(test: &SpeedTest) -> Result<(), Error> {
    match (test.n_prompt, test.n_gen) {
        (0, 0) => Err(
            Error::usage("no prompt and no tokens to generate leave nothing to measure")
                .advise(Advice::MeasureSomething),
        ),
        _ => Ok(()),
    }
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

/// One measurement in a line, for those who wait.
fn in_a_line(one: &Measured, test: &SpeedTest) -> String {
    let mut line = format!("loaded in {:.0} ms", one.loaded.load.ms());
    let mut say = |what: &str, count: u32, took: Option<Elapsed>| {
        if let Some(took) = took {
            let ts = f64::from(count) * 1e9 / took.ns.max(1) as f64;
            line += &format!(", {what}{count} {ts:.2} t/s");
        }
    };
    say("pp", test.n_prompt, one.prefill);
    say("tg", test.n_gen, one.decode);
    line
}
