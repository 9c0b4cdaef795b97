//! Damaged files: no panic, and no memory beyond a small multiple of the file.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use headshare_format::alias::{AliasTable, metadata_is_intact, stored_digests};
use headshare_format::layout::SharedRows;
use headshare_format::{GgmlType, Gguf, LogicalLayout, PageSize, VirtualGguf};
use proptest::prelude::*;
use support::converted::convert;
use support::{RawGguf, f32_tensor, kv_array, kv_str, kv_u32, string, tensor};

/// The system's allocator, counting what each thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(more: usize, less: usize) {
    let held = (HELD.get() + more).saturating_sub(less);
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call goes to the system's allocator unchanged; counting
// touches thread-locals that need no allocation and have no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new may both exist for a moment.
        count(size, 0);
        count(0, layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` held at a time beyond what was held before, in bytes.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = HELD.get();
    PEAK.set(before);
    work();
    PEAK.get() - before
}

fn plain() -> RawGguf {
    let q8_0 = GgmlType::from_id(8).unwrap();
    RawGguf {
        kvs: vec![
            kv_str("general.architecture", "llama"),
            kv_u32("general.alignment", 64),
            kv_array("tokenizer.ggml.scores", 6, 3, &[0; 12]),
            kv_array(
                "tokenizer.ggml.tokens",
                8,
                3,
                &[string(b"a"), string(b""), string(b"xyz")].concat(),
            ),
            kv_array("flags", 7, 5, &[0, 1, 0, 1, 1]),
        ],
        tensors: vec![
            f32_tensor("a", &[64, 32]),
            f32_tensor("b", &[64, 32]),
            tensor("c", q8_0, &[64, 8], 1),
            f32_tensor("scalar", &[]),
        ],
        alignment: 64,
        padding: 0xcc,
        ..RawGguf::default()
    }
}

fn converted() -> Vec<u8> {
    let share = |row: u64| SharedRows {
        alias: 1,
        alias_offset: row * 256,
        donor: 0,
        donor_offset: 8 * 256,
        len: 4 * 256,
    };
    convert(&plain().bytes(), &[share(0), share(16)], PageSize::KIB_4).unwrap()
}

#[derive(Debug, Clone)]
enum Damage {
    Byte(prop::sample::Index, u8),
    Word(prop::sample::Index, u64),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let word = prop_oneof![
        Just(0),
        0u64..64,
        Just(u64::MAX),
        Just(i64::MAX as u64),
        (0u32..64).prop_map(|bit| 1 << bit),
        any::<u64>(),
    ];
    prop_oneof![
        6 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(i, b)| Damage::Byte(i, b)),
        4 => (any::<prop::sample::Index>(), word).prop_map(|(i, w)| Damage::Word(i, w)),
        1 => any::<prop::sample::Index>().prop_map(Damage::Cut),
        1 => (any::<prop::sample::Index>(), 1usize..20).prop_map(|(i, n)| Damage::Remove(i, n)),
        1 => (any::<prop::sample::Index>(), 1usize..20).prop_map(|(i, n)| Damage::Repeat(i, n)),
    ]
}

/// Applies `damage` within the first `header` bytes of `file`, where all
/// decisions are made (cuts anywhere).
fn apply(file: &mut Vec<u8>, header: usize, damage: &Damage) {
    let header = header.min(file.len());
    if header == 0 {
        return;
    }
    match damage {
        Damage::Byte(at, byte) => file[at.index(header)] = *byte,
        Damage::Word(at, word) => {
            let at = at.index(header);
            for (byte, new) in file[at..].iter_mut().zip(word.to_le_bytes()) {
                *byte = new;
            }
        }
        Damage::Cut(at) => file.truncate(at.index(file.len() + 1)),
        Damage::Remove(at, len) => {
            let at = at.index(header);
            file.drain(at..(at + len).min(file.len()));
        }
        Damage::Repeat(at, len) => {
            let at = at.index(header);
            let piece = file[at..(at + len).min(file.len())].to_vec();
            file.splice(at..at, piece);
        }
    }
}

/// Reads `file` in every way that this crate has; how far it got.
fn read(file: &[u8]) -> &'static str {
    let Ok(gguf) = Gguf::parse(file) else {
        return "refused";
    };
    for kv in gguf.kvs() {
        gguf.value_of(kv).describe();
    }
    for range in gguf.filler_ranges() {
        assert!(range.end <= file.len() as u64);
    }
    let table = match AliasTable::read(&gguf) {
        Ok(Some(table)) => table,
        Ok(None) => return "plain",
        Err(_) => return "bad table",
    };
    stored_digests(&gguf).unwrap();
    metadata_is_intact(&gguf).unwrap();
    let all = || 0..table.tensors.len() as u32;
    let shared: u64 = table.shared_bytes(all()).iter().sum();
    if let Ok(ranges) = table.shared_ranges(all()) {
        assert_eq!(ranges.iter().map(|r| r.len).sum::<u64>(), shared);
    }
    let mut buffer = [0; 4096];
    for layout in [
        LogicalLayout::Source,
        LogicalLayout::Pages(PageSize::KIB_16),
    ] {
        let Ok(logical) = VirtualGguf::new(&gguf, &table, layout) else {
            continue;
        };
        logical.resident_saving(PageSize::KIB_4);
        for i in 0..64 {
            let at = (u128::from(logical.len()) * i / 63) as u64;
            logical.read_at(file, at, &mut buffer);
        }
    }
    "converted"
}

/// What reading may cost: bookkeeping for every record of a header, which may
/// be as short as 14 bytes.
fn allowed(file: &[u8]) -> usize {
    20 * file.len() + (64 << 10)
}

fn check(file: &[u8]) {
    let peak = peak_of(|| {
        read(file);
    });
    assert!(peak <= allowed(file), "{peak} bytes for {}", file.len());
}

#[test]
fn the_undamaged_files_are_read_to_the_end() {
    assert_eq!(read(&plain().bytes()), "plain");
    assert_eq!(read(&converted()), "converted");
    check(&plain().bytes());
    check(&converted());
}

#[test]
fn every_byte_of_a_header_set_to_every_extreme() {
    for (file, reached) in [(plain().bytes(), "plain"), (converted(), "converted")] {
        let header = Gguf::parse(&file).unwrap().header_end() as usize;
        assert_eq!(read(&file), reached);
        for at in 0..header {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = file.clone();
                damaged[at] = value;
                check(&damaged);
            }
        }
    }
}

#[test]
fn a_converted_file_cut_anywhere_is_refused() {
    let file = converted();
    for len in 0..file.len() {
        let reached = read(&file[..len]);
        assert_eq!(reached, "refused", "cut after {len} bytes");
    }
}

#[test]
fn many_tiny_records_cost_a_small_multiple() {
    let kvs: Vec<_> = (0..5000u32)
        .map(|i| {
            let key = [
                b'a' + (i % 26) as u8,
                (i / 26 % 100 + 20) as u8,
                (i / 2600) as u8,
            ];
            support::record(&key, 0, &[1])
        })
        .collect();
    let file = RawGguf {
        kvs,
        ..RawGguf::default()
    };
    assert!(file.parse().is_ok());
    check(&file.bytes());
}

#[test]
fn large_arrays_cost_a_small_multiple() {
    for elem in [0, 7] {
        for len in [10_000, 131_072, 1 << 20] {
            let file = RawGguf {
                kvs: vec![kv_array("a", elem, len as u64, &vec![0; len])],
                ..RawGguf::default()
            };
            assert!(file.parse().is_ok());
            let bytes = file.bytes();
            let peak = peak_of(|| {
                read(&bytes);
            });
            assert!(peak <= 4 * bytes.len() + (16 << 20), "{peak}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(4000)
    })]

    #[test]
    fn damaged_plain_files(list in prop::collection::vec(damage(), 1..5)) {
        let mut file = plain().bytes();
        let header = Gguf::parse(&file).unwrap().header_end() as usize;
        for damage in &list {
            apply(&mut file, header, damage);
        }
        check(&file);
    }

    #[test]
    fn damaged_converted_files(list in prop::collection::vec(damage(), 1..5)) {
        let mut file = converted();
        let header = Gguf::parse(&file).unwrap().header_end() as usize;
        for damage in &list {
            apply(&mut file, header, damage);
        }
        check(&file);
    }
}
