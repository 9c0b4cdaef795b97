//! The plan as bytes: fixed structures of native 64-bit integers, as
//! `c/preload.h` declares them.

use headshare_format::{ExtentSource, StitchPlan, VirtualGguf};

const MAGIC: &[u8; 8] = b"HSHAREX1";
const REPORT: u64 = 1;
/// Words of `struct plan` and `struct file`.
const HEAD_WORDS: usize = 5;
const FILE_WORDS: usize = 14;

/// Which file it is, and in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    /// The device it is on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Its length in bytes.
    pub size: u64,
    /// When it was written last: seconds and nanoseconds.
    pub modified: (i64, i64),
}

/// What the preload library is told: one entry for each converted file.
#[derive(Debug, Clone)]
pub struct Plan {
    entries: Vec<Entry>,
    max_mappings: u64,
    report: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    identity: FileIdentity,
    path: Vec<u8>,
    page: u64,
    len: u64,
    header: Vec<u8>,
    extents: Vec<[u64; 4]>,
    runs: Vec<[u64; 3]>,
}

impl Plan {
    /// A plan without files, for processes that may have `max_mappings`
    /// mappings; with `report`, they say on stderr what was shared.
    pub fn new(max_mappings: u64, report: bool) -> Self {
        Self {
            entries: Vec::new(),
            max_mappings,
            report,
        }
    }

    /// Adds the file at the absolute path `path`, whose logical view is `view`
    /// and which is to be mapped as in `stitch`.
    pub fn add(
        &mut self,
        path: &[u8],
        identity: FileIdentity,
        view: &VirtualGguf,
        stitch: &StitchPlan,
    ) {
        let extents = view.extents().iter().map(|e| {
            let (kind, from) = match e.source {
                ExtentSource::Header => (0, 0),
                ExtentSource::Physical(from) => (1, from),
                ExtentSource::Zero => (2, 0),
            };
            [e.offset, e.len, kind, from]
        });
        let runs = stitch.maps.iter().map(|r| [r.logical, r.physical, r.len]);
        self.entries.push(Entry {
            identity,
            path: path.to_vec(),
            page: stitch.page,
            len: view.len(),
            header: view.header().to_vec(),
            extents: extents.collect(),
            runs: runs.collect(),
        });
    }

    /// Whether it has no files.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The bytes that the library reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = Body {
            start: 8 * (HEAD_WORDS + FILE_WORDS * self.entries.len()),
            bytes: Vec::new(),
        };
        let mut files = Vec::new();
        for entry in &self.entries {
            let id = &entry.identity;
            let header = body.push(&entry.header);
            let extents = body.push_words(entry.extents.as_flattened());
            let runs = body.push_words(entry.runs.as_flattened());
            let path = body.push(&entry.path);
            body.bytes.push(0);
            let words: [u64; FILE_WORDS] = [
                id.device,
                id.inode,
                id.size,
                id.modified.0 as u64,
                id.modified.1 as u64,
                entry.page,
                entry.len,
                header,
                entry.header.len() as u64,
                extents,
                entry.extents.len() as u64,
                runs,
                entry.runs.len() as u64,
                path,
            ];
            files.extend(words);
        }
        // The library relies on a zero byte at the end of the last path.
        body.bytes.push(0);
        let head = [
            u64::from_ne_bytes(*MAGIC),
            (body.start + body.bytes.len()) as u64,
            self.entries.len() as u64,
            if self.report { REPORT } else { 0 },
            self.max_mappings,
        ];
        let mut bytes = Vec::with_capacity(body.start + body.bytes.len());
        for word in head.iter().chain(&files) {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(body.bytes);
        bytes
    }
}

/// What the structures point to: everything begins on a multiple of 8.
struct Body {
    start: usize,
    bytes: Vec<u8>,
}

impl Body {
    fn push(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let at = self.start + self.bytes.len();
        self.bytes.extend(bytes);
        at as u64
    }

    fn push_words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        self.push(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_header_file() {
        let header = include_str!("../c/preload.h");
        let words = |name: &str| -> usize {
            let body = header.split(&format!("struct {name} {{")).nth(1).unwrap();
            let body = body.split('}').next().unwrap();
            body.matches(',').count() + body.matches(';').count()
        };
        assert_eq!(words("plan"), HEAD_WORDS);
        assert_eq!(words("file"), FILE_WORDS);
        assert_eq!(words("extent"), 4);
        assert_eq!(words("run"), 3);
        assert!(header.contains(&format!(
            "#define PLAN_MAGIC \"{}\"",
            str::from_utf8(MAGIC).unwrap()
        )));
    }

    #[test]
    fn an_empty_plan_is_a_head_and_an_end() {
        let bytes = Plan::new(65530, true).to_bytes();
        assert_eq!(bytes.len(), 8 * HEAD_WORDS + 1);
        assert_eq!(&bytes[..8], MAGIC);
        assert_eq!(bytes[8..16], (bytes.len() as u64).to_ne_bytes());
    }
}
