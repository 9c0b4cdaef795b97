//! What a variant is filled with, and what is said of sizes before.

use std::path::{Path, PathBuf};

use headshare_format::PageSize;
use headshare_testmodels::{ModelSpec, self_merge};

use super::*;

/// A record of `len` bytes.
fn record(len: usize) -> FittedBy {
    FittedBy {
        repair: Some(format!("{{\"fit\":\"{}\"}}", "x".repeat(len - 10))),
        ..FittedBy::default()
    }
}

const PAGE: PageSize = PageSize::KIB_4;

fn plan(edits: &str) -> Plan {
    let source = "1".repeat(64);
    let text = format!(r#"{{"version": 2, "source": "blake3:{source}", "edits": {edits}}}"#);
    Plan::from_json(text.as_bytes()).unwrap()
}

fn tiny_llama(folder: &Path) -> PathBuf {
    let path = folder.join("model.gguf");
    let spec = ModelSpec {
        tied_output: true,
        ..ModelSpec::preset("tiny-llama").unwrap()
    };
    spec.write(&path).unwrap();
    path
}

/// Data that repeat nothing.
fn random(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn a_head_and_the_embedding_that_it_is_made_of_are_filled_apart() {
    let folder = tempfile::tempdir().unwrap();
    let source = ModelFile::open(&tiny_llama(folder.path())).unwrap();
    let plan = plan(r#"[{"store": {"tensor": "output.weight", "type": "q8_0"}}]"#);
    let mut variant = Variant::new(&source, &plan, None).unwrap();
    let names = ["output.weight", "token_embd.weight"];
    let index = |variant: &Variant<'_>, name| variant.gguf().tensor_index(name).unwrap();
    let [head, embedding] = names.map(|name| {
        let tensor = &variant.gguf().tensors()[index(&variant, name)];
        random(tensor.byte_len(), tensor.byte_len())
    });
    variant.fill([(names[0].to_owned(), head.clone())].into());
    let [got, other] = names.map(|name| variant.tensor_data(index(&variant, name)).unwrap());
    assert!(*got == head && *other == *source.bytes(embedding_of(&source)));
    let embedding_of_variant = embedding.clone();
    variant.fill([(names[1].to_owned(), embedding_of_variant)].into());
    let [got, other] = names.map(|name| variant.tensor_data(index(&variant, name)).unwrap());
    assert!(*got == head && *other == embedding);
}

fn embedding_of(source: &ModelFile) -> std::ops::Range<u64> {
    let info = source.gguf.tensor("token_embd.weight").unwrap();
    source.gguf.data_range(info)
}

#[test]
fn a_file_without_a_name_is_the_one_that_would_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let source = ModelFile::open(&tiny_llama(folder.path())).unwrap();
    let parts = r#""parts": ["q", "k", "v"]"#;
    let share = format!(r#""layer": 1, "unit": 0, "donor_layer": 0, "donor_unit": 1, {parts}"#);
    let mut plan = plan(&format!(r#"[{{"share": {{{share}}}}}]"#));
    plan.source = source.digest().to_owned();
    let prepared = prepare(&source, Some(plan), Fitted::default(), PAGE).unwrap();
    assert!(prepared.headshare.is_some());
    let out = folder.path().join("shared.gguf");
    write(&prepared, &out, false, &|_| {}).unwrap();
    let scratch = write_to_scratch(&prepared).unwrap();
    let [named, unnamed] = [&*out, scratch.path()].map(|path| std::fs::read(path).unwrap());
    assert!(named.len() as u64 == prepared.output_bytes && named == unnamed);
}

#[test]
fn what_is_run_before_it_is_written_is_what_will_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let source = ModelFile::open(&tiny_llama(folder.path())).unwrap();
    // All tensors of a part get another type, and those of the others stay as they are.
    let share = |layer, donor| {
        let to = format!(r#""layer": {layer}, "unit": 0, "donor_layer": {donor}, "donor_unit": 1"#);
        format!(r#"{{"share": {{{to}, "parts": ["q", "k", "v"]}}}}"#)
    };
    let stores: Vec<String> = [0, 1, 2, 3]
        .map(|layer| {
            let tensor = format!(r#""tensor": "blk.{layer}.attn_q.weight""#);
            format!(r#"{{"store": {{{tensor}, "type": "q8_0"}}}}"#)
        })
        .into();
    let edits = [&[share(1, 0), share(3, 2)][..], &stores].concat();
    let mut plan = plan(&format!("[{}]", edits.join(",")));
    plan.source = source.digest().to_owned();
    let prepared = || prepare(&source, Some(plan.clone()), Fitted::default(), PAGE).unwrap();
    let (shared, plain) = (folder.path().join("shared"), folder.path().join("plain"));
    write(&prepared(), &shared, false, &|_| {}).unwrap();
    let file = ModelFile::open(&shared).unwrap();
    expand(&file, file.table.as_ref().unwrap(), &plain, false, &|_| {}).unwrap();
    let plain = ModelFile::open(&plain).unwrap();
    let read = prepared().into_read().unwrap();
    for (i, info) in read.gguf().tensors().iter().enumerate() {
        let written = plain.gguf.tensor(&info.name).unwrap();
        let written = plain.bytes(plain.gguf.data_range(written));
        assert!(*read.tensor_data(i).unwrap() == *written, "{}", info.name);
    }
}

/// Sharing that was not asked for is worth it only where it saves something.
#[test]
fn a_few_equal_numbers_leave_a_changed_model_plain() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_llama(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    {
        let source = ModelFile::open(&path).unwrap();
        let place = |layer: u32| {
            let name = format!("blk.{layer}.attn_norm.weight");
            source.gguf.data_range(source.gguf.tensor(&name).unwrap())
        };
        let (from, to) = (place(0), place(1).start as usize);
        bytes.copy_within(from.start as usize..from.end as usize, to);
    }
    std::fs::write(&path, bytes).unwrap();
    let source = ModelFile::open(&path).unwrap();
    let store = r#"[{"store": {"tensor": "blk.2.attn_q.weight", "type": "q8_0"}}]"#;
    let mut plan = plan(store);
    plan.source = source.digest().to_owned();
    let changed = prepare(&source, Some(plan), Fitted::default(), PAGE).unwrap();
    assert!(changed.headshare.is_none() && changed.duplicates.tensors == 0);
    assert!(changed.saved.file_bytes > 0);
    // What is asked for is done.
    let lossless = prepare(&source, None, Fitted::default(), PAGE).unwrap();
    assert!(lossless.headshare.is_some() && lossless.duplicates.tensors == 1);
}

/// Whatever of the tensors in question gets new data: sizes are those foreseen, or
/// no worse where these are bounds.
#[test]
fn what_is_foreseen_holds_for_every_set_of_new_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let single = tiny_llama(folder.path());
    let merged = folder.path().join("merged.gguf");
    self_merge(&single, &[0, 1, 2, 2, 3], &merged).unwrap();
    // One matrix repeats another, and nothing else does.
    let repeating = folder.path().join("repeating.gguf");
    {
        let source = ModelFile::open(&single).unwrap();
        let place = |layer: u32| {
            let name = format!("blk.{layer}.ffn_down.weight");
            source.gguf.data_range(source.gguf.tensor(&name).unwrap())
        };
        let mut bytes = std::fs::read(&single).unwrap();
        let (from, to) = (place(2), place(3).start as usize);
        bytes.copy_within(from.start as usize..from.end as usize, to);
        std::fs::write(&repeating, bytes).unwrap();
    }
    let share = r#"[{"share": {"layer": 2, "unit": 1, "donor_layer": 0, "donor_unit": 2,
        "parts": ["q", "k", "v"]}}]"#;
    let store = r#"[{"store": {"tensor": "blk.2.attn_q.weight", "type": "q8_0"}}]"#;
    for (what, model, edits, is_exact) in [
        ("heads share, nothing repeats", &single, share, true),
        ("heads share, layers repeat", &merged, share, false),
        ("a plain file, nothing repeats", &single, store, true),
        (
            "a plain file unless something repeats",
            &repeating,
            store,
            false,
        ),
        ("a type, layers repeat", &merged, store, false),
    ] {
        let source = ModelFile::open(model).unwrap();
        let names: Vec<String> = (2..4)
            .flat_map(|i| ["attn_output", "ffn_down"].map(|m| format!("blk.{i}.{m}.weight")))
            .collect();
        let room = Room {
            tensors: names.iter().cloned().collect(),
            certain: BTreeSet::new(),
            by: record(300),
        };
        let of = |tensors: BTreeMap<String, Vec<u8>>| Fitted {
            duplicates: Duplicates::default(),
            tensors,
            by: record(20),
            room: room.clone(),
        };
        let plan = plan(edits);
        let foreseen = foresee(&source, Some(plan.clone()), of(BTreeMap::new()), PAGE).unwrap();
        assert_eq!(foreseen.is_exact, is_exact, "{what}");
        let said = &foreseen.prepared;
        let mut smaller = 0;
        for set in 0..1u64 << names.len() {
            let in_set = (0..names.len()).filter(|i| set >> i & 1 == 1);
            let data = in_set.map(|i| {
                let len = source.gguf.tensor(&names[i]).unwrap().byte_len();
                (names[i].clone(), random(i as u64, len))
            });
            let real = prepare(&source, Some(plan.clone()), of(data.collect()), PAGE).unwrap();
            let sizes = |p: &Prepared<'_>| (p.output_bytes, p.saved);
            if is_exact {
                assert_eq!(sizes(&real), sizes(said), "{what}, {set:b}");
            }
            assert!(real.output_bytes <= said.output_bytes, "{what}, {set:b}");
            assert!(
                real.saved.file_bytes >= said.saved.file_bytes,
                "{what}, {set:b}"
            );
            let least = said.saved.resident_bytes;
            assert!(real.saved.resident_bytes >= least, "{what}, {set:b}");
            smaller += u64::from(real.output_bytes < said.output_bytes);
        }
        assert_eq!(smaller > 0, !is_exact, "{what}");
        // What gets new data in any case repeats nothing.
        let mut certain = of(BTreeMap::new());
        certain.room.certain = certain.room.tensors.clone();
        assert!(
            foresee(&source, Some(plan), certain, PAGE)
                .unwrap()
                .is_exact
        );
    }
}
