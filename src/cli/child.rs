//! Processes of this program that work for another one of it: how they end with
//! it, and how a mistake that one of them finds is told.

use std::io;

use super::Exit;

/// A mistake that a child found, with its hint and exit status.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct ChildError {
    pub(super) message: String,
    pub(super) hint: Option<String>,
    pub(super) exit: Exit,
}

/// Ends this process when its stdin closes, to which the parent holds the other
/// end and writes nothing: so it ends however the parent does.
pub(super) fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        headshare_stitch::end_process(Exit::Failed as i32);
    });
}
