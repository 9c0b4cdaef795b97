//! How close a model's continuations come to references; the work is in
//! [`headshare_eval::eval::generate`].

use std::path::PathBuf;
use std::time::Instant;

use headshare_convert::input::text;
use headshare_eval::eval::bleu::Bleu;
use headshare_eval::eval::generate::{Params, Prompt, generate};
use headshare_eval::eval::meteor::Synonyms;
use headshare_eval::eval::task_file::task_name;
use headshare_runtime::{Context, ContextParams};
use serde::{Deserialize, Serialize};

use super::subject::{MeasuredFile, Subject};
use crate::context::in_positions;
use crate::error::Context as _;
use crate::load::Resolve;
use crate::text::read_input;
use crate::{Advice, Error, Ui, Unit};

/// Tokens that are generated for a prompt when nothing is said.
const N_PREDICT: u32 = 128;

/// Has a model go on from prompts, greedily, and compares that with references.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContinuePrompts {
    /// The model, plain or converted.
    #[serde(with = "crate::path")]
    pub file: PathBuf,
    /// Prompts and references: jsonl, or a JSON array.
    #[serde(with = "crate::path")]
    pub task: PathBuf,
    /// Tokens to generate for each prompt, at most.
    pub n_predict: u32,
    /// Texts that end a continuation.
    pub until: Vec<String>,
    /// A word list for METEOR: words of one line mean the same.
    #[serde(with = "crate::path::option")]
    pub synonyms: Option<PathBuf>,
    /// Only the first prompts.
    pub limit: Option<u32>,
    /// Tokens of context; 0 takes what the model was trained with. By default 4096,
    /// or what the model was trained with if that is less.
    pub ctx_size: Option<u32>,
    /// How shared blocks are brought into memory.
    pub resolve: Resolve,
    /// Threads; by default one a physical core, fewer while other programs are
    /// busy.
    pub threads: Option<u32>,
}

/// Continuations, and how close they come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContinuedPrompts {
    /// The model.
    #[serde(flatten)]
    pub measured: MeasuredFile,
    /// The task's name.
    pub task: String,
    /// Corpus BLEU over all of them, as sacreBLEU defines it.
    #[serde(flatten)]
    pub bleu: Bleu,
    /// METEOR, from 0 to 100: the mean over the prompts.
    pub meteor: f64,
    /// How many words METEOR had synonyms for.
    pub synonyms: usize,
    /// Prompts.
    pub n: usize,
    /// Prompts that were longer than the context has room for, and lost their left
    /// end.
    pub truncated: usize,
    /// Tokens that were generated.
    pub tokens: usize,
    /// Time that it took, in ms.
    pub ms: f64,
    /// The continuations, one a prompt.
    pub texts: Vec<String>,
}

impl ContinuePrompts {
    /// With `file` from the prompts of `task`, as it is done when nothing else is
    /// said.
    pub fn new(file: impl Into<PathBuf>, task: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            task: task.into(),
            n_predict: N_PREDICT,
            until: Vec::new(),
            synonyms: None,
            limit: None,
            ctx_size: None,
            resolve: Resolve::Auto,
            threads: None,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// When a file is bad, the context leaves no room for prompts, or the model
    /// fails.
    pub fn run(&self, ui: &dyn Ui) -> Result<ContinuedPrompts, Error> {
        let prompts = Prompt::read(&self.task, self.limit.map(|n| n as usize))?;
        let synonyms = match &self.synonyms {
            Some(path) => Synonyms::parse(&read_input(path, "the synonyms")?),
            None => Synonyms::default(),
        };
        let n_synonyms = synonyms.len();
        let subject = Subject::load(&self.file, self.resolve, false, ui)?;
        let params = ContextParams {
            n_ctx: (self.ctx_size).map(|n_ctx| in_positions(n_ctx, &subject.model)),
            n_threads: self.threads,
            reproducible: true,
            stop: ui.stop(),
            ..ContextParams::default()
        };
        let mut context = Context::new(&subject.model, &params)?;
        context.check_generative()?;
        if self.n_predict >= context.n_ctx() {
            let message = format!(
                "{} tokens to generate leave no room for a prompt in a context of {} tokens",
                self.n_predict,
                context.n_ctx()
            );
            return Err(Error::usage(message).advise(Advice::GenerateLess));
        }
        let started = Instant::now();
        let bar = ui.bar("generate", prompts.len() as u64, Unit::Parts);
        let params = Params {
            n_predict: self.n_predict as usize,
            until: self.until.clone(),
            synonyms,
        };
        let generated = generate(&mut context, &prompts, &params, &mut |done, bleu| {
            bar.set(done as u64);
            bar.say(&format!("[{done}/{}] BLEU {:.2}", prompts.len(), bleu.bleu));
        });
        drop(bar);
        let generated =
            generated.about(|| format!("{} on {}", self.file.display(), text::name(&self.task)))?;
        if generated.truncated > 0 {
            ui.warning(&format!(
                "{} prompts were longer than the context leaves room for, and lost their left end",
                generated.truncated
            ));
        }
        Ok(ContinuedPrompts {
            measured: subject.measured(),
            task: task_name(&self.task),
            bleu: generated.bleu,
            meteor: generated.meteor,
            synonyms: n_synonyms,
            n: prompts.len(),
            truncated: generated.truncated,
            tokens: generated.n_tokens,
            ms: started.elapsed().as_secs_f64() * 1000.0,
            texts: generated.texts,
        })
    }
}
