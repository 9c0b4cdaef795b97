//! Speed: how long a loaded model takes for a prompt and for tokens of its own,
//! and what the figures of several rounds say together.
//!
//! Figures are compared within a round: what slows the machine down for a while
//! slows all down that run meanwhile.

mod busy;
mod figures;
mod speed;

pub use busy::Busy;
pub use figures::Ratio;
pub use speed::{Clock, Elapsed, RandomTokens, SpeedTest, Timed};
