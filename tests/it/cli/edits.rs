//! Plans of version 2: every kind of edit, carried out, held against an oracle
//! and refused where it cannot be.

use std::ops::Range;
use std::path::{Path, PathBuf};

use headshare_format::Gguf;
use headshare_runtime::quants;
use headshare_testmodels::{ModelSpec, type_named};
use serde_json::{Value, json};

use crate::support::{Folder, Ran, SMOLLM2, needs, preset, read, small, smollm2};

/// A model, and a folder for its plans.
struct Case {
    folder: Folder,
    model: PathBuf,
    digest: Value,
}

impl Case {
    fn new(spec: &ModelSpec) -> Self {
        let folder = Folder::new();
        let model = folder.file("model.gguf");
        spec.write(&model).unwrap();
        let digest = format!("blake3:{}", blake3::hash(&read(&model)).to_hex()).into();
        Self {
            folder,
            model,
            digest,
        }
    }

    fn convert(&self, edits: &Value, more: &[&str]) -> (PathBuf, Ran) {
        let plan = json!({"version": 2, "source": self.digest, "edits": edits});
        let plan = self.folder.write("plan.json", plan.to_string());
        let out = self.folder.file("out.gguf");
        let paths = [self.model.as_os_str(), "--plan".as_ref(), plan.as_os_str()];
        let more = more.iter().map(|arg| arg.as_ref());
        let args: Vec<&std::ffi::OsStr> = ["convert".as_ref()]
            .into_iter()
            .chain(paths)
            .chain(["-o".as_ref(), out.as_os_str(), "--force".as_ref()])
            .chain(more)
            .collect();
        let ran = crate::support::run(&args);
        (out, ran)
    }

    /// Converts by `edits`; a dry run says the very size before.
    #[track_caller]
    fn converted(&self, edits: &Value) -> (PathBuf, Value) {
        let _ = std::fs::remove_file(self.folder.file("out.gguf"));
        let (out, dry) = self.convert(edits, &["--dry-run", "--json"]);
        let dry = dry.ok().json();
        assert!(!out.exists());
        let (out, ran) = self.convert(edits, &["--json"]);
        let result = ran.ok().json();
        let len = std::fs::metadata(&out).unwrap().len();
        assert_eq!(dry["output"]["bytes"], len, "{edits}");
        assert_eq!(result["output"]["bytes"], len);
        assert_eq!(dry["saved"], result["saved"]);
        assert_eq!(result["plan"]["edits"], *edits);
        (out, result)
    }

    #[track_caller]
    fn refused(&self, edits: &Value, code: i32, says: &[&str]) {
        let before = self.folder.names();
        let (_, ran) = self.convert(edits, &[]);
        ran.refused(code, says);
        let (_, ran) = self.convert(edits, &["--dry-run"]);
        ran.refused(code, says);
        let mut after = self.folder.names();
        after.retain(|name| name != "plan.json" || before.contains(name));
        assert_eq!(after, before);
    }
}

/// What the model in `file` says, word for word.
#[track_caller]
fn tokens(file: &Path) -> Value {
    let ran = run![
        "run", file, "-p", "a b", "-n", "12", "--temp", "0", "-t", "1", "--json"
    ];
    ran.ok().json()["tokens"].clone()
}

struct File {
    bytes: Vec<u8>,
    gguf: Gguf,
}

impl File {
    fn open(path: &Path) -> Self {
        let bytes = read(path);
        let gguf = Gguf::parse(&bytes).unwrap();
        Self { bytes, gguf }
    }

    #[track_caller]
    fn data(&self, name: &str) -> &[u8] {
        let info = self
            .gguf
            .tensor(name)
            .unwrap_or_else(|| panic!("no {name}"));
        let place = self.gguf.data_range(info);
        &self.bytes[place.start as usize..place.end as usize]
    }

    fn rows(&self, name: &str) -> Vec<&[u8]> {
        let row = self.gguf.tensor(name).unwrap().row_bytes() as usize;
        self.data(name).chunks(row).collect()
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        let info = self.gguf.tensor(name).unwrap();
        let mut out = vec![0.0; (info.row_elems() * info.rows()) as usize];
        quants::dequantize_row(info.ggml_type.id(), self.data(name), &mut out).unwrap();
        out
    }

    fn lengths(&self, key: &str) -> Vec<u32> {
        self.gguf.array_value(key).unwrap().unwrap().u32s().unwrap()
    }
}

fn names(stem: &str, layers: Range<u32>) -> Vec<String> {
    layers
        .map(|layer| format!("blk.{layer}.{stem}.weight"))
        .collect()
}

/// A model whose feed-forward layers have 128 channels, in blocks of 32.
fn llama(weight_type: &str) -> ModelSpec {
    ModelSpec {
        n_ff: 128,
        weight_type: type_named(weight_type).unwrap(),
        ..preset("tiny-llama")
    }
}

const KEPT: [Range<usize>; 2] = [0..32, 64..128];

fn narrow(layers: Range<u32>) -> Vec<Value> {
    let edit = |layer: u32| json!({"narrow": {"layer": layer, "channels": [[0, 32], [64, 128]]}});
    layers.map(edit).collect()
}

#[track_caller]
fn is_narrow(source: &File, made: &File, layer: u32) {
    for stem in ["ffn_gate", "ffn_up"] {
        let name = &names(stem, layer..layer + 1)[0];
        let rows = source.rows(name);
        let kept: Vec<&[u8]> = KEPT
            .iter()
            .flat_map(|k| &rows[k.clone()])
            .copied()
            .collect();
        assert_eq!(made.rows(name), kept, "{name}");
    }
    let name = &names("ffn_down", layer..layer + 1)[0];
    let info = source.gguf.tensor(name).unwrap();
    let block = info.ggml_type.block_elems() as usize;
    let bytes = info.ggml_type.block_bytes() as usize;
    let kept = |row: &&[u8]| -> Vec<u8> {
        let columns = KEPT.iter();
        let columns = columns.flat_map(|k| &row[k.start / block * bytes..k.end / block * bytes]);
        columns.copied().collect()
    };
    let kept: Vec<Vec<u8>> = source.rows(name).iter().map(kept).collect();
    assert_eq!(made.rows(name), kept, "{name}");
}

#[test]
fn layers_that_keep_as_many_channels_keep_their_architecture() {
    for weight_type in ["f32", "q4_0", "q8_0"] {
        let case = Case::new(&llama(weight_type));
        let (out, result) = case.converted(&narrow(0..4).into());
        let (source, made) = (File::open(&case.model), File::open(&out));
        assert_eq!(made.gguf.architecture().unwrap(), Some("llama"));
        let length = made.gguf.u64_value("llama.feed_forward_length").unwrap();
        assert_eq!(length, Some(96));
        for layer in 0..4 {
            is_narrow(&source, &made, layer);
        }
        assert_eq!(
            made.data("blk.2.attn_q.weight"),
            source.data("blk.2.attn_q.weight")
        );
        assert!(result["saved"]["file_bytes"].as_i64().unwrap() > 4 * 1024);
        assert_eq!(tokens(&out).as_array().unwrap().len(), 12);
    }
}

/// A channel whose column of `ffn_down` is zero adds nothing: without it the
/// model says the same.
#[test]
fn what_goes_is_as_if_it_were_zero() {
    let case = Case::new(&llama("f32"));
    let source = File::open(&case.model);
    let mut bytes = source.bytes.clone();
    for name in names("ffn_down", 1..3) {
        let place = source.gguf.data_range(source.gguf.tensor(&name).unwrap());
        let place = place.start as usize..place.end as usize;
        for row in bytes[place].chunks_mut(128 * 4) {
            row[32 * 4..64 * 4].fill(0);
        }
    }
    let zeroed = case.folder.write("zeroed.gguf", bytes);
    // Layers that differ: llama.cpp's deci.
    let (out, _) = case.converted(&narrow(1..3).into());
    let made = File::open(&out);
    assert_eq!(made.gguf.architecture().unwrap(), Some("deci"));
    assert_eq!(made.lengths("deci.feed_forward_length"), [128, 96, 96, 128]);
    for layer in 1..3 {
        is_narrow(&source, &made, layer);
    }
    assert_eq!(tokens(&out), tokens(&zeroed));
    assert_ne!(tokens(&out), tokens(&case.model));
    // llama.cpp would leave out a whole layer without channels.
    let none = json!([{"narrow": {"layer": 2, "channels": []}}]);
    case.refused(&none, 3, &["edits[0].narrow.channels", "must not be empty"]);
}

#[test]
fn tensors_are_stored_by_ggmls_own_quantizer() {
    let case = Case::new(&llama("f16"));
    let source = File::open(&case.model);
    let types = [
        "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "mxfp4",
    ];
    for (i, to) in types.into_iter().enumerate() {
        let name = format!("blk.{}.ffn_down.weight", i % 4);
        // Names of types are ggml's, in any case.
        let asked = if i % 2 == 0 {
            to.to_uppercase()
        } else {
            to.to_owned()
        };
        let edit = json!([{"store": {"tensor": name, "type": asked}}]);
        let (out, ran) = case.convert(&edit, &["--json"]);
        ran.ok();
        let made = File::open(&out);
        let id = type_named(to).unwrap().id();
        assert_eq!(made.gguf.tensor(&name).unwrap().ggml_type.id(), id);
        let row = source.gguf.tensor(&name).unwrap().row_elems() as usize;
        let expected = quants::quantize_rows(id, &source.numbers(&name), row, None).unwrap();
        assert!(made.data(&name) == expected, "{to}");
        assert_eq!(tokens(&out).as_array().unwrap().len(), 12);
    }
}

#[test]
fn a_tied_head_becomes_a_tensor_of_its_own() {
    let spec = ModelSpec {
        tied_output: true,
        ..llama("f16")
    };
    let case = Case::new(&spec);
    let source = File::open(&case.model);
    assert!(source.gguf.tensor("output.weight").is_none());
    let edits = json!([
        {"store": {"tensor": "output.weight", "type": "q8_0"}},
        {"store": {"tensor": "token_embd.weight", "type": "q4_0"}},
    ]);
    let (out, _) = case.converted(&edits);
    let made = File::open(&out);
    for (name, to) in [("output.weight", "q8_0"), ("token_embd.weight", "q4_0")] {
        let id = type_named(to).unwrap().id();
        let row = source.gguf.tensor("token_embd.weight").unwrap().row_elems() as usize;
        let values = source.numbers("token_embd.weight");
        let expected = quants::quantize_rows(id, &values, row, None).unwrap();
        assert!(made.data(name) == expected, "{name}");
    }
    assert_eq!(tokens(&out).as_array().unwrap().len(), 12);
    // The head as it was, on its own: the model says what it said.
    let (out, _) = case.converted(&json!([{"store": {"tensor": "output.weight", "type": "f16"}}]));
    assert_eq!(tokens(&out), tokens(&case.model));
    // Which makes it a duplicate of the embedding, stored once.
    let sharing = run!["inspect", out, "--json"].ok().json()["sharing"].clone();
    assert!(sharing["shared_bytes"].as_u64().unwrap() > 0, "{sharing}");
}

/// All kinds at once, on a model that shares: a converted file, which is held
/// against the original.
fn everything() -> (Case, Value) {
    let spec = ModelSpec {
        n_embd: 256,
        n_ff: 128,
        weight_type: type_named("q8_0").unwrap(),
        ..preset("tiny-gqa")
    };
    let mut edits = narrow(1..2);
    edits.extend([
        json!({"share": {"layer": 2, "unit": 1, "donor_layer": 0, "donor_unit": 0,
            "parts": ["q", "k", "v"]}}),
        json!({"drop": {"layer": 2, "unit": 0}}),
        json!({"store": {"tensor": "blk.3.ffn_up.weight", "type": "q4_1"}}),
    ]);
    (Case::new(&spec), edits.into())
}

#[test]
fn all_kinds_of_edits_at_once() {
    let (case, edits) = everything();
    let (out, result) = case.converted(&edits);
    let source = File::open(&case.model);
    let plain = case.folder.file("plain.gguf");
    run!["expand", out, "-o", plain].ok();
    let made = File::open(&plain);
    assert_eq!(made.lengths("deci.attention.head_count_kv"), [2, 2, 1, 2]);
    assert_eq!(
        made.lengths("deci.feed_forward_length"),
        [128, 96, 128, 128]
    );
    is_narrow(&source, &made, 1);
    // The unit that is left of layer 2 uses the rows of layer 0's first.
    for stem in ["attn_q", "attn_k", "attn_v"] {
        let (from, to) = (&names(stem, 0..1)[0], &names(stem, 2..3)[0]);
        let rows = made.rows(to);
        assert_eq!(rows, source.rows(from)[..rows.len()], "{stem}");
    }
    assert_eq!(tokens(&out), tokens(&plain));
    let ran = run!["verify", plain, "--source", case.model].exits(3);
    assert!(ran.stderr.contains("verify the converted one"), "{ran:#?}");
    let report = run!["verify", out, "--source", case.model, "--json"]
        .ok()
        .json();
    assert_eq!(
        (&report["lossless"], &report["replaced_tensors"]),
        (&false.into(), &1.into())
    );
    assert_eq!(result["plan"]["source"], case.digest);
    let sharing = run!["inspect", out, "--json"].ok().json()["sharing"].clone();
    assert_eq!(sharing["source_digest"], case.digest);
    assert_eq!(sharing["plan"]["edits"], edits);
    let ratios = run!["analyze", "ratios", out, "--json"].ok().json();
    let dropped = |layer: usize| ratios["files"][0]["layers"][layer]["dropped"].clone();
    assert_eq!((dropped(1), dropped(2)), (0.into(), 1.into()));
    // Another file is not the source, whatever its shapes are.
    let other = case.folder.file("other.gguf");
    small("tiny-gqa").write(&other).unwrap();
    run!["verify", out, "--source", other].exits(4);
}

/// The last tensor of a plain file is padded, and that is no fault.
#[test]
fn a_last_tensor_that_ends_between_places_is_in_order() {
    let spec = small("tiny-gqa");
    let case = Case::new(&ModelSpec {
        n_vocab: spec.n_vocab | 1,
        tied_output: true,
        ..spec
    });
    let (out, _) = case.converted(&json!([{"store": {"tensor": "output.weight", "type": "q8_0"}}]));
    let file = File::open(&out);
    assert!(!file.gguf.data_end().is_multiple_of(32));
    run!["verify", out].ok();
    run!["verify", out, "--source", case.model].ok();
}

#[test]
fn a_narrow_tensor_that_is_not_the_sources_is_found() {
    let (case, edits) = everything();
    let (out, _) = case.converted(&edits);
    // The rows that stayed are the source's; so a source that has others is not
    // what the file was made of, and a file with others is damaged.
    let file = File::open(&out);
    let place = file
        .gguf
        .data_range(file.gguf.tensor("blk.1.ffn_up.weight").unwrap());
    let mut bytes = file.bytes.clone();
    bytes[place.start as usize + 7] ^= 1;
    let bad = case.folder.write("bad.gguf", bytes);
    let ran = run!["verify", bad, "--source", case.model].exits(4);
    assert!(ran.stdout.contains("blk.1.ffn_up.weight") || ran.stderr.contains("blk.1.ffn_up"));
}

#[test]
fn edits_that_cannot_be_are_refused_by_name() {
    let case = Case::new(&llama("q8_0"));
    let at = |kind: &str, edit: Value| json!([{ kind: edit }]);
    let narrow = |channels: Value| at("narrow", json!({"layer": 1, "channels": channels}));
    let store = |tensor: &str, to: &str| at("store", json!({"tensor": tensor, "type": to}));
    let up = "blk.1.ffn_up.weight";
    for (edits, says) in [
        (
            narrow(json!([[0, 32], [16, 64]])),
            "edits[0].narrow.channels: must be ascending",
        ),
        (
            narrow(json!([[32, 32]])),
            "edits[0].narrow.channels: must be ascending",
        ),
        (narrow(json!([[0, 160]])), "160 is beyond the layer's 128"),
        (narrow(json!([[0, 40]])), "40 is within a block"),
        (narrow(json!([[0]])), "edits[0].narrow.channels[0]"),
        (narrow(json!([[-1, 32]])), "edits[0].narrow.channels[0][0]"),
        (
            narrow(json!("all")),
            "edits[0].narrow.channels: invalid type",
        ),
        (
            at("narrow", json!({"layer": 3, "channels": []})),
            "edits[0].narrow.channels: must not be empty",
        ),
        (
            at("narrow", json!({"layer": 9, "channels": []})),
            "edits[0].narrow.layer: layer 9",
        ),
        (
            at("narrow", json!({"channels": []})),
            "edits[0].narrow: missing field `layer`",
        ),
        (
            store("blk.9.ffn_up.weight", "q4_0"),
            "edits[0].store.tensor: the model has no tensor",
        ),
        (
            store("blk.1.attn_norm.weight", "q4_0"),
            "edits[0].store.tensor",
        ),
        (store("output_norm.weight", "f16"), "edits[0].store.tensor"),
        (
            store(up, "q9_9"),
            "edits[0].store.type: \"q9_9\" is no type",
        ),
        (
            store(up, "i32"),
            "edits[0].store.type: ggml stores no weights as i32",
        ),
        // ggml multiplies by such, and stores nothing as it.
        (
            store(up, "q8_1"),
            "edits[0].store.type: ggml stores no weights as q8_1",
        ),
        (store(up, "q4_K"), "no whole blocks of q4_K (256 elements)"),
        (
            at("store", json!({"tensor": up})),
            "edits[0].store: missing field `type`",
        ),
        (at("swap", json!({})), "edits[0]: unknown variant `swap`"),
        (
            json!([{"drop": {"layer": 1, "unit": 77}}]),
            "edits[0].drop.unit: the model has no",
        ),
        (
            json!([{"drop": {"layer": 1, "unit": 0, "surprise": 1}}]),
            "unknown field `surprise`",
        ),
        (
            json!([{"share": {"layer": 1, "unit": 0, "donor_layer": 1, "donor_unit": 0,
                "parts": ["q"]}}]),
            "edits[0].share.donor_unit: q of",
        ),
        (json!("edits"), "edits: invalid type"),
    ] {
        case.refused(&edits, 3, &["plan.json", says]);
    }
    let twice = [narrow(json!([[0, 32]])), narrow(json!([[0, 64]]))];
    let twice: Vec<Value> = twice.iter().map(|edits| edits[0].clone()).collect();
    case.refused(
        &twice.into(),
        3,
        &["edits[1].narrow.layer: layer 1 is narrowed twice"],
    );
    let twice = [store(up, "q4_0"), store(up, "q5_0")];
    let twice: Vec<Value> = twice.iter().map(|edits| edits[0].clone()).collect();
    case.refused(&twice.into(), 3, &["edits[1].store.tensor", "two types"]);
    // What llama.cpp has no way to load.
    let gpt2 = Case::new(&preset("tiny-gpt2"));
    let one = json!([{"narrow": {"layer": 1, "channels": [[0, 32]]}}]);
    gpt2.refused(&one, 3, &["edits[0].narrow.channels", "all layers of gpt2"]);
    let moe = Case::new(&preset("tiny-moe"));
    moe.refused(&one, 3, &["edits[0].narrow.layer", "experts"]);
    let phi3 = Case::new(&preset("tiny-phi3"));
    phi3.refused(
        &one,
        3,
        &["edits[0].narrow.layer", "gate and up in one tensor"],
    );
    let tied = Case::new(&ModelSpec {
        tied_output: true,
        ..preset("tiny-gqa")
    });
    tied.refused(
        &store("output.weight", "i8"),
        3,
        &["edits[0].store.type: ggml stores no weights as i8"],
    );
    let bert = Case::new(&preset("tiny-bert"));
    bert.refused(
        &store("output.weight", "q8_0"),
        3,
        &["edits[0].store.tensor", "bert"],
    );
}

/// Heads whose outputs go nowhere, or from where there is nothing: such a model runs nowhere, and
/// no file is made of it.
#[test]
fn an_output_of_other_columns_than_heads_is_named() {
    let name = "blk.1.attn_output.weight";
    let case = Case::new(&preset("tiny-gqa"));
    let mut bytes = read(&case.model);
    let at = bytes.windows(name.len()).position(|w| w == name.as_bytes());
    // After the name: the number of dimensions, then these.
    let dims = at.unwrap() + name.len() + 4;
    let of = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let (columns, rows) = (of(&bytes, dims), of(&bytes, dims + 8));
    bytes[dims..dims + 8].copy_from_slice(&(columns / 2).to_le_bytes());
    bytes[dims + 8..dims + 16].copy_from_slice(&(rows * 2).to_le_bytes());
    std::fs::write(&case.model, &bytes).unwrap();
    let digest = format!("blake3:{}", blake3::hash(&bytes).to_hex()).into();
    let case = Case { digest, ..case };
    for unit in [0, 1] {
        let drop = json!([{"drop": {"layer": 1, "unit": unit}}]);
        let says = format!(
            "has {} columns, which are not those of its heads",
            columns / 2
        );
        case.refused(&drop, 3, &["model.gguf", name, &says]);
    }
}

#[test]
fn other_architectures_keep_equally_many_channels_in_all_layers() {
    for name in ["tiny-gpt2", "tiny-qwen3", "tiny-gemma3"] {
        let spec = ModelSpec {
            n_ff: 128,
            ..preset(name)
        };
        let case = Case::new(&spec);
        let (out, _) = case.converted(&narrow(0..spec.total_layers()).into());
        let made = File::open(&out);
        assert_eq!(
            made.gguf
                .tensor("blk.1.ffn_down.weight")
                .unwrap()
                .row_elems(),
            96,
            "{name}"
        );
        assert_eq!(tokens(&out).as_array().unwrap().len(), 12, "{name}");
    }
}

#[test]
fn a_real_model_with_a_narrow_layer_and_a_head_of_its_own() {
    needs!(SMOLLM2);
    let folder = Folder::new();
    let digest = format!("blake3:{}", blake3::hash(&read(&smollm2())).to_hex());
    let plan = json!({"version": 2, "source": digest, "edits": [
        {"narrow": {"layer": 20, "channels": [[0, 1024], [1088, 1536]]}},
        {"store": {"tensor": "output.weight", "type": "q5_0"}},
        {"drop": {"layer": 26, "unit": 1}},
    ]});
    let plan = folder.write("plan.json", plan.to_string());
    let out = folder.file("out.gguf");
    run!["convert", smollm2(), "--plan", plan, "-o", out].ok();
    let file = File::open(&out);
    assert_eq!(file.gguf.architecture().unwrap(), Some("deci"));
    assert_eq!(file.lengths("deci.feed_forward_length")[20], 1472);
    assert_eq!(
        file.gguf.tensor("output.weight").unwrap().ggml_type.name(),
        "q5_0"
    );
    let said = run![
        "run",
        out,
        "-p",
        "The capital of France is",
        "-n",
        "6",
        "--temp",
        "0"
    ];
    assert!(said.ok().stdout.contains("Paris"));
}
