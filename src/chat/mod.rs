//! Talking with a model: its own chat template renders the conversation, and
//! the context evaluates only what it does not hold already.

mod jinja;
#[cfg(test)]
mod jinja2_tests;
mod python_json;
mod session;
mod template;

pub use session::{Answer, ChatError, Question, Session};
pub use template::{ChatTemplate, Message, Role, TemplateError};
