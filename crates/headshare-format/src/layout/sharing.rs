//! Who owns which bytes: from a list of shared rows, resolved so that every
//! byte of every tensor has one owner that is stored.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::gguf::Gguf;
use crate::{FormatError, TensorInfo};

/// Rows of one tensor that are to be stored at another place only: the bytes
/// at `alias_offset` of tensor `alias` become those at `donor_offset` of
/// tensor `donor`.
///
/// Offsets and length are in bytes and whole rows; both tensors have the same
/// type and row length; alias ranges do not overlap each other; following
/// donors from alias to donor ends (chains are resolved, cycles refused).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharedRows {
    /// Index of the tensor that gives its bytes up.
    pub alias: usize,
    /// Where in it.
    pub alias_offset: u64,
    /// Index of the tensor that provides the bytes.
    pub donor: usize,
    /// Where in it.
    pub donor_offset: u64,
    /// How many.
    pub len: u64,
}

impl SharedRows {
    /// The bytes of the alias's data that are given up.
    pub fn alias_range(&self) -> Range<usize> {
        self.alias_offset as usize..(self.alias_offset + self.len) as usize
    }

    /// The bytes of the donor's data that provide them.
    pub fn donor_range(&self) -> Range<usize> {
        self.donor_offset as usize..(self.donor_offset + self.len) as usize
    }
}

/// A place in a source tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub tensor: usize,
    pub offset: u64,
}

/// The owner of every byte.
pub(super) struct Ownership {
    /// Per tensor: consecutive runs that cover it, with their owner.
    runs: Vec<Vec<(Range<u64>, Place)>>,
    /// Per tensor: the parts that others use, cut wherever one of the users'
    /// ranges begins or ends; empty when the whole tensor stays together.
    donated: Vec<Vec<Range<u64>>>,
    /// Users of own bytes: (owner tensor, owner range, user), by owner.
    users: Vec<(usize, Range<u64>, Place)>,
}

impl Ownership {
    pub(super) fn resolve(source: &Gguf, shared: &[SharedRows]) -> Result<Self, FormatError> {
        let mut aliases: Vec<Vec<SharedRows>> = vec![Vec::new(); source.tensors().len()];
        for rows in shared {
            check(source, rows)?;
            aliases[rows.alias].push(*rows);
        }
        for (tensor, list) in source.tensors().iter().zip(&mut aliases) {
            list.sort();
            if let Some(pair) = list
                .windows(2)
                .find(|w| w[0].alias_offset + w[0].len > w[1].alias_offset)
            {
                return Err(FormatError::tensor(
                    &tensor.name,
                    format!("bytes at {} would be shared twice", pair[1].alias_offset),
                ));
            }
        }
        let resolver = Resolver {
            tensors: source.tensors(),
            aliases: &aliases,
        };
        let mut runs = Vec::with_capacity(source.tensors().len());
        for (index, tensor) in source.tensors().iter().enumerate() {
            let mut list = Vec::new();
            resolver.resolve(index, 0..tensor.byte_len(), 0, &mut list)?;
            runs.push(merge(list));
        }
        Ok(Self::from_runs(source, runs))
    }

    fn from_runs(source: &Gguf, runs: Vec<Vec<(Range<u64>, Place)>>) -> Self {
        let mut users = Vec::new();
        for (index, list) in runs.iter().enumerate() {
            for (range, owner) in list {
                if owner.tensor != index || owner.offset != range.start {
                    let len = range.end - range.start;
                    users.push((
                        owner.tensor,
                        owner.offset..owner.offset + len,
                        Place {
                            tensor: index,
                            offset: range.start,
                        },
                    ));
                }
            }
        }
        users.sort_by_key(|(t, r, p)| (*t, r.start, r.end, p.tensor, p.offset));
        let mut donated = vec![Vec::new(); runs.len()];
        for (index, tensor) in source.tensors().iter().enumerate() {
            let start = users.partition_point(|u| u.0 < index);
            let end = users.partition_point(|u| u.0 <= index);
            let ranges: Vec<&Range<u64>> = users[start..end].iter().map(|u| &u.1).collect();
            // A tensor that another one uses as a whole stays together.
            if !ranges.iter().any(|r| **r == (0..tensor.byte_len())) {
                donated[index] = cut(&ranges);
            }
        }
        Self {
            runs,
            donated,
            users,
        }
    }

    /// The runs of tensor `index`: consecutive ranges and their owners.
    pub(super) fn runs(&self, index: usize) -> impl Iterator<Item = (Range<u64>, Place)> + '_ {
        self.runs[index].iter().cloned()
    }

    /// The ranges of tensor `index` that it owns itself, ascending.
    pub(super) fn own_runs(&self, index: usize) -> Vec<Range<u64>> {
        self.runs[index]
            .iter()
            .filter(|(range, owner)| owner.tensor == index && owner.offset == range.start)
            .map(|(range, _)| range.clone())
            .collect()
    }

    /// The parts of tensor `index` that go to the pool because others use them.
    pub(super) fn donated_parts(&self, index: usize) -> Vec<Range<u64>> {
        self.donated[index].clone()
    }

    /// The logical places of own bytes `range` of tensor `index`: its own,
    /// then those of its users.
    pub(super) fn places(&self, index: usize, range: &Range<u64>) -> Vec<Place> {
        let mut places = vec![Place {
            tensor: index,
            offset: range.start,
        }];
        let start = self.users.partition_point(|u| u.0 < index);
        let end = self.users.partition_point(|u| u.0 <= index);
        for (_, owned, user) in &self.users[start..end] {
            if owned.start <= range.start && range.end <= owned.end {
                places.push(Place {
                    tensor: user.tensor,
                    offset: user.offset + (range.start - owned.start),
                });
            }
        }
        places
    }
}

fn check(source: &Gguf, rows: &SharedRows) -> Result<(), FormatError> {
    let (Some(alias), Some(donor)) = (
        source.tensors().get(rows.alias),
        source.tensors().get(rows.donor),
    ) else {
        return Err(FormatError::unsupported(
            "sharing",
            "names a tensor that is not there",
        ));
    };
    let fail = |problem: &str| {
        Err(FormatError::tensor(
            &alias.name,
            format!("cannot take rows of {:?}: {problem}", donor.name),
        ))
    };
    if alias.ggml_type != donor.ggml_type || alias.row_elems() != donor.row_elems() {
        return fail("types or row lengths differ");
    }
    let row = alias.row_bytes();
    if rows.len == 0
        || [rows.len, rows.alias_offset, rows.donor_offset]
            .iter()
            .any(|n| !n.is_multiple_of(row))
    {
        return fail("the range is not whole rows");
    }
    for (tensor, offset) in [(alias, rows.alias_offset), (donor, rows.donor_offset)] {
        if offset
            .checked_add(rows.len)
            .is_none_or(|end| end > tensor.byte_len())
        {
            return fail("the range lies outside the tensor");
        }
    }
    Ok(())
}

struct Resolver<'a> {
    tensors: &'a [TensorInfo],
    aliases: &'a [Vec<SharedRows>],
}

impl Resolver<'_> {
    /// Appends, for `range` of tensor `index`, its consecutive owners.
    fn resolve(
        &self,
        index: usize,
        range: Range<u64>,
        depth: usize,
        out: &mut Vec<(u64, Place)>,
    ) -> Result<(), FormatError> {
        // A chain without cycles passes each tensor's ranges at most once; real
        // ones are a few steps long.
        const MAX_DEPTH: usize = 4096;
        if depth > MAX_DEPTH {
            return Err(FormatError::tensor(
                &self.tensors[index].name,
                "its shared rows lead in a circle",
            ));
        }
        let list = &self.aliases[index];
        let mut pos = range.start;
        let first = list.partition_point(|a| a.alias_offset + a.len <= range.start);
        for alias in list[first..]
            .iter()
            .take_while(|a| a.alias_offset < range.end)
        {
            let start = alias.alias_offset.max(range.start);
            let end = (alias.alias_offset + alias.len).min(range.end);
            if pos < start {
                out.push((
                    start - pos,
                    Place {
                        tensor: index,
                        offset: pos,
                    },
                ));
            }
            let donor_start = alias.donor_offset + (start - alias.alias_offset);
            self.resolve(
                alias.donor,
                donor_start..donor_start + (end - start),
                depth + 1,
                out,
            )?;
            pos = end;
        }
        if pos < range.end {
            out.push((
                range.end - pos,
                Place {
                    tensor: index,
                    offset: pos,
                },
            ));
        }
        Ok(())
    }
}

/// Turns consecutive (length, owner) into ranges, joining what continues.
fn merge(list: Vec<(u64, Place)>) -> Vec<(Range<u64>, Place)> {
    let mut runs: Vec<(Range<u64>, Place)> = Vec::new();
    let mut pos = 0;
    for (len, owner) in list {
        let range = pos..pos + len;
        pos += len;
        match runs.last_mut() {
            Some((last, place))
                if place.tensor == owner.tensor
                    && place.offset + (last.end - last.start) == owner.offset =>
            {
                last.end = range.end;
            }
            _ => runs.push((range, owner)),
        }
    }
    runs
}

/// The union of `ranges`, cut wherever one of them begins or ends.
fn cut(ranges: &[&Range<u64>]) -> Vec<Range<u64>> {
    let bounds: BTreeSet<u64> = ranges.iter().flat_map(|r| [r.start, r.end]).collect();
    let mut sorted: Vec<&Range<u64>> = ranges.to_vec();
    sorted.sort_by_key(|r| (r.start, r.end));
    let mut parts = Vec::new();
    let mut next = 0;
    let mut covered_until = 0;
    for (start, end) in bounds.iter().zip(bounds.iter().skip(1)) {
        while next < sorted.len() && sorted[next].start <= *start {
            covered_until = covered_until.max(sorted[next].end);
            next += 1;
        }
        if covered_until > *start {
            parts.push(*start..*end);
        }
    }
    parts
}
