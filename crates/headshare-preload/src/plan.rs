//! The plan as bytes: what the preload library is told.

use headshare_format::{ExtentSource, StitchPlan, VirtualGguf};

use crate::layout::{Extent, FROM_FILE, FROM_HEADER, FROM_ZEROS, File, Head, MAGIC, REPORT, Run};

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
pub struct HandedPlan {
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
    extents: Vec<Extent>,
    runs: Vec<Run>,
}

impl HandedPlan {
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
                ExtentSource::Header => (FROM_HEADER, 0),
                ExtentSource::Physical(from) => (FROM_FILE, from),
                ExtentSource::Zero => (FROM_ZEROS, 0),
            };
            Extent {
                at: e.offset,
                len: e.len,
                kind,
                from,
            }
        });
        let runs = stitch.maps.iter().map(|r| Run {
            at: r.logical,
            from: r.physical,
            len: r.len,
        });
        self.entries.push(Entry {
            identity,
            path: path.to_vec(),
            page: stitch.page.bytes(),
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
            start: size_of::<Head>() + size_of::<File>() * self.entries.len(),
            bytes: Vec::new(),
        };
        let mut files = Vec::new();
        for entry in &self.entries {
            let id = &entry.identity;
            let header = body.push(&entry.header);
            let extents = body.push_all(&entry.extents, Extent::to_bytes);
            let runs = body.push_all(&entry.runs, Run::to_bytes);
            let path = body.push(&entry.path);
            body.bytes.push(0);
            let file = File {
                device: id.device,
                inode: id.inode,
                size: id.size,
                mtime: id.modified.0 as u64,
                mtime_ns: id.modified.1 as u64,
                page: entry.page,
                len: entry.len,
                header_at: header,
                header_len: entry.header.len() as u64,
                extents_at: extents,
                extents: entry.extents.len() as u64,
                runs_at: runs,
                runs: entry.runs.len() as u64,
                path_at: path,
            };
            files.extend(file.to_bytes());
        }
        // The library relies on a zero byte at the end of the last path.
        body.bytes.push(0);
        let head = Head {
            magic: u64::from_ne_bytes(*MAGIC),
            bytes: (body.start + body.bytes.len()) as u64,
            files: self.entries.len() as u64,
            flags: if self.report { REPORT } else { 0 },
            max_mappings: self.max_mappings,
        };
        [&head.to_bytes()[..], &files, &body.bytes].concat()
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

    fn push_all<T, const N: usize>(&mut self, items: &[T], to_bytes: fn(&T) -> [u8; N]) -> u64 {
        let bytes: Vec<u8> = items.iter().flat_map(to_bytes).collect();
        self.push(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_plan_is_a_head_and_an_end() {
        let bytes = HandedPlan::new(65530, true).to_bytes();
        assert_eq!(bytes.len(), size_of::<Head>() + 1);
        assert_eq!(&bytes[..8], MAGIC);
        assert_eq!(bytes[8..16], (bytes.len() as u64).to_ne_bytes());
    }
}
