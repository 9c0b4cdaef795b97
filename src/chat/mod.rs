//! Talking with a model: its own chat template renders the conversation, and
//! the context evaluates only what it does not hold already.

mod python_json;
mod session;
mod template;

pub use session::{Answer, ChatError, Question, Session};
pub use template::{ChatTemplate, Message, Role, TemplateError};
