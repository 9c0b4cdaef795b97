//! Converted files whose alias table breaks a rule of the format, at least one
//! for each rule.

use headshare_testmodels::{FileEnd, ModelSpec};

use super::bad_files::BadFile;
use super::raw::{self, Raw, sealed, string, tensor};
use crate::support::{Folder, preset, read};

const POOL: &str = "headshare.pool";
const FILLER: &str = "headshare.filler";
const VERSION: &str = "headshare.version";
const NAMES: &str = "headshare.tensor.names";
const TYPES: &str = "headshare.tensor.types";
const N_DIMS: &str = "headshare.tensor.n_dims";
const DIMS: &str = "headshare.tensor.dims";
const SEGMENTS: &str = "headshare.segment.tensors";
const OFFSETS: &str = "headshare.segment.offsets";
const LENGTHS: &str = "headshare.segment.lengths";
const STORED: &str = "headshare.segment.stored";
const STORED_OFFSETS: &str = "headshare.segment.stored_offsets";
const SOURCE_VERSION: &str = "headshare.source.version";
const SOURCE_ALIGNMENT: &str = "headshare.source.alignment";
const HAS_KEY: &str = "headshare.source.has_alignment_key";
const SIZE: &str = "headshare.source.size";
const DIGEST: &str = "headshare.source.digest";
const STORED_DIGESTS: &str = "headshare.digest.stored";
const METADATA: &str = "headshare.digest.metadata";

/// A small model with half of its heads shared.
pub fn converted() -> Vec<u8> {
    convert(&ModelSpec {
        n_layer: 3,
        ..preset("tiny-llama")
    })
}

fn convert(spec: &ModelSpec) -> Vec<u8> {
    let folder = Folder::new();
    let (source, out) = (folder.file("source.gguf"), folder.file("out.gguf"));
    spec.write(&source).unwrap();
    run!["convert", source, "--ratio", "0.5", "-o", out].ok();
    read(&out)
}

struct Table {
    good: Raw,
    files: Vec<BadFile>,
}

impl Table {
    /// A file that breaks a rule on purpose: its digests fit.
    fn add(&mut self, name: &'static str, says: &'static str, change: impl FnOnce(&mut Raw)) {
        let mut raw = self.good.clone();
        change(&mut raw);
        let bytes = if raw.position(METADATA).is_some() && raw.position(STORED_DIGESTS).is_some() {
            sealed(raw)
        } else {
            raw.bytes()
        };
        self.files.push(BadFile { name, bytes, says });
    }

    /// As `add`, for what sealing would repair.
    fn add_raw(&mut self, name: &'static str, says: &'static str, change: impl FnOnce(&mut Raw)) {
        let mut raw = self.good.clone();
        change(&mut raw);
        self.files.push(BadFile {
            name,
            bytes: raw.bytes(),
            says,
        });
    }

    fn add_types_and_presence(&mut self) {
        for key in [
            VERSION,
            NAMES,
            TYPES,
            N_DIMS,
            DIMS,
            SEGMENTS,
            OFFSETS,
            LENGTHS,
            STORED,
            STORED_OFFSETS,
            SOURCE_VERSION,
            SOURCE_ALIGNMENT,
            HAS_KEY,
            SIZE,
            DIGEST,
            STORED_DIGESTS,
            METADATA,
            "headshare.tool",
            "headshare.lossless",
        ] {
            self.add_raw(
                leak(format!("without {key}")),
                leak(format!("{key:?}: is missing")),
                |raw| {
                    raw.remove(key);
                },
            );
            self.add_raw(
                leak(format!("{key} is an f64")),
                leak(format!("{key:?}: expected")),
                |raw| {
                    raw.set(key, raw::record(key, raw::F64, &[0; 8]));
                },
            );
            self.add_raw(
                leak(format!("{key} is an array of f64")),
                leak(format!("{key:?}: ")),
                |raw| {
                    raw.set(key, raw::array(key, raw::F64, 1, &[0; 8]));
                },
            );
        }
        for key in ["headshare.plan", "headshare.architecture"] {
            self.add_raw(
                leak(format!("{key} is an f64")),
                leak(format!("{key:?}: expected")),
                |raw| {
                    raw.set(key, raw::record(key, raw::F64, &[0; 8]));
                },
            );
        }
    }

    fn add_header_rules(&mut self) {
        self.add("a converted file of GGUF version 2", "version", |raw| {
            raw.version = 2;
        });
        self.add("format version 2", "version 2 is unknown", |raw| {
            raw.set(VERSION, raw::u32(VERSION, 2));
        });
        for (name, page) in [("pages of 32", 32), ("pages of 8192", 8192)] {
            self.add(name, "no page size of the format", |raw| {
                raw.set("general.alignment", raw::u32("general.alignment", page));
                raw.alignment = page as usize;
            });
        }
    }

    fn add_source_rules(&mut self) {
        const ARCHITECTURE: &str = "headshare.architecture";
        self.add("a source that is converted itself", ARCHITECTURE, |raw| {
            raw.set(ARCHITECTURE, string(ARCHITECTURE, "headshare"));
        });
        for version in [0, 1, 4] {
            self.add(
                leak(format!("source version {version}")),
                "2 and 3 are possible",
                |raw| {
                    raw.set(SOURCE_VERSION, raw::u32(SOURCE_VERSION, version));
                },
            );
        }
        for alignment in [0, 48, 1 << 30] {
            self.add(
                leak(format!("source alignment {alignment}")),
                "power of two",
                |raw| {
                    raw.set(SOURCE_ALIGNMENT, raw::u32(SOURCE_ALIGNMENT, alignment));
                },
            );
        }
        self.add("source alignment without a key", "needs a key", |raw| {
            raw.set(SOURCE_ALIGNMENT, raw::u32(SOURCE_ALIGNMENT, 64));
        });
        let edit = |raw: &mut Raw, by: i64| {
            let size = u64::from_le_bytes(raw.value(SIZE).try_into().unwrap());
            raw.set(SIZE, raw::u64(SIZE, size.wrapping_add_signed(by)));
        };
        self.add("source size too small", "header and tensors need", |raw| {
            edit(raw, -100)
        });
        self.add("source size 0", "header and tensors need", |raw| {
            raw.set(SIZE, raw::u64(SIZE, 0));
        });
        self.add(
            "source size too large",
            "more than header, tensors",
            |raw| edit(raw, 100),
        );
        self.add(
            "source size of all ones",
            "more than header, tensors",
            |raw| {
                raw.set(SIZE, raw::u64(SIZE, u64::MAX));
            },
        );
    }

    fn add_tensor_rules(&mut self) {
        let name = |raw: &mut Raw, name: &str| raw.edit_strings(NAMES, |l| l[3] = name.to_owned());
        self.add("a logical name of 64 bytes", "no tensor name", |raw| {
            name(raw, &"x".repeat(64))
        });
        self.add("a logical name that is reserved", "no tensor name", |raw| {
            name(raw, POOL)
        });
        self.add("a logical tensor twice", "stands twice", |raw| {
            name(raw, "token_embd.weight")
        });
        self.add("one name too few", "elements where", |raw| {
            raw.edit_strings(NAMES, |l| {
                l.pop();
            });
        });
        self.add("one type too many", "elements where", |raw| {
            raw.edit_u32s(TYPES, |l| l.push(0))
        });
        self.add("an unknown type", "unknown ggml type 77", |raw| {
            raw.edit_u32s(TYPES, |l| l[0] = 77);
        });
        self.add("one dimension count too few", "elements where", |raw| {
            raw.edit_u32s(N_DIMS, |l| {
                l.pop();
            });
        });
        self.add(
            "dimension counts by the billion",
            "dimensions, but",
            |raw| {
                raw.edit_u32s(N_DIMS, |l| l.fill(u32::MAX));
            },
        );
        self.add("one dimension too few", "dimensions, but", |raw| {
            raw.edit_u64s(DIMS, |l| {
                l.pop();
            });
        });
        self.add("five dimensions", "at most 4", |raw| {
            raw.edit_u32s(N_DIMS, |l| l[0] = 5);
            raw.edit_u64s(DIMS, |l| l.splice(0..0, [1, 1, 1]).for_each(drop));
        });
        self.add("a dimension of 0", "zero", |raw| {
            raw.edit_u64s(DIMS, |l| l[0] = 0)
        });
        self.add("dimensions that overflow", "overflow", |raw| {
            raw.edit_u64s(DIMS, |l| l[1] = 1 << 62);
        });
        self.add("rows of a part of a block", "whole number", |raw| {
            raw.edit_u32s(TYPES, |l| l[0] = 2);
            raw.edit_u64s(DIMS, |l| l[0] = 33);
        });
        self.add("an expanded size that overflows", "overflow", |raw| {
            raw.edit_strings(NAMES, |l| {
                l.extend(["x".to_owned(), "y".to_owned(), "z".to_owned()])
            });
            raw.edit_u32s(TYPES, |l| l.extend([24; 3]));
            raw.edit_u32s(N_DIMS, |l| l.extend([1; 3]));
            raw.edit_u64s(DIMS, |l| l.extend([i64::MAX as u64; 3]));
        });
        self.add(
            "a large tensor that nothing fills",
            "cover 0 of its",
            |raw| {
                raw.edit_strings(NAMES, |l| l.push("x".to_owned()));
                raw.edit_u32s(TYPES, |l| l.push(24));
                raw.edit_u32s(N_DIMS, |l| l.push(1));
                raw.edit_u64s(DIMS, |l| l.push(1 << 50));
            },
        );
    }

    fn add_segment_rules(&mut self) {
        for key in [OFFSETS, LENGTHS, STORED_OFFSETS] {
            self.add(
                leak(format!("one element of {key} too few")),
                "elements where",
                |raw| {
                    raw.edit_u64s(key, |l| {
                        l.pop();
                    });
                },
            );
        }
        self.add("one stored tensor too many", "elements where", |raw| {
            raw.edit_u32s(STORED, |l| l.push(0));
        });
        self.add(
            "a segment of a tensor that is not there",
            "belongs to tensor 999",
            |raw| {
                raw.edit_u32s(SEGMENTS, |l| *l.last_mut().unwrap() = 999);
            },
        );
        self.add("a length of 0", "whole rows", |raw| {
            raw.edit_u64s(LENGTHS, |l| l[0] = 0)
        });
        self.add("a length of a part of a row", "whole rows", |raw| {
            raw.edit_u64s(LENGTHS, |l| l[0] -= 4);
        });
        self.add("an offset within a row", "whole rows", |raw| {
            raw.edit_u64s(OFFSETS, |l| l[0] = 4);
        });
        self.add("bytes that no segment covers", "cover", |raw| {
            raw.edit_u64s(LENGTHS, |l| l[0] -= 256);
        });
        self.add("a segment past the end of its tensor", "ends past", |raw| {
            raw.edit_u64s(LENGTHS, |l| l[0] += 256);
        });
        self.add("a length that overflows", "ends past", |raw| {
            raw.edit_u64s(LENGTHS, |l| l[0] = u64::MAX - 255);
        });
        self.add(
            "a hole before the first segment",
            "begins at byte 256",
            |raw| {
                raw.edit_u64s(OFFSETS, |l| l[0] = 256);
            },
        );
        self.add("overlapping segments", "begins at byte", |raw| {
            let n = second_of_a_tensor(raw);
            raw.edit_u64s(OFFSETS, |l| l[n] = 0);
        });
        self.add("segments in another order", "cover", |raw| {
            raw.edit_u32s(SEGMENTS, |l| {
                let last = l.len() - 1;
                l.swap(0, last);
            });
        });
        self.add(
            "a segment behind those of the last tensor",
            "order of the tensors",
            |raw| {
                raw.edit_u32s(SEGMENTS, |l| l.push(0));
                raw.edit_u32s(STORED, |l| l.push(0));
                for key in [OFFSETS, STORED_OFFSETS] {
                    raw.edit_u64s(key, |l| l.push(0));
                }
                raw.edit_u64s(LENGTHS, |l| l.push(256));
            },
        );
    }

    fn add_storage_rules(&mut self) {
        self.add(
            "a stored tensor that is not there",
            "stored tensor 4096",
            |raw| {
                raw.edit_u32s(STORED, |l| l[0] = 4096);
            },
        );
        self.add("an offset past the stored tensor", "lie outside", |raw| {
            raw.edit_u64s(STORED_OFFSETS, |l| l[0] = 256);
        });
        self.add("a stored offset that overflows", "lie outside", |raw| {
            raw.edit_u64s(STORED_OFFSETS, |l| l[0] = u64::MAX - 255);
        });
        self.add("a stored tensor of another type", "stored as", |raw| {
            raw.tensor("token_embd.weight").ggml_type = 26;
        });
        self.add("a stored tensor with other rows", "stored as", |raw| {
            raw.tensor("token_embd.weight").dims = vec![128, 160];
        });
        self.add("a stored offset within a row", "used at byte 4 by", |raw| {
            let mut larger = raw.tensor("token_embd.weight").clone();
            larger.data.extend([0; 256]);
            larger.dims[1] += 1;
            *raw.tensor("token_embd.weight") = larger;
            raw.edit_u64s(STORED_OFFSETS, |l| l[0] = 4);
        });
        self.add(
            "stored bytes that nothing uses",
            "belong to no segment of the logical tensor of its name",
            |raw| {
                let embd = raw.tensor("token_embd.weight");
                embd.data.extend([0; 256]);
                embd.dims[1] += 1;
            },
        );
        self.add(
            "a named tensor that holds another one's rows",
            "belong to no segment of the logical tensor of its name",
            |raw| {
                let [a, b] = ["blk.0.ffn_up.weight", "blk.1.ffn_up.weight"];
                let index = |raw: &Raw, name: &str| {
                    let at = raw.tensors.iter().position(|t| t.name == name.as_bytes());
                    at.expect("stored under its name") as u32
                };
                let (a, b) = (index(raw, a), index(raw, b));
                raw.edit_u32s(STORED, |l| {
                    for stored in l {
                        *stored = match *stored {
                            n if n == a => b,
                            n if n == b => a,
                            n => n,
                        };
                    }
                });
            },
        );
        self.add(
            "a stored tensor that nothing uses",
            "no logical tensor has its name",
            |raw| {
                raw.tensors.push(tensor("x", 24, &[64], vec![0; 64]));
            },
        );
        self.add(
            "a stored tensor of a reserved name",
            "no logical tensor has its name",
            |raw| {
                raw.tensors
                    .push(tensor("headshare.x", 24, &[64], vec![0; 64]));
            },
        );
        self.add("a pool of floats", "one dimension of i8", |raw| {
            let pool = raw.tensor(POOL);
            pool.ggml_type = 0;
            pool.dims = vec![pool.data.len() as u64 / 4];
        });
        self.add("a pool of two dimensions", "one dimension of i8", |raw| {
            let pool = raw.tensor(POOL);
            pool.dims = vec![32, pool.data.len() as u64 / 32];
        });
        self.add(
            "pool bytes whose rows do not agree",
            "do not agree",
            |raw| {
                let pool = raw.tensors.iter().position(|t| t.name == POOL.as_bytes());
                let stored = u32_list(raw, STORED);
                let in_pool = |&i: &usize| Some(stored[i] as usize) == pool;
                let pooled: Vec<usize> = (0..stored.len()).filter(in_pool).collect();
                let [first, .., last] = pooled[..] else {
                    panic!("the pool has users")
                };
                raw.edit_u64s(STORED_OFFSETS, |l| l[last] = l[first] + 4);
            },
        );
        self.add(
            "a filler that a segment uses",
            "is used by a segment",
            |raw| {
                let embd = raw.tensor("token_embd.weight");
                *embd = tensor(FILLER, 24, &[embd.data.len() as u64], embd.data.clone());
            },
        );
        self.add(
            "a filler of the wrong size",
            "between and after the tensors",
            |raw| {
                raw.tensors
                    .push(tensor(FILLER, 24, &[1 << 16], vec![0; 1 << 16]));
            },
        );
        self.add("a filler of shorts", "one dimension of i8", |raw| {
            raw.tensors.push(tensor(FILLER, 25, &[32], vec![0; 64]));
        });
    }

    fn add_digest_rules(&mut self) {
        self.add_raw("one digest too few", "digests for", |raw| {
            raw.edit_strings(STORED_DIGESTS, |l| {
                l.pop();
            });
        });
        let zeros = "0".repeat(64);
        for (name, digest) in [
            ("a digest without its prefix", zeros.clone()),
            ("a digest of another kind", format!("sha256:{zeros}")),
            ("a short digest", format!("blake3:{}", &zeros[1..])),
            ("a long digest", format!("blake3:0{zeros}")),
            ("a digest in capitals", format!("blake3:{}", "A".repeat(64))),
        ] {
            for key in [DIGEST, METADATA] {
                self.add_raw(leak(format!("{key}: {name}")), "is no digest", |raw| {
                    raw.set(key, string(key, &digest));
                });
            }
            self.add_raw(
                leak(format!("{STORED_DIGESTS}: {name}")),
                "is no digest",
                |raw| {
                    raw.edit_strings(STORED_DIGESTS, |l| l[0].clone_from(&digest));
                },
            );
        }
    }
}

/// Names that are made once, for the life of the tests.
fn leak(text: String) -> &'static str {
    text.leak()
}

fn u32_list(raw: &Raw, key: &str) -> Vec<u32> {
    let mut list = Vec::new();
    raw.clone().edit_u32s(key, |l| list.clone_from(l));
    list
}

/// A segment that is not its tensor's first.
fn second_of_a_tensor(raw: &Raw) -> usize {
    let list = u32_list(raw, SEGMENTS);
    let second = (1..list.len()).find(|&i| list[i] == list[i - 1]);
    second.expect("some tensor has several segments")
}

/// All of them.
pub fn all() -> Vec<BadFile> {
    let mut table = Table {
        good: Raw::parse(&converted()),
        files: Vec::new(),
    };
    table.add_types_and_presence();
    table.add_header_rules();
    table.add_source_rules();
    table.add_tensor_rules();
    table.add_segment_rules();
    table.add_storage_rules();
    table.add_digest_rules();

    // With a filler in the file.
    table.good = Raw::parse(&convert(&ModelSpec {
        random_padding: true,
        end: FileEnd::Trailing(100),
        ..preset("tiny-llama")
    }));
    table.add(
        "a filler that is a byte too short",
        "between and after the tensors",
        |raw| {
            let filler = raw.tensor(FILLER);
            filler.data.pop();
            filler.dims[0] -= 1;
        },
    );
    table.add(
        "a filler that is missing",
        "no \"headshare.filler\" holds the rest",
        |raw| {
            raw.tensors.retain(|t| t.name != FILLER.as_bytes());
        },
    );
    table.files
}
