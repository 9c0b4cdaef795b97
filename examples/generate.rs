//! Has a model, plain or converted, go on from a prompt:
//! `cargo run --release --example generate -- MODEL PROMPT`.

use std::io::{self, Write as _};

use headshare_gguf::jobs::{Error, Generate, Ui};

/// Shows the text as it comes, and nothing else.
struct Text;

impl Ui for Text {
    fn text(&self, piece: &str) -> io::Result<bool> {
        let mut stdout = io::stdout();
        write!(stdout, "{piece}")?;
        stdout.flush()?;
        Ok(true)
    }
}

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompt] = &args[..] else {
        return Err(Error::usage("MODEL PROMPT are needed"));
    };
    let mut generate = Generate::new(model, prompt.as_str());
    generate.n_predict = Some(32);
    generate.sampling.temp = 0.0;
    let done = generate.run(&Text)?;
    println!("\n{:.1} tokens/s", done.decode_tps);
    Ok(())
}
