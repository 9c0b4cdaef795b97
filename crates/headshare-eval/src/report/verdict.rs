//! Who wins, in numbers and words: the converted file, or the plain file that
//! is as small.

use std::cmp::Ordering;

use super::rows::{FileFacts, Paired, Row, RowKind, Verdict, Winner};
use super::words::grouped;

/// A difference counts from so many standard errors on.
const SIGNIFICANT: f64 = 2.0;

/// The outcome at each ratio. The first of `rows` is the source.
pub fn verdicts(rows: &[Row]) -> Vec<Verdict> {
    let mut ratios: Vec<f64> = rows.iter().filter_map(|row| row.ratio).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.dedup();
    ratios
        .into_iter()
        .filter_map(|ratio| verdict(rows, ratio))
        .collect()
}

fn verdict(rows: &[Row], ratio: f64) -> Option<Verdict> {
    let source = rows.first()?;
    let here = |row: &&usize| {
        let row = &rows[**row];
        row.form == RowKind::Converted && row.ratio == Some(ratio)
    };
    let all: Vec<usize> = (0..rows.len()).collect();
    let forms: Vec<usize> = all.iter().filter(here).copied().collect();
    let best = best(rows, &forms)?;
    let (row, saved) = (&rows[best], rows[best].saved(source));
    let rival = row
        .rival
        .map(|rival| &rows[rival])
        .zip(row.to_rival.as_ref());
    let winner = match rival {
        _ if saved <= 0 => Winner::Source,
        None => Winner::Alone,
        // Whatever the error of the perplexity: one changes nothing.
        Some((rival, _)) if is_exact(row) && !is_exact(rival) => Winner::Converted,
        Some((rival, paired)) => between((row, rival), paired, Winner::Lower),
    };
    let others: Vec<&Row> = forms
        .iter()
        .filter(|i| **i != best)
        .map(|i| &rows[*i])
        .collect();
    Some(Verdict {
        ratio: Some(ratio),
        size: None,
        row: best,
        file_bytes: row.made.file_bytes,
        saved_bytes: saved,
        winner,
        ratio_to_rival: rival.map(|(_, paired)| paired.ratio),
        ratio_to_rival_stderr: rival.map(|(_, paired)| paired.ratio_stderr),
        words: words(source, row, rival, &others, winner),
    })
}

/// Whether `row` wins over its `rival`, or that does, which is called `other` then: by
/// perplexity, unless the divergence from the source says otherwise. A text can be predicted
/// better by a model that is further away.
pub(super) fn between((row, rival): (&Row, &Row), paired: &Paired, other: Winner) -> Winner {
    let known = row.divergence().zip(rival.divergence());
    let distance = known.map(|(own, rivals)| own.total_cmp(&rivals));
    match paired.ln_ratio {
        d if d.abs() <= SIGNIFICANT * paired.ln_ratio_stderr => Winner::Neither,
        d if d < 0.0 && distance == Some(Ordering::Greater) => Winner::Neither,
        d if d < 0.0 => Winner::Converted,
        _ if distance == Some(Ordering::Less) => Winner::Neither,
        _ => other,
    }
}

/// Which of the conversions `forms` stands for all. Only numbers of one kind
/// are compared: where any has a plain alternative, how they do against theirs;
/// else how those that save anything do against the source; else what they cost.
/// By divergence where that is known, as rivals are chosen.
fn best(rows: &[Row], forms: &[usize]) -> Option<usize> {
    let source = rows.first()?;
    let saved = |i: &usize| rows[*i].saved(source);
    let least = |of: Vec<usize>, number: &dyn Fn(usize) -> f64| {
        of.into_iter()
            .min_by(|a, b| number(*a).total_cmp(&number(*b)))
    };
    let saving: Vec<usize> = forms.iter().copied().filter(|i| saved(i) > 0).collect();
    let knows_all = (forms.iter().map(|i| &rows[*i]))
        .chain(forms.iter().filter_map(|i| Some(&rows[rows[*i].rival?])))
        .all(|row| row.divergence().is_some());
    let off = |row: &Row| match row.divergence().filter(|_| knows_all) {
        Some(divergence) => divergence,
        None => row.ln_ratio(),
    };
    let over_rival = |i: usize| match (&rows[i].to_rival, rows[i].rival) {
        (Some(_), Some(rival)) if knows_all => Some(off(&rows[i]) - off(&rows[rival])),
        (paired, _) => paired.as_ref().map(|paired| paired.ln_ratio),
    };
    let contested: Vec<usize> = (saving.iter().copied())
        .filter(|i| over_rival(*i).is_some())
        .collect();
    least(contested, &|i| over_rival(i).unwrap_or(f64::INFINITY))
        .or_else(|| least(saving, &|i| off(&rows[i])))
        .or_else(|| forms.iter().copied().max_by_key(saved))
}

/// Whole tensors go down: a plain alternative may be that much smaller, as a
/// share of what is saved, and still be called as small.
const AS_SMALL: f64 = 0.05;

/// Bytes that the plain alternative saves beyond what `row` does, where they
/// count.
fn saves_more(source: &Row, row: &Row, rival: &Row) -> Option<i64> {
    let saved = row.saved(source);
    let more = rival.saved(source) - saved;
    (more as f64 > AS_SMALL * saved as f64).then_some(more)
}

fn size_of_rival(source: &Row, row: &Row, rival: &Row) -> String {
    let size = bytes(rival.made.file_bytes as i64);
    match saves_more(source, row, rival) {
        Some(more) => format!("{size}, which saves another {}", bytes(more)),
        None => size,
    }
}

/// What was done to heads, as a doing.
fn deed(made: &FileFacts) -> &'static str {
    match (made.changed, made.dropped) {
        (0, 0) => "storing once what is byte-equal",
        (_, 0) => "sharing heads",
        (0, _) => "dropping heads",
        _ => "sharing and dropping heads",
    }
}

fn words(
    source: &Row,
    row: &Row,
    rival: Option<(&Row, &Paired)>,
    others: &[&Row],
    winner: Winner,
) -> String {
    let saved = row.saved(source);
    let percent = |bytes: i64| {
        let share = bytes as f64 * 100.0 / source.made.file_bytes.max(1) as f64;
        format!("{share:.1}%")
    };
    let perplexity = |row: &Row| format!("{:.2}", row.quality.perplexity);
    let deed = deed(&row.made);
    let mut text = match (winner, rival) {
        (Winner::Source, _) if saved == 0 => format!(
            "{}: nothing is saved, so there is nothing to win.",
            row.label
        ),
        (Winner::Source, _) => format!(
            "{}: the file is {} larger than the source, so there is nothing to win.",
            row.label,
            bytes(-saved)
        ),
        (_, Some((rival, paired))) => {
            let outcome = match winner {
                Winner::Converted if is_exact(row) => {
                    format!("{deed} wins, because it changes nothing")
                }
                Winner::Converted => format!("{deed} wins"),
                Winner::Lower => format!("{} wins over {deed}", rival.label),
                _ => format!("neither {deed} nor the plain alternative is clearly better"),
            };
            format!(
                "{} saved ({}): {outcome}. Perplexity {} ({}) against {} ({}; {}), {:.3} ± {:.3} of \
                 it; the source has {}. {}",
                bytes(saved),
                percent(saved),
                perplexity(row),
                row.label,
                perplexity(rival),
                rival.label,
                size_of_rival(source, row, rival),
                paired.ratio,
                paired.ratio_stderr,
                perplexity(source),
                divergences(row, rival)
            )
        }
        (_, None) => format!(
            "{} saved ({}): {deed} has no plain alternative, for the types below the source's do \
             not make a plain file as small. Perplexity {} ({}); the source has {}.",
            bytes(saved),
            percent(saved),
            perplexity(row),
            row.label,
            perplexity(source)
        ),
    };
    for other in others {
        text += &format!(" {}: {}.", capital(&other.label), perplexity(other));
    }
    if let Some((rival, _)) = rival.filter(|_| winner != Winner::Source) {
        text += &memory((source, row, rival), "the plain alternative");
    }
    text
}

/// How far two files are from the source, in words.
pub(super) fn divergences(row: &Row, rival: &Row) -> String {
    let [ours, theirs] = [row, rival].map(|row| match row.divergence() {
        Some(divergence) => format!("{divergence:.4}"),
        None => "unknown".to_owned(),
    });
    format!("Divergence {ours} against {theirs}.")
}

/// Whether a form predicts what the source does, bit for bit.
fn is_exact(row: &Row) -> bool {
    let against = row.quality.against.as_ref();
    against.is_some_and(|a| a.kl_mean == 0.0 && a.ln_ratio == 0.0)
}

/// What a file and its rival, which is called `name`, save in memory, where that is known.
pub(super) fn memory((source, row, rival): (&Row, &Row, &Row), name: &str) -> String {
    let pss = |row: &Row| row.speed.weights_pss_bytes.map(|bytes| bytes as i64);
    let Some(((source, row), rival)) = pss(source).zip(pss(row)).zip(pss(rival)) else {
        return String::new();
    };
    let change = |bytes: i64| match bytes {
        b if b < 0 => format!("{} more", self::bytes(-b)),
        b => format!("{} less", self::bytes(b)),
    };
    format!(
        " In memory, the weights take {} than the source's, those of {name} {}.",
        change(source - row),
        change(source - rival)
    )
}

/// What all outcomes together say.
pub fn summary(rows: &[Row], verdicts: &[Verdict]) -> String {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for verdict in verdicts.iter().filter(|v| v.winner != Winner::Source) {
        let row = &rows[verdict.row];
        let outcome = (verdict.winner, deed(&row.made), is_exact(row));
        let ratio = verdict.ratio.map(|ratio| ratio.to_string());
        let known = outcomes.iter_mut().find(|known| known.what == outcome);
        match known {
            Some(known) => known.ratios.extend(ratio),
            None => outcomes.push(Outcome {
                what: outcome,
                ratios: ratio.into_iter().collect(),
            }),
        }
    }
    let smaller = verdicts.iter().any(|verdict| {
        let row = &rows[verdict.row];
        let rival = row.rival.map(|rival| &rows[rival]);
        rival.is_some_and(|rival| saves_more(&rows[0], row, rival).is_some())
    });
    let sizes = match smaller {
        true => "with plain files as small or smaller",
        false => "at equal bytes",
    };
    match &outcomes[..] {
        [] => "No conversion saves anything on this model: keep the source.".to_owned(),
        [only] if only.what.0 != Winner::Neither => {
            let saves_everywhere = verdicts.iter().all(|v| v.winner != Winner::Source);
            only.everywhere(sizes, saves_everywhere)
        }
        all => {
            let parts: Vec<String> = all.iter().map(Outcome::at_its_ratios).collect();
            format!("On this model, {sizes}, {}.", parts.join("; "))
        }
    }
}

/// What came out at some ratios.
struct Outcome {
    /// Who won; what the conversion did; whether that changes nothing.
    what: (Winner, &'static str, bool),
    ratios: Vec<String>,
}

/// What plain alternatives are, as a doing.
const LOWERING: &str = "storing part of the tensors at lower types";

impl Outcome {
    /// When all ratios that save anything came out alike, with a winner or without a plain
    /// alternative; `sizes` says how large that was.
    fn everywhere(&self, sizes: &str, saves_everywhere: bool) -> String {
        let everywhere = match saves_everywhere {
            true => "at every ratio that was measured",
            false => "wherever anything is saved",
        };
        match self.what {
            (Winner::Converted, deed, true) => {
                format!("On this model {deed} wins, and costs nothing.")
            }
            (Winner::Converted, deed, false) => {
                format!("On this model, {sizes}, {deed} is better than {LOWERING}, {everywhere}.")
            }
            (Winner::Lower, deed, _) => {
                format!("On this model, {sizes}, {LOWERING} is better than {deed}, {everywhere}.")
            }
            (_, deed, _) => format!(
                "On this model there was nothing to compare {deed} with: the types below the \
                 source's do not make a plain file as small."
            ),
        }
    }

    fn at_its_ratios(&self) -> String {
        let ratios = self.ratios.join(", ");
        match self.what {
            (Winner::Converted, deed, true) => format!("{deed} costs nothing at ratio {ratios}"),
            (Winner::Converted, deed, false) => format!("{deed} is better at ratio {ratios}"),
            (Winner::Lower, deed, _) => {
                format!("{LOWERING} is better than {deed} at ratio {ratios}")
            }
            (Winner::Alone, deed, _) => {
                format!("there was nothing to compare {deed} with at ratio {ratios}")
            }
            (_, deed, _) => {
                format!("neither {deed} nor {LOWERING} is clearly better at ratio {ratios}")
            }
        }
    }
}

/// A size that people can read.
pub(super) fn bytes(n: i64) -> String {
    format!("{} bytes", grouped(n.unsigned_abs()))
}

pub(super) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}
