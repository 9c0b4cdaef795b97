//! What `convert --quantize` adds to its arguments.

use std::path::{Path, PathBuf};

use headshare_jobs::{Error, Quantization, With};

use super::plan::parse_ratio;
use super::repair::RepairArgs;
use super::stdio;
use super::values::needed;
use crate::quantize::Settings;
use crate::quantize::types::Wanted;

/// Which types tensors get.
#[derive(Debug, clap::Args)]
pub(super) struct TypeArgs {
    /// Quantize the model to one of llama-quantize's mixtures, such as q4_K_M or
    /// q4_0, or to a type of ggml, such as mxfp4.
    #[arg(long, value_name = "TYPE")]
    quantize: Option<String>,
    /// The type of the tensors whose names contain a match of a regular expression,
    /// such as 'ffn_down=q6_K', in lower case. Can be given several times; the first match counts.
    #[arg(long, value_name = "PATTERN=TYPE", requires = "quantize", value_parser = tensor_type)]
    tensor_type: Vec<(String, String)>,
    /// Give all tensors the same type, as far as their rows allow.
    #[arg(long, requires = "quantize")]
    pure: bool,
}

impl TypeArgs {
    /// The types that are wanted, if any are.
    pub(super) fn wanted(self) -> Option<Wanted> {
        Some(Wanted {
            to: self.quantize?,
            pure: self.pure,
            overrides: self.tensor_type,
            untie: false,
        })
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct QuantizeArgs {
    #[command(flatten)]
    types: TypeArgs,
    /// The text (UTF-8) to fit weights to. --fit measures with it and needs it; of a --plan without
    /// --quantize, what shares or is dropped is repaired with it, too; --baseline llm-pruner takes its gradients from it.
    /// Standard input is read for -, and `self` is what the model writes itself. Without a text
    /// and --imatrix weights are rounded.
    #[arg(long, value_name = "TEXT", requires = "reader")]
    calibrate: Option<PathBuf>,
    /// Round with this importance matrix, which llama-imatrix has written (GGUF),
    /// instead of fitting. Mixtures are the same with and without one.
    #[arg(
        long,
        value_name = "FILE",
        requires = "quantize",
        conflicts_with_all = ["repair", "calibrate"]
    )]
    imatrix: Option<PathBuf>,
    /// Write an importance matrix of the calibration text to this file, which
    /// llama-quantize and --imatrix read. A dry run does not.
    #[arg(long, value_name = "FILE", requires = "text", requires = "quantize")]
    save_imatrix: Option<PathBuf>,
    /// Quantize a model that is quantized already, too.
    #[arg(long, requires = "quantize")]
    allow_requantize: bool,
    /// How far weights go towards what makes up for all that was lost before them,
    /// from 0 to 1 [default: for each matrix what is best on held-out windows]
    #[arg(long, value_name = "S", requires = "text", requires = "quantize", value_parser = parse_ratio,
        allow_negative_numbers = true)]
    strength: Option<f64>,
    /// The ridge of that fit, relative to the inputs' mean square [default: 0.1]
    #[arg(long, value_name = "R", requires = "text", requires = "quantize", value_parser = positive,
        allow_negative_numbers = true)]
    ridge: Option<f64>,
    /// What is added to the inputs' mean squares before rounding errors are passed
    /// on, relative to their mean; 1 for a token embedding that is the output head, too [default: 0.1]
    #[arg(long, value_name = "D", requires = "text", requires = "quantize", value_parser = positive,
        allow_negative_numbers = true)]
    damping: Option<f64>,
}

fn tensor_type(text: &str) -> Result<(String, String), String> {
    match text.rsplit_once('=') {
        Some((pattern, to)) if !pattern.is_empty() && !to.is_empty() => {
            Ok((lower_case(pattern), to.to_owned()))
        }
        _ => Err("a pattern, = and a type are wanted, such as ffn_down=q6_K".to_owned()),
    }
}

/// `pattern` in lower case, as llama-quantize reads it, but for what has a backslash before it.
fn lower_case(pattern: &str) -> String {
    let mut is_escaped = false;
    let lower = |c: char| {
        let is_class = is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        if is_class { c } else { c.to_ascii_lowercase() }
    };
    pattern.chars().map(lower).collect()
}

fn positive(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    let number = number.filter(|n| *n > 0.0 && n.is_finite());
    number.ok_or_else(|| "a number above 0 is wanted".to_owned())
}

impl QuantizeArgs {
    /// What is to be quantized; `repair` has what may be spent on a text, and `planned` says
    /// that a plan has types, too.
    pub(super) fn job(
        self,
        repair: &RepairArgs,
        planned: bool,
    ) -> Result<Option<Quantization>, Error> {
        let settings = self.settings();
        let wanted = self.types.wanted();
        let by_plan = wanted.is_none();
        if by_plan && !(planned && self.calibrate.is_some()) {
            return Ok(None);
        }
        // A repair has a text already.
        let text = self.calibrate.map(|text| repair.calibrate_on(&text));
        let with = match (text.or_else(|| repair.calibration()), self.imatrix) {
            (Some(calibration), None) => With::Calibration {
                calibration,
                settings,
                save_imatrix: self.save_imatrix,
            },
            (_, Some(file)) => With::Imatrix { file },
            (None, None) => With::Rounding,
        };
        Ok(Some(Quantization {
            wanted,
            with,
            // A plan has decided.
            allow_requantize: self.allow_requantize || by_plan,
        }))
    }

    fn settings(&self) -> Option<Settings> {
        let given = [self.strength, self.ridge, self.damping];
        let usual = Settings::default();
        given.iter().any(Option::is_some).then(|| Settings {
            strength: self.strength.or(usual.strength),
            ridge: self.ridge.unwrap_or(usual.ridge),
            damping: self.damping.unwrap_or(usual.damping),
        })
    }

    /// The text of --calibrate.
    pub(super) fn text(&self) -> Option<&Path> {
        self.calibrate.as_deref()
    }

    /// Whether anything is quantized.
    pub(super) fn is_given(&self) -> bool {
        self.types.quantize.is_some()
    }

    /// Refuses what says more of --quantize, where that is not given.
    pub(super) fn refuse_alone(&self) -> Result<(), Error> {
        let given = [
            ("--tensor-type", !self.types.tensor_type.is_empty()),
            ("--pure", self.types.pure),
            ("--imatrix", self.imatrix.is_some()),
            ("--allow-requantize", self.allow_requantize),
        ];
        needed("--quantize", self.is_given(), given)
    }

    /// Refuses to write an importance matrix to standard output.
    pub(super) fn check_outputs(&self) -> Result<(), Error> {
        match &self.save_imatrix {
            Some(path) => stdio::refuse(path, "--save-imatrix", "the result in words goes there"),
            None => Ok(()),
        }
    }

    /// What may be read from standard input.
    pub(super) fn streams(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.text().map(|path| ("--calibrate", path)).into_iter()
    }
}
