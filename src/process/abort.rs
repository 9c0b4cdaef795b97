//! llama.cpp ends the process where a model is not as it expects and nobody has
//! looked before. Here that is a bad input file, told like any other.

use headshare_jobs::Error;
use headshare_runtime::abort::{self, Abort};

use super::failure;

/// From now on llama.cpp ends this program in the program's own way.
pub(crate) fn install() {
    abort::on_abort(end);
}

fn end(abort: &Abort) -> ! {
    failure::end_process(&(&error(abort)).into())
}

fn error(abort: &Abort) -> Error {
    let models: Vec<_> = abort
        .models
        .iter()
        .map(|m| m.display().to_string())
        .collect();
    let models = match &models[..] {
        [] => "the model".to_owned(),
        models => models.join(" or "),
    };
    let reason = &abort.reason;
    Error::bad_input(format!("{models}: llama.cpp cannot use it: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_names_what_it_can_be_about() {
        let error = |models: &[&str]| {
            let abort = Abort {
                models: models.iter().map(Into::into).collect(),
                reason: "llama-model.cpp:1: GGML_ASSERT(x) failed".to_owned(),
            };
            failure::one_line(&super::error(&abort).to_string())
        };
        let reason = "llama.cpp cannot use it: llama-model.cpp:1: GGML_ASSERT(x) failed";
        assert_eq!(error(&["a.gguf"]), format!("a.gguf: {reason}"));
        assert_eq!(error(&["a", "b\nc"]), format!("a or b\\nc: {reason}"));
        assert_eq!(error(&[]), format!("the model: {reason}"));
    }
}
