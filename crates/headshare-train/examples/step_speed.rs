//! Measures a training step: tokens a second, and the share of the machine's f32
//! matrix products that it reaches, as 6 x parameters x tokens / time (what a forward
//! and a backward pass multiply; computing layers again is not counted).
//!
//! `cargo run --release -p headshare-train --example step_speed -- MODEL.gguf
//! [WINDOWS] [TOKENS OF A WINDOW] [STEPS] [LAYERS THAT KEEP THEIR ACTIVATIONS]`

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use headshare_convert::convert::variant::Variant;
use headshare_convert::input::ModelFile;
use headshare_train::loss::{Objective, add_gradients, predicted};
use headshare_train::{AdamOptions, Model, Train, Trained, Windows, speed};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("which model?")?;
    let mut number = |default| {
        args.next()
            .map_or(Ok(default), |text| text.parse::<usize>())
    };
    let (count, length, steps, kept) = (number(4)?, number(512)?, number(3)?, number(0)?);
    let rate = speed::products(8)?;
    println!("products: {:.1} GFLOP/s", rate / 1e9);

    let file = ModelFile::open(Path::new(&path))?;
    let mut model = Model::load(&Variant::unchanged(&file), &[], &Device::Cpu)?;
    model.keep_layers(kept);
    let bytes = kept * model.layer_bytes(count * length);
    println!("{kept} layers keep {:.2} GB", bytes as f64 / 1e9);
    let mut trained = Trained::new(&model, Train::All, 0)?;
    let sums = trained.sums(&model);
    let vocabulary = model.vocabulary();
    let tokens = (0..count * length).map(|i| (i * 7919 % vocabulary) as u32);
    let windows = Windows::new(tokens.collect(), length)?;
    let objective = Objective {
        language: 1.0,
        distillation: None,
    };
    let tokens = (count * length) as f64;
    let work = speed::work(trained.count(), count * length);
    for step in 1..=steps {
        let start = Instant::now();
        sums.clear();
        let weight = 1.0 / predicted(&windows) as f32;
        let losses = add_gradients(&model, &windows, &objective, weight, &sums)?;
        let gradients = start.elapsed();
        let optimiser = (AdamOptions::default(), 1e-5, step as u64);
        trained.step(&mut model, &sums, optimiser, Some(1.0))?;
        let time = start.elapsed().as_secs_f64();
        println!(
            "step {step}: {time:.2} s ({:.2} s without AdamW), {:.0} tokens/s, {:.1} GFLOP/s, {:.0}% of products, loss {:.4}, peak {:.2} GB",
            gradients.as_secs_f64(),
            tokens / time,
            work / time / 1e9,
            100.0 * work / time / rate,
            losses.total(&objective),
            peak_gigabytes()
        );
    }
    Ok(())
}

/// The most memory that this process has had resident; 0 where the system does not say.
fn peak_gigabytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0 / 1e9
}
