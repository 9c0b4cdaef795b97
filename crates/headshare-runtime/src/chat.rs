//! The chat templates that llama.cpp knows by name: code of its own for the
//! formats of families of models, without Jinja.

use std::ffi::{CStr, CString, NulError};

use ggml_sys as sys;

/// Why such a template makes no text.
#[derive(Debug, thiserror::Error)]
pub enum BuiltinTemplateError {
    /// llama.cpp takes texts that end at their first NUL.
    #[error("a message holds a NUL character")]
    Nul(#[from] NulError),
    /// The conversation is larger than llama.cpp can count.
    #[error("the conversation is too long for llama.cpp")]
    TooLong,
}

/// A chat template that llama.cpp knows by name.
#[derive(Debug, Clone)]
pub struct BuiltinTemplate(&'static CStr);

impl BuiltinTemplate {
    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        let mut all = all().into_iter();
        all.find(|known| known.to_bytes() == name.as_bytes())
            .map(Self)
    }

    /// The names, in order.
    pub fn names() -> Vec<String> {
        let name = |name: &CStr| name.to_string_lossy().into_owned();
        all().into_iter().map(name).collect()
    }

    /// The text of a conversation (who says what), up to where the model's
    /// answer begins.
    ///
    /// # Errors
    /// When llama.cpp cannot take it.
    pub fn render<R, C>(
        &self,
        messages: impl IntoIterator<Item = (R, C)>,
    ) -> Result<String, BuiltinTemplateError>
    where
        R: Into<Vec<u8>>,
        C: Into<Vec<u8>>,
    {
        let texts = messages
            .into_iter()
            .map(|(role, content)| Ok((CString::new(role)?, CString::new(content)?)))
            .collect::<Result<Vec<_>, NulError>>()?;
        let chat: Vec<_> = texts
            .iter()
            .map(|(role, content)| sys::llama_chat_message {
                role: role.as_ptr(),
                content: content.as_ptr(),
            })
            .collect();
        let apply = |out: &mut [u8]| {
            let len = i32::try_from(out.len()).map_err(|_| BuiltinTemplateError::TooLong)?;
            // SAFETY: the name and the messages are NUL-terminated and live
            // here; at most `len` bytes are written to `out`.
            let n = unsafe {
                sys::llama_chat_apply_template(
                    self.0.as_ptr(),
                    chat.as_ptr(),
                    chat.len(),
                    true,
                    out.as_mut_ptr().cast(),
                    len,
                )
            };
            usize::try_from(n).map_err(|_| BuiltinTemplateError::TooLong)
        };
        let mut text = vec![0; apply(&mut [])?];
        apply(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// The names that llama.cpp knows.
fn all() -> Vec<&'static CStr> {
    let count = |names: &mut [*const std::ffi::c_char]| {
        // SAFETY: at most as many names are written as there is room for.
        let n = unsafe { sys::llama_chat_builtin_templates(names.as_mut_ptr(), names.len()) };
        usize::try_from(n).unwrap_or(0)
    };
    let mut names = vec![std::ptr::null(); count(&mut [])];
    count(&mut names);
    names
        .into_iter()
        .filter(|name| !name.is_null())
        // SAFETY: NUL-terminated strings of a table that llama.cpp never changes.
        .map(|name| unsafe { CStr::from_ptr(name) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_known_by_name() {
        let names = BuiltinTemplate::names();
        for name in ["chatml", "llama2", "gemma", "vicuna"] {
            assert!(names.iter().any(|known| known == name), "{names:?}");
        }
        // No text is taken for a template that looks like it.
        assert!(BuiltinTemplate::named("<|im_start|>").is_none());
        assert!(BuiltinTemplate::named("nonsense").is_none());
        for name in names {
            let template = BuiltinTemplate::named(&name).unwrap();
            let text = template.render([("user", "W\u{fc}rde?")]).unwrap();
            assert!(text.contains("W\u{fc}rde?"), "{name}: {text}");
        }
    }

    #[test]
    fn chatml_is_chatml() {
        let chatml = BuiltinTemplate::named("chatml").unwrap();
        let text = chatml
            .render([("system", "Be brief."), ("user", "Hi"), ("assistant", "")])
            .unwrap();
        assert_eq!(
            text,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
             <|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
        );
        let error = chatml.render([("user", "a\0b")]).unwrap_err();
        assert!(error.to_string().contains("NUL"), "{error}");
    }
}
