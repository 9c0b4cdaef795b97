//! `completions`: what a shell needs to complete this program's arguments.

use clap::Command;
use clap_complete::Shell;

use super::Exit;
use super::output::Output;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
bash:  headshare-gguf completions bash > ~/.local/share/bash-completion/completions/headshare-gguf
zsh:   headshare-gguf completions zsh > a folder of $fpath/_headshare-gguf
fish:  headshare-gguf completions fish > ~/.config/fish/completions/headshare-gguf.fish")]
pub(super) struct Args {
    /// The shell.
    shell: Shell,
}

impl Args {
    pub(super) fn run(self, out: &Output, mut program: Command) -> anyhow::Result<Exit> {
        let name = program.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut program, name, &mut script);
        out.text(String::from_utf8(script)?)?;
        Ok(Exit::Done)
    }
}
