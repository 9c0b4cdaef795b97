//! Who wins, in numbers and words: sharing, or the plain file of the same size.

use serde::Serialize;

use super::rows::{Form, Row};

/// Who is better at one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Winner {
    /// The converted file.
    Sharing,
    /// The plain file that is as small.
    Lower,
    /// Neither: the difference is within its error.
    Neither,
    /// The source: the converted file is not smaller.
    Source,
}

/// The outcome at one ratio: of the conversions, the one that does best against
/// the plain file of its size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// The ratio.
    pub ratio: f64,
    /// Its row.
    pub row: usize,
    /// Its size.
    pub file_bytes: u64,
    /// What it saves of the source.
    pub saved_bytes: i64,
    /// Who wins.
    pub winner: Winner,
    /// Perplexity over the rival's; null without a rival.
    pub ratio_to_rival: Option<f64>,
    /// The whole outcome in words.
    pub words: String,
}

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
        row.form == Form::Converted && row.ratio == Some(ratio)
    };
    let all: Vec<usize> = (0..rows.len()).collect();
    let forms: Vec<usize> = all.iter().filter(here).copied().collect();
    // By how much each is worse than its rival, or than the source.
    let excess = |i: usize| {
        let rival = rows[i].rival.map_or(0.0, |rival| rows[rival].ln_ratio().0);
        rows[i].ln_ratio().0 - rival
    };
    let best = *forms
        .iter()
        .min_by(|a, b| excess(**a).total_cmp(&excess(**b)))?;
    let (row, saved) = (&rows[best], rows[best].saved(source));
    let rival = row.rival.map(|rival| &rows[rival]);
    let winner = match rival {
        _ if saved <= 0 => Winner::Source,
        None => Winner::Sharing,
        // Whatever the error of the perplexity: one changes nothing.
        Some(rival) if is_exact(row) && !is_exact(rival) => Winner::Sharing,
        Some(rival) => {
            let ((a, a_error), (b, b_error)) = (row.ln_ratio(), rival.ln_ratio());
            // As if the two errors were independent: they are of the same
            // tokens, so this is rather too careful.
            let error = a_error.hypot(b_error);
            match a - b {
                d if d.abs() <= SIGNIFICANT * error => Winner::Neither,
                d if d < 0.0 => Winner::Sharing,
                _ => Winner::Lower,
            }
        }
    };
    let others: Vec<&Row> = forms
        .iter()
        .filter(|i| **i != best)
        .map(|i| &rows[*i])
        .collect();
    Some(Verdict {
        ratio,
        row: best,
        file_bytes: row.made.file_bytes,
        saved_bytes: saved,
        winner,
        ratio_to_rival: rival.map(|rival| row.quality.perplexity / rival.quality.perplexity),
        words: words(source, row, rival, &others, winner),
    })
}

fn words(source: &Row, row: &Row, rival: Option<&Row>, others: &[&Row], winner: Winner) -> String {
    let saved = row.saved(source);
    let percent = |bytes: i64| {
        let share = bytes as f64 * 100.0 / source.made.file_bytes.max(1) as f64;
        format!("{share:.1}%")
    };
    let perplexity = |row: &Row| format!("{:.2}", row.quality.perplexity);
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
        (_, Some(rival)) => {
            let outcome = match winner {
                Winner::Sharing if is_exact(row) => {
                    format!("{} wins, because it changes nothing", row.label)
                }
                Winner::Sharing => format!("{} wins", row.label),
                Winner::Lower => format!("{} wins", rival.label),
                _ => "neither is clearly better".to_owned(),
            };
            format!(
                "{} saved ({}): {outcome}. Perplexity {} ({}) against {} ({}); the source has {}.",
                bytes(saved),
                percent(saved),
                perplexity(row),
                row.label,
                perplexity(rival),
                rival.label,
                perplexity(source)
            )
        }
        (_, None) => format!(
            "{} saved ({}): {} stands alone, with perplexity {} where the source has {}; the \
             types below the source's do not make a plain file as small.",
            bytes(saved),
            percent(saved),
            row.label,
            perplexity(row),
            perplexity(source)
        ),
    };
    for other in others {
        text += &format!(" {}: {}.", capital(&other.label), perplexity(other));
    }
    if let Some(rival) = rival.filter(|_| winner != Winner::Source) {
        text += &memory(source, row, rival);
    }
    text
}

/// Whether a form predicts what the source does, bit for bit.
fn is_exact(row: &Row) -> bool {
    let against = row.quality.against.as_ref();
    against.is_some_and(|a| a.kl_mean == 0.0 && a.ln_ratio == 0.0)
}

/// What the two save in memory, where that is known.
fn memory(source: &Row, row: &Row, rival: &Row) -> String {
    let pss = |row: &Row| row.speed.weights_pss_bytes.map(|bytes| bytes as i64);
    let Some(((source, row), rival)) = pss(source).zip(pss(row)).zip(pss(rival)) else {
        return String::new();
    };
    let change = |bytes: i64| match bytes {
        b if b < 0 => format!("{} more", self::bytes(-b)),
        b => format!("{} less", self::bytes(b)),
    };
    format!(
        " In memory, the weights take {} than the source's, the rival's {}.",
        change(source - row),
        change(source - rival)
    )
}

/// What all outcomes together say.
pub fn summary(rows: &[Row], verdicts: &[Verdict]) -> String {
    let contested: Vec<&Verdict> = verdicts
        .iter()
        .filter(|v| v.winner != Winner::Source)
        .collect();
    let of = |winner: Winner| -> Vec<String> {
        let won = contested.iter().filter(|v| v.winner == winner);
        won.map(|v| format!("{}", v.ratio)).collect()
    };
    let (sharing, lower, neither) = (of(Winner::Sharing), of(Winner::Lower), of(Winner::Neither));
    if contested.is_empty() {
        return "No conversion saves anything on this model: keep the source.".to_owned();
    }
    if lower.len() == contested.len() {
        return "On this model, storing part of the tensors one type lower is better than sharing \
                heads, at every size that was measured."
            .to_owned();
    }
    if sharing.len() == contested.len() {
        let lossless = contested.iter().all(|v| is_exact(&rows[v.row]));
        return if lossless {
            "On this model sharing wins, and costs nothing: what is shared is byte-equal."
        } else {
            "On this model, sharing heads is better than storing part of the tensors one type \
             lower, at every size that was measured."
        }
        .to_owned();
    }
    let mut parts = Vec::new();
    for (ratios, outcome) in [
        (sharing, "sharing heads is better"),
        (
            lower,
            "storing part of the tensors one type lower is better",
        ),
        (neither, "neither is clearly better"),
    ] {
        if !ratios.is_empty() {
            parts.push(format!("{outcome} at ratio {}", ratios.join(", ")));
        }
    }
    format!("On this model, at equal bytes, {}.", parts.join("; "))
}

/// A size that people can read.
fn bytes(n: i64) -> String {
    let mut digits = n.unsigned_abs().to_string();
    let mut at = digits.len();
    while at > 3 {
        at -= 3;
        digits.insert(at, ',');
    }
    format!("{digits} bytes")
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}
