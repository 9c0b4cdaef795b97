//! Jobs that make a model fit.

use headshare_jobs::{
    AnalyzePredictions, Budget, Calibration, Change, Convert, InMemory, Job, PlanToFit,
    Quantization, Stats, With,
};

use super::{check, path};

#[test]
fn fitting() {
    let calibration = Calibration {
        text: path("-text.txt"),
        windows: 7,
        window: 65,
        memory: None,
    };
    let names = vec!["q8_0".to_owned(), "q4_K".to_owned()];
    let memory = InMemory {
        bytes: 1 << 29,
        ctx: 77,
    };
    let load = Stats::Load(path("-s.json"));
    let save = Stats::Save(path("s.json"));
    for (bytes, memory, types, stats, time) in [
        (Some(u64::MAX), None, None, load.clone(), None),
        (None, Some(memory), Some(names), save, Some(61)),
        (Some(1), Some(memory), None, load, None),
    ] {
        let budget = Budget {
            bytes,
            memory,
            types,
            calibration: calibration.clone(),
            stats,
            time,
        };
        check(Job::Convert(Convert {
            fit: Some(budget.clone()),
            dry_run: bytes.is_some(),
            ..Convert::new("-s.gguf", "o.gguf", Change::Lossless)
        }));
        check(Job::AnalyzePredictions(AnalyzePredictions {
            source: path("-s.gguf"),
            budget: Budget {
                bytes: Some(3),
                memory: None,
                ..budget.clone()
            },
            plans: 7,
            seed: 9,
            picture: memory.map(|_| path("-p.svg")),
            force: bytes.is_some(),
        }));
        check(Job::PlanToFit(PlanToFit {
            source: path("-s.gguf"),
            budget,
            output: memory.map(|_| path("-p.json")),
            force: bytes.is_some(),
        }));
    }
    // A plan's own types, fitted.
    check(Job::Convert(Convert {
        quantize: Some(Quantization {
            wanted: None,
            with: With::Calibration {
                calibration,
                settings: None,
                save_imatrix: None,
            },
            allow_requantize: true,
        }),
        ..Convert::new("s.gguf", "o.gguf", Change::Plan { file: path("-p") })
    }));
}
