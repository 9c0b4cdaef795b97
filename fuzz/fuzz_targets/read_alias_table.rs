//! A converted file: its table is refused, or all views of it agree.
#![no_main]

use headshare_format::alias::{AliasTable, metadata_is_intact, stored_digests};
use headshare_format::{Gguf, LogicalLayout, PageSize, VirtualGguf};
use libfuzzer_sys::fuzz_target;

/// Larger logical files are read in samples only.
const SMALL: u64 = 1 << 20;

fuzz_target!(|file: &[u8]| {
    let Ok(gguf) = Gguf::parse(file) else { return };
    let Ok(Some(table)) = AliasTable::read(&gguf) else {
        return;
    };
    assert_eq!(stored_digests(&gguf).unwrap().len(), gguf.tensors().len());
    metadata_is_intact(&gguf).unwrap();

    let source = VirtualGguf::new(&gguf, &table, LogicalLayout::Source).unwrap();
    assert_eq!(source.len(), table.source.size);
    let expanded = read(&source, file);
    if let Some(bytes) = &expanded {
        let plain = Gguf::parse(bytes).expect("what is expanded is a valid file");
        assert_eq!(plain.tensors(), table.tensors);
        assert_eq!(plain.version(), table.source.version);
        assert_eq!(AliasTable::read(&plain), Ok(None));
    }

    let all = || 0..table.tensors.len() as u32;
    let shared: u64 = table.shared_bytes(all()).iter().sum();
    if let Ok(ranges) = table.shared_ranges(all()) {
        assert_eq!(ranges.iter().map(|r| r.len).sum::<u64>(), shared);
    }
    for page in [PageSize::KIB_4, PageSize::KIB_64] {
        let layout = LogicalLayout::Pages(page);
        let Ok(logical) = VirtualGguf::new(&gguf, &table, layout) else {
            continue;
        };
        let plan = logical.stitch_plan(page);
        let mapped: u64 = plan.maps.iter().map(|r| r.len).sum();
        let copied: u64 = plan.copies.iter().map(|r| r.end - r.start).sum();
        assert_eq!(mapped + copied, logical.len());
        assert!(logical.resident_saving(page) <= mapped);
        let Some(bytes) = read(&logical, file) else {
            continue;
        };
        for run in &plan.maps {
            let at = |start: u64| start as usize..(start + run.len) as usize;
            assert_eq!(bytes[at(run.logical)], file[at(run.physical)]);
        }
        let Some(expanded) = &expanded else { continue };
        for (paged, plain) in logical.tensors().iter().zip(source.tensors()) {
            let at = |r: std::ops::Range<u64>| r.start as usize..r.end as usize;
            assert_eq!(
                bytes[at(logical.data_range(paged))],
                expanded[at(source.data_range(plain))]
            );
        }
    }
});

/// The logical file's bytes, or `None` (after some samples) when it is large.
fn read(logical: &VirtualGguf, file: &[u8]) -> Option<Vec<u8>> {
    if logical.len() > SMALL {
        let mut buffer = [0; 4096];
        for i in 0..16 {
            let at = (u128::from(logical.len()) * i / 15) as u64;
            logical.read_at(file, at, &mut buffer);
        }
        return None;
    }
    let mut bytes = vec![0; logical.len() as usize];
    assert_eq!(logical.read_at(file, 0, &mut bytes), bytes.len());
    Some(bytes)
}
