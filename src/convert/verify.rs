//! Holds a converted file against its digests, and against its source.

use std::fmt;
use std::path::PathBuf;

use headshare_format::alias::{self, AliasTable, POOL};
use headshare_format::{FormatError, Gguf, VirtualGguf};
use rayon::prelude::*;
use serde::Serialize;

use super::expand::{digest_of_view, source_view};
use super::write::{digest_of, digest_stored};
use crate::input::{InputError, ModelFile};
use crate::model::AttentionMap;
use crate::plan::Plan;

/// What `verify` found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether every check held.
    pub ok: bool,
    /// Whether the file is lossless.
    pub lossless: bool,
    /// Stored tensors whose digest was checked.
    pub stored_tensors: usize,
    /// Logical tensors that were computed anew and have no counterpart in the
    /// source; left out when there are none.
    #[serde(skip_serializing_if = "is_zero")]
    pub replaced_tensors: usize,
    /// Logical bytes compared with the source; absent without `--source`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared_bytes: Option<u64>,
    /// The checks that did not hold.
    pub findings: Vec<Finding>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// A check that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked: `header`, a tensor's name, `expanded file`, ...
    pub subject: String,
    /// What is wrong with it.
    pub problem: String,
}

/// The subject of findings about the header.
const HEADER: &str = "header";
/// The subject of findings about the plain file as a whole.
const EXPANDED: &str = "expanded file";

/// A converted file that is not what it was when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    path: PathBuf,
    /// At least one.
    findings: Vec<Finding>,
}

impl Damage {
    /// What `findings` say of `file`.
    pub(super) fn new(file: &ModelFile, findings: Vec<Finding>) -> Self {
        let path = file.path().to_owned();
        Self { path, findings }
    }

    /// Every part is what its digest says, and the whole is not.
    pub(super) fn of_the_whole(file: &ModelFile) -> Self {
        let problem = "what it stands for does not have the source's digest";
        Self::new(file, vec![finding(EXPANDED, problem)])
    }

    /// An error if anything was found.
    pub(super) fn found(file: &ModelFile, findings: Vec<Finding>) -> Result<(), Self> {
        match findings.is_empty() {
            true => Ok(()),
            false => Err(Self::new(file, findings)),
        }
    }

    /// What the user can do.
    pub fn hint(&self) -> &'static str {
        match self.findings.iter().all(|f| f.subject == HEADER) {
            true => alias::HEADER_CHANGED_HINT,
            false => {
                "get the file again, or convert its source again; headshare-gguf verify FILE lists all that differs"
            }
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        // A line names some; `verify` lists all.
        const NAMED: usize = 3;
        for (i, finding) in self.findings.iter().take(NAMED).enumerate() {
            f.write_str(if i == 0 { ": " } else { "; " })?;
            match finding.subject.as_str() {
                HEADER => f.write_str(alias::HEADER_CHANGED)?,
                EXPANDED => f.write_str(&finding.problem)?,
                tensor => write!(f, "tensor {tensor:?}: {}", finding.problem)?,
            }
        }
        match self.findings.len().saturating_sub(NAMED) {
            0 => Ok(()),
            1 => f.write_str("; and one more tensor"),
            more => write!(f, "; and {more} more tensors"),
        }
    }
}

impl std::error::Error for Damage {}

/// Verifies the converted `file`; with `source`, also that every stored and
/// aliased row is what it must be.
///
/// # Errors
/// When the plan in the file cannot be read or does not fit its model; checks
/// that do not hold are findings instead.
pub fn verify(
    file: &ModelFile,
    table: &AliasTable,
    source: Option<&ModelFile>,
) -> Result<Report, InputError> {
    let mut findings = check_digests(file, table)?;
    let view = source_view(file, table)?;
    if table.provenance.lossless {
        let expanded = digest_of_view(file, &view);
        if expanded != table.provenance.source_digest {
            findings.push(finding(EXPANDED, "its digest is not the source's"));
        }
    }
    let shares = plan_shares(file, table, &view)?;
    findings.extend(check_stored_once(table, &shares));
    let mut compared_bytes = None;
    if let Some(source) = source {
        let (compared, found) = compare(file, table, &view, source, &shares);
        compared_bytes = Some(compared);
        findings.extend(found);
    }
    Ok(Report {
        ok: findings.is_empty(),
        lossless: table.provenance.lossless,
        stored_tensors: file.gguf.tensors.len(),
        replaced_tensors: table
            .provenance
            .replaced
            .as_ref()
            .map_or(0, |r| r.tensors.len()),
        compared_bytes,
        findings,
    })
}

fn check_digests(file: &ModelFile, table: &AliasTable) -> Result<Vec<Finding>, InputError> {
    let mut findings = differing(file)?;
    if !pool_gaps_are_zero(file, table) {
        findings.push(finding(POOL, "bytes between its blocks are not zero"));
    }
    findings.extend(check_padding(file));
    Ok(findings)
}

/// The header and the stored tensors that are not what their digests say.
pub(super) fn differing(file: &ModelFile) -> Result<Vec<Finding>, InputError> {
    let content = || InputError::content(file.path());
    let mut findings = Vec::new();
    if !alias::metadata_is_intact(&file.gguf).map_err(content())? {
        findings.push(finding(
            HEADER,
            "was changed after it was written: it differs from its digest",
        ));
    }
    let stated = alias::stored_digests(&file.gguf).map_err(content())?;
    let differing: Vec<Finding> = file
        .gguf
        .tensors
        .par_iter()
        .zip(stated)
        .filter(|(info, stated)| digest_stored(file, info) != *stated)
        .map(|(info, _)| finding(&info.name, "its data differs from its digest"))
        .collect();
    findings.extend(differing);
    Ok(findings)
}

/// What belongs to no stored tensor, and so to no digest: zeros up to the next
/// page, and nothing at the end.
fn check_padding(file: &ModelFile) -> Vec<Finding> {
    // Without tensors the header is padded all the same.
    let end = file.gguf.data_end().max(file.gguf.data_offset);
    let mut findings: Vec<Finding> = file
        .gguf
        .filler_ranges()
        .into_iter()
        .filter(|range| range.start < end)
        .filter(|range| file.bytes(range.clone()).iter().any(|&b| b != 0))
        .map(|range| {
            let problem = format!("bytes {} to {} are not zero", range.start, range.end - 1);
            finding("padding", problem)
        })
        .collect();
    if file.len() > end {
        let problem = format!("{} bytes follow the last tensor", file.len() - end);
        findings.push(finding("end of file", problem));
    }
    findings
}

fn pool_gaps_are_zero(file: &ModelFile, table: &AliasTable) -> bool {
    let Some(index) = file.gguf.tensor_index(POOL) else {
        return true;
    };
    let pool = file.bytes(file.gguf.data_range(&file.gguf.tensors[index]));
    let mut used: Vec<(u64, u64)> = table
        .segments
        .iter()
        .filter(|s| s.stored as usize == index)
        .map(|s| (s.stored_offset, s.stored_offset + s.len))
        .collect();
    used.sort_unstable();
    used.push((pool.len() as u64, pool.len() as u64));
    let mut end = 0u64;
    used.into_iter().all(|(start, next)| {
        let gap = &pool[end.min(start) as usize..start as usize];
        end = end.max(next);
        gap.iter().all(|&b| b == 0)
    })
}

/// A range of a logical tensor that the plan takes from another.
#[derive(Debug, Clone, Copy)]
struct Share {
    alias: (usize, u64),
    donor: (usize, u64),
    len: u64,
}

/// The shares of the plan that the file carries, ascending by alias.
fn plan_shares(
    file: &ModelFile,
    table: &AliasTable,
    view: &VirtualGguf,
) -> Result<Vec<Share>, InputError> {
    let Some(json) = &table.provenance.plan else {
        return Ok(Vec::new());
    };
    // The plan is part of the file: what is wrong with it is wrong with the file.
    let bad_plan = |problem: String| {
        InputError::content(file.path())(FormatError::key(alias::keys::PLAN, problem))
    };
    let plan = Plan::from_json(json.as_bytes()).map_err(|e| bad_plan(e.to_string()))?;
    if plan.aliases.is_empty() {
        return Ok(Vec::new());
    }
    let logical =
        Gguf::parse_header(view.header(), view.len()).map_err(InputError::content(file.path()))?;
    let map = AttentionMap::of(&logical).map_err(|e| bad_plan(e.to_string()))?;
    plan.check(&map).map_err(|e| bad_plan(e.to_string()))?;
    let mut shares: Vec<Share> = plan
        .shared_rows(&map)
        .map(|(alias, donor)| Share {
            alias: (alias.tensor, alias.offset),
            donor: (donor.tensor, donor.offset),
            len: alias.len,
        })
        .collect();
    shares.sort_by_key(|s| s.alias);
    Ok(shares)
}

/// Every alias of the plan uses the very bytes that its donor uses.
fn check_stored_once(table: &AliasTable, shares: &[Share]) -> Vec<Finding> {
    shares
        .iter()
        .filter(|s| places(table, s.alias, s.len) != places(table, s.donor, s.len))
        .map(|s| {
            finding(
                &table.tensors[s.alias.0].name,
                format!(
                    "its rows at byte {} are not stored where those of {:?} are",
                    s.alias.1, table.tensors[s.donor.0].name
                ),
            )
        })
        .collect()
}

/// Where `len` bytes at `(tensor, offset)` are stored: merged runs.
fn places(table: &AliasTable, (tensor, offset): (usize, u64), len: u64) -> Vec<(u32, u64, u64)> {
    let mut runs: Vec<(u32, u64, u64)> = Vec::new();
    for s in table.segments_of(tensor as u32) {
        let start = s.offset.max(offset);
        let end = (s.offset + s.len).min(offset + len);
        if start >= end {
            continue;
        }
        let at = s.stored_offset + (start - s.offset);
        match runs.last_mut() {
            Some(last) if last.0 == s.stored && last.1 + last.2 == at => last.2 += end - start,
            _ => runs.push((s.stored, at, end - start)),
        }
    }
    runs
}

/// Compares the logical file with `source`, the shares with their donors.
fn compare(
    file: &ModelFile,
    table: &AliasTable,
    view: &VirtualGguf,
    source: &ModelFile,
    shares: &[Share],
) -> (u64, Vec<Finding>) {
    if digest_of(source) != table.provenance.source_digest {
        let problem = "is not the file that this one was made from";
        return (
            0,
            vec![finding(source.path().display().to_string(), problem)],
        );
    }
    if view.header() != source.gguf.header_bytes() {
        return (
            0,
            vec![finding(HEADER, "the restored header is not the source's")],
        );
    }
    // Computed anew: only the file's own digests say what they must be.
    let replaced = table.provenance.replaced.as_ref();
    let replaced = replaced.map_or(&[][..], |r| &r.tensors);
    let results: Vec<(u64, Option<Finding>)> = view
        .tensors()
        .par_iter()
        .enumerate()
        .filter(|(index, _)| !replaced.contains(&(*index as u32)))
        .map(|(index, tensor)| {
            let differs = expected_runs(index, tensor.byte_len(), shares)
                .into_iter()
                .find(|(at, from, len)| {
                    let start = view.data_range(tensor).start + at;
                    let expected =
                        source.gguf.data_range(&source.gguf.tensors[from.0]).start + from.1;
                    !equal(file, view, start, source.bytes(expected..expected + len))
                });
            let problem = differs.map(|(at, from, len)| {
                let origin = &source.gguf.tensors[from.0].name;
                finding(
                    &tensor.name,
                    format!(
                        "{len} bytes at {at} are not those of {origin:?} at {}",
                        from.1
                    ),
                )
            });
            (tensor.byte_len(), problem)
        })
        .collect();
    let compared = results.iter().map(|r| r.0).sum();
    let mut findings: Vec<Finding> = results.into_iter().filter_map(|r| r.1).collect();
    // With equal headers, the bytes around the tensors lie at equal places.
    let around = source.gguf.filler_ranges().into_iter();
    let differ = around.filter(|r| !equal(file, view, r.start, source.bytes(r.clone())));
    findings.extend(differ.map(|range| {
        let problem = format!(
            "bytes {} to {}, in no tensor, are not the source's",
            range.start,
            range.end - 1
        );
        finding(EXPANDED, problem)
    }));
    if view.len() > source.len() {
        let problem = format!("has {} bytes, the source {}", view.len(), source.len());
        findings.push(finding(EXPANDED, problem));
    }
    (compared, findings)
}

/// What tensor `index` must consist of: `(offset, (source tensor, offset), length)`.
fn expected_runs(index: usize, len: u64, shares: &[Share]) -> Vec<(u64, (usize, u64), u64)> {
    let mut runs = Vec::new();
    let mut pos = 0;
    let first = shares.partition_point(|s| s.alias.0 < index);
    for share in shares[first..].iter().take_while(|s| s.alias.0 == index) {
        if pos < share.alias.1 {
            runs.push((pos, (index, pos), share.alias.1 - pos));
        }
        runs.push((share.alias.1, share.donor, share.len));
        pos = share.alias.1 + share.len;
    }
    if pos < len {
        runs.push((pos, (index, pos), len - pos));
    }
    runs
}

fn equal(file: &ModelFile, view: &VirtualGguf, start: u64, expected: &[u8]) -> bool {
    let mut buf = vec![0; expected.len().min(1 << 20)];
    expected.chunks(1 << 20).enumerate().all(|(i, chunk)| {
        let buf = &mut buf[..chunk.len()];
        view.read_at(&file.file, start + ((i as u64) << 20), buf) == chunk.len() && buf == chunk
    })
}

fn finding(subject: impl Into<String>, problem: impl Into<String>) -> Finding {
    Finding {
        subject: subject.into(),
        problem: problem.into(),
    }
}
