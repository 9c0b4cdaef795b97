//! Files that tests write and read.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A folder of a test's own.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, bytes).expect("the file is written");
        path
    }

    /// The names in the folder, hidden ones too.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// A zip file of texts by name, such as one of MMLU's.
pub fn archive(path: &Path, files: &[(&str, &str)]) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, text) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default())
            .unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap();
}

/// What `svg` has as thick lines of at least `least` points, by their points.
pub fn svg_lines(svg: &str, least: usize) -> Vec<Vec<(i32, i32)>> {
    let thick = |line: &&str| line.starts_with("<polyline") && line.contains("stroke-width=\"2\"");
    let points = svg.lines().filter(thick).map(|line| {
        let (_, from) = line.split_once("points=\"").unwrap();
        let (all, _) = from.split_once('"').unwrap();
        let point = |point: &str| {
            let (x, y) = point.split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        all.split_whitespace().map(point).collect::<Vec<_>>()
    });
    points.filter(|line| line.len() >= least).collect()
}

#[track_caller]
pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Asserts that two files have the same bytes, without printing them.
#[track_caller]
pub fn assert_same(a: &Path, b: &Path) {
    assert_bytes(&read(a), &read(b), &format!("{a:?} and {b:?}"));
}

#[track_caller]
pub fn assert_bytes(a: &[u8], b: &[u8], what: &str) {
    if a != b {
        let at = a.iter().zip(b).position(|(a, b)| a != b);
        panic!(
            "{what} differ: {} and {} bytes, first difference at {at:?}",
            a.len(),
            b.len()
        );
    }
}
