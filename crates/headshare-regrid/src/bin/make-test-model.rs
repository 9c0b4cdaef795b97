//! Writes GGUF models for tests, benches and the demo.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use headshare_regrid::regrid;
use headshare_testmodels::{
    FileEnd, KeyOrder, ModelSpec, PerLayer, parse_layer_list, self_merge, type_named,
};

#[derive(Parser)]
#[command(about = "Writes GGUF models for tests, benches and the demo")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A model of a given shape with random weights
    Synthetic(Synthetic),
    /// A model whose layers are those of another, in another order
    SelfMerge {
        /// The GGUF file to take the layers from
        source: PathBuf,
        /// The layers, such as 0-19,10-29 (ranges include their end)
        #[arg(long)]
        layers: String,
        /// The file to write
        #[arg(short, long)]
        output: PathBuf,
    },
    /// The same function as another model's, with weights on no grid: for a test of
    /// quantizers where no model that was never quantized is at hand
    Regrid {
        /// The GGUF file to take the function from
        source: PathBuf,
        /// The type of the matrices
        #[arg(long = "type", default_value = "f16",
            value_parser = clap::builder::PossibleValuesParser::new(["f32", "f16"]))]
        weight_type: String,
        /// Decides the rotations and scales
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The file to write
        #[arg(short, long)]
        output: PathBuf,
    },
}

#[derive(Args)]
struct Synthetic {
    /// The shape to start from
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(ModelSpec::PRESETS))]
    preset: String,
    /// The type of the matrices, such as f16, q4_0 or q4_K
    #[arg(long = "type")]
    weight_type: Option<String>,
    /// The type of matrices whose name ends in SUFFIX, such as attn_v.weight=q6_K
    #[arg(long, value_name = "SUFFIX=TYPE")]
    override_type: Vec<String>,
    /// The architecture's name
    #[arg(long)]
    arch: Option<String>,
    /// Layers
    #[arg(long)]
    layers: Option<u32>,
    /// Width of the residual stream
    #[arg(long)]
    embd: Option<u32>,
    /// Query heads: one number, or one for each layer
    #[arg(long, value_delimiter = ',')]
    heads: Vec<u32>,
    /// Key and value heads: one number, or one for each layer
    #[arg(long, value_delimiter = ',')]
    kv_heads: Vec<u32>,
    /// Rows of a query, key or value head
    #[arg(long)]
    head_rows: Option<u32>,
    /// Width of the feed-forward layer
    #[arg(long)]
    ff: Option<u32>,
    /// Tokens in the vocabulary
    #[arg(long)]
    vocab: Option<u32>,
    /// One attn_qkv instead of attn_q, attn_k and attn_v
    #[arg(long)]
    fused: bool,
    /// Biases on query, key and value
    #[arg(long)]
    bias: bool,
    /// No output.weight
    #[arg(long)]
    tied: bool,
    /// How many times to write the stack of layers
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Decides the weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// GGUF version, 2 or 3
    #[arg(long, default_value_t = 3)]
    gguf_version: u32,
    /// Alignment of the tensor data; without it the key is absent
    #[arg(long)]
    alignment: Option<u32>,
    /// Architecture and alignment after the other keys
    #[arg(long)]
    reversed_keys: bool,
    /// Random bytes as padding
    #[arg(long)]
    random_padding: bool,
    /// No padding after the last tensor
    #[arg(long, conflicts_with = "trailing")]
    no_end_padding: bool,
    /// Bytes after the end
    #[arg(long)]
    trailing: Option<u32>,
    /// The file to write
    #[arg(short, long)]
    output: PathBuf,
}

fn main() -> Result<()> {
    let command = Cli::parse().command;
    let output = match &command {
        Command::Synthetic(args) => &args.output,
        Command::SelfMerge { output, .. } | Command::Regrid { output, .. } => output,
    };
    if output.as_os_str() == "-" {
        bail!("-o -: a model is not written as a stream; name a file (./- for one called -)");
    }
    match command {
        Command::Synthetic(args) => args.spec()?.write(&args.output),
        Command::SelfMerge {
            source,
            layers,
            output,
        } => self_merge(&source, &parse_layer_list(&layers)?, &output),
        Command::Regrid {
            source,
            weight_type,
            seed,
            output,
        } => {
            let to = type_named(&weight_type).context("one of the listed types")?;
            let how = regrid(&source, &output, to, seed)?;
            println!("{}: {how}", output.display());
            Ok(())
        }
    }
}

impl Synthetic {
    fn spec(&self) -> Result<ModelSpec> {
        let mut spec = ModelSpec::preset(&self.preset)?;
        let ggml_type =
            |name: &str| type_named(name).with_context(|| format!("{name:?} is no ggml type"));
        let per_layer = |list: &[u32]| match list {
            [one] => PerLayer::All(*one),
            list => PerLayer::Each(list.to_vec()),
        };
        if let Some(name) = &self.weight_type {
            spec.weight_type = ggml_type(name)?;
        }
        for text in &self.override_type {
            let (suffix, name) = text
                .split_once('=')
                .with_context(|| format!("{text:?} is not SUFFIX=TYPE"))?;
            spec.types.push((suffix.to_owned(), ggml_type(name)?));
        }
        if let Some(arch) = &self.arch {
            spec.arch.clone_from(arch);
        }
        for (field, arg) in [
            (&mut spec.n_layer, self.layers),
            (&mut spec.n_embd, self.embd),
            (&mut spec.n_ff, self.ff),
            (&mut spec.n_vocab, self.vocab),
        ] {
            *field = arg.unwrap_or(*field);
        }
        if !self.heads.is_empty() {
            spec.n_head = per_layer(&self.heads);
        }
        if !self.kv_heads.is_empty() {
            spec.n_head_kv = per_layer(&self.kv_heads);
        }
        if self.head_rows.is_some() {
            spec.key_length = self.head_rows;
            spec.value_length = self.head_rows;
        }
        spec.fused |= self.fused;
        spec.qkv_bias |= self.bias;
        spec.tied_output |= self.tied;
        spec.repeat = self.repeat;
        spec.seed = self.seed;
        spec.version = self.gguf_version;
        spec.alignment = self.alignment.or(spec.alignment);
        if self.reversed_keys {
            spec.key_order = KeyOrder::Reversed;
        }
        spec.random_padding = self.random_padding;
        spec.end = match (self.no_end_padding, self.trailing) {
            (true, _) => FileEnd::Unpadded,
            (_, Some(len)) => FileEnd::Trailing(len),
            _ => FileEnd::Padded,
        };
        Ok(spec)
    }
}
