//! Checkpoints: what is written is read, and nothing else.

use headshare_train::checkpoint::{Checkpoint, Position, write};
use headshare_train::{Checkpoints, Settings, Train, TrainError, Trainer};

use crate::support::{loaded, preset, written};
use crate::training::{checkpoints, settings, text};

fn position() -> Position {
    Position {
        version: headshare_train::checkpoint::VERSION,
        model: "blake3:m".to_owned(),
        settings: serde_json::json!({"rate": 0.1 + 0.2, "seed": u64::MAX}),
        text: "blake3:t".to_owned(),
        arguments: serde_json::json!({"plan": "blake3:p"}),
        earlier: Vec::new(),
        step: 7,
        windows: 56,
        start: Some(0.7),
        best: Some((4, 0.1 + 0.2)),
    }
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let numbers = [1.0, -0.0, f32::MIN_POSITIVE, f32::MAX];
    let many = vec![0.5; 300_000];
    let tensors = vec![
        ("values.a".to_owned(), &numbers[..]),
        ("first.a".to_owned(), &many[..]),
    ];
    write(&path, &position(), &tensors).unwrap();
    let mut read = Checkpoint::read(&path).unwrap();
    assert_eq!(read.position, position());
    assert_eq!(read.take(&path, "values", "a", 4).unwrap(), numbers);
    assert_eq!(read.take(&path, "first", "a", 300_000).unwrap(), many);
    // Another in its place.
    write(&path, &position(), &tensors[..1].to_vec()).unwrap();
    let mut read = Checkpoint::read(&path).unwrap();
    let error = read
        .take(&path, "first", "a", 300_000)
        .unwrap_err()
        .to_string();
    assert!(error.contains("\"first.a\": is missing"), "{error}");
    let error = read.take(&path, "values", "a", 5).unwrap_err().to_string();
    assert!(error.contains("has 4 numbers, not 5"), "{error}");
}

#[test]
fn damaged_files_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let numbers = [1.0; 64];
    write(
        &path,
        &position(),
        &vec![("values.a".to_owned(), &numbers[..])],
    )
    .unwrap();
    let whole = std::fs::read(&path).unwrap();
    let field = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match Checkpoint::read(&path).unwrap_err() {
            TrainError::Checkpoint {
                path: named, field, ..
            } => {
                assert_eq!(named, path);
                field
            }
            other => panic!("{other}"),
        }
    };
    for len in [1, 7, 8, 20, whole.len() / 2, whole.len() - 1] {
        assert_eq!(field(&whole[..len]), "header", "{len}");
    }
    let changed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let text: Vec<u8> = whole.clone();
        let at = text.windows(from.len()).position(|w| w == from.as_bytes());
        let mut text = text;
        let at = at.unwrap();
        text[at..at + from.len()].copy_from_slice(to.as_bytes());
        text
    };
    assert_eq!(
        field(&changed("headshare-train", "headshare-other")),
        "headshare-train"
    );
    assert_eq!(field(&changed("version\\\":5", "version\\\":9")), "version");
    assert_eq!(field(&changed("text", "test")), "headshare-train");
    let mut f64s = changed("F32", "F64");
    assert_eq!(field(&f64s), "header");
    f64s = changed("F32", "I32");
    assert_eq!(field(&f64s), "values.a");
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Checkpoint::read(&path), Err(TrainError::File(_))));
}

#[test]
fn those_of_another_run_are_refused() {
    let (folder, file) = written(&preset("tiny-gqa"));
    let path = folder.path().join("state");
    let trainer = |settings: Settings, at: Checkpoints| {
        Trainer::new(loaded(&file), settings, text(), None, None, Some(at)).unwrap()
    };
    let base = settings(Train::Norms, 4);
    trainer(base.clone(), checkpoints(&path))
        .write_checkpoint()
        .unwrap();
    trainer(base.clone(), checkpoints(&path))
        .resume(&path, false)
        .unwrap();
    let refused = |settings: Settings, at: Checkpoints| {
        let error = trainer(settings, at).resume(&path, false);
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with(&path.display().to_string()), "{error}");
        error
    };
    let other = Checkpoints {
        model: "blake3:other".to_owned(),
        ..checkpoints(&path)
    };
    assert!(refused(base.clone(), other).contains("field \"model\": of another model"));
    let other = Checkpoints {
        arguments: serde_json::json!({"plan": "blake3:other"}),
        ..checkpoints(&path)
    };
    let error = refused(base.clone(), other.clone());
    let said = r#"its "arguments.plan" is "blake3:plan", and "blake3:other" in this run"#;
    assert!(error.ends_with(said), "{error}");
    // What is not known yet is not compared.
    let early = Checkpoints {
        arguments: serde_json::json!({}),
        ..checkpoints(&path)
    };
    let early = Position::begin(&base, &text(), Some(&early));
    let found = Position::read(&path).unwrap();
    found.check(&path, &early, false).unwrap();
    let mut faster = base.clone();
    faster.schedule.peak = 1.0;
    let error = refused(faster.clone(), checkpoints(&path));
    let said = "its \"settings.schedule.peak\" is 0.003, and 1.0 in this run";
    assert!(error.ends_with(said), "{error}");
    // Steps may be taken in another way where that is asked for, and the state says so.
    let mut changed = trainer(faster.clone(), checkpoints(&path));
    changed.resume(&path, true).unwrap();
    let [earlier] = changed.earlier() else {
        panic!("{:?}", changed.earlier())
    };
    assert_eq!(earlier.until, 0);
    assert_eq!(earlier.settings, serde_json::to_value(&base).unwrap());
    changed.write_checkpoint().unwrap();
    let kept = Checkpoint::read(&path).unwrap().position.earlier;
    assert_eq!(kept, changed.earlier());
    trainer(faster.clone(), checkpoints(&path))
        .resume(&path, false)
        .unwrap();
    let other = Settings {
        seed: 8,
        ..faster.clone()
    };
    let error = trainer(other, checkpoints(&path)).resume(&path, true);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("settings.seed"), "{error}");
    trainer(base.clone(), checkpoints(&path))
        .write_checkpoint()
        .unwrap();
    let mut data = text();
    data.train = data.train.pick(&[1, 0]);
    let mut other = Trainer::new(
        loaded(&file),
        base,
        data,
        None,
        None,
        Some(checkpoints(&path)),
    )
    .unwrap();
    let error = other.resume(&path, false).unwrap_err().to_string();
    assert!(error.contains("field \"text\": of another text"), "{error}");
}

#[test]
fn numbers_that_are_none_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let numbers = vec![("values.a".to_owned(), &[1.0, f32::NAN][..])];
    write(&path, &position(), &numbers).unwrap();
    let mut read = Checkpoint::read(&path).unwrap();
    let error = read.take(&path, "values", "a", 2).unwrap_err().to_string();
    let said = "\"values.a\": number 1 is NaN: the file is damaged";
    assert!(error.contains(said), "{error}");
}

#[test]
fn one_that_cannot_be_written_leaves_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("no folder").join("state");
    let error = write(&missing, &position(), &Vec::new()).unwrap_err();
    assert!(matches!(error, TrainError::File(_)), "{error}");
}
