//! What is said of a repair.

use crate::repair::{Record, TensorRecord};

/// What `convert` says about a repair.
pub(super) fn render(record: Option<&Record>) -> String {
    let Some(record) = record else {
        return String::new();
    };
    let all = &record.tensors;
    if all.is_empty() {
        return "repaired: nothing, since nothing is shared or dropped\n".to_owned();
    }
    let mean =
        |value: fn(&TensorRecord) -> f64| all.iter().map(value).sum::<f64>() / all.len() as f64;
    format!(
        "repaired: {} of {} tensors refitted, the others are best as they are; {} windows of {} tokens; mean error of what layers add {:.5} -> {:.5}\n",
        all.iter().filter(|t| t.lambda.is_some()).count(),
        all.len(),
        record.windows,
        record.window,
        mean(|t| t.before),
        mean(|t| t.after)
    )
}
