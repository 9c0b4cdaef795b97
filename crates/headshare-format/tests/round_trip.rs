//! From a source file to a physical one and back, in every view of it, against
//! the plainest computation of the same.

mod support;

use headshare_format::alias::{AliasTable, PAGE_SIZES, POOL};
use headshare_format::layout::SharedRows;
use headshare_format::{Gguf, LogicalLayout, PageSize, StitchPlan, VirtualGguf};
use proptest::prelude::*;
use support::converted::convert;
use support::random::{equal_rows, expanded, file, fit, wishes};
use support::{RawGguf, f32_tensor, kv_str, kv_u32, noise};

/// The whole logical file.
fn materialise(logical: &VirtualGguf, physical: &[u8]) -> Vec<u8> {
    let mut out = vec![0xaa; logical.len() as usize];
    assert_eq!(logical.read_at(physical, 0, &mut out), out.len());
    out
}

/// Carries a stitching plan out by copying, and checks its form.
fn stitch(plan: &StitchPlan, logical: &VirtualGguf, physical: &[u8]) -> Vec<u8> {
    let mut out = vec![0xaa; plan.len as usize];
    let mut written = vec![false; plan.len as usize];
    let mut write = |at: u64, bytes: &[u8]| {
        let range = at as usize..at as usize + bytes.len();
        assert!(written[range.clone()].iter().all(|w| !w), "written twice");
        written[range.clone()].fill(true);
        out[range].copy_from_slice(bytes);
    };
    for run in &plan.maps {
        for n in [run.logical, run.physical, run.len] {
            assert!(n.is_multiple_of(plan.page.bytes()), "{run:?}");
        }
        assert!(run.len > 0);
        let bytes = &physical[run.physical as usize..(run.physical + run.len) as usize];
        write(run.logical, bytes);
    }
    for copy in &plan.copies {
        assert!(copy.start.is_multiple_of(plan.page.bytes()) && copy.start < copy.end);
        assert!(copy.end.is_multiple_of(plan.page.bytes()) || copy.end == plan.len);
        let mut bytes = vec![0; (copy.end - copy.start) as usize];
        logical.read_at(physical, copy.start, &mut bytes);
        write(copy.start, &bytes);
    }
    assert!(written.iter().all(|w| *w), "something is not written");
    assert!(plan.maps.is_sorted_by_key(|r| r.logical));
    assert!(plan.copies.is_sorted_by_key(|r| r.start));
    out
}

/// Tensors' bytes that are mapped again, counted byte by byte.
fn counted_bytes_mapped_again(
    plan: &StitchPlan,
    logical: &VirtualGguf,
    physical_len: usize,
) -> u64 {
    let mut seen = vec![false; physical_len];
    let mut again = 0;
    let mut runs = plan.maps.iter().peekable();
    for tensor in logical.tensors() {
        for byte in logical.data_range(tensor) {
            while runs.next_if(|run| run.logical + run.len <= byte).is_some() {}
            if let Some(run) = runs.peek().filter(|run| run.logical <= byte) {
                let at = (run.physical + (byte - run.logical)) as usize;
                again += u64::from(std::mem::replace(&mut seen[at], true));
            }
        }
    }
    again
}

/// Converts `file` with `shared` and compares all views with the oracle.
fn check(file: &[u8], shared: &[SharedRows], page: PageSize) {
    let source = Gguf::parse(file).unwrap();
    let expected = expanded(&source, file, shared);
    let physical = convert(file, shared, page).unwrap();
    let gguf = Gguf::parse(&physical).unwrap();
    let table = AliasTable::read(&gguf).unwrap().expect("a converted file");
    assert_eq!(table.tensors, source.tensors());

    let logical = VirtualGguf::new(&gguf, &table, LogicalLayout::Source).unwrap();
    assert!(materialise(&logical, &physical) == expected);
    assert_eq!(logical.header(), source.header_bytes());

    for logical_page in PAGE_SIZES {
        let layout = LogicalLayout::Pages(logical_page);
        let logical = VirtualGguf::new(&gguf, &table, layout).unwrap();
        let bytes = materialise(&logical, &physical);
        let paged = Gguf::parse(&bytes).unwrap();
        assert_eq!(paged.alignment(), logical_page.bytes());
        assert_eq!(paged.tensors(), logical.tensors());
        assert_eq!(paged.architecture(), source.architecture());
        for (ours, theirs) in paged.tensors().iter().zip(source.tensors()) {
            assert_eq!(
                (&ours.name, &ours.dims, ours.ggml_type),
                (&theirs.name, &theirs.dims, theirs.ggml_type)
            );
            assert_eq!(logical.data_range(ours), paged.data_range(ours));
            let (a, b) = (paged.data_range(ours), source.data_range(theirs));
            assert!(
                bytes[a.start as usize..a.end as usize]
                    == expected[b.start as usize..b.end as usize]
            );
        }
        for page in PAGE_SIZES {
            let plan = logical.stitch_plan(page);
            assert!(stitch(&plan, &logical, &physical) == bytes);
            assert_eq!(
                logical.resident_saving(page),
                counted_bytes_mapped_again(&plan, &logical, physical.len())
            );
        }
        read_in_pieces(&logical, &physical, &bytes);
    }
}

fn read_in_pieces(logical: &VirtualGguf, physical: &[u8], bytes: &[u8]) {
    for (i, step) in [1000, 4096, 12345, 100_000].into_iter().enumerate() {
        let mut pos = i * 7;
        while pos < bytes.len() + step {
            let mut piece = vec![0; step];
            let n = logical.read_at(physical, pos as u64, &mut piece);
            let rest = &bytes[pos.min(bytes.len())..];
            assert_eq!(n, rest.len().min(step));
            assert!(piece[..n] == rest[..n]);
            pos += step;
        }
    }
    assert_eq!(logical.read_at(physical, u64::MAX, &mut [0; 8]), 0);
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(96)
    })]

    #[test]
    fn random_sharing_gives_what_copying_gives(
        file in file(),
        wishes in wishes(),
        backwards: bool,
        page in prop::sample::select(PAGE_SIZES.to_vec()),
    ) {
        let bytes = file.bytes();
        let shared = fit(&file.parse().unwrap(), &wishes, backwards);
        check(&bytes, &shared, page);
    }

    #[test]
    fn equal_rows_stored_once_expand_to_the_source(
        file in file(),
        page in prop::sample::select(PAGE_SIZES.to_vec()),
    ) {
        let bytes = file.bytes();
        let source = file.parse().unwrap();
        let shared = equal_rows(&source, &bytes);
        prop_assert!(expanded(&source, &bytes, &shared) == bytes);
        check(&bytes, &shared, page);
    }
}

// The lossless cases by name.

/// Two tensors of which the second repeats half of the first.
fn repetitive() -> RawGguf {
    let one = f32_tensor("one", &[256, 32]);
    let mut two = f32_tensor("twice", &[256, 16]);
    two.data.copy_from_slice(&one.data[8 * 1024..24 * 1024]);
    let mut norm = f32_tensor("norm", &[9]);
    norm.data = noise(36, 5);
    RawGguf {
        kvs: vec![
            kv_str("general.architecture", "llama"),
            kv_u32("llama.block_count", 2),
        ],
        tensors: vec![one, norm, two],
        ..RawGguf::default()
    }
}

/// Converts losslessly and back; returns the physical file.
fn lossless(file: &RawGguf) -> Vec<u8> {
    let bytes = file.bytes();
    let source = file.parse().unwrap();
    let shared = equal_rows(&source, &bytes);
    assert!(expanded(&source, &bytes, &shared) == bytes);
    for page in PAGE_SIZES {
        check(&bytes, &shared, page);
    }
    convert(&bytes, &shared, PageSize::KIB_4).unwrap()
}

#[test]
fn lossless_plain_file_has_no_filler_and_stores_once() {
    let physical = Gguf::parse(&lossless(&repetitive())).unwrap();
    let stored: Vec<_> = physical.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(stored, ["one", POOL]);
    // The donated half and the norm are in the pool, the other half is not.
    assert_eq!(physical.tensor("one").unwrap().dims, [256, 16]);
    assert!(physical.tensor(POOL).unwrap().byte_len() < 16 * 1024 + 4096);
}

#[test]
fn lossless_version_2() {
    lossless(&RawGguf {
        version: 2,
        ..repetitive()
    });
}

#[test]
fn lossless_odd_alignments() {
    for alignment in [1, 2, 8, 64, 512, 8192] {
        let mut file = repetitive();
        file.kvs.insert(0, kv_u32("general.alignment", alignment));
        file.alignment = alignment as usize;
        lossless(&file);
    }
}

#[test]
fn lossless_alignment_key_that_states_the_default() {
    let mut file = repetitive();
    file.kvs.push(kv_u32("general.alignment", 32));
    lossless(&file);
}

#[test]
fn lossless_padding_that_is_not_zero() {
    lossless(&RawGguf {
        padding: 0x5a,
        ..repetitive()
    });
}

#[test]
fn lossless_without_end_padding() {
    lossless(&RawGguf {
        end_padding: false,
        ..repetitive()
    });
}

#[test]
fn lossless_trailing_bytes() {
    for len in [1, 31, 5000] {
        lossless(&RawGguf {
            trailing: noise(len, 3),
            ..repetitive()
        });
        lossless(&RawGguf {
            trailing: vec![0; len],
            ..repetitive()
        });
    }
}

#[test]
fn lossless_end_padding_cut_in_the_middle() {
    let file = repetitive();
    let bytes = file.bytes();
    let source = file.parse().unwrap();
    let shared = equal_rows(&source, &bytes);
    for len in source.data_end()..=source.file_len() {
        check(&bytes[..len as usize], &shared, PageSize::KIB_4);
    }
}

#[test]
fn lossless_without_tensors() {
    for end_padding in [true, false] {
        lossless(&RawGguf {
            tensors: Vec::new(),
            end_padding,
            ..repetitive()
        });
        lossless(&RawGguf {
            tensors: Vec::new(),
            end_padding,
            trailing: noise(77, 1),
            ..repetitive()
        });
    }
}

#[test]
fn lossless_without_keys_and_tensors() {
    lossless(&RawGguf::default());
}

#[test]
fn lossless_without_an_architecture() {
    let mut file = repetitive();
    file.kvs.remove(0);
    lossless(&file);
}

#[test]
fn lossless_architecture_after_other_keys() {
    let mut file = repetitive();
    file.kvs.reverse();
    lossless(&file);
}

#[test]
fn lossless_scalar_and_tensors_of_one_row() {
    let mut file = repetitive();
    let mut scalar = f32_tensor("scalar", &[]);
    scalar.data = vec![1, 2, 3, 4];
    let again = support::RawTensor {
        name: b"again".to_vec(),
        ..scalar.clone()
    };
    file.tensors.extend([scalar, again]);
    lossless(&file);
}
