//! Holds a converted file against its digests, and against its source.

use std::collections::BTreeMap;

use headshare_format::alias::{self, AliasTable, POOL};
use headshare_format::gguf::align_up;
use headshare_format::{FormatError, Gguf, VirtualGguf};
use rayon::prelude::*;
use serde::Serialize;

use super::damage::{EXPANDED, Finding, HEADER, differing, finding};
use super::digest::digest_stored;
use super::error::ConvertError;
use super::expand::{digest_of_view, source_view};
use super::variant::{MADE_BY, Variant};
use crate::input::{InputError, ModelFile};
use crate::model::AttentionMap;
use crate::plan::Plan;

/// What `verify` found.
#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    /// Whether every check held.
    pub ok: bool,
    /// Whether the file is a plain one that a plan has made, which has digests of
    /// the tensors that were computed alone; left out for converted files.
    #[serde(skip_serializing_if = "is_false")]
    pub plain: bool,
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

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

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
) -> Result<Verification, InputError> {
    let mut findings = check_digests(file, table)?;
    let view = source_view(file, table)?;
    if table.provenance.lossless {
        let expanded = digest_of_view(file, &view);
        if expanded != table.provenance.source_digest {
            findings.push(finding(EXPANDED, "its digest is not the source's"));
        }
    }
    let logical =
        Gguf::parse_header(view.header(), view.len()).map_err(InputError::content(file.path()))?;
    let plan = plan_of(file, table)?;
    let shares = plan_shares(file, plan.as_ref(), &logical)?;
    findings.extend(check_stored_once(table, &shares));
    let mut compared_bytes = None;
    if let Some(source) = source {
        let logical = Logical {
            file,
            table,
            view: &view,
            gguf: &logical,
        };
        let (compared, found) = logical.compare(source, plan.as_ref(), &shares);
        compared_bytes = Some(compared);
        findings.extend(found);
    }
    Ok(Verification {
        ok: findings.is_empty(),
        plain: false,
        lossless: table.provenance.lossless,
        stored_tensors: file.gguf.tensors().len(),
        replaced_tensors: table
            .provenance
            .replaced
            .as_ref()
            .map_or(0, |r| r.tensors.len()),
        compared_bytes,
        findings,
    })
}

/// Verifies a plain `file` that a plan has made: the tensors that were computed
/// against the digests that it states; with `source`, also that it is what the
/// plan makes of that.
///
/// # Errors
/// When the file does not say that a plan has made it.
pub fn verify_variant(
    file: &ModelFile,
    source: Option<&ModelFile>,
) -> Result<Verification, InputError> {
    #[derive(serde::Deserialize)]
    struct MadeBy {
        plan: serde_json::Value,
        #[serde(default)]
        tensors: BTreeMap<String, String>,
    }
    let bad =
        |problem: String| InputError::content(file.path())(FormatError::key(MADE_BY, problem));
    let said = (file.gguf.str_value(MADE_BY)).map_err(InputError::content(file.path()))?;
    let said = said.ok_or_else(|| bad("is missing: no plan has made this file".into()))?;
    let MadeBy { plan, tensors } = serde_json::from_str(said).map_err(|e| bad(e.to_string()))?;
    let plan = Plan::from_json(plan.to_string().as_bytes()).map_err(|e| bad(e.to_string()))?;
    if source.is_some() && plan.shares().next().is_some() {
        return Err(bad(
            "is of a plan that shares, so `expand` has written this file: verify the converted one"
                .into(),
        ));
    }
    // As other programs write it, the last tensor is padded, too.
    let end = file.gguf.data_end().max(file.gguf.data_offset());
    let padded = align_up(end, file.gguf.alignment()).unwrap_or(end);
    let mut findings = check_padding(file, padded);
    for (name, digest) in &tensors {
        match file.gguf.tensor(name) {
            Some(info) if digest_stored(file, info) == *digest => {}
            Some(_) => findings.push(finding(name, "its data are not those of its digest")),
            None => findings.push(finding(name, "is missing")),
        }
    }
    let mut compared_bytes = None;
    if let Some(source) = source {
        let (compared, found) = compare_variant(file, source, &plan, said, &tensors);
        compared_bytes = Some(compared);
        findings.extend(found);
    }
    Ok(Verification {
        ok: findings.is_empty(),
        plain: true,
        lossless: false,
        stored_tensors: tensors.len(),
        replaced_tensors: tensors.len(),
        compared_bytes,
        findings,
    })
}

/// Compares a plain file with what `plan` makes of `source`, but for the tensors
/// that have digests.
fn compare_variant(
    file: &ModelFile,
    source: &ModelFile,
    plan: &Plan,
    made_by: &str,
    digests: &BTreeMap<String, String>,
) -> (u64, Vec<Finding>) {
    let nothing = |subject: String, problem: &str| (0, vec![finding(subject, problem)]);
    if source.digest() != plan.source {
        let problem = "is not the file that this one was made from";
        return nothing(source.path().display().to_string(), problem);
    }
    let variant = match Variant::new(source, plan, Some(made_by.to_owned())) {
        Ok(variant) => variant,
        Err(error) => {
            let problem = format!("its plan cannot be carried out on the source: {error}");
            return nothing(HEADER.to_owned(), &problem);
        }
    };
    if file.gguf.header_bytes() != variant.gguf().header_bytes() {
        let problem = "the header is not what the plan makes of the source's";
        return nothing(HEADER.to_owned(), problem);
    }
    let tensors = variant.gguf().tensors().par_iter();
    let results: Vec<(u64, Option<Finding>)> = tensors
        .filter(|info| !digests.contains_key(&info.name))
        .map(|info| {
            let place = variant.gguf().data_range(info);
            let mut at = place.start;
            let same = variant.stream::<Differs>(place, |bytes| {
                let end = at + bytes.len() as u64;
                if file.bytes(at..end) != bytes {
                    return Err(Differs);
                }
                at = end;
                Ok(())
            });
            let problem = "is not what the plan makes of the source's";
            (
                info.byte_len(),
                same.err().map(|_| finding(&info.name, problem)),
            )
        })
        .collect();
    let compared = results.iter().map(|r| r.0).sum();
    (compared, results.into_iter().filter_map(|r| r.1).collect())
}

/// The first byte that differs, or what could not be read.
struct Differs;

impl From<ConvertError> for Differs {
    fn from(_: ConvertError) -> Self {
        Self
    }
}

fn check_digests(file: &ModelFile, table: &AliasTable) -> Result<Vec<Finding>, InputError> {
    let mut findings = differing(file)?;
    if !pool_gaps_are_zero(file, table) {
        findings.push(finding(POOL, "bytes between its blocks are not zero"));
    }
    // Without tensors the header is padded all the same.
    let end = file.gguf.data_end().max(file.gguf.data_offset());
    findings.extend(check_padding(file, end));
    Ok(findings)
}

/// What belongs to no stored tensor, and so to no digest: zeros up to the next
/// page, and nothing after `end`.
fn check_padding(file: &ModelFile, end: u64) -> Vec<Finding> {
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
    let pool = file.bytes(file.gguf.data_range(&file.gguf.tensors()[index]));
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

/// What is wrong with the plan is wrong with the file that carries it.
fn bad_plan(file: &ModelFile, problem: &dyn ToString) -> InputError {
    let problem = problem.to_string();
    InputError::content(file.path())(FormatError::key(alias::keys::PLAN, problem))
}

/// The plan that a converted file was made by; none for lossless files.
///
/// # Errors
/// When it is no plan.
pub fn plan_of(file: &ModelFile, table: &AliasTable) -> Result<Option<Plan>, InputError> {
    let json = table.provenance.plan.as_ref();
    json.map(|json| Plan::from_json(json.as_bytes()).map_err(|e| bad_plan(file, &e)))
        .transpose()
}

/// What the plan shares in the model that the file stands for, ascending by
/// alias.
fn plan_shares(
    file: &ModelFile,
    plan: Option<&Plan>,
    logical: &Gguf,
) -> Result<Vec<Share>, InputError> {
    let Some(plan) = plan.filter(|plan| plan.shares().next().is_some()) else {
        return Ok(Vec::new());
    };
    let map = AttentionMap::of(logical).map_err(|e| bad_plan(file, &e))?;
    let plan = plan.renumbered();
    plan.check(&map).map_err(|e| bad_plan(file, &e))?;
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

/// What a converted file stands for.
struct Logical<'a> {
    file: &'a ModelFile,
    table: &'a AliasTable,
    view: &'a VirtualGguf,
    gguf: &'a Gguf,
}

impl Logical<'_> {
    /// Compares it with what the plan makes of `source`, the shares with their
    /// donors.
    fn compare(
        &self,
        source: &ModelFile,
        plan: Option<&Plan>,
        shares: &[Share],
    ) -> (u64, Vec<Finding>) {
        let nothing = |subject: String, problem: &str| (0, vec![finding(subject, problem)]);
        if source.digest() != self.table.provenance.source_digest {
            let problem = "is not the file that this one was made from";
            return nothing(source.path().display().to_string(), problem);
        }
        let variant = match self.variant(source, plan) {
            Ok(variant) => variant,
            Err(error) => {
                let problem = format!("its plan cannot be carried out on the source: {error}");
                return nothing(HEADER.to_owned(), &problem);
            }
        };
        if self.view.header() != variant.gguf().header_bytes() {
            let problem = match variant.is_as_source() {
                true => "the restored header is not the source's",
                false => "the restored header is not what the plan makes of the source's",
            };
            return nothing(HEADER.to_owned(), problem);
        }
        // Computed anew: only the file's own digests say what they must be.
        let replaced = self.table.provenance.replaced.as_ref();
        let replaced = replaced.map_or(&[][..], |r| &r.tensors);
        let results: Vec<(u64, Option<Finding>)> = (self.view.tensors().par_iter())
            .enumerate()
            .filter(|(index, _)| !replaced.contains(&(*index as u32)))
            .map(|(index, tensor)| {
                let len = tensor.byte_len();
                let differs =
                    expected_runs(index, len, shares)
                        .into_iter()
                        .find(|&(at, from, len)| {
                            let expected =
                                variant.gguf().data_range(&variant.gguf().tensors()[from.0]);
                            let expected = expected.start + from.1;
                            let start = self.view.data_range(tensor).start + at;
                            !self.equals(start, &variant, expected..expected + len)
                        });
                let problem = differs.map(|(at, from, len)| {
                    let origin = &variant.gguf().tensors()[from.0].name;
                    finding(
                        &tensor.name,
                        format!(
                            "{len} bytes at {at} are not those of {origin:?} at {}",
                            from.1
                        ),
                    )
                });
                (len, problem)
            })
            .collect();
        let compared = results.iter().map(|r| r.0).sum();
        let mut findings: Vec<Finding> = results.into_iter().filter_map(|r| r.1).collect();
        if variant.is_as_source() {
            findings.extend(self.around(source, &variant));
        }
        (compared, findings)
    }

    /// What the plan makes of `source`.
    fn variant<'s>(
        &self,
        source: &'s ModelFile,
        plan: Option<&Plan>,
    ) -> Result<Variant<'s>, ConvertError> {
        let said = |gguf: &Gguf| gguf.str_value(MADE_BY).ok().flatten().map(str::to_owned);
        let made_by = said(self.gguf);
        match plan {
            // The source's own stays where it is.
            Some(plan) if !plan.reshapes() && made_by == said(&source.gguf) => {
                Variant::new(source, plan, None)
            }
            Some(plan) => Variant::new(source, plan, made_by),
            None => Ok(Variant::unchanged(source)),
        }
    }

    /// What lies around the tensors: with equal headers, at equal places.
    fn around(&self, source: &ModelFile, variant: &Variant<'_>) -> Vec<Finding> {
        let around = source.gguf.filler_ranges().into_iter();
        let mut findings: Vec<Finding> = around
            .filter(|range| !self.equals(range.start, variant, range.clone()))
            .map(|range| {
                let problem = format!(
                    "bytes {} to {}, in no tensor, are not the source's",
                    range.start,
                    range.end - 1
                );
                finding(EXPANDED, problem)
            })
            .collect();
        if self.view.len() > source.len() {
            let problem = format!("has {} bytes, the source {}", self.view.len(), source.len());
            findings.push(finding(EXPANDED, problem));
        }
        findings
    }

    /// Whether `expected` of the variant stands at `start`.
    fn equals(&self, start: u64, variant: &Variant<'_>, expected: std::ops::Range<u64>) -> bool {
        let mut at = start;
        let mut buf = vec![0; (1 << 20).min((expected.end - expected.start) as usize)];
        let same = variant.stream::<Differs>(expected, |bytes| {
            for chunk in bytes.chunks(1 << 20) {
                let buf = &mut buf[..chunk.len()];
                if self.view.read_at(&self.file.file, at, buf) != chunk.len() || buf != chunk {
                    return Err(Differs);
                }
                at += chunk.len() as u64;
            }
            Ok(())
        });
        same.is_ok()
    }
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
