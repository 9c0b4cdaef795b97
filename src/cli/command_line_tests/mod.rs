//! The command line of a job asks for that job: neither can drift away from the
//! other.

mod fitting;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory as _, Parser as _};
use headshare_jobs::{
    AnalyzeAttention, AnalyzeRatios, AnalyzeWeights, Bench, Calibration, Change, Choice,
    ContinuePrompts, Convert, Expand, Fits, Generate, Inspect, Job, MakePlan, MakeReport,
    MeasuredChoice, Perplexity, Quantization, Removal, Resolve, Setup, SpeedTest, Stats, Verify,
    With, from_json,
};
use headshare_runtime::SamplerParams;

use super::{Cli, Command, analyze, eval};
use crate::baseline::Baseline;
use crate::eval::choice::Kind;
use crate::matching::MatchFunction;
use crate::quantize::Settings;
use crate::quantize::types::Wanted;
use crate::repair::choose::Units;
use crate::spelling;

/// The job that these arguments ask for.
fn asked_for(arguments: Vec<OsString>) -> Job {
    let program = std::iter::once(OsString::from("headshare-gguf"));
    let words = spelling::spell_out(Cli::command(), program.chain(arguments)).unwrap();
    match Cli::try_parse_from(words).unwrap().command {
        Command::Plan(args) => args.job().unwrap(),
        Command::Convert(args) => Job::Convert(args.job().unwrap()),
        Command::Expand(args) => Job::Expand(args.job()),
        Command::Verify(args) => Job::Verify(args.job()),
        Command::Inspect(args) => Job::Inspect(args.job()),
        Command::Run(args) => Job::Generate(args.job().unwrap()),
        Command::Eval(args) => match args.measure {
            eval::Measure::Perplexity(args) => Job::Perplexity(args.job()),
            eval::Measure::Choice(args) => Job::Choice(args.job()),
            eval::Measure::Generate(args) => Job::ContinuePrompts(args.job()),
        },
        Command::Bench(args) => Job::Bench(args.job().unwrap()),
        #[cfg(feature = "train")]
        Command::Train(args) => Job::Train(Box::new(args.job().unwrap())),
        Command::Report(args) => Job::Report(args.job().unwrap()),
        Command::Analyze(args) => match args.what {
            analyze::What::Weights(args) => Job::AnalyzeWeights(args.job()),
            analyze::What::Attention(args) => Job::AnalyzeAttention(args.job()),
            analyze::What::Ratios(args) => Job::AnalyzeRatios(args.job()),
            analyze::What::Predictions(args) => Job::AnalyzePredictions(args.job().unwrap()),
        },
        other => panic!("{other:?} is no job"),
    }
}

/// Checks that the command line of `job` asks for it, and that its JSON is it.
fn check(job: Job) {
    let line = job.command_line();
    assert_eq!(asked_for(line.clone()), job, "{line:?}");
    let json = serde_json::to_string(&job).unwrap();
    assert_eq!(from_json::<Job>(&json).unwrap(), job, "{json}");
}

fn path(name: &str) -> PathBuf {
    name.into()
}

#[test]
fn files() {
    for (name, force) in [("a b.gguf", false), ("-a.gguf", true), ("run", false)] {
        let output = path("-o.gguf");
        check(Job::Expand(Expand {
            file: path(name),
            output: output.clone(),
            force,
        }));
        for source in [None, Some(output)] {
            let file = path(name);
            check(Job::Verify(Verify { file, source }));
        }
        check(Job::Inspect(Inspect { file: path(name) }));
    }
}

#[test]
fn conversions() {
    for (output, force) in [(None, false), (Some(path("-")), true)] {
        check(Job::Plan(MakePlan {
            source: path("s.gguf"),
            function: MatchFunction::Separate,
            ratio: 0.1 + 0.2,
            output,
            force,
        }));
    }
    let calibration = |memory| Calibration {
        text: path("-text.txt"),
        windows: 7,
        window: 65,
        memory,
    };
    let measure = |units, stats| Change::Measure {
        ratio: 0.25,
        units,
        stats,
    };
    let matched = Change::Match {
        ratio: 1e-9,
        function: MatchFunction::V,
    };
    let baseline = |by, text: Option<&str>, silence| {
        Change::Baseline(Removal {
            ratio: 0.5,
            by,
            text: text.map(path),
            silence,
        })
    };
    let cases = [
        (Change::Lossless, None),
        (matched.clone(), None),
        (matched, Some(calibration(None))),
        (baseline(Baseline::Magnitude, None, false), None),
        (
            baseline(Baseline::Magnitude, None, true),
            Some(calibration(None)),
        ),
        (baseline(Baseline::LlmPruner, Some("-"), true), None),
        (
            baseline(Baseline::LlmPruner, Some("-other.txt"), false),
            Some(calibration(None)),
        ),
        (
            measure(Units::Share, Stats::Forget),
            Some(calibration(Some(1 << 33))),
        ),
        (
            measure(Units::Drop, Stats::Save(path("s"))),
            Some(calibration(None)),
        ),
        (
            measure(Units::Auto, Stats::Load(path("-s"))),
            Some(calibration(None)),
        ),
        (Change::Plan { file: path("-") }, None),
        (
            Change::Plan {
                file: path("p.json"),
            },
            Some(calibration(None)),
        ),
    ];
    for (i, (change, repair)) in cases.into_iter().enumerate() {
        check(Job::Convert(Convert {
            source: path("s.gguf"),
            output: (i % 4 != 0).then(|| path("o.gguf")),
            change,
            keep_duplicates: i % 3 == 1,
            repair,
            quantize: None,
            fit: None,
            page_size: [4096, 16384, 65536][i % 3],
            dry_run: i % 2 == 0,
            force: i % 4 < 2,
        }));
    }
}

#[test]
fn quantizing() {
    let calibration = Calibration {
        text: path("-text.txt"),
        windows: 7,
        window: 65,
        memory: Some(1 << 33),
    };
    let fitted = |settings, save_imatrix| With::Calibration {
        calibration: calibration.clone(),
        settings,
        save_imatrix,
    };
    let settings = Settings {
        strength: Some(0.1 + 0.2),
        ridge: 1e-9,
        damping: 3.0,
    };
    let cases = [
        (Change::Lossless, None, With::Rounding),
        (Change::Lossless, None, With::Imatrix { file: path("-i") }),
        (Change::Plan { file: path("-") }, None, fitted(None, None)),
        (
            Change::Lossless,
            Some(calibration.clone()),
            fitted(Some(settings), Some(path("-s"))),
        ),
    ];
    for (i, (change, repair, with)) in cases.into_iter().enumerate() {
        let wanted = Wanted {
            to: "q4_K_M".to_owned(),
            pure: i % 2 == 0,
            overrides: vec![("a=b".to_owned(), "q8_0".to_owned()); i],
            untie: false,
        };
        // A repair is one of heads that share.
        let change = match &repair {
            Some(_) => Change::Match {
                ratio: 0.5,
                function: MatchFunction::V,
            },
            None => change,
        };
        check(Job::Convert(Convert {
            source: path("s.gguf"),
            output: Some(path("o.gguf")),
            change,
            keep_duplicates: i % 2 == 0,
            repair,
            quantize: Some(Quantization {
                wanted: Some(wanted),
                with,
                allow_requantize: i % 2 == 1,
            }),
            fit: None,
            page_size: 4096,
            dry_run: false,
            force: false,
        }));
    }
}

/// As llama-quantize reads them; classes of characters stay what they are.
#[test]
fn patterns_are_read_in_lower_case() {
    let words = ["convert", "s.gguf", "-o", "o.gguf", "--quantize", "q4_0"];
    let pattern = r"--tensor-type=FFN_(Down|\\S)\D=Q6_K";
    let Job::Convert(job) = asked_for(words.iter().chain([&pattern]).map(Into::into).collect())
    else {
        panic!("convert asks for another job");
    };
    let wanted = job.quantize.and_then(|quantize| quantize.wanted).unwrap();
    assert_eq!(
        wanted.overrides,
        [(r"ffn_(down|\\s)\D".to_owned(), "Q6_K".to_owned())]
    );
}

#[test]
fn analyses() {
    for (picture, force) in [(None, false), (Some(path("-p.svg")), true)] {
        check(Job::AnalyzeWeights(AnalyzeWeights {
            file: path("-m.gguf"),
            function: MatchFunction::K,
            ratio: 0.7,
            picture: picture.clone(),
            npy: picture.clone(),
            force,
        }));
        check(Job::AnalyzeAttention(AnalyzeAttention {
            file: path("m.gguf"),
            text: path("-"),
            ctx: 99,
            windows: 3,
            functions: vec![MatchFunction::Qkv, MatchFunction::Q],
            ratio: 0.7,
            threads: force.then_some(3),
            picture: picture.clone(),
            force,
        }));
        check(Job::AnalyzeRatios(AnalyzeRatios {
            files: vec![path("a.gguf"), path("-b.gguf")],
            picture,
            force,
        }));
    }
}

#[test]
fn measures() {
    check(Job::Perplexity(Perplexity::new("m.gguf", "t.txt")));
    check(Job::Perplexity(Perplexity {
        file: path("-m.gguf"),
        text: path("-"),
        base: Some(path("--base")),
        ctx: 0,
        chunks: Some(3),
        batch_size: 17,
        resolve: Resolve::Fold,
        fast: false,
        threads: Some(2),
    }));
    check(Job::Perplexity(Perplexity {
        fast: true,
        ..Perplexity::new("m.gguf", "t.txt")
    }));
    check(Job::Choice(Choice::new("m.gguf", "t.jsonl")));
    check(Job::Choice(Choice {
        fast: true,
        ..Choice::new("m.gguf", "t.jsonl")
    }));
    let kinds = [
        Kind::Choices,
        Kind::Question,
        Kind::Letters,
        Kind::Partial,
        Kind::LastWord,
    ];
    for kind in kinds {
        check(Job::Choice(Choice {
            file: path("m.gguf"),
            tasks: vec![path("-t"), path("u.zip"), path("-")],
            kind: Some(kind),
            limit: Some(9),
            ctx_size: 300,
            unbatched: true,
            resolve: Resolve::Map,
            fast: false,
            threads: Some(1),
        }));
    }
    check(Job::ContinuePrompts(ContinuePrompts::new("m", "t.jsonl")));
    check(Job::ContinuePrompts(ContinuePrompts {
        file: path("m.gguf"),
        task: path("-"),
        n_predict: 5,
        until: vec!["\n".into(), "-n".into(), "\\n".into()],
        synonyms: Some(path("-words.txt")),
        limit: Some(2),
        ctx_size: Some(0),
        resolve: Resolve::Expand,
        threads: Some(4),
    }));
}

#[test]
fn texts() {
    check(Job::Generate(Generate::new("m.gguf", "")));
    check(Job::Generate(Generate {
        setup: Setup {
            file: path("-m.gguf"),
            resolve: Resolve::Map,
            keep_pages: true,
            ctx_size: Some(0),
            batch_size: 64,
            ubatch_size: 32,
            threads: Some(2),
            threads_batch: Some(3),
        },
        prompt: "\u{feff}-tb \\n \"quoted\"\n".into(),
        n_predict: None,
        stops: vec!["-".into(), "--stop".into(), String::new()],
        sampling: SamplerParams {
            temp: -0.1,
            top_k: -3,
            typical_p: 0.3,
            top_p: 0.1,
            min_p: 0.7,
            penalty_last_n: -1,
            penalty_repeat: 1.1,
            penalty_freq: -0.2,
            penalty_present: 1e-7,
            ignore_eos: true,
            seed: Some(u32::MAX),
            grammar: Some("root ::= \"-\"\n".into()),
        },
    }));
}

const TEST: SpeedTest = SpeedTest {
    n_prompt: 7,
    n_gen: 0,
    n_batch: 5,
    n_ubatch: 3,
};

#[test]
fn speeds() {
    check(Job::Bench(Bench {
        stock: None,
        files: vec![path("a.gguf"), path("-b.gguf")],
        test: TEST,
        threads: vec![None],
        busy: 0,
        repetitions: 5,
        resolve: vec![Resolve::Auto],
    }));
    check(Job::Bench(Bench {
        stock: Some(path("-s.gguf")),
        files: Vec::new(),
        test: TEST,
        threads: vec![Some(3), None, Some(1)],
        busy: 2,
        repetitions: 1,
        resolve: vec![Resolve::Map, Resolve::Fold],
    }));
}

#[test]
fn reports() {
    let plain = MakeReport {
        source: path("-m.gguf"),
        ratios: vec![0.0, 0.1 + 0.2, 1.0],
        fit: None,
        text: path("t.txt"),
        tasks: Vec::new(),
        subjects: false,
        kind: None,
        output: path("-out"),
        functions: vec![MatchFunction::V],
        repair: None,
        measured: None,
        ctx: 64,
        chunks: None,
        limit: None,
        test: TEST,
        threads: None,
        repetitions: 3,
        keep: false,
    };
    check(Job::Report(plain.clone()));
    let repair = Some(Calibration {
        text: path("r.txt"),
        windows: 7,
        window: 65,
        memory: Some(1 << 33),
    });
    check(Job::Report(MakeReport {
        repair: repair.clone(),
        ..plain.clone()
    }));
    for (types, stats) in [
        (None, Stats::Forget),
        (Some(vec!["q8_0".to_owned()]), Stats::Save(path("s"))),
        (
            Some(vec!["q4_0".to_owned(), "q2_K".to_owned()]),
            Stats::Load(path("-")),
        ),
    ] {
        check(Job::Report(MakeReport {
            ratios: Vec::new(),
            functions: Vec::new(),
            fit: repair.clone().map(|calibration| Fits {
                sizes: vec![1 << 20, 999, 1 << 33],
                time: matches!(stats, Stats::Save(_)).then_some(90),
                types,
                calibration,
                stats,
            }),
            ..plain.clone()
        }));
    }
    // No function stands for the default one, also for a repair; several are compared.
    for functions in [Vec::new(), MatchFunction::ALL.to_vec()] {
        for repair in [None, repair.clone()] {
            check(Job::Report(MakeReport {
                functions: functions.clone(),
                repair,
                ..plain.clone()
            }));
        }
    }
    for stats in [
        Stats::Forget,
        Stats::Save(path("s")),
        Stats::Load("-".into()),
    ] {
        check(Job::Report(MakeReport {
            tasks: vec![path("-t"), path("u.zip")],
            subjects: true,
            kind: Some(Kind::LastWord),
            functions: Vec::new(),
            repair: repair.clone(),
            measured: Some(MeasuredChoice {
                units: Units::Auto,
                stats,
            }),
            chunks: Some(2),
            limit: Some(9),
            threads: Some(4),
            keep: true,
            ..plain.clone()
        }));
    }
}

#[cfg(feature = "train")]
#[test]
fn training() {
    use headshare_jobs::{Checkpoint, Method, TrainModel, TrainOn};
    use headshare_train::{Schedule, Settings};
    let calibration = |name: &str| Calibration {
        text: path(name),
        windows: 7,
        window: 65,
        memory: Some(1 << 33),
    };
    let matched = Change::Match {
        ratio: 0.3,
        function: MatchFunction::Qkv,
    };
    let checkpoint = |resume, changes| Checkpoint {
        file: path("-state"),
        every: 3,
        resume,
        changes,
    };
    let measured = Change::Measure {
        ratio: 0.25,
        units: Units::Auto,
        stats: Stats::Load(path("-s")),
    };
    let cases = [
        (Method::Tied, 0.0, matched.clone(), None, None),
        (
            Method::Postshare,
            0.25,
            matched,
            None,
            Some(checkpoint(true, true)),
        ),
        (
            Method::Tied,
            0.0,
            measured,
            Some(calibration("-r")),
            Some(checkpoint(false, false)),
        ),
        (
            Method::Tied,
            0.0,
            Change::Plan { file: path("-") },
            None,
            Some(checkpoint(true, false)),
        ),
    ];
    for (i, (method, gamma, change, repair, checkpoint)) in cases.into_iter().enumerate() {
        check(Job::Train(Box::new(TrainModel {
            source: path("-m.gguf"),
            output: path("o.gguf"),
            method,
            change,
            repair,
            text: calibration("-t"),
            held_out: 0.1 + 0.2,
            settings: Settings {
                train: ["scales", "lora:4"][i % 2].to_owned(),
                schedule: Schedule {
                    peak: 1e-9,
                    floor: 0.5,
                    warmup: 3,
                    steps: 1,
                },
                clip: [None, Some(0.1)][i % 2],
                batch: 3,
                accumulate: 2,
                language: 0.7,
                distillation: 0.1,
                hidden: 0.3,
                gamma,
                apart: method == Method::Postshare,
                evaluate_every: 0,
                seed: u64::MAX,
                ..Settings::default()
            },
            device: [TrainOn::Cpu, TrainOn::Cuda][i % 2],
            steps: [None, Some(9)][i % 2],
            teacher: [None, Some(path("-big.gguf"))][i % 2].clone(),
            quantize: (i == 2).then(|| Wanted {
                to: "q4_0".to_owned(),
                pure: true,
                overrides: vec![("-a=b".to_owned(), "q8_0".to_owned())],
                untie: false,
            }),
            checkpoint,
            log: [None, Some(path("-l"))][i % 2].clone(),
            curves: [Some(path("-c.svg")), None][i % 2].clone(),
            force: i % 2 == 1,
        })));
    }
}
