//! `--fit`: the best model for the bytes that a device has.

use headshare_jobs::{Budget, Calibration, Error, InMemory, Stats};

use super::calibration::bytes;
use super::values::needed;

#[derive(Debug, clap::Args)]
pub(super) struct FitArgs {
    /// Make the best model that has at most so many bytes, such as 88000000 or 84M (M is
    /// 1,048,576 bytes): types are chosen by what their errors do to the running model, token
    /// embedding and output head included, which are untied where that pays. Units of llama models
    /// are dropped and feed-forward channels cut where that costs less; units of others may use
    /// another unit's weights. All of it is fitted to --calibrate. Without a number, --ram says how
    /// much there is.
    #[arg(long, value_name = "BYTES", num_args = 0..=1, value_parser = bytes,
        requires = "calibrate", allow_negative_numbers = true)]
    fit: Option<Option<u64>>,
    /// The physical memory, such as 512M, that `run` may take with the model that --fit
    /// makes, and with a context of --ctx tokens: weights, KV cache, compute buffers and the
    /// program.
    #[arg(long, value_name = "BYTES", value_parser = bytes, requires = "fit",
        allow_negative_numbers = true)]
    ram: Option<u64>,
    /// Tokens of the context that --ram has to hold, too.
    #[arg(long, value_name = "N", default_value = "2048", requires = "ram",
        value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    ctx: u32,
    #[command(flatten)]
    moves: MovesArgs,
}

/// What may be done to a model that is to fit, and how long that is measured.
#[derive(Debug, clap::Args)]
pub(super) struct MovesArgs {
    /// The types that --fit may give to tensors, separated by commas [default: bf16, f16, q8_0,
    /// q6_K, q5_K, q5_1, q5_0, q4_K, q4_1, q4_0, iq4_nl, iq4_xs, mxfp4, q3_K, q2_K and q2_0]. On x86,
    /// ggml reads prompts more slowly with others than bf16, f16, q8_0, q4_0, iq4_nl and mxfp4, with
    /// q5_1 2.5 times. Older llama.cpp does not know mxfp4 and q2_0. Others that can be named are
    /// encoded by ggml itself, are no smaller than these, or leave little of a model.
    #[arg(
        long = "types",
        value_name = "TYPES",
        requires = "fit",
        value_delimiter = ','
    )]
    allowed: Vec<String>,
    /// The time after which --fit probes no more tensors, such as 90s, 10m or 2h, nor begins to
    /// measure units that could share. What was not probed by then is estimated from what is like
    /// it in the nearest layers; so the outcome depends on how fast the machine is. Encoding all
    /// tensors at all types, which comes first, is not cut short.
    #[arg(long, value_name = "TIME", value_parser = seconds, requires = "fit",
        conflicts_with = "stats")]
    time: Option<u64>,
}

impl MovesArgs {
    /// The types, where some are named.
    pub(super) fn types(&self) -> Option<Vec<String>> {
        (!self.allowed.is_empty()).then(|| self.allowed.clone())
    }

    /// What is given of them, by name.
    pub(super) fn given(&self) -> [(&'static str, bool); 2] {
        [
            ("--types", !self.allowed.is_empty()),
            ("--time", self.time.is_some()),
        ]
    }

    /// Seconds that measuring may take.
    pub(super) fn time(&self) -> Option<u64> {
        self.time
    }
}

impl FitArgs {
    /// Whether a model is to fit into anything.
    pub(super) fn is_given(&self) -> bool {
        self.fit.is_some()
    }

    /// Refuses what says more of --fit, where that is not given.
    pub(super) fn refuse_alone(&self) -> Result<(), Error> {
        let ram = [("--ram", self.ram.is_some())];
        let given = ram.into_iter().chain(self.moves.given());
        needed("--fit", self.is_given(), given)
    }

    /// What the model is to fit into.
    pub(super) fn budget(self, calibration: Calibration, stats: Stats) -> Result<Budget, Error> {
        let bytes = self.fit.flatten();
        if bytes.is_none() && self.ram.is_none() {
            return Err(Error::usage(
                "--fit needs a number of bytes, such as --fit 84M, or --ram",
            ));
        }
        Ok(Budget {
            bytes,
            memory: self.ram.map(|bytes| InMemory {
                bytes,
                ctx: self.ctx,
            }),
            types: self.moves.types(),
            calibration,
            stats,
            time: self.moves.time(),
        })
    }
}

/// A time, with s, m or h for seconds, minutes or hours, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let of_unit = match &text[digits.len()..] {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let number: Option<u64> = digits.parse().ok();
    let time = number
        .zip(of_unit)
        .and_then(|(n, unit)| n.checked_mul(unit));
    time.filter(|time| *time > 0)
        .ok_or_else(|| "a time, such as 90s, 10m or 2h, is wanted".to_owned())
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_have_units() {
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("10m"), Ok(600));
        assert_eq!(seconds("2h"), Ok(7200));
        for wrong in [
            "",
            "10",
            "m",
            "0s",
            "-1m",
            "1.5h",
            "1d",
            "18446744073709551615h",
        ] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
