//! What can be done about an error, in the words of the command line.

use headshare_jobs::Advice;

/// `advice` in words.
pub(crate) fn words(advice: &Advice) -> String {
    match advice {
        Advice::Overwrite => "--force replaces it".into(),
        Advice::AnotherOutput => "give another path for it".into(),
        Advice::MoreSpace => {
            "free some space, or write to another folder (TMPDIR says where what is temporary goes)"
                .into()
        }
        Advice::MoreSpaceForState { resumes: false } => {
            "free some space or name another file with --checkpoint".into()
        }
        Advice::MoreSpaceForState { resumes: true } => {
            "free some space; --resume goes on from the state that is there".into()
        }
        Advice::MoreMemory => {
            "end other programs, or raise the limit of this process's memory (ulimit -v)".into()
        }
        Advice::RaiseBound(bytes) => format!("--memory {bytes}, or more"),
        Advice::NewFolder { is_file: true } => {
            "it is a file; name a folder that is not there yet: -o DIR".into()
        }
        Advice::NewFolder { is_file: false } => {
            "name a folder that is not there yet: -o DIR".into()
        }
        Advice::Calibrate => {
            "give a text with --calibrate, or an importance matrix with --imatrix".into()
        }
        Advice::AllowRequantize => {
            "quantize the model's F16, BF16 or F32 file; --allow-requantize does it nevertheless"
                .into()
        }
        Advice::LosslessNeedsNoHeads => {
            "convert --lossless needs no knowledge of heads and works for this file".into()
        }
        Advice::LosslessComparesBytes => {
            "convert --lossless compares bytes, not weights, and works for this file".into()
        }
        Advice::ExpandFirst => "turn it back first: headshare-gguf expand FILE -o OUT".into(),
        Advice::StartFromExpanded => {
            "headshare-gguf expand FILE -o PLAIN.gguf gives a plain GGUF to start from".into()
        }
        Advice::Expand => "headshare-gguf expand FILE -o PLAIN.gguf needs no such list".into(),
        Advice::UseNewer => "use a newer headshare-gguf".into(),
        Advice::EditPlainFile => "tools that edit metadata do not know the headshare format: \
                                  edit the source (or what headshare-gguf expand makes of the \
                                  file as it was written) and convert it again"
            .into(),
        Advice::PlanAgain => {
            "make a plan for this file: headshare-gguf plan FILE -o plan.json".into()
        }
        Advice::ShareOnly => "--units share works for every architecture that repair knows".into(),
        Advice::ChooseByMatch => "--choose match does not need it".into(),
        Advice::Damaged => "get the file again, or convert its source again; \
                            headshare-gguf verify FILE lists all that differs"
            .into(),
        Advice::MoreText => {
            "some hundred kilobytes of the text that the model will be used on do best".into()
        }
        Advice::LongerText => "give a longer text".into(),
        Advice::TryModel => "headshare-gguf run shows whether the model works".into(),
        Advice::SmallerWindow(None) => "--ctx makes the windows smaller".into(),
        Advice::SmallerWindow(Some(fits)) => {
            format!("a smaller window fits, such as --ctx {fits}")
        }
        Advice::WindowAtMost(tokens) => format!("make windows smaller: --ctx {tokens}"),
        Advice::CalibrationWindowAtMost(tokens) => {
            format!("make windows smaller: --window {tokens}")
        }
        Advice::MeasureAgain => "leave out --stats: what is needed is measured anew then".into(),
        Advice::TypeFor(tensor) => {
            format!("--tensor-type '{tensor}=TYPE' gives it a type that its rows allow")
        }
        Advice::BuildWith(feature) => {
            format!(
                "cargo build --release --features {feature} makes a program that can, where there is such a device"
            )
        }
        Advice::AsBefore(field) => as_before(field),
        Advice::LowerRate { has_state: false } => "a lower --rate or --clip may help".into(),
        Advice::LowerRate { has_state: true } => "--resume --allow-changes with a lower --rate or \
                                                  --clip goes on from the state"
            .into(),
        Advice::Resume => "the same command with --resume goes on from there".into(),
        Advice::ResumeOrOverwrite => {
            "the same command with --resume goes on from there, and with --force begins anew".into()
        }
        Advice::MoreDamping => {
            "more --damping helps, unless the weights or inputs are absurd".into()
        }
        Advice::OneText => "give --repair and --calibrate the same text".into(),
        Advice::SameModel => "the reference must be the same model in another form: \
                              unconverted, or with weights of another type"
            .into(),
        Advice::LargerContext(tokens) => format!(
            "a larger context: --ctx-size {tokens} or more, as far as the model has positions"
        ),
        Advice::GiveContext => "give the item a context".into(),
        Advice::AnotherContinuation => "give the item another continuation".into(),
        Advice::GoodCopy => "the file's weights are broken: is there a good copy of it?".into(),
        Advice::MeasureSomething => "give one of them a number of tokens: -p 512, -n 128".into(),
        Advice::GenerateLess => {
            "generate less, or make the context larger (-c) if the model has positions".into()
        }
        Advice::GivePrompt => "give it something to go on from: -p \"Once upon a time\"".into(),
        Advice::LargerContextOrShorterPrompt => {
            "-c TOKENS makes the context larger, or shorten the prompt".into()
        }
        Advice::SamplingParameter(name) => format!("{} sets it", sampling_flag(name)),
        Advice::Words(words) => words.clone(),
    }
}

/// What to do where a state is of a run with another `field`.
fn as_before(field: &str) -> String {
    if field.contains(".quantize") {
        return "--quantize, --pure and --tensor-type as before go on from there; without --resume, a \
                run begins anew"
            .into();
    }
    let name = field.rsplit('.').next().unwrap_or(field);
    let (flag, changes) = match name {
        "peak" => ("--rate", true),
        "floor" | "warmup" | "steps" | "clip" | "beta1" | "beta2" => ("", true),
        "weight_decay" => ("--weight-decay", true),
        "evaluate_every" => ("--eval-every", true),
        "distillation" => ("--distill", false),
        "hidden" => ("--distill-hidden", false),
        "apart" => ("--no-share", false),
        "held_out" => ("--held-out", false),
        "method" => return "train tied and train postshare each have states of their own".into(),
        "plan" | "choice" => {
            return "what is shared has to be chosen as before: --plan, --ratio, --match, --units, \
                    --repair and its text"
                .into();
        }
        "start" => {
            return "the repair has to be as before: its text, --windows, --window, --memory and \
                    the number of threads"
                .into();
        }
        _ => ("", false),
    };
    let flag = match flag {
        "" => format!("--{name}"),
        flag => flag.to_owned(),
    };
    let changes = match changes {
        true => ", or --allow-changes",
        false => "",
    };
    format!("{flag} as before goes on from there{changes}; without --resume, a run begins anew")
}

/// The flag of a sampling parameter that llama.cpp calls `name`.
fn sampling_flag(name: &str) -> String {
    let flag = match name {
        "typical_p" => "typical",
        "penalty_repeat" => "repeat-penalty",
        "penalty_freq" => "frequency-penalty",
        "penalty_present" => "presence-penalty",
        other => return format!("--{}", other.replace('_', "-")),
    };
    format!("--{flag}")
}
