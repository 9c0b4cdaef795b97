//! What can be done about an error, as meanings: who shows it knows how the user
//! asked for the job, and puts it in those words.

use serde::{Deserialize, Serialize};

/// What can be done about an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// The output may be replaced if that is asked for.
    Overwrite,
    /// Another output should be named.
    AnotherOutput,
    /// There is no space for the output where it is to be.
    MoreSpace,
    /// There is no space for the state of a run.
    MoreSpaceForState {
        /// One of an earlier step is there.
        resumes: bool,
    },
    /// Memory ran out: other programs may end, or the limit be raised.
    MoreMemory,
    /// A bound on memory is too small; this many bytes are enough.
    RaiseBound(u64),
    /// The folder of a report should be one that is not there yet.
    NewFolder {
        /// It is a file.
        is_file: bool,
    },
    /// Give a text or an importance matrix to quantize with.
    Calibrate,
    /// Allow quantizing what is quantized already.
    AllowRequantize,
    /// Converting without loss needs no knowledge of heads.
    LosslessNeedsNoHeads,
    /// Converting without loss compares bytes, not weights.
    LosslessComparesBytes,
    /// The file should be turned back into a plain one first.
    ExpandFirst,
    /// Expanding a converted file gives a plain one to start from.
    StartFromExpanded,
    /// Expanding the file works, where this does not.
    Expand,
    /// A newer program reads the file.
    UseNewer,
    /// The header of a converted file was edited: a plain one should be, and then
    /// converted.
    EditPlainFile,
    /// The plan should be made for this file.
    PlanAgain,
    /// Sharing works where dropping does not.
    ShareOnly,
    /// Units can be chosen by their weights instead of by measuring.
    ChooseByMatch,
    /// A file is damaged: `verify` lists all that differs.
    Damaged,
    /// A text of the kind that the model will be used on, of some hundred
    /// kilobytes, does best.
    MoreText,
    /// A longer text is needed.
    LongerText,
    /// Running the model shows whether it works.
    TryModel,
    /// Windows should have fewer tokens; this number is small enough, if known.
    SmallerWindow(Option<u32>),
    /// Windows cannot have more tokens than this.
    WindowAtMost(u32),
    /// Windows of a calibration text cannot have more tokens than this.
    CalibrationWindowAtMost(u32),
    /// What was measured before is of no use here: measure anew.
    MeasureAgain,
    /// The tensor should get a type that its rows allow.
    TypeFor(String),
    /// The program has to be built with this feature.
    BuildWith(String),
    /// The run can go on from its state.
    Resume,
    /// Going on with a run whose state is there, or beginning anew.
    ResumeOrOverwrite,
    /// The run can go on from its state with the setting that it had, by its field.
    AsBefore(String),
    /// Smaller steps may stay finite.
    LowerRate {
        /// There is a state to go on from with them.
        has_state: bool,
    },
    /// More damping makes the sums invertible.
    MoreDamping,
    /// A repair and what weights are fitted to should be one text, read in one way.
    OneText,
    /// The reference has to be the same model in another form.
    SameModel,
    /// The context should have this many tokens or more.
    LargerContext(u64),
    /// The item needs a context.
    GiveContext,
    /// The item needs another continuation.
    AnotherContinuation,
    /// The weights are broken; another copy may be good.
    GoodCopy,
    /// Something should be measured: tokens of a prompt, or tokens to generate.
    MeasureSomething,
    /// Fewer tokens may be generated, or the context made larger.
    GenerateLess,
    /// There should be a text to go on from.
    GivePrompt,
    /// The context should be larger, or the prompt shorter.
    LargerContextOrShorterPrompt,
    /// A sampling parameter should have another value; by llama.cpp's name of it.
    SamplingParameter(String),
    /// In words, where who found the error has put it so already.
    Words(String),
}
