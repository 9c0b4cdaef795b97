//! `analyze attention`: how alike heads attend, and whether those with like
//! weights do.

use std::path::PathBuf;

use headshare_jobs::{AnalyzeAttention, Error};
use headshare_runtime::log;

use super::picture::PictureArgs;
use super::summaries::render_summaries;
use crate::analyze::attention::Attention;
use crate::cli::Exit;
use crate::cli::output::Output;
use crate::cli::plan::parse_ratio;
use crate::cli::stdio;
use crate::cli::values::match_functions;
use crate::matching::MatchFunction;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// A GGUF file, plain or converted.
    file: PathBuf,
    /// The text that the model reads; - reads standard input.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens in each window.
    #[arg(short, long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=131_072))]
    ctx: u32,
    /// Number of windows to average over, from the beginning of the text.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    windows: u32,
    /// Which parts of two units are compared. Several can be given, with commas
    /// between them; the text is read once.
    #[arg(
        long = "match",
        value_name = "FUNCTION",
        value_parser = match_functions(),
        value_delimiter = ',',
        default_value = "qk"
    )]
    functions: Vec<MatchFunction>,
    /// Also look at the units that would share at this ratio.
    #[arg(long, value_name = "A", default_value_t = 0.3, value_parser = parse_ratio,
        allow_negative_numbers = true)]
    ratio: f64,
    /// Number of threads [default: one for each physical core]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    #[command(flatten)]
    picture: PictureArgs,
    /// Print llama.cpp's log on stderr.
    #[arg(short, long)]
    verbose: bool,
    /// Print the result, with all similarities, as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        log::set_verbose(self.verbose);
        let taken = stdio::taken(self.picture.written().as_slice(), json)?;
        let found = self.job().run(out)?;
        out.result_beside(taken, &found, json, render)?;
        Ok(Exit::Done)
    }

    pub(in crate::cli) fn job(self) -> AnalyzeAttention {
        AnalyzeAttention {
            file: self.file,
            text: self.text,
            ctx: self.ctx,
            windows: self.windows,
            functions: self.functions,
            ratio: self.ratio,
            threads: self.threads,
            picture: self.picture.output,
            force: self.picture.force,
        }
    }
}

fn render(found: &Attention) -> String {
    let mut text = format!(
        "{}\n{}\n{}; the first token gets {:.1}% of the attention\n\n",
        found.path,
        found.model,
        found.windows_text(),
        found.first_token_share * 100.0
    );
    text += "cosine of attention maps\n";
    text += &render_summaries(&[
        ("pairs of layers", found.layer_pairs),
        ("neighbouring layers", found.neighbour_layers),
        ("pairs of heads", found.head_pairs),
        ("heads in one layer", found.heads_within_layers),
        ("units in different layers", found.unit_pairs_across_layers),
    ]);
    for comparison in &found.comparisons {
        let parts: Vec<&str> = comparison.parts.iter().map(|p| p.as_str()).collect();
        text += &format!(
            "\nattention maps against weights ({}), over pairs of units\n{:41} {:>9} {:>9} {:>9}\n",
            parts.join(","),
            "",
            "pairs",
            "Pearson",
            "Spearman"
        );
        let r = |r: Option<f64>| {
            r.map_or_else(
                || "none".to_owned(),
                |r| {
                    // Adding 0 turns -0 into 0.
                    format!("{:.3}", (r * 1000.0).round() / 1000.0 + 0.0)
                },
            )
        };
        for (name, c) in [
            ("all pairs", comparison.all),
            ("in different layers", comparison.across_layers),
            (
                "in different layers, without first token",
                comparison.across_layers_without_first_token,
            ),
            (
                "in different layers, by size of the score",
                comparison.across_layers_by_size,
            ),
            ("within each two layers", comparison.within_pairs_of_layers),
            (
                "within each two layers, by size",
                comparison.within_pairs_of_layers_by_size,
            ),
        ] {
            text += &format!(
                "{name:41} {:9} {:>9} {:>9}\n",
                c.pairs,
                r(c.pearson),
                r(c.spearman)
            );
        }
        if let Some(m) = &comparison.matched {
            text += &format!(
                "the {} matches of Algorithm 1 at ratio {}, mean cosine of their attention maps\n",
                m.n, m.ratio
            );
            for (name, value) in [
                ("of unit and match", m.mean),
                ("any unit of the match's layer instead", m.blind_in_layer),
                ("any earlier unit instead", m.blind),
                ("the earlier unit most like it instead", m.best),
            ] {
                text += &format!("  {name:39} {value:9.3}\n");
            }
            text += &format!(
                "  {:39} {:8.0}%\n",
                "earlier units that attend less like it",
                m.rank * 100.0
            );
        }
    }
    text
}
