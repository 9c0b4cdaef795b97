//! How a job is done by hand.

mod line;

use std::ffi::OsString;
use std::path::PathBuf;

use headshare_convert::quantize::types::Wanted;
use headshare_convert::repair::choose::Units;

use self::line::Line;
use crate::analyze::{AnalyzeAttention, AnalyzeRatios, AnalyzeWeights};
use crate::bench::{Bench, BenchRow, LoadMode, Measure, Measured};
use crate::convert::fit::plan::PlanToFit;
use crate::convert::fit::predictions::AnalyzePredictions;
use crate::convert::{
    Budget, Calibration, Change, Convert, Converted, InMemory, Quantization, Stats, With,
};
use crate::eval::{Choice, ChoiceFigures, ContinuePrompts, Perplexity, PerplexityFigures};
use crate::expand::Expand;
use crate::generate::Generate;
use crate::inspect::Inspect;
use crate::job::Job;
use crate::load::Resolve;
use crate::plan::MakePlan;
use crate::report::MakeReport;
use crate::verify::Verify;
use crate::worker::Work;

impl Job {
    /// The arguments with which the program does this job; `--json` beside them
    /// prints its outcome.
    pub fn command_line(&self) -> Vec<OsString> {
        match self {
            Self::Plan(job) => plan(job),
            Self::PlanToFit(job) => plan_to_fit(job),
            Self::Convert(job) => convert(job),
            Self::Expand(job) => expand(job),
            Self::Verify(job) => verify(job),
            Self::Inspect(job) => inspect(job),
            Self::AnalyzeWeights(job) => analyze_weights(job),
            Self::AnalyzeAttention(job) => analyze_attention(job),
            Self::AnalyzeRatios(job) => analyze_ratios(job),
            Self::AnalyzePredictions(job) => analyze_predictions(job),
            Self::Perplexity(job) => perplexity(job),
            Self::Choice(job) => choice(job),
            Self::ContinuePrompts(job) => continue_prompts(job),
            Self::Generate(job) => generate(job),
            Self::Bench(job) => bench(job),
            Self::Measure(job) => measure(job),
            Self::Report(job) => report(job),
            #[cfg(feature = "train")]
            Self::Train(job) => train(job),
        }
        .0
    }
}

fn plan(job: &MakePlan) -> Line {
    Line::of(&["plan"])
        .value("--match", job.function.as_str())
        .number("--ratio", job.ratio)
        .path("--output", job.output.as_deref())
        .flag("--force", job.force)
        .file(&job.source)
}

fn plan_to_fit(job: &PlanToFit) -> Line {
    let line = Line::of(&["plan"])
        .path("--output", job.output.as_deref())
        .flag("--force", job.force);
    fitting(line, &job.budget).file(&job.source)
}

/// What a model is to fit into.
fn fitting(line: Line, budget: &Budget) -> Line {
    let mut line = match budget.bytes {
        Some(bytes) => line.number("--fit", bytes),
        None => line.flag("--fit", true),
    };
    if let Some(InMemory { bytes, ctx }) = budget.memory {
        line = line.number("--ram", bytes).number("--ctx", ctx);
    }
    line = moves(line, budget.types.as_deref(), budget.time);
    line = line.value("--calibrate", &budget.calibration.text);
    kept(spent(line, &budget.calibration), &budget.stats)
}

/// What may be done to make a model fit, and how many seconds that is measured.
fn moves(line: Line, types: Option<&[String]>, seconds: Option<u64>) -> Line {
    line.option("--types", types.map(|types| types.join(",")))
        .option("--time", seconds.map(|seconds| format!("{seconds}s")))
}

fn convert(job: &Convert) -> Line {
    let mut line = Line::of(&["convert"])
        .path("--output", job.output.as_deref())
        .number("--page-size", job.page_size)
        .flag("--keep-duplicates", job.keep_duplicates)
        .flag("--dry-run", job.dry_run)
        .flag("--force", job.force);
    let has_types = job.quantize.is_some() || job.fit.is_some();
    line = changed(line, &job.change, !has_types);
    if let Some(calibration) = &job.repair {
        line = spent(line.value("--repair", &calibration.text), calibration);
    }
    match (&job.quantize, &job.change) {
        (Some(quantization), _) => line = quantize(line, quantization, job.repair.is_some()),
        // Otherwise it is the text that is quantized with.
        (None, Change::Baseline(removal)) => {
            line = line.path("--calibrate", removal.text.as_deref());
        }
        _ => {}
    }
    if let Some(budget) = &job.fit {
        line = fitting(line, budget);
    }
    line.file(&job.source)
}

/// `lossless` says that a change of nothing has to be asked for.
fn changed(line: Line, change: &Change, lossless: bool) -> Line {
    match change {
        Change::Lossless => line.flag("--lossless", lossless),
        Change::Match { ratio, function } => line
            .number("--ratio", ratio)
            .value("--match", function.as_str()),
        Change::Baseline(removal) => line
            .number("--ratio", removal.ratio)
            .value("--baseline", removal.by.as_str())
            .flag("--silence", removal.silence),
        Change::Measure {
            ratio,
            units,
            stats,
        } => {
            let line = line.number("--ratio", ratio);
            measured(line, *units, stats)
        }
        Change::Plan { file } => line.value("--plan", file),
    }
}

#[cfg(feature = "train")]
fn train(job: &crate::TrainModel) -> Line {
    let settings = &job.settings;
    let method = match job.method {
        crate::Method::Tied => "tied",
        crate::Method::Postshare => "postshare",
    };
    let line = Line::of(&["train", method])
        .value("--output", &job.output)
        .flag("--force", job.force);
    let line = changed(line, &job.change, false);
    let line = match &job.repair {
        Some(repair) => line.value("--repair", &repair.text),
        None => line,
    };
    let line = spent(line.value("--text", &job.text.text), &job.text)
        .number("--held-out", job.held_out)
        .option("--steps", job.steps)
        .number("--rate", settings.schedule.peak)
        .number("--floor", settings.schedule.floor)
        .number("--warmup", settings.schedule.warmup)
        .number("--beta1", settings.adam.beta1)
        .number("--beta2", settings.adam.beta2)
        .number("--weight-decay", settings.adam.weight_decay)
        .number("--clip", settings.clip.unwrap_or(0.0))
        .number("--batch", settings.batch)
        .number("--accumulate", settings.accumulate)
        .number("--language", settings.language)
        .number("--distill", settings.distillation)
        .number("--distill-hidden", settings.hidden)
        .number("--seed", settings.seed)
        .number("--eval-every", settings.evaluate_every)
        .value("--train", &settings.train)
        .value("--device", job.device.name())
        .path("--teacher", job.teacher.as_deref())
        .path("--log", job.log.as_deref())
        .path("--curves", job.curves.as_deref());
    let line = match job.method {
        crate::Method::Tied => line,
        crate::Method::Postshare => line
            .number("--gamma", settings.gamma)
            .flag("--no-share", job.settings.apart),
    };
    let line = match &job.quantize {
        Some(wanted) => types(line, wanted),
        None => line,
    };
    let line = match &job.checkpoint {
        Some(checkpoint) => line
            .value("--checkpoint", &checkpoint.file)
            .number("--checkpoint-every", checkpoint.every)
            .flag("--resume", checkpoint.resume)
            .flag("--allow-changes", checkpoint.resume && checkpoint.changes),
        None => line,
    };
    line.file(&job.source)
}

fn types(line: Line, wanted: &Wanted) -> Line {
    let mut line = line
        .value("--quantize", &wanted.to)
        .flag("--pure", wanted.pure);
    for (pattern, to) in &wanted.overrides {
        line = line.value("--tensor-type", format!("{pattern}={to}"));
    }
    line
}

/// `repaired` says that what may be spent on a text was said already.
fn quantize(line: Line, job: &Quantization, repaired: bool) -> Line {
    let line = match &job.wanted {
        Some(wanted) => types(line, wanted).flag("--allow-requantize", job.allow_requantize),
        None => line,
    };
    match &job.with {
        With::Rounding => line,
        With::Imatrix { file } => line.value("--imatrix", file),
        With::Calibration {
            calibration,
            settings,
            save_imatrix,
        } => {
            let line = line.value("--calibrate", &calibration.text);
            let line = match repaired {
                true => line,
                false => spent(line, calibration),
            };
            line.path("--save-imatrix", save_imatrix.as_deref())
                .option("--strength", settings.and_then(|s| s.strength))
                .option("--ridge", settings.map(|s| s.ridge))
                .option("--damping", settings.map(|s| s.damping))
        }
    }
}

fn measured(line: Line, units: Units, stats: &Stats) -> Line {
    let units = match units {
        Units::Share => "share",
        Units::Drop => "drop",
        Units::Auto => "auto",
    };
    let line = line.value("--choose", "calibrated").value("--units", units);
    kept(line, stats)
}

/// What is done with what was measured.
fn kept(line: Line, stats: &Stats) -> Line {
    match stats {
        Stats::Forget => line,
        Stats::Save(path) => line.value("--save-stats", path),
        Stats::Load(path) => line.value("--stats", path),
    }
}

/// What may be spent on a text.
fn spent(line: Line, calibration: &Calibration) -> Line {
    line.number("--windows", calibration.windows)
        .number("--window", calibration.window)
        .option("--memory", calibration.memory)
}

fn expand(job: &Expand) -> Line {
    Line::of(&["expand"])
        .value("--output", &job.output)
        .flag("--force", job.force)
        .file(&job.file)
}

fn verify(job: &Verify) -> Line {
    Line::of(&["verify"])
        .path("--source", job.source.as_deref())
        .file(&job.file)
}

fn inspect(job: &Inspect) -> Line {
    Line::of(&["inspect"]).file(&job.file)
}

fn analyze_weights(job: &AnalyzeWeights) -> Line {
    Line::of(&["analyze", "weights"])
        .value("--match", job.function.as_str())
        .number("--ratio", job.ratio)
        .path("--output", job.picture.as_deref())
        .path("--npy", job.npy.as_deref())
        .flag("--force", job.force)
        .file(&job.file)
}

fn analyze_attention(job: &AnalyzeAttention) -> Line {
    let functions: Vec<_> = job.functions.iter().map(|f| f.as_str()).collect();
    Line::of(&["analyze", "attention"])
        .value("--text", &job.text)
        .number("--ctx", job.ctx)
        .number("--windows", job.windows)
        .value("--match", functions.join(","))
        .number("--ratio", job.ratio)
        .option("--threads", job.threads)
        .path("--output", job.picture.as_deref())
        .flag("--force", job.force)
        .file(&job.file)
}

fn analyze_ratios(job: &AnalyzeRatios) -> Line {
    Line::of(&["analyze", "ratios"])
        .path("--output", job.picture.as_deref())
        .flag("--force", job.force)
        .files(job.files.iter().map(PathBuf::as_path))
}

fn analyze_predictions(job: &AnalyzePredictions) -> Line {
    let line = Line::of(&["analyze", "predictions"])
        .path("--output", job.picture.as_deref())
        .flag("--force", job.force)
        .number("--plans", job.plans)
        .number("--seed", job.seed);
    fitting(line, &job.budget).file(&job.source)
}

fn perplexity(job: &Perplexity) -> Line {
    Line::of(&["eval", "perplexity"])
        .value("--text", &job.text)
        .path("--base", job.base.as_deref())
        .number("--ctx", job.ctx)
        .option("--chunks", job.chunks)
        .number("--batch-size", job.batch_size)
        .resolve(job.resolve)
        .flag("--fast", job.fast)
        .option("--threads", job.threads)
        .file(&job.file)
}

fn choice(job: &Choice) -> Line {
    let mut line = Line::of(&["eval", "choice"]);
    for task in &job.tasks {
        line = line.value("--task", task);
    }
    line.option("--kind", job.kind.map(|kind| kind.name()))
        .option("--limit", job.limit)
        .number("--ctx-size", job.ctx_size)
        .flag("--unbatched", job.unbatched)
        .resolve(job.resolve)
        .flag("--fast", job.fast)
        .option("--threads", job.threads)
        .file(&job.file)
}

fn continue_prompts(job: &ContinuePrompts) -> Line {
    let mut line = Line::of(&["eval", "generate"])
        .value("--task", &job.task)
        .number("--n-predict", job.n_predict);
    for end in &job.until {
        line = line.value("--until", end);
    }
    line.path("--synonyms", job.synonyms.as_deref())
        .option("--limit", job.limit)
        .option("--ctx-size", job.ctx_size)
        .resolve(job.resolve)
        .option("--threads", job.threads)
        .file(&job.file)
}

fn generate(job: &Generate) -> Line {
    let Generate {
        setup, sampling, ..
    } = job;
    let mut line = Line::of(&["run", "--no-escape"]).text("--prompt", &job.prompt);
    line = match job.n_predict {
        Some(n) => line.number("--n-predict", n),
        None => line.number("--n-predict", -1),
    };
    for stop in &job.stops {
        line = line.text("--stop", stop);
    }
    if let Some(grammar) = &sampling.grammar {
        line = line.text("--grammar", grammar);
    }
    line.number("--temp", sampling.temp)
        .number("--top-k", sampling.top_k)
        .number("--typical", sampling.typical_p)
        .number("--top-p", sampling.top_p)
        .number("--min-p", sampling.min_p)
        .number("--repeat-last-n", sampling.penalty_last_n)
        .number("--repeat-penalty", sampling.penalty_repeat)
        .number("--frequency-penalty", sampling.penalty_freq)
        .number("--presence-penalty", sampling.penalty_present)
        .flag("--ignore-eos", sampling.ignore_eos)
        .option("--seed", sampling.seed)
        .resolve(setup.resolve)
        .flag("--keep-pages", setup.keep_pages)
        .option("--ctx-size", setup.ctx_size)
        .number("--batch-size", setup.batch_size)
        .number("--ubatch-size", setup.ubatch_size)
        .option("--threads", setup.threads)
        .option("--threads-batch", setup.threads_batch)
        .file(&setup.file)
}

fn bench(job: &Bench) -> Line {
    let threads = |threads: &Option<u32>| threads.map_or("auto".into(), |n| n.to_string());
    let threads: Vec<String> = job.threads.iter().map(threads).collect();
    let resolve: Vec<&str> = job.resolve.iter().map(|r| r.as_str()).collect();
    Line::of(&["bench"])
        .path("--stock", job.stock.as_deref())
        .number("--n-prompt", job.test.n_prompt)
        .number("--n-gen", job.test.n_gen)
        .number("--batch-size", job.test.n_batch)
        .number("--ubatch-size", job.test.n_ubatch)
        .value("--threads", threads.join(","))
        .number("--busy", job.busy)
        .number("--repetitions", job.repetitions)
        .value("--resolve", resolve.join(","))
        .files(job.files.iter().map(PathBuf::as_path))
}

/// By hand it is a round of a bench, where llama.cpp's own two ways of loading
/// stand beside each other.
fn measure(job: &Measure) -> Line {
    let file = job.file.clone();
    let (stock, files, resolve) = match job.load_mode {
        LoadMode::StockMmap | LoadMode::StockRead => (Some(file), Vec::new(), Resolve::Auto),
        LoadMode::Resolve(resolve) => (None, vec![file], resolve),
    };
    bench(&Bench {
        stock,
        files,
        test: job.test,
        threads: vec![job.threads],
        busy: 0,
        repetitions: 1,
        resolve: vec![resolve],
    })
}

fn report(job: &MakeReport) -> Line {
    let mut line = Line::of(&["report"]);
    if !job.ratios.is_empty() {
        let ratios: Vec<String> = job.ratios.iter().map(f64::to_string).collect();
        line = line.value("--ratios", ratios.join(","));
    }
    if let Some(fit) = &job.fit {
        let sizes: Vec<String> = fit.sizes.iter().map(u64::to_string).collect();
        line = line.value("--fit", sizes.join(","));
        line = moves(line, fit.types.as_deref(), fit.time);
        line = line.value("--calibrate", &fit.calibration.text);
        line = kept(spent(line, &fit.calibration), &fit.stats);
    }
    line = line.value("--text", &job.text);
    for task in &job.tasks {
        line = line.value("--task", task);
    }
    line = line
        .option("--kind", job.kind.map(|kind| kind.name()))
        .flag("--subjects", job.subjects)
        .value("--output", &job.output);
    line = match &job.measured {
        Some(choice) => measured(line, choice.units, &choice.stats),
        None if job.functions.is_empty() && job.repair.is_some() => line.value("--choose", "match"),
        None if job.functions.is_empty() => line,
        None => {
            let functions: Vec<_> = job.functions.iter().map(|f| f.as_str()).collect();
            line.value("--match", functions.join(","))
        }
    };
    if let Some(calibration) = &job.repair {
        line = spent(line.value("--repair", &calibration.text), calibration);
    }
    line.number("--ctx", job.ctx)
        .option("--chunks", job.chunks)
        .option("--limit", job.limit)
        .number("--n-prompt", job.test.n_prompt)
        .number("--n-gen", job.test.n_gen)
        .number("--batch-size", job.test.n_batch)
        .number("--ubatch-size", job.test.n_ubatch)
        .option("--threads", job.threads)
        .number("--repetitions", job.repetitions)
        .flag("--keep", job.keep)
        .file(&job.source)
}

impl Work for Convert {
    type Outcome = Converted;

    const NAME: &'static str = "convert";

    fn command_line(&self) -> Vec<OsString> {
        convert(self).0
    }
}

impl Work for Perplexity {
    type Outcome = PerplexityFigures;

    const NAME: &'static str = "perplexity";

    fn command_line(&self) -> Vec<OsString> {
        perplexity(self).0
    }
}

impl Work for Choice {
    type Outcome = ChoiceFigures;

    const NAME: &'static str = "choice";

    fn command_line(&self) -> Vec<OsString> {
        choice(self).0
    }
}

impl Work for Bench {
    type Outcome = Vec<BenchRow>;

    const NAME: &'static str = "bench";

    const IS_OF_MACHINE: bool = true;

    fn command_line(&self) -> Vec<OsString> {
        bench(self).0
    }
}

impl Work for Measure {
    type Outcome = Measured;

    const NAME: &'static str = "measure";

    const IS_OF_MACHINE: bool = true;

    fn command_line(&self) -> Vec<OsString> {
        measure(self).0
    }

    fn what(&self) -> String {
        self.file.display().to_string()
    }
}
