//! Any bytes: parsing refuses them or gives a header whose parts lie within.
#![no_main]

use headshare_format::Gguf;
use headshare_format::gguf::Value;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(gguf) = Gguf::parse(file) else { return };
    for kv in gguf.kvs() {
        let value = gguf.value_of(kv);
        value.describe();
        if let Value::Array(array) = value {
            assert_eq!(array.values().count() as u64, array.len);
        }
        assert!(gguf.value_range(kv).end <= file.len());
    }
    for tensor in gguf.tensors() {
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
        let range = gguf.data_range(tensor);
        assert!(range.start < range.end && range.end <= file.len() as u64);
    }
    // Header, tensors and filler are the whole file.
    let filler: u64 = gguf.filler_ranges().iter().map(|r| r.end - r.start).sum();
    let data: u64 = gguf.tensors().iter().map(|t| t.byte_len()).sum();
    assert_eq!(gguf.header_end() + data + filler, file.len() as u64);
});
