//! What a layout plan stores, where, and what it refuses.

mod support;

use headshare_format::alias::{AliasTable, POOL, Provenance, format_digest};
use headshare_format::layout::{PhysicalLayout, SharedRows};
use headshare_format::{Advice, FormatError, GgmlType, Gguf, LogicalLayout, PageSize, VirtualGguf};
use support::converted::{convert, planned};
use support::{RawGguf, assert_error, f32_tensor, kv_str, kv_u32, tensor};

/// A block of 4 rows of 1,024 bytes is a page.
const BLOCK: u64 = 4096;

/// Three tensors of eight blocks, and one of another row length.
fn source() -> RawGguf {
    RawGguf {
        kvs: vec![kv_str("general.architecture", "llama")],
        tensors: vec![
            f32_tensor("a", &[256, 32]),
            f32_tensor("bb", &[256, 32]),
            f32_tensor("ccc", &[256, 32]),
            f32_tensor("wide", &[512, 16]),
        ],
        ..RawGguf::default()
    }
}

/// Block `alias` is to be block `donor`.
fn block(alias: (usize, u64), donor: (usize, u64)) -> SharedRows {
    SharedRows {
        alias: alias.0,
        alias_offset: alias.1 * BLOCK,
        donor: donor.0,
        donor_offset: donor.1 * BLOCK,
        len: BLOCK,
    }
}

fn plan_of(
    source: &RawGguf,
    shared: &[SharedRows],
    page: PageSize,
) -> Result<PhysicalLayout, FormatError> {
    let digest = format_digest(&blake3::hash(b""));
    let mut provenance = Provenance::lossless("test 0", digest);
    provenance.lossless = false;
    provenance.plan = Some("{}".to_owned());
    let gguf = source.parse().unwrap();
    planned(&gguf, &source.bytes(), shared, page, provenance)
}

fn plan(shared: &[SharedRows]) -> Result<PhysicalLayout, FormatError> {
    plan_of(&source(), shared, PageSize::KIB_4)
}

fn stored(layout: &PhysicalLayout) -> Vec<(String, u64)> {
    layout
        .stored
        .iter()
        .map(|t| (t.info.name.clone(), t.info.byte_len()))
        .collect()
}

/// The logical view of what `source` becomes, at pages of 4,096 bytes.
fn logical(source: &RawGguf, shared: &[SharedRows]) -> VirtualGguf {
    let physical = convert(&source.bytes(), shared, PageSize::KIB_4).unwrap();
    let gguf = Gguf::parse(&physical).unwrap();
    let table = AliasTable::read(&gguf).unwrap().unwrap();
    VirtualGguf::new(&gguf, &table, LogicalLayout::Pages(PageSize::KIB_4)).unwrap()
}

/// Bytes that mapping shares between logical ranges, at the file's page size.
fn resident_saving(shared: &[SharedRows]) -> u64 {
    logical(&source(), shared).resident_saving(PageSize::KIB_4)
}

/// Pages that are copied although they hold tensors' bytes.
fn copied_pages(logical: &VirtualGguf) -> Vec<u64> {
    let data = logical.data_offset();
    let plan = logical.stitch_plan(PageSize::KIB_4);
    let pages = plan.copies.iter().flat_map(|c| c.clone().step_by(4096));
    let of_tensors = pages.filter(|&page| page >= data);
    of_tensors.map(|page| (page - data) / 4096).collect()
}

#[test]
fn without_sharing_every_tensor_stays_whole() {
    let layout = plan(&[]).unwrap();
    let names: Vec<_> = layout.stored.iter().map(|t| t.info.name.as_str()).collect();
    assert_eq!(names, ["a", "bb", "ccc", "wide"]);
    assert_eq!(layout.table.segments.len(), 4);
    for (stored, source) in layout.stored.iter().zip(&layout.table.tensors) {
        assert_eq!(stored.info.dims, source.dims);
    }
}

#[test]
fn a_donated_block_goes_to_the_pool_and_the_alias_shrinks() {
    let layout = plan(&[block((1, 2), (0, 5))]).unwrap();
    let expected = [
        ("a", 7 * BLOCK),
        ("bb", 7 * BLOCK),
        ("ccc", 8 * BLOCK),
        ("wide", 8 * BLOCK),
        (POOL, BLOCK),
    ];
    assert_eq!(
        stored(&layout),
        expected.map(|(n, l)| (n.to_owned(), l)).to_vec()
    );
    assert_eq!(layout.stored[0].info.dims, [256, 28]);
}

#[test]
fn a_tensor_used_whole_stays_whole() {
    let whole = SharedRows {
        alias: 2,
        alias_offset: 0,
        donor: 0,
        donor_offset: 0,
        len: 8 * BLOCK,
    };
    let layout = plan(&[whole, block((1, 0), (0, 3))]).unwrap();
    let names: Vec<_> = layout.stored.iter().map(|t| t.info.name.as_str()).collect();
    assert_eq!(names, ["a", "bb", "wide"]);
}

#[test]
fn rows_behind_shared_ones_keep_their_place_in_a_page() {
    // Three rows end within a page; what follows them in "a" and in "bb" would
    // lie askew if it moved up. In "a" it still follows them, so that only the
    // page of "bb" where they meet is copied.
    let shared = SharedRows {
        alias: 1,
        alias_offset: 0,
        donor: 0,
        donor_offset: 0,
        len: 3 * 1024,
    };
    assert_eq!(copied_pages(&logical(&source(), &[shared])), [8]);
    // With rows in the middle, the first ones stay where they are.
    let middle = SharedRows {
        alias_offset: 9 * 1024,
        donor_offset: 9 * 1024,
        ..shared
    };
    assert_eq!(copied_pages(&logical(&source(), &[middle])), [2, 10]);
    let layout = plan(&[middle]).unwrap();
    assert_eq!(layout.stored[0].info.dims, [256, 9]);
}

#[test]
fn a_tensor_that_ends_within_a_page_is_mapped_to_its_end() {
    let source = RawGguf {
        tensors: vec![
            f32_tensor("a", &[256, 10]),
            f32_tensor("bb", &[256, 7]),
            f32_tensor("small", &[256, 1]),
            f32_tensor("ccc", &[256, 5]),
        ],
        ..source()
    };
    // A tensor smaller than a page lies among others like it.
    assert_eq!(copied_pages(&logical(&source, &[])), [5]);
}

#[test]
fn chains_end_at_the_stored_block() {
    let chain = [
        block((2, 1), (1, 7)),
        block((1, 7), (0, 4)),
        block((0, 4), (0, 0)),
    ];
    let layout = plan(&chain).unwrap();
    let pool = layout.stored.iter().position(|t| t.info.name == POOL);
    let users = layout
        .table
        .segments
        .iter()
        .filter(|s| Some(s.stored as usize) == pool)
        .count();
    assert_eq!(users, 4);
    assert_eq!(layout.stored[pool.unwrap()].info.byte_len(), BLOCK);
}

#[test]
fn whole_pages_of_aliases_are_shared() {
    let shared = [
        block((1, 0), (0, 5)),
        block((1, 3), (0, 5)),
        block((2, 7), (0, 0)),
    ];
    assert_eq!(resident_saving(&shared), 3 * BLOCK);
}

#[test]
fn pool_items_take_the_residue_of_most_users() {
    // Five rows are 5,120 bytes. The donor begins at residue 0 of the page,
    // its three users at residue 1,024, where no whole page fits into so few
    // bytes: nothing is to be gained, and the donor stays mappable.
    let five = |tensor: usize, row: u64| SharedRows {
        alias: tensor,
        alias_offset: row * 1024,
        donor: 0,
        donor_offset: 0,
        len: 5 * 1024,
    };
    let shared = [five(1, 1), five(1, 9), five(2, 17)];
    assert_eq!(resident_saving(&shared), 0);
    let eight = |tensor: usize, row: u64| SharedRows {
        len: 8 * 1024,
        ..five(tensor, row)
    };
    // Eight rows hold one whole page at residue 1,024: the three users share
    // it, and the donor is copied.
    let shared = [eight(1, 1), eight(1, 9), eight(2, 17)];
    assert_eq!(resident_saving(&shared), 2 * 4096);
}

#[test]
fn small_tensors_share_the_pool_without_large_gaps() {
    let mut file = source();
    for i in 0..50 {
        let name = format!("norm.{i}");
        file.tensors.push(f32_tensor(&name, &[33]));
    }
    let layout = plan_of(&file, &[], PageSize::KIB_64).unwrap();
    let pool = layout.stored.last().unwrap();
    assert_eq!(pool.info.name, POOL);
    // All tensors are smaller than 64 KiB: 128 KiB of tensors, and 50 times
    // 132 bytes on 32-byte boundaries.
    assert_eq!(layout.stored.len(), 1);
    assert!(pool.info.byte_len() <= 32 * BLOCK + 50 * 160);
}

#[test]
fn a_tensor_of_one_page_is_not_small() {
    let mut file = source();
    file.tensors.push(f32_tensor("page", &[1024]));
    file.tensors.push(f32_tensor("less", &[1023]));
    let layout = plan_of(&file, &[], PageSize::KIB_4).unwrap();
    let names: Vec<_> = layout.stored.iter().map(|t| t.info.name.as_str()).collect();
    assert_eq!(names, ["a", "bb", "ccc", "wide", "page", POOL]);
}

#[test]
fn small_tensors_fill_the_gaps_before_residues() {
    // Two donated parts of 8 KiB that want residue 1,024: 1 KiB before the
    // first is free, and the second follows the first at once.
    let eight = |alias: (usize, u64), donor_row: u64| SharedRows {
        alias: alias.0,
        alias_offset: alias.1 * 1024,
        donor: 0,
        donor_offset: donor_row * 1024,
        len: 8 * 1024,
    };
    let shared = [
        eight((1, 1), 0),
        eight((2, 1), 0),
        eight((1, 9), 8),
        eight((2, 9), 8),
    ];
    let pool_len = |file: &RawGguf| {
        let layout = plan_of(file, &shared, PageSize::KIB_4).unwrap();
        let pool = layout.stored.iter().find(|t| t.info.name == POOL);
        pool.unwrap().info.byte_len()
    };
    let without = pool_len(&source());
    let mut file = source();
    file.tensors.push(f32_tensor("small", &[256]));
    assert_eq!(pool_len(&file), without);
}

#[test]
fn pages_of_other_sizes_are_refused() {
    for page in [1, 32, 2048, 8192, 1 << 20] {
        let page = PageSize::new(page).unwrap();
        let error = plan_of(&source(), &[], page).unwrap_err();
        assert_error(&error, "page size", "is no page size of the format");
    }
}

#[test]
fn converting_a_converted_file_is_refused() {
    let physical = convert(&source().bytes(), &[block((1, 0), (0, 0))], PageSize::KIB_4).unwrap();
    let error = convert(&physical, &[], PageSize::KIB_4).unwrap_err();
    assert_error(&error, "key \"general.architecture\"", "converted already");
    assert_eq!(error.advice, Some(Advice::StartFromExpanded));
}

#[test]
fn reserved_names_are_refused() {
    let mut file = source();
    file.kvs.push(kv_u32("headshare.anything", 1));
    let error = plan_of(&file, &[], PageSize::KIB_4).unwrap_err();
    assert_error(&error, "key \"headshare.anything\"", "reserved");
    let mut file = source();
    file.tensors.push(f32_tensor("headshare.pool", &[4]));
    let error = plan_of(&file, &[], PageSize::KIB_4).unwrap_err();
    assert_error(&error, "tensor \"headshare.pool\"", "reserved");
}

#[test]
fn an_architecture_that_is_no_text_is_refused() {
    let mut file = source();
    file.kvs[0] = kv_u32("general.architecture", 1);
    let error = plan_of(&file, &[], PageSize::KIB_4).unwrap_err();
    assert_error(&error, "key \"general.architecture\"", "expected a string");
}

#[test]
fn sharing_of_absent_tensors_is_refused() {
    for (alias, donor) in [(4, 0), (0, 4)] {
        let error = plan(&[block((alias, 0), (donor, 0))]).unwrap_err();
        assert_error(&error, "sharing", "a tensor that is not there");
    }
}

#[test]
fn sharing_between_row_lengths_is_refused() {
    let error = plan(&[block((3, 0), (0, 0))]).unwrap_err();
    assert_error(&error, "tensor \"wide\"", "types or row lengths differ");
}

#[test]
fn sharing_between_types_is_refused() {
    let mut file = source();
    let i32 = GgmlType::from_id(26).unwrap();
    file.tensors.push(tensor("ints", i32, &[256, 32], 1));
    let error = plan_of(&file, &[block((4, 0), (0, 0))], PageSize::KIB_4).unwrap_err();
    assert_error(&error, "tensor \"ints\"", "types or row lengths differ");
}

#[test]
fn sharing_of_parts_of_rows_is_refused() {
    let good = block((1, 0), (0, 0));
    for bad in [
        SharedRows { len: 0, ..good },
        SharedRows { len: 100, ..good },
        SharedRows {
            alias_offset: 4,
            ..good
        },
        SharedRows {
            donor_offset: 4,
            ..good
        },
    ] {
        let error = plan(&[bad]).unwrap_err();
        assert_error(&error, "tensor \"bb\"", "not whole rows");
    }
}

#[test]
fn sharing_beyond_a_tensor_is_refused() {
    for bad in [block((1, 8), (0, 0)), block((1, 0), (0, 8))] {
        let error = plan(&[bad]).unwrap_err();
        assert_error(&error, "tensor \"bb\"", "outside the tensor");
    }
    let huge = SharedRows {
        len: u64::MAX - 1023,
        ..block((1, 1), (0, 0))
    };
    assert_error(&plan(&[huge]).unwrap_err(), "tensor \"bb\"", "outside");
}

#[test]
fn sharing_rows_twice_is_refused() {
    let twice = [block((1, 2), (0, 0)), block((1, 2), (2, 0))];
    let error = plan(&twice).unwrap_err();
    assert_error(
        &error,
        "tensor \"bb\"",
        "bytes at 8192 would be shared twice",
    );
}

#[test]
fn circles_are_refused() {
    for circle in [
        vec![block((0, 0), (0, 0))],
        vec![block((1, 0), (0, 0)), block((0, 0), (1, 0))],
        vec![
            block((0, 1), (1, 1)),
            block((1, 1), (2, 1)),
            block((2, 1), (0, 1)),
        ],
    ] {
        let error = plan(&circle).unwrap_err();
        assert!(error.problem.contains("in a circle"), "{error}");
    }
}

#[test]
fn a_tensor_shifted_onto_itself_ends() {
    // Each row is the one before it: all are the first row.
    let shift = SharedRows {
        alias: 0,
        alias_offset: 1024,
        donor: 0,
        donor_offset: 0,
        len: 31 * 1024,
    };
    let layout = plan(&[shift]).unwrap();
    assert_eq!(
        layout
            .table
            .segments
            .iter()
            .filter(|s| s.tensor == 0)
            .count(),
        32
    );
}
