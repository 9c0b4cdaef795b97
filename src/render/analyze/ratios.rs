//! What `analyze ratios` says.

use std::collections::BTreeSet;

use crate::analyze::ratios::{Column, Ratios};

/// Which layers share, a column a file and part.
pub(crate) fn render(ratios: &Ratios) -> String {
    let mut text = String::new();
    let mut columns: Vec<Column> = Vec::new();
    for file in &ratios.files {
        for column in file.columns() {
            columns.push(column);
            let number = columns.len();
            let what = columns[number - 1].what;
            text += &format!("({number}) {what}, {}\n", file.title());
        }
    }
    text += "\nlayer";
    for number in 1..=columns.len() {
        text += &format!(" {:>7}", format!("({number})"));
    }
    text.push('\n');
    let shares = columns.iter().flat_map(|column| &column.shares);
    let layers: BTreeSet<u32> = shares.map(|share| share.0).collect();
    for layer in layers {
        text += &format!("{layer:5}");
        for column in &columns {
            let share = column.shares.iter().find(|share| share.0 == layer);
            text += &match share {
                Some((_, share)) => format!(" {:6.1}%", share * 100.0),
                None => format!(" {:>7}", "-"),
            };
        }
        text.push('\n');
    }
    text
}
