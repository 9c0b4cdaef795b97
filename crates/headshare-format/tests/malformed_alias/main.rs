//! One malformed file for each way a rule of `docs/FORMAT.md` can be broken.
//! `r05_...` breaks rule R5. Each starts from a valid file and changes one
//! thing.

#[path = "../support/mod.rs"]
mod support;

mod segments;
mod source;
mod stored;

use headshare_format::alias::{AliasTable, FILLER, POOL};
use headshare_format::gguf::ValueType;
use headshare_format::layout::SharedRows;
use headshare_format::{Advice, ErrorKind, FormatError, GgmlType, PageSize, Rule};
use support::converted::{Converted, convert};
use support::{RawGguf, kv_str, kv_u32, record, tensor};

const ROW: u64 = 256;
const F16: u32 = 1;

/// A source with every part that the format knows: `a` donates a block that
/// two parts of `b` use, `c` stays whole, `norm` is smaller than a page, and
/// the padding is no zeros.
fn source() -> RawGguf {
    let f32 = GgmlType::F32;
    let f16 = GgmlType::from_id(F16).unwrap();
    RawGguf {
        kvs: vec![
            kv_str("general.architecture", "llama"),
            kv_u32("general.alignment", 64),
            kv_u32("llama.block_count", 1),
        ],
        tensors: vec![
            tensor("a", f32, &[64, 64], 1),
            tensor("b", f32, &[64, 64], 2),
            tensor("c", f16, &[64, 64], 3),
            tensor("norm", f32, &[60], 4),
        ],
        alignment: 64,
        padding: 0xee,
        ..RawGguf::default()
    }
}

fn shared() -> [SharedRows; 2] {
    [0, 32].map(|row| SharedRows {
        alias: 1,
        alias_offset: row * ROW,
        donor: 0,
        donor_offset: 16 * ROW,
        len: 16 * ROW,
    })
}

fn valid() -> Converted {
    Converted::of(&convert(&source().bytes(), &shared(), PageSize::KIB_4).unwrap())
}

/// The segments of [`valid`], by index:
/// 0-2 `a` (named, pool, named), 3-6 `b` (pool, named, pool, named), 7 `c`,
/// 8 `norm` (pool).
const A_IN_POOL: usize = 1;
const B_IN_POOL: usize = 3;
const B_NAMED: usize = 4;
const C: usize = 7;
const NORM: usize = 8;

/// The error that the file gives once `edit` has changed it.
fn broken(edit: impl FnOnce(&mut Converted)) -> FormatError {
    let mut file = valid();
    edit(&mut file);
    let error = match file.read_table() {
        Ok(_) => panic!("the file was accepted"),
        Err(error) => error,
    };
    if let Some(rule) = rule_of_this_test() {
        let unknown = error.advice == Some(Advice::UseNewer);
        let kind = match unknown {
            true => ErrorKind::Unsupported,
            false => ErrorKind::Malformed(Rule::Table(rule)),
        };
        assert_eq!(error.kind, kind, "{error}");
    }
    error
}

/// The rule that the running test's name says it breaks. Tests run in threads of
/// their names.
fn rule_of_this_test() -> Option<u8> {
    let thread = std::thread::current();
    let (_, test) = thread.name()?.rsplit_once("::")?;
    test.strip_prefix('r')?.get(..2)?.parse().ok()
}

fn key(name: &str) -> String {
    format!("key {name:?}")
}

fn bool_record(name: &str, value: u8) -> Vec<u8> {
    record(name.as_bytes(), ValueType::Bool as u32, &[value])
}

fn u64_record(name: &str, value: u64) -> Vec<u8> {
    record(name.as_bytes(), ValueType::U64 as u32, &value.to_le_bytes())
}

#[test]
fn the_unchanged_file_is_valid_and_as_described() {
    let file = valid();
    let table = file.read_table().unwrap().unwrap();
    let names = |s: &headshare_format::alias::Segment| {
        let stored = &file.tensors[s.stored as usize].0.name;
        (
            table.tensors[s.tensor as usize].name.clone(),
            stored.clone(),
        )
    };
    let named: Vec<_> = table.segments.iter().map(names).collect();
    let expected = [
        ("a", "a"),
        ("a", POOL),
        ("a", "a"),
        ("b", POOL),
        ("b", "b"),
        ("b", POOL),
        ("b", "b"),
        ("c", "c"),
        ("norm", POOL),
    ];
    assert_eq!(
        named,
        expected.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec()
    );
    assert_eq!(file.tensors.last().unwrap().0.name, FILLER);
}

#[test]
fn a_plain_file_has_no_table() {
    let gguf = source().parse().unwrap();
    assert_eq!(AliasTable::read(&gguf).unwrap(), None);
}
