//! The words of the command line for choices that the crates below have types
//! for.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use headshare_jobs::{Error, Resolve};

use crate::baseline::Baseline;
use crate::matching::MatchFunction;
use crate::repair::choose::Units;

/// Refuses what is `given` (by name) and needs the argument `needs`, where that `is_there` not:
/// clap lets it through where something is given that excludes `needs`.
pub(super) fn needed(
    needs: &str,
    is_there: bool,
    given: impl IntoIterator<Item = (&'static str, bool)>,
) -> Result<(), Error> {
    match given.into_iter().find(|(_, given)| *given && !is_there) {
        Some((name, _)) => Err(Error::usage(format!("{name} needs {needs}"))),
        None => Ok(()),
    }
}

/// The match functions, by their names in plans.
pub(super) fn match_functions() -> impl TypedValueParser<Value = MatchFunction> {
    let help = |function| match function {
        MatchFunction::Qk => "Query and key rows",
        MatchFunction::Q => "Query rows only",
        MatchFunction::K => "Key rows only",
        MatchFunction::V => "Value rows only",
        MatchFunction::Qkv => "Query, key and value rows",
        MatchFunction::Separate => "Query, key and value rows, each matched and shared separately",
    };
    let values = MatchFunction::ALL.map(|f| PossibleValue::new(f.as_str()).help(help(f)));
    PossibleValuesParser::new(values).map(|name| name.parse().expect("one of the listed names"))
}

/// Baselines by name.
pub(super) fn baselines() -> impl TypedValueParser<Value = Baseline> {
    let help = |baseline| match baseline {
        Baseline::Magnitude => "Units with the smallest weights",
        Baseline::LlmPruner => {
            "Units whose weights the loss depends on least (LLM-Pruner's first-order Taylor importance); needs --calibrate or --repair"
        }
    };
    let values = Baseline::ALL.map(|b| PossibleValue::new(b.as_str()).help(help(b)));
    PossibleValuesParser::new(values).map(|name| {
        let found = Baseline::ALL.into_iter().find(|b| b.as_str() == name);
        found.expect("one of the listed names")
    })
}

const UNITS: [(Units, &str, &str); 3] = [
    (Units::Share, "share", "They use another unit's weights"),
    (
        Units::Drop,
        "drop",
        "They are dropped: removed from the model (llama models only)",
    ),
    (
        Units::Auto,
        "auto",
        "For each unit, whichever costs less quality for the bytes that it saves",
    ),
];

/// What may become of units.
pub(super) fn units() -> impl TypedValueParser<Value = Units> {
    let values = UNITS.map(|(_, name, help)| PossibleValue::new(name).help(help));
    PossibleValuesParser::new(values).map(|name| {
        let found = UNITS.iter().find(|(_, known, _)| *known == name);
        found.expect("one of the listed names").0
    })
}

/// How shared blocks may be brought into memory, by their names in JSON.
pub(super) fn resolve() -> impl TypedValueParser<Value = Resolve> {
    let help = |resolve| match resolve {
        Resolve::Auto => "The best way that this file and machine allow",
        Resolve::Fold => "Once, in the layouts that llama.cpp repacks weights to",
        Resolve::Map => "Once, mapped from the file",
        Resolve::Expand => "From a temporary copy of the whole model; this saves no memory",
    };
    let values = Resolve::ALL.map(|r| PossibleValue::new(r.as_str()).help(help(r)));
    PossibleValuesParser::new(values).map(|name| {
        let found = Resolve::ALL.into_iter().find(|r| r.as_str() == name);
        found.expect("one of the listed names")
    })
}
