//! Runs: they learn, they repeat, they go on where they stopped.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use headshare_convert::convert::variant::Variant;
use headshare_convert::input::ModelFile;
use headshare_convert::model::{AttentionMap, Part, RowsRange};
use headshare_convert::plan::{Choice, Edit, Plan, Removed, Share};
use headshare_testmodels::ModelSpec;
use headshare_train::checkpoint::Checkpoint;
use headshare_train::loss::pairs::HeadPairs;
use headshare_train::{
    Checkpoints, Ended, Model, Packed, Progress, Schedule, Settings, Train, TrainError, Trainer,
    export, pack, sharing,
};

use crate::gradients::{blocks, unit};
use crate::support::{llama_cpp, loaded, preset, windows, written};

/// A text with something to learn: few tokens, which follow each other in few ways.
pub fn text() -> Packed {
    let token = |i: u32| 10 + (i * i + i / 7) % 23;
    let tokens: Vec<u32> = (0..1000).map(token).collect();
    pack(&tokens, 16, Some(1), 0.1).unwrap()
}

pub fn settings(train: Train, steps: u64) -> Settings {
    Settings {
        train: train.to_string(),
        schedule: Schedule {
            peak: 3e-3,
            floor: 0.1,
            warmup: 2,
            steps,
        },
        accumulate: 2,
        evaluate_every: 4,
        seed: 3,
        ..Settings::default()
    }
}

pub fn checkpoints(path: &Path) -> Checkpoints {
    Checkpoints {
        path: path.to_owned(),
        every: 0,
        model: "blake3:model".to_owned(),
        arguments: serde_json::json!({"plan": "blake3:plan"}),
    }
}

fn trainer<'a>(file: &ModelFile, settings: Settings, to: &Path) -> Trainer<'a> {
    let at = Some(checkpoints(to));
    let model = crate::scales::model(&Variant::unchanged(file), &[]);
    Trainer::new(model, settings, text(), None, None, at).unwrap()
}

fn all(trainer: &mut Trainer<'_>) -> Vec<Progress> {
    let mut said = Vec::new();
    let ended = trainer.run(&AtomicBool::new(false), &mut |p| said.push(p.clone()));
    assert_eq!(ended.unwrap(), Ended::Done);
    said
}

#[test]
fn a_model_learns_whatever_of_it_is_trained() {
    for (train, least) in [
        (Train::All, 0.5),
        (Train::Attention, 0.1),
        (Train::Norms, 0.02),
        (Train::Lora(4), 0.2),
    ] {
        let (folder, file) = written(&preset("tiny-gqa"));
        let mut trainer = trainer(&file, settings(train, 24), &folder.path().join("state"));
        let said = all(&mut trainer);
        assert_eq!(said.len(), 24);
        let (first, last) = (&said[0], &said[23]);
        println!("{train}: {:.3} to {:.3}", first.loss, last.loss);
        assert!(last.loss < first.loss - least, "{train}: {said:?}");
        assert!(first.evaluation.is_none() && said[3].evaluation.is_some());
        assert!(first.rate == 1.5e-3 && said[2].rate == 3e-3);
        let before = loaded(&file);
        let now = trainer.model().parameters().list();
        for (before, now) in before.parameters().list().iter().zip(now) {
            let changed = before.values() != now.values();
            assert_eq!(changed, train.wants(before), "{train}: {}", before.name);
        }
    }
}

#[test]
fn what_is_trained_is_read_as_it_is_written() {
    for text in ["all", "attention", "norms", "scales", "lora:16"] {
        assert_eq!(text.parse::<Train>().unwrap().to_string(), text);
    }
    for text in ["", "lora", "lora:0", "lora:x", "heads"] {
        let error = text.parse::<Train>().unwrap_err();
        assert!(
            error.contains("none of all, attention, norms, scales, lora:RANK"),
            "{error}"
        );
    }
}

#[test]
fn two_runs_and_a_resumed_one_give_the_same_bytes() {
    for train in [Train::All, Train::Lora(2), Train::Scales] {
        let spec = match train {
            Train::Scales => crate::scales::mixed(),
            _ => preset("tiny-qwen2"),
        };
        let (folder, file) = written(&spec);
        let path = |name: &str| folder.path().join(name);
        let bytes = |name: &str| std::fs::read(path(name)).unwrap();
        let settings = settings(train, 9);
        let said = all(&mut trainer(&file, settings.clone(), &path("a")));
        all(&mut trainer(&file, settings.clone(), &path("b")));
        assert!(bytes("a") == bytes("b"), "{train}");

        for stopped_after in [1, 4, 6] {
            let stop = AtomicBool::new(false);
            let mut first = trainer(&file, settings.clone(), &path("c"));
            let mut progress = |p: &Progress| {
                stop.store(p.step == stopped_after, Ordering::Relaxed);
            };
            assert_eq!(first.run(&stop, &mut progress).unwrap(), Ended::Stopped);
            drop(first);
            let mut second = trainer(&file, settings.clone(), &path("c"));
            second.resume(&path("c"), false).unwrap();
            assert_eq!(second.step_count(), stopped_after);
            let rest = all(&mut second);
            assert!(bytes("a") == bytes("c"), "{train} {stopped_after}");
            for (a, b) in said[stopped_after as usize..].iter().zip(&rest) {
                assert_eq!((a.loss, a.evaluation), (b.loss, b.evaluation));
            }
            assert_eq!(second.best().unwrap().0, {
                let evaluated = said.iter().filter_map(|p| Some((p.evaluation?, p.step)));
                evaluated.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap().1
            });
        }
    }
}

/// Names the folder that a run in a process of its own works in.
const CHILD: &str = "HEADSHARE_TRAIN_CHILD";

/// A run that writes its state after every step, and goes on from the last one.
fn run_in(folder: &Path) {
    let file = ModelFile::open(&folder.join("model.gguf")).unwrap();
    let path = folder.join("state");
    let at = Checkpoints {
        every: 1,
        ..checkpoints(&path)
    };
    let settings = settings(Train::All, 60);
    let mut trainer = Trainer::new(loaded(&file), settings, text(), None, None, Some(at)).unwrap();
    if path.exists() {
        trainer.resume(&path, false).unwrap();
    }
    // Line by line to whoever has started this process.
    let tell = &mut |p: &Progress| println!("step {}", p.step);
    trainer.run(&AtomicBool::new(false), tell).unwrap();
}

#[test]
fn killed_at_any_moment_a_run_ends_in_the_same_bytes() {
    if let Some(folder) = std::env::var_os(CHILD) {
        return run_in(Path::new(&folder));
    }
    let (whole, _) = written(&preset("tiny-gqa"));
    run_in(whole.path());
    let (killed, _) = written(&preset("tiny-gqa"));
    let mut finished = Vec::new();
    // Killed on the way in, then so long after so many steps: in the next one, in writing its
    // state. The last one ends by itself.
    for (steps, micros) in [
        (0, 0),
        (1, 0),
        (2, 300),
        (1, 1500),
        (2, 4000),
        (usize::MAX, 0),
    ] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "training::killed_at_any_moment_a_run_ends_in_the_same_bytes",
            ])
            .env(CHILD, killed.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Open until the end: a process that cannot write would end by itself.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let is_step = |line: &String| line.starts_with("step ") || line.ends_with("... step 1");
        let taken = lines
            .by_ref()
            .map(Result::unwrap)
            .filter(is_step)
            .take(steps)
            .count();
        if taken == steps {
            std::thread::sleep(std::time::Duration::from_micros(micros));
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        drop(lines);
        finished.push(status.signal().is_none());
        assert!(status.success() || status.signal() == Some(9), "{status}");
    }
    // There are so many steps that none but the last can be over.
    assert_eq!(finished, [false, false, false, false, false, true]);
    let bytes = |folder: &tempfile::TempDir| std::fs::read(folder.path().join("state")).unwrap();
    assert!(bytes(&whole) == bytes(&killed));
    // No half-written state is left. A whole one may be, under another name: a file that
    // takes another's place has a name of its own for a moment.
    for entry in std::fs::read_dir(killed.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        match name {
            "model.gguf" | "state" => (),
            _ if name.starts_with(".headshare.") => drop(Checkpoint::read(&path).unwrap()),
            _ => panic!("{name}"),
        }
    }
}

#[test]
fn the_best_evaluation_is_kept() {
    let (folder, file) = written(&preset("tiny-gqa"));
    // So fast that the end is worse than the middle.
    let mut settings = settings(Train::All, 40);
    settings.schedule.peak = 2e-2;
    settings.schedule.floor = 1.0;
    let mut trainer = trainer(&file, settings, &folder.path().join("state"));
    let said = all(&mut trainer);
    let (step, loss) = trainer.best().unwrap();
    assert_eq!(said[step as usize - 1].evaluation, Some(loss));
    let best = trainer.into_best().unwrap();
    let objective = headshare_train::loss::Objective {
        language: 1.0,
        distillation: None,
    };
    let held_out = text().held_out.unwrap();
    let again = headshare_train::loss::losses(&best, &held_out, &objective).unwrap();
    assert!((again.total(&objective) - loss).abs() < 1e-6);
}

#[test]
fn heads_are_pulled_together_and_ties_stay_tied() {
    let (_folder, file) = written(&preset("tiny-gqa"));
    let variant = Variant::unchanged(&file);
    let map = AttentionMap::of(&file.gguf).unwrap();
    let ties = blocks(&map, unit(3, 0), unit(1, 0));
    let model = Model::load(&variant, &ties, &Device::Cpu).unwrap();
    let pair = vec![blocks(&map, unit(2, 1), unit(0, 0))];
    let pairs = HeadPairs::new(&model, &variant, &pair, 1).unwrap();
    let before = pairs.loss(&model);
    let teacher = loaded(&file);
    let settings = Settings {
        gamma: 0.5,
        language: 0.5,
        distillation: 0.5,
        ..settings(Train::Attention, 20)
    };
    let mut trainer =
        Trainer::new(model, settings, text(), Some(&teacher), Some(pairs), None).unwrap();
    let said = all(&mut trainer);
    let after = trainer.pairs().unwrap().loss(trainer.model());
    assert_eq!(said[0].distance, Some(before));
    assert!(after < 0.9 * before, "{before} to {after}");
    assert!(said.iter().all(|p| p.distillation.is_some()));
    let values = |name: &str, rows: std::ops::Range<usize>| {
        let parameters = trainer.model().parameters();
        let of = &parameters.list()[parameters.index(name).unwrap()];
        of.values()[rows.start * 64..rows.end * 64].to_vec()
    };
    assert_eq!(
        values("blk.3.attn_q.weight", 0..32),
        values("blk.1.attn_q.weight", 0..32)
    );
    assert_eq!(
        values("blk.3.attn_v.weight", 0..8),
        values("blk.1.attn_v.weight", 0..8)
    );
}

#[test]
fn pairs_are_evaluated_as_they_will_share() {
    let (_folder, file) = written(&preset("tiny-gqa"));
    let variant = Variant::unchanged(&file);
    let map = AttentionMap::of(&file.gguf).unwrap();
    let pair = blocks(&map, unit(2, 1), unit(0, 0));
    let run = |apart: bool| {
        let model = Model::load(&variant, &[], &Device::Cpu).unwrap();
        let pairs = HeadPairs::new(&model, &variant, std::slice::from_ref(&pair), 1).unwrap();
        let settings = Settings {
            apart,
            ..settings(Train::All, 40)
        };
        let mut trainer = Trainer::new(model, settings, text(), None, Some(pairs), None).unwrap();
        let said = all(&mut trainer);
        (trainer, said)
    };
    let objective = headshare_train::loss::Objective {
        language: 1.0,
        distillation: None,
    };
    let held_out = |model: &Model| {
        let windows = text().held_out.unwrap();
        let losses = headshare_train::loss::losses(model, &windows, &objective).unwrap();
        losses.total(&objective)
    };
    let (trainer, said) = run(false);
    let (step, loss) = trainer.best().unwrap();
    assert_eq!(said[step as usize - 1].evaluation, Some(loss));
    let evaluations = said.iter().filter_map(|p| p.evaluation);
    assert_eq!(evaluations.fold(trainer.start().unwrap(), f64::min), loss);
    // Evaluating has left the heads apart, and the parameters without ties.
    let mut model = trainer.into_best().unwrap();
    assert!(model.parameters().ties().is_empty());
    let as_it_is = held_out(&model);
    model.parameters_mut().tie(&variant, &pair).unwrap();
    assert!((held_out(&model) - loss).abs() < 1e-6);
    assert!((as_it_is - loss).abs() > 1e-4, "{as_it_is} {loss}");
    // What stays apart is evaluated apart, and is the last step's; training is the same.
    let (trainer, apart) = run(true);
    assert!(trainer.best().is_none() && step > 0);
    let losses = |said: &[Progress]| said.iter().map(|p| p.loss).collect::<Vec<_>>();
    assert_eq!(losses(&apart), losses(&said));
    let last = held_out(&trainer.into_best().unwrap());
    assert!((apart[39].evaluation.unwrap() - last).abs() < 1e-6);
}

/// A plan that drops one unit and shares others: trained with ties, written as F32,
/// run by llama.cpp.
#[test]
fn a_shared_and_narrower_model_is_trained_as_one() {
    let (_folder, file) = written(&ModelSpec {
        n_head: 8.into(),
        n_head_kv: 4.into(),
        key_length: Some(8),
        value_length: Some(8),
        ..preset("tiny-llama")
    });
    let share = |layer, unit, donor_unit| {
        Edit::Share(Share {
            layer,
            unit,
            donor_layer: 0,
            donor_unit,
            matched_layer: None,
            matched_unit: None,
            parts: Part::ALL.to_vec(),
            score: None,
        })
    };
    let drop = Edit::Drop(Removed {
        layer: 2,
        unit: 0,
        score: None,
    });
    let edits = vec![share(1, 3, 1), drop, share(2, 2, 1)];
    let plan = Plan::new(String::new(), Choice::default(), edits);
    // Its weights are F32, so that trained numbers can be put into it.
    let mut variant = Variant::new(&file, &plan, None).unwrap();
    let shared = sharing::shared_blocks(&plan, &variant).unwrap();
    assert_eq!(shared.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
    let ties = shared.concat();
    let model = Model::load(&variant, &ties, &Device::Cpu).unwrap();
    assert_eq!(model.config().kind.name, "deci");
    let mut trainer =
        Trainer::new(model, settings(Train::All, 8), text(), None, None, None).unwrap();
    let said = all(&mut trainer);
    assert!(said[7].loss < said[0].loss - 0.2, "{said:?}");
    let model = trainer.into_best().unwrap();
    variant.fill(export::changed(&variant, &model).unwrap().stored);
    for (alias, donor) in &ties {
        let data = |range: &RowsRange| {
            let data = variant.tensor_data(range.tensor).unwrap();
            data[range.offset as usize..(range.offset + range.len) as usize].to_vec()
        };
        assert!(data(alias) == data(donor));
    }
    let windows = windows(320, 2, 16);
    let theirs = llama_cpp(&variant, &windows);
    for (a, b) in model.logits(&windows).unwrap().iter().zip(&theirs) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    let other = Plan::new(String::new(), Choice::default(), vec![share(9, 0, 0)]);
    let error = sharing::shared_blocks(&other, &variant)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("plan: "), "{error}");
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_state() {
    let (folder, file) = written(&preset("tiny-gqa"));
    let mut kept = 0;
    // Weights grow until something overflows: at another step for each rate.
    for (i, peak) in [1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 1e30]
        .into_iter()
        .enumerate()
    {
        let path = folder.path().join(format!("state-{i}"));
        let mut settings = settings(Train::All, 24);
        settings.schedule.peak = peak;
        settings.schedule.warmup = 20;
        settings.evaluate_every = 0;
        let new = || {
            let at = Checkpoints {
                every: 1,
                ..checkpoints(&path)
            };
            let settings = settings.clone();
            Trainer::new(loaded(&file), settings, text(), None, None, Some(at)).unwrap()
        };
        let error = match new().run(&AtomicBool::new(false), &mut |_| ()) {
            Ok(_) => continue,
            Err(error) => error,
        };
        let TrainError::NotFinite { step, .. } = error else {
            panic!("{error}")
        };
        let words = error.to_string();
        assert!(words.contains(&format!("step {step}: the ")), "{words}");
        let has_state = words.contains("the last good state is in");
        assert_eq!(path.exists(), has_state, "{words}");
        if !has_state {
            continue;
        }
        // It has a loss.
        let mut resumed = new();
        resumed.resume(&path, false).unwrap();
        assert!(resumed.step_count() < step - 1);
        assert!(resumed.step().unwrap().loss.is_finite());
        kept += 1;
    }
    assert!(kept > 0);
}

/// A run that goes on with other evaluations takes what it has compared.
#[test]
fn evaluations_can_end_and_begin_on_the_way() {
    let (folder, file) = written(&preset("tiny-gqa"));
    let path = folder.path().join("state");
    let with = |steps: u64, every: u64, peak: f64| {
        let mut settings = settings(Train::All, steps);
        settings.evaluate_every = every;
        settings.schedule.peak = peak;
        settings
    };
    let first = |settings: Settings| {
        all(&mut trainer(&file, settings, &path));
    };
    let then = |settings: Settings| {
        let mut second = trainer(&file, settings, &path);
        second.resume(&path, true).unwrap();
        all(&mut second);
        let (best, values) = (second.best(), numbers_of(second.model()));
        (best, values, numbers_of(&second.into_best().unwrap()))
    };
    // None from here on: the last numbers are taken.
    first(with(4, 2, 3e-3));
    let (best, last, taken) = then(with(8, 0, 3e-3));
    assert!(best.is_none() && last == taken);
    // From here on: what was there competes with what steps far too large make of it.
    first(with(4, 0, 3e-3));
    let (best, last, taken) = then(with(8, 4, 10.0));
    assert!(best.unwrap().0 == 4 && last != taken, "{best:?}");
    // Nothing is taken back.
    let mut shorter = trainer(&file, with(3, 0, 3e-3), &path);
    let error = shorter.resume(&path, true).unwrap_err().to_string();
    let said = "\"step\": is 8, and the run is to end after 3";
    assert!(error.ends_with(said), "{error}");
}

/// All numbers of a model.
fn numbers_of(model: &Model) -> Vec<Vec<f32>> {
    let list = model.parameters().list().iter();
    list.map(|parameter| parameter.values().to_vec()).collect()
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let (_folder, file) = written(&preset("tiny-gqa"));
    let wrong = |change: &dyn Fn(&mut Settings), field: &str| {
        let mut settings = settings(Train::All, 1);
        change(&mut settings);
        let made = Trainer::new(loaded(&file), settings, text(), None, None, None);
        let error = made.err().unwrap().to_string();
        assert!(error.starts_with(field), "{error}");
    };
    wrong(&|s| s.train = "heads".to_owned(), "train: ");
    wrong(&|s| s.batch = 0, "batch: ");
    wrong(&|s| s.language = f32::NAN, "language: ");
    wrong(&|s| s.language = 0.0, "language: ");
    wrong(&|s| s.distillation = 1.0, "distillation: ");
    wrong(&|s| s.hidden = 1.0, "distillation: ");
    wrong(&|s| s.hidden = f32::NAN, "hidden: ");
    wrong(&|s| s.adam.beta2 = 1.0, "adam: ");
    wrong(&|s| s.schedule.peak = -1.0, "schedule: ");
    wrong(&|s| s.clip = Some(0.0), "clip: ");
}
