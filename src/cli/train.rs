//! `train`: a model learns to share its heads, or to do without.

use std::path::PathBuf;

use headshare_jobs::{Change, Checkpoint, Error, Method, TrainModel, TrainOn};
use headshare_train::{Schedule, Settings, Train};

use super::Exit;
use super::plan::{MatchArgs, parse_ratio};
use super::quantize::TypeArgs;
use super::repair::RepairArgs;
use super::stdio;
use crate::process::output::Output;
use crate::render::train::render;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) method: Way,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Way {
    /// Share first: what is shared is one parameter, and the model learns to do with it.
    Tied(Box<Options>),
    /// Share last: pairs of heads are pulled together while the model is trained (the
    /// paper's PostShare).
    Postshare(Box<Pulled>),
}

/// What `--repair` is for where nothing is repaired.
const CHOSEN: &str = "Choose the pairs by measuring on this text (UTF-8), instead of by --match; \
                      nothing is refitted";

/// What is spent on a text that is also trained on.
const WINDOW: &str = "Tokens in each window, 8 to 65536, in training as in repair and quantizing";
const WINDOWS: &str = "Number of windows of the text that repair and quantizing read, 2 to 256; \
                       training reads all of it";
const MEMORY: &str = "The most memory to use, in bytes or such as 8G, by default half of what the \
                      machine has or its limits allow. Training on the CPU that has more computes \
                      less twice";

#[derive(Debug, clap::Args)]
#[command(mut_arg("repair", |arg| arg.help(CHOSEN).long_help(CHOSEN)))]
// Units that are measured are shared in the end, and nothing else becomes of them.
#[command(mut_arg("units", |arg| arg.hide(true)), mut_arg("choose", |arg| arg.hide(true)))]
pub(super) struct Pulled {
    /// What the distance between paired heads counts beside the other losses.
    #[arg(long, value_name = "GAMMA", default_value_t = 0.5,
        value_parser = weight, allow_negative_numbers = true)]
    gamma: f32,
    /// Leave the pairs apart in the end, to see what training alone has done.
    #[arg(long)]
    no_share: bool,
    #[command(flatten)]
    options: Options,
}

/// The model is trained in F32. Quantized tensors then get the types that they
/// had, fitted to the same text, or others. With --train scales or norms their codes stay,
/// and the file computes what was trained.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("text").args(["repair", "on"]).multiple(true))]
#[command(group = clap::ArgGroup::new("fitted").args(["repair", "on"]).multiple(true))]
#[command(group = clap::ArgGroup::new("measured").args(["repair"]))]
#[command(group = clap::ArgGroup::new("which").args(["ratio", "plan"]).required(true))]
#[command(mut_arg("window", |arg| arg.help(WINDOW).long_help(WINDOW)))]
#[command(mut_arg("windows", |arg| arg.help(WINDOWS).long_help(WINDOWS)))]
#[command(mut_arg("memory", |arg| arg.help(MEMORY).long_help(MEMORY)))]
pub(super) struct Options {
    /// The model, a plain GGUF file.
    src: PathBuf,
    /// The file to write.
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,
    /// The text to train on (UTF-8), a file.
    #[arg(long = "text", value_name = "TEXT", required = true)]
    on: PathBuf,
    /// Let this share of all units, from 0 to 1, use another unit's weights.
    #[arg(long, value_name = "A", value_parser = parse_ratio, allow_negative_numbers = true)]
    ratio: Option<f64>,
    /// Carry out this plan.
    #[arg(long, value_name = "PLAN.json", conflicts_with = "function")]
    plan: Option<PathBuf>,
    #[command(flatten)]
    matching: MatchArgs,
    #[command(flatten)]
    repair: RepairArgs,
    /// The part of the text, its end, to evaluate on instead of training.
    #[arg(long, value_name = "PART", default_value_t = 0.1,
        value_parser = below_1, allow_negative_numbers = true)]
    held_out: f64,
    /// Steps [default: half a pass over the text]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// The highest learning rate.
    #[arg(long, value_name = "RATE", default_value_t = 5e-5,
        value_parser = not_negative, allow_negative_numbers = true)]
    rate: f64,
    /// The part of it that is left at the end, down along a cosine.
    #[arg(long, value_name = "PART", default_value_t = 0.1,
        value_parser = parse_ratio, allow_negative_numbers = true)]
    floor: f64,
    /// Steps in which the learning rate rises.
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup: u64,
    /// How much AdamW keeps of the mean of gradients in each step.
    #[arg(long, value_name = "B", default_value_t = 0.9,
        value_parser = below_1, allow_negative_numbers = true)]
    beta1: f64,
    /// How much it keeps of the mean of their squares.
    #[arg(long, value_name = "B", default_value_t = 0.95,
        value_parser = below_1, allow_negative_numbers = true)]
    beta2: f64,
    /// The part of each matrix, times the learning rate, that is taken off in each step.
    #[arg(long, value_name = "PART", default_value_t = 0.0,
        value_parser = not_negative, allow_negative_numbers = true)]
    weight_decay: f64,
    /// The largest norm of all gradients together; 0 for any.
    #[arg(long, value_name = "NORM", default_value_t = 1.0,
        value_parser = not_negative, allow_negative_numbers = true)]
    clip: f64,
    /// Windows that are computed at once. Fewer need less memory.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Batches of a step.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    accumulate: u32,
    /// What the loss of a language model counts.
    #[arg(long, value_name = "WEIGHT", default_value_t = 1.0,
        value_parser = weight, allow_negative_numbers = true)]
    language: f32,
    /// What the divergence from the original model counts.
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0,
        value_parser = weight, allow_negative_numbers = true)]
    distill: f32,
    /// What the relative distance from the original model's residual stream counts, after each
    /// layer. The model to learn from has as many layers of the same width then.
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0,
        value_parser = weight, allow_negative_numbers = true)]
    distill_hidden: f32,
    /// The model to learn from by --distill, with the same vocabulary [default: SRC]
    #[arg(long, value_name = "GGUF")]
    teacher: Option<PathBuf>,
    /// What is trained: all, attention, norms, scales (the scales in front of the codes of
    /// quantized tensors, and all vectors), or lora:RANK.
    #[arg(long, value_name = "WHAT", default_value = "all",
        value_parser = |text: &str| text.parse::<Train>().map(|train| train.to_string()))]
    train: String,
    /// What the model is trained on: cpu, or cuda or metal in programs that are built with these
    /// features.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    device: TrainOn,
    /// Decides the order of the windows.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Evaluate on what is held out after every so many steps, and after the last, with heads
    /// shared as they will be; the best weights are taken. 0 for never.
    #[arg(long, value_name = "N", default_value_t = 10)]
    eval_every: u64,
    /// Keep the state of the run in this file (safetensors).
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Write the state after every so many steps, and after the last.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "checkpoint")]
    checkpoint_every: u64,
    /// Go on from the state in the file of --checkpoint; with the same options the result is
    /// the same, byte for byte, as without a break.
    #[arg(long, requires = "checkpoint")]
    resume: bool,
    /// Go on with other steps, learning rates, clipping, options of AdamW or evaluations than
    /// before, such as after a loss that was no number any more.
    #[arg(long, requires = "resume")]
    allow_changes: bool,
    #[command(flatten)]
    types: TypeArgs,
    /// Write the figures of each step to this file, as JSON lines.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Draw the losses of the steps and on what is held out to this file (.svg or .png).
    /// Of a run that goes on, --log has the figures of the steps before.
    #[arg(long, value_name = "PICTURE")]
    curves: Option<PathBuf>,
    /// Replace outputs that exist.
    #[arg(long)]
    force: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number),
        _ => Err("must be a number, not less than 0".to_owned()),
    }
}

fn device(name: &str) -> Result<TrainOn, String> {
    let found = TrainOn::ALL.into_iter().find(|on| on.name() == name);
    found.ok_or_else(|| "there are cpu, cuda and metal".to_owned())
}

fn weight(text: &str) -> Result<f32, String> {
    not_negative(text).map(|number| number as f32)
}

fn below_1(text: &str) -> Result<f64, String> {
    match not_negative(text) {
        Ok(number) if number < 1.0 => Ok(number),
        _ => Err("must be a number, at least 0 and below 1".to_owned()),
    }
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = match &self.method {
            Way::Tied(options) => options.json,
            Way::Postshare(pulled) => pulled.options.json,
        };
        let done = self.job()?.run(out)?;
        out.result(&done, json, render)?;
        Ok(Exit::Done)
    }

    pub(super) fn job(self) -> Result<TrainModel, Error> {
        let (method, gamma, apart, options) = match self.method {
            Way::Tied(options) => (Method::Tied, 0.0, false, *options),
            Way::Postshare(pulled) => (
                Method::Postshare,
                pulled.gamma,
                pulled.no_share,
                pulled.options,
            ),
        };
        stdio::refuse(
            &options.output,
            "-o",
            "a converted file's header is written last",
        )?;
        options.repair.check_outputs()?;
        let plan = options.plan.as_deref().map(|path| ("--plan", path));
        let text = Some(("--text", options.on.as_path()));
        let teacher = options.teacher.as_deref().map(|path| ("--teacher", path));
        stdio::check_inputs(
            plan.into_iter()
                .chain(text)
                .chain(teacher)
                .chain(options.repair.streams()),
        )?;
        let measures =
            (options.repair).measures(options.matching.is_given(), options.plan.is_some())?;
        let repair = options.repair.calibration();
        let change = match (options.ratio, options.plan) {
            (_, Some(file)) => Change::Plan { file },
            (Some(ratio), _) if measures && repair.is_some() => Change::Measure {
                ratio,
                units: options.repair.units(),
                stats: options.repair.stats(),
            },
            (ratio, _) => Change::Match {
                ratio: ratio.unwrap_or_default(),
                function: options.matching.function(),
            },
        };
        let mut settings = Settings {
            train: options.train,
            schedule: Schedule {
                peak: options.rate,
                floor: options.floor,
                warmup: options.warmup,
                steps: 1,
            },
            clip: (options.clip > 0.0).then_some(options.clip as f32),
            batch: options.batch as usize,
            accumulate: options.accumulate as usize,
            language: options.language,
            distillation: options.distill,
            hidden: options.distill_hidden,
            gamma,
            apart,
            evaluate_every: options.eval_every,
            seed: options.seed,
            ..Settings::default()
        };
        settings.adam.beta1 = options.beta1;
        settings.adam.beta2 = options.beta2;
        settings.adam.weight_decay = options.weight_decay;
        let (every, resume) = (options.checkpoint_every, options.resume);
        let changes = options.allow_changes;
        Ok(TrainModel {
            source: options.src,
            output: options.output,
            method,
            change,
            text: options.repair.calibrate_on(&options.on),
            repair,
            held_out: options.held_out,
            settings,
            device: options.device,
            steps: options.steps,
            teacher: options.teacher,
            quantize: options.types.wanted(),
            checkpoint: options.checkpoint.map(|file| Checkpoint {
                file,
                every,
                resume,
                changes,
            }),
            log: options.log,
            curves: options.curves,
            force: options.force,
        })
    }
}
