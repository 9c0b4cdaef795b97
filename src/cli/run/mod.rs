//! `run`: generates text with llama.cpp, once or in a chat.

mod args;
mod escapes;
mod input;
mod once;
mod stream;
mod talk;

use std::io::{self, Write};

use headshare_jobs::{Error, Generate};

pub(super) use args::Args;

use super::Exit;
use crate::process::output::Output;
use crate::render::perf::Perf;

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        self.check_stdin()?;
        let perf = if self.chat {
            let chat = talk::Chat::new(&self)?;
            self.begin(out);
            chat.talk(out)?
        } else {
            let job = self.job()?;
            self.begin(out);
            Perf::of_text(once::generate(&job, self.json, out)?)
        };
        if self.perf {
            // Asked for, so -q does not silence it.
            let _ = writeln!(io::stderr(), "{}", perf.lines());
        }
        Ok(Exit::Done)
    }

    /// What is to be done before a model is loaded.
    fn begin(&self, out: &Output) {
        self.gpu().remark(out);
        self.log.begin();
    }

    /// What is done without a chat.
    ///
    /// # Errors
    /// When a file with a prompt or a grammar cannot be read, or an escape is wrong.
    pub(super) fn job(&self) -> Result<Generate, Error> {
        Ok(Generate {
            setup: self.setup(),
            prompt: self.prompt()?.unwrap_or_default(),
            n_predict: self.n_predict(),
            stops: self.stops()?,
            sampling: self.sampling()?,
        })
    }
}
