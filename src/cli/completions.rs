//! `completions`: what a shell needs to complete this program's arguments.

use headshare_jobs::Error;

use clap::Command;
use clap_complete::Shell;

use super::Exit;
use crate::process::output::Output;

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
    pub(super) fn run(self, out: &Output, program: Command) -> Result<Exit, Error> {
        let name = env!("CARGO_PKG_NAME");
        // clap_complete offers hidden commands, too.
        let commands = program.get_subcommands().filter(|c| !c.is_hide_set());
        let mut shown = Command::new(name)
            .args(program.get_arguments().cloned())
            .subcommands(commands.cloned());
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut shown, name, &mut script);
        out.text(String::from_utf8(script).map_err(Error::failed)?)?;
        Ok(Exit::Done)
    }
}
