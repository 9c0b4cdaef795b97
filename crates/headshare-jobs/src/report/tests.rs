//! What results are found again by, and what is said of conversions.

use std::path::Path;

use headshare_convert::plan::Plan;
use headshare_convert::repair::choose::Units;
use headshare_eval::bench::SpeedTest;
use headshare_eval::report::Series;
use headshare_eval::report::cells::Store;
use serde_json::json;

use super::input::{By, Input};
use super::inputs::Inputs;
use super::make::changed_units;
use super::run::Run;
use super::stats::KeptStats;
use super::target::{Recipe, Target};
use super::{MakeReport, MeasuredChoice};
use crate::convert::{Calibration, Stats};
use crate::{Quiet, Ui};

/// This program is its own worker.
struct Here;

impl Ui for Here {
    fn worker(&self) -> std::io::Result<std::process::Command> {
        Ok(std::process::Command::new(std::env::current_exe()?))
    }
}

/// A report of files in `folder`, which need not be good.
struct Case {
    folder: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["m.gguf", "t", "r.txt"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn job(&self, stats: Option<Stats>) -> MakeReport {
        MakeReport {
            source: self.path("m.gguf"),
            ratios: vec![0.5],
            fit: None,
            text: self.path("t"),
            tasks: Vec::new(),
            subjects: false,
            kind: None,
            output: self.path("out"),
            functions: Vec::new(),
            repair: Some(Calibration {
                text: self.path("r.txt"),
                windows: 2,
                window: 64,
                memory: None,
            }),
            measured: stats.map(|stats| MeasuredChoice {
                units: Units::Share,
                stats,
            }),
            ctx: 64,
            chunks: None,
            limit: None,
            test: SpeedTest {
                n_prompt: 8,
                n_gen: 2,
                n_batch: 8,
                n_ubatch: 8,
            },
            threads: Some(1),
            repetitions: 1,
            keep: false,
        }
    }

    /// What `ask` finds out about the making of the report.
    fn with<T>(&self, job: &MakeReport, ask: impl FnOnce(&Run<'_>) -> T) -> T {
        let inputs = Inputs::unchecked(job).unwrap();
        let store = Store::open(&job.output).unwrap();
        ask(&Run::new(job, &inputs, &store, &Here).unwrap())
    }
}

#[test]
fn a_file_that_decides_what_is_chosen_is_in_the_key() {
    let case = Case::new();
    let path = case.path("stats.json");
    let deciding = |stats: Option<Stats>| {
        let job = case.job(stats);
        case.with(&job, |run| {
            let kept = KeptStats::of(run).unwrap();
            kept.and_then(|kept| kept.deciding(run).unwrap())
        })
    };
    let save = || Some(Stats::Save(path.clone()));
    let load = || Some(Stats::Load(path.clone()));
    assert_eq!(deciding(Some(Stats::Forget)), None);
    // It will be written.
    assert_eq!(deciding(save()), None);
    std::fs::write(&path, "theirs").unwrap();
    let theirs = deciding(load());
    let digest = Input::read(&path, &path).unwrap().file.digest;
    assert_eq!(theirs, Some(digest));
    assert_eq!(deciding(save()), theirs);
    // Where the units are not chosen by measuring, nobody reads it.
    assert_eq!(deciding(None), None);
    // What this report wrote itself says what it would measure again.
    std::fs::remove_file(&path).unwrap();
    case.with(&case.job(save()), |run| {
        let written = KeptStats::of(run).unwrap().unwrap();
        std::fs::write(&path, "ours").unwrap();
        written.record(run).unwrap();
    });
    assert_eq!(deciding(save()), None);
    std::fs::write(&path, "ours no more").unwrap();
    assert!(deciding(save()).is_some());
}

#[test]
fn the_memory_of_a_repair_is_always_told() {
    let case = Case::new();
    let mut job = case.job(None);
    let memory = |job: &MakeReport| {
        let calibration = case.with(job, |run| run.calibration(By::Digest));
        calibration.unwrap().memory.unwrap()
    };
    assert!(memory(&job) > 1 << 20);
    if let Some(repair) = &mut job.repair {
        repair.memory = Some(9);
    }
    assert_eq!(memory(&job), 9);
}

/// Keys hold no path, so that a report may move; and a conversion's holds what it
/// depends on.
#[test]
fn a_key_holds_digests_and_no_paths() {
    let case = Case::new();
    let job = case.job(Some(Stats::Forget));
    case.with(&job, |run| {
        let target = |series| Target {
            name: "x".into(),
            recipe: Recipe::Convert {
                series,
                function: Default::default(),
                ratio: 0.5,
            },
            path: case.path("x.gguf"),
        };
        let repaired = run.file_cell(&target(Series::Repaired), None).unwrap();
        let told = serde_json::to_value(&repaired.key).unwrap();
        let text = told.to_string();
        assert!(
            !text.contains(case.folder.path().to_str().unwrap()),
            "{text}"
        );
        assert_eq!(told["of"]["job"], "convert");
        let digest = |name: &str| {
            let path = case.path(name);
            json!(Input::read(&path, &path).unwrap().file.digest)
        };
        assert_eq!(told["of"]["source"], digest("m.gguf"));
        assert_eq!(told["of"]["repair"]["text"], digest("r.txt"));
        let decided = run.file_cell(&target(Series::Repaired), Some("blake3:1"));
        assert_ne!(decided.unwrap().key, repaired.key);
        // What is not repaired does not depend on how that is done.
        let shared = run.file_cell(&target(Series::Shared), None).unwrap();
        let decided = run.file_cell(&target(Series::Shared), Some("blake3:1"));
        assert_eq!(decided.unwrap().key, shared.key);
        // By hand it is done with files.
        assert!(
            repaired
                .command
                .iter()
                .any(|word| Path::new(word) == case.path("r.txt"))
        );
    });
}

#[test]
fn a_unit_whose_parts_are_matched_apart_counts_once() {
    let plan = |edits: serde_json::Value| {
        let plan = json!({
            "version": 2,
            "source": format!("blake3:{}", "1".repeat(64)),
            "choice": {"by": "separate", "units": 8},
            "edits": edits,
        });
        Plan::from_json(plan.to_string().as_bytes()).unwrap()
    };
    let alias = |unit: u32, part: &str| {
        json!({"share": {
            "layer": 2, "unit": unit, "donor_layer": 1, "donor_unit": 0, "parts": [part],
        }})
    };
    let dropped = json!({"drop": {"layer": 3, "unit": 1, "score": -0.1}});
    let mut edits = vec![alias(0, "q"), alias(0, "k"), alias(0, "v"), alias(1, "v")];
    assert_eq!(changed_units(&plan(json!(edits))), (2, 0));
    edits.push(dropped.clone());
    assert_eq!(changed_units(&plan(json!(edits))), (2, 1));
    assert_eq!(changed_units(&plan(json!([dropped]))), (0, 1));
}

#[test]
fn no_worker_no_report() {
    let case = Case::new();
    let job = case.job(None);
    let inputs = Inputs::unchecked(&job).unwrap();
    let store = Store::open(&job.output).unwrap();
    let error = Run::new(&job, &inputs, &store, &Quiet).err().unwrap();
    assert!(error.to_string().contains("program"), "{error}");
}

#[test]
fn what_was_done_is_said_in_words() {
    use super::make::doings;

    assert_eq!(doings(2, 0), "2 use another unit's weights");
    assert_eq!(
        doings(2, 1),
        "1 are dropped and 2 use another unit's weights"
    );
    assert_eq!(doings(0, 1), "1 are dropped");
    assert_eq!(doings(0, 0), "0 use another unit's weights");
}
