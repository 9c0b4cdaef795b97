//! Makes a model smaller and says what that does to its perplexity:
//! `cargo run --release --example convert -- MODEL OUT RATIO TEXT`.

use headshare_gguf::jobs::{Change, Convert, Error, Perplexity, Quiet};
use headshare_gguf::matching::MatchFunction;

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, output, ratio, text] = &args[..] else {
        return Err(Error::usage("MODEL OUT RATIO TEXT are needed"));
    };
    let ratio = (ratio.parse()).map_err(|_| Error::usage("RATIO is a number from 0 to 1"))?;
    let function = MatchFunction::Qk;
    let change = Change::Match { ratio, function };
    let convert = Convert::new(model, output, change);
    let converted = convert.run(&Quiet)?;
    let (before, after) = (converted.source.bytes, converted.output.bytes);
    println!("{before} -> {after} bytes");

    let against_source = Perplexity {
        base: Some(convert.source),
        ctx: 128,
        ..Perplexity::new(output, text)
    };
    let figures = against_source.run(&Quiet)?;
    println!("perplexity {:.3}", figures.perplexity);
    if let Some(base) = figures.base {
        println!("{:.3} times the source's", base.ratio);
    }
    Ok(())
}
