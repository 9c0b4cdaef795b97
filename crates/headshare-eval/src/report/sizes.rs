//! Who wins at a size: the file that was made to fit, or the best that llama.cpp makes in
//! as many bytes.

use super::rows::{Paired, Row, RowKind, Verdict, Winner};
use super::verdict::{between, bytes, capital, divergences, memory};
use super::words::size;

/// What a file that was made to fit is called.
pub fn label(bytes: u64) -> String {
    format!("fit into {}", size(bytes))
}

/// Of llama.cpp's files of at most so many `bytes`, the one that is closest to the source by
/// its divergence, where that is known; else the one with the least perplexity.
pub fn best_rival(rows: &[Row], bytes: u64) -> Option<usize> {
    let here = |row: &Row| row.is_rival() && row.size == Some(bytes);
    let rivals = || (0..rows.len()).filter(|i| here(&rows[*i]));
    let knows_all = rivals().all(|i| rows[i].divergence().is_some());
    let off = |i: &usize| match rows[*i].divergence().filter(|_| knows_all) {
        Some(divergence) => divergence,
        None => rows[*i].ln_ratio(),
    };
    rivals().min_by(|a, b| off(a).total_cmp(&off(b)))
}

/// The outcome at each size, in the order of `rows`, the first of which is the source.
pub fn verdicts(rows: &[Row]) -> Vec<Verdict> {
    let Some(source) = rows.first() else {
        return Vec::new();
    };
    let all = rows.iter().enumerate();
    let fitted = all.filter(|(_, row)| row.form == RowKind::Converted);
    let verdict = |(at, row): (usize, &Row)| {
        let bytes = row.size?;
        let rival = (row.rival)
            .map(|rival| &rows[rival])
            .zip(row.to_rival.as_ref());
        let winner = match rival {
            None => Winner::Alone,
            Some((rival, paired)) => between((row, rival), paired, Winner::Rival),
        };
        let others = rows.iter().enumerate().filter(|(i, other)| {
            other.is_rival() && other.size == row.size && Some(*i) != row.rival
        });
        let others: Vec<&Row> = others.map(|(_, other)| other).collect();
        Some(Verdict {
            ratio: None,
            size: Some(bytes),
            row: at,
            file_bytes: row.made.file_bytes,
            saved_bytes: row.saved(source),
            winner,
            ratio_to_rival: rival.map(|(_, paired)| paired.ratio),
            ratio_to_rival_stderr: rival.map(|(_, paired)| paired.ratio_stderr),
            words: words(source, row, rival, &others, winner),
        })
    };
    fitted.filter_map(verdict).collect()
}

fn words(
    source: &Row,
    row: &Row,
    rival: Option<(&Row, &Paired)>,
    others: &[&Row],
    winner: Winner,
) -> String {
    let perplexity = |row: &Row| format!("{:.2}", row.quality.perplexity);
    let in_all = bytes(row.made.file_bytes as i64);
    let label = capital(&row.label);
    let Some((best, paired)) = rival else {
        return format!(
            "{label}: {in_all}, perplexity {}; the source has {}. Neither plain types nor mixtures \
             of llama.cpp make a file as small.",
            perplexity(row),
            perplexity(source)
        );
    };
    let outcome = match winner {
        Winner::Converted => "fitting wins".to_owned(),
        Winner::Rival => format!("{} wins over fitting", best.label),
        _ => format!("neither fitting nor {} is clearly better", best.label),
    };
    let mut text = format!(
        "{label}: {outcome}. Perplexity {} ({in_all}) against {} ({}; {}), {:.3} ± {:.3} of it; the \
         source has {}. {}",
        perplexity(row),
        perplexity(best),
        best.label,
        bytes(best.made.file_bytes as i64),
        paired.ratio,
        paired.ratio_stderr,
        perplexity(source),
        divergences(row, best)
    );
    for other in others {
        text += &format!(" {}: {}.", capital(&other.label), perplexity(other));
    }
    let is_mixture = |row: &Row| row.form == RowKind::Mixture;
    if !is_mixture(best) && !others.iter().any(|row| is_mixture(row)) {
        text += " No mixture of llama.cpp is as small.";
    }
    text + &memory((source, row, best), &best.label)
}

/// What all outcomes together say.
pub fn summary(verdicts: &[Verdict]) -> String {
    let outcomes = [
        (
            Winner::Converted,
            "fitting is better than the best of llama.cpp's files",
        ),
        (
            Winner::Rival,
            "the best of llama.cpp's files is better than fitting",
        ),
        (
            Winner::Neither,
            "neither fitting nor the best of llama.cpp's files is clearly better",
        ),
        (Winner::Alone, "llama.cpp makes no file as small as fitting"),
    ];
    let at = |winner: Winner| -> Vec<String> {
        let here = verdicts.iter().filter(|verdict| verdict.winner == winner);
        here.filter_map(|verdict| verdict.size).map(size).collect()
    };
    let found = outcomes.map(|(winner, outcome)| (outcome, at(winner)));
    let found: Vec<_> = found.iter().filter(|(_, at)| !at.is_empty()).collect();
    if let [(outcome, _)] = found[..] {
        return format!("On this model, {outcome}, at every size that was measured.");
    }
    let parts = found
        .iter()
        .map(|(outcome, at)| format!("{outcome} at {}", at.join(", ")));
    let parts: Vec<String> = parts.collect();
    format!(
        "On this model, in at most as many bytes, {}.",
        parts.join("; ")
    )
}

/// What a file of llama.cpp's is called whose types `label` tells.
pub fn rival_label(form: RowKind, label: &str) -> String {
    match form {
        RowKind::Imatrix | RowKind::Mixture => format!("{label}, with imatrix"),
        _ => label.to_owned(),
    }
}
