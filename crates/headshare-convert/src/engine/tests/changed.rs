//! Changed streams: variants that are not there, and blocks in common.

use std::ops::Range;

use super::*;
use crate::convert::variant::Types;

/// A model of other shapes and types need not be written to be run.
#[test]
fn a_variant_is_run_without_being_there() {
    let folder = tempfile::tempdir().unwrap();
    for (preset, edits) in [
        (
            "tiny-llama",
            r#"{"drop": {"layer": 1, "unit": 2}},
               {"narrow": {"layer": 1, "channels": [[0, 20], [50, 120]]}}"#,
        ),
        (
            "tiny-gemma3",
            r#"{"store": {"tensor": "blk.0.ffn_up.weight", "type": "q4_0"}},
               {"store": {"tensor": "token_embd.weight", "type": "q8_0"}},
               {"store": {"tensor": "blk.2.attn_q.weight", "type": "q5_1"}}"#,
        ),
    ] {
        let path = model(folder.path(), preset);
        let source = ModelFile::open_plain(&path).unwrap();
        let digest = source.digest().to_owned();
        let plan = format!(r#"{{"version": 2, "source": "{digest}", "edits": [{edits}]}}"#);
        let plan = crate::plan::Plan::from_json(plan.as_bytes()).unwrap();
        let variant = Variant::new(&source, &plan, None).unwrap();
        let written = folder.path().join("variant.gguf");
        crate::convert::write_plain(&variant, &written, true, &|_| ()).unwrap();

        let windows = windows();
        let mut engine = Engine::load(&source, None, Some(&variant), &windows, &options()).unwrap();
        let mut notes = Notes::default();
        engine.run(&mut [&mut notes], &|_| ()).unwrap();
        let (theirs, ours) = (capture(&path), capture(&written));
        assert_eq!(notes.visits.len(), ours.len(), "{preset}");
        for (visit, product) in notes.visits.iter().zip(&ours) {
            let name = &product.name;
            assert_eq!(&visit.site.name, name, "{preset}");
            let (tokens, p) = (visit.weights.len(), visit.site.columns);
            if product.inputs.len() == tokens * p {
                assert_eq!(visit.inputs, product.inputs, "{preset}, {name}");
            }
            // Of what the original gave, the rows that are left.
            let given = theirs.iter().find(|p| p.name == *name).unwrap();
            let rows = match name.as_str() {
                "blk.1.ffn_gate.weight" | "blk.1.ffn_up.weight" if preset == "tiny-llama" => {
                    vec![0..20, 50..120]
                }
                "blk.1.attn_q.weight" | "blk.1.attn_k.weight" | "blk.1.attn_v.weight"
                    if preset == "tiny-llama" =>
                {
                    vec![0..32, 48..64]
                }
                _ => std::iter::once(0..visit.site.rows).collect(),
            };
            if !visit.site.role.writes_to_stream() {
                let width = given.outputs.len() / tokens;
                let kept: Vec<f32> = (given.outputs.chunks(width))
                    .flat_map(|row| rows.iter().flat_map(|r| &row[r.clone()]))
                    .copied()
                    .collect();
                assert_eq!(visit.targets, kept, "{preset}, {name}");
            }
        }
    }
}

/// What goes into the output head in both streams.
#[test]
fn the_heads_inputs_are_there_of_both_streams() {
    struct OfHead(Option<(Vec<f32>, Vec<f32>)>);
    impl Visitor<EngineError> for OfHead {
        fn wants(&mut self, site: &Site) -> Result<Wants, EngineError> {
            Ok(match site.role {
                Role::Head => Wants::BothInputs,
                _ => Wants::Nothing,
            })
        }
        fn visit(&mut self, _: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, EngineError> {
            let rows = (seen.inputs().to_vec(), seen.targets().to_vec());
            assert!(self.0.replace(rows).is_none(), "a second head");
            Ok(None)
        }
    }
    let folder = tempfile::tempdir().unwrap();
    for preset in ["tiny-gqa", "tiny-gemma3"] {
        let path = model(folder.path(), preset);
        let source = ModelFile::open_plain(&path).unwrap();
        let types = Types {
            tensors: [(
                source.gguf.tensor_index("blk.0.ffn_up.weight").unwrap(),
                q4_0(),
            )]
            .into(),
            untied_head: None,
        };
        let variant = Variant::with_types(&source, &types).unwrap();
        let written = folder.path().join("variant.gguf");
        crate::convert::write_plain(&variant, &written, true, &|_| ()).unwrap();
        let windows = windows();
        let mut engine = Engine::load(&source, None, Some(&variant), &windows, &options()).unwrap();
        let mut of_head = OfHead(None);
        engine.run(&mut [&mut of_head], &|_| ()).unwrap();
        let last = |products: Vec<Product>| products.into_iter().next_back().unwrap().inputs;
        let (changed, original) = (last(capture(&written)), last(capture(&path)));
        assert_ne!(changed, original, "{preset}");
        assert_eq!(of_head.0, Some((changed, original)), "{preset}");
    }
}

fn q4_0() -> headshare_format::GgmlType {
    headshare_format::GgmlType::named("q4_0").unwrap()
}

/// A block that two layers borrow: its sums are those of all three, and what
/// becomes of it becomes of it everywhere.
#[test]
fn shared_blocks_are_fitted_to_all_their_users() {
    const DONOR: &str = "blk.0.attn_q.weight";
    const USER: &str = "blk.2.attn_q.weight";
    struct Halves {
        donated: Vec<(Range<usize>, normal::Sums)>,
        fixed: Vec<Range<usize>>,
        inputs: Vec<(String, Vec<f32>)>,
    }
    impl Visitor<EngineError> for Halves {
        fn wants(&mut self, _: &Site) -> Result<Wants, EngineError> {
            Ok(Wants::Inputs)
        }
        fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, EngineError> {
            self.inputs
                .push((site.name.clone(), seen.inputs().to_vec()));
            if site.name == DONOR {
                let sums = |(rows, sums): &(Range<usize>, Option<&normal::Sums>)| {
                    (rows.clone(), sums.unwrap().clone())
                };
                self.donated = seen.donated().iter().map(sums).collect();
            }
            if site.name == USER {
                self.fixed = seen.fixed().to_vec();
            }
            let halves = [DONOR, USER].contains(&site.name.as_str());
            Ok(halves.then(|| halved(seen.bytes())))
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = model(folder.path(), "tiny-gqa");
    let source = ModelFile::open_plain(&path).unwrap();
    let block = |matrix: &str, rows| Block {
        matrix: matrix.to_owned(),
        rows,
    };
    let shared: Vec<Shared> = [(USER, 32..64), ("blk.3.attn_q.weight", 0..32)]
        .map(|(user, rows)| Shared {
            user: block(user, rows),
            donor: block(DONOR, 32..64),
        })
        .into();
    let windows = windows();
    let mut engine = Engine::load(&source, None, None, &windows, &options()).unwrap();
    engine.share(&shared).unwrap();
    engine.gather(&|_| ()).unwrap();
    let mut visitor = Halves {
        donated: Vec::new(),
        fixed: Vec::new(),
        inputs: Vec::new(),
    };
    engine.run(&mut [&mut visitor], &|_| ()).unwrap();

    // In files: the block in its users' places, and then all of it halved.
    let place = |name: &str, rows: &Range<usize>| {
        let data = source.gguf.data_range(source.gguf.tensor(name).unwrap());
        let row = 4 * 64;
        data.start as usize + rows.start * row..data.start as usize + rows.end * row
    };
    let written = |halves: bool| {
        let mut bytes = std::fs::read(&path).unwrap();
        for name in [DONOR, USER].into_iter().filter(|_| halves) {
            let data = place(name, &(0..64));
            let half = halved(&bytes[data.clone()]);
            bytes[data].copy_from_slice(&half);
        }
        for Shared { user, donor } in &shared {
            let rows = bytes[place(&donor.matrix, &donor.rows)].to_vec();
            bytes[place(&user.matrix, &user.rows)].copy_from_slice(&rows);
        }
        let path = folder.path().join("written.gguf");
        std::fs::write(&path, bytes).unwrap();
        capture(&path)
    };
    let halved = written(true);
    assert_eq!(visitor.inputs.len(), halved.len());
    for ((name, inputs), product) in visitor.inputs.iter().zip(&halved) {
        assert!(name == &product.name && inputs == &product.inputs, "{name}");
    }
    assert_eq!((visitor.fixed.len(), &visitor.fixed[0]), (1, &(32..64)));
    let [(rows, sums)] = &visitor.donated[..] else {
        panic!("{} blocks are donated", visitor.donated.len());
    };
    assert_eq!(*rows, 32..64);
    let (theirs, ours) = (capture(&path), written(false));
    let all = windows.tokens.len();
    let (mut gram, mut cross) = (vec![0.0; 64 * 64], vec![0.0; 64 * 32]);
    for Shared { user, .. } in &shared {
        let find = |products: &[Product], what: fn(&Product) -> &Vec<f32>| {
            let product = products.iter().find(|p| p.name == user.matrix).unwrap();
            what(product).clone()
        };
        let inputs = find(&ours, |p| &p.inputs);
        let given = find(&theirs, |p| &p.outputs);
        let targets: Vec<f32> = (given.chunks(64))
            .flat_map(|row| &row[user.rows.clone()])
            .copied()
            .collect();
        let even = vec![1.0; all];
        let add = |to: &mut Vec<f64>, sums: Vec<f64>| {
            to.iter_mut().zip(sums).for_each(|(to, v)| *to += v);
        };
        add(&mut gram, naive(&inputs, 64, &inputs, 64, &even));
        add(&mut cross, naive(&inputs, 64, &targets, 32, &even));
    }
    close("G", &elements(&sums.all().gram), &gram);
    close("C", &elements(&sums.all().cross), &cross);
}
