//! The worker itself.

use std::io::{self, BufRead as _};

use anyhow::Context as _;
use headshare_runtime::threads;

use super::said::{self, Said, say, tell};
use crate::json::from_json;
use crate::pool::start_pool;
use crate::{Error, Job, Ui};

/// Does the job that stdin holds and says on stdout what came of it. `end` ends
/// the process at once.
///
/// # Errors
/// When there is no job, or nobody to tell.
pub fn serve(ui: &dyn Ui, end: fn() -> !) -> Result<(), Error> {
    said::begin();
    match work(ui, end) {
        Ok(()) => Ok(()),
        Err(error) if tell(&(&error).into()) => Ok(()),
        Err(error) => Err(error),
    }
}

fn work(ui: &dyn Ui, end: fn() -> !) -> Result<(), Error> {
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    read.context("cannot read the job").map_err(Error::failed)?;
    threads::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        end()
    })
    .map_err(Error::failed)?;
    let job =
        from_json::<Job>(&line).map_err(|error| Error::failed(error).about("this is no job"))?;
    if job.shares_its_work() {
        start_pool()?;
    }
    say(&Said::Done(job.run(ui)?)).map_err(Error::failed)
}
