//! Chat templates: a model's own (`tokenizer.chat_template`, which is Jinja), or
//! one of those that llama.cpp knows by name.

use headshare_runtime::chat::{BuiltinTemplate, BuiltinTemplateError};
use jiff::ZonedDateTime;
use minijinja::value::Value;
use minijinja::{Error, context};

use super::jinja::Jinja;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nobody in the conversation: what the model is told before it.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that templates know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One thing said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What.
    pub content: String,
}

impl Message {
    /// Makes a message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        let content = content.into();
        Self { role, content }
    }
}

/// Why a conversation could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It is no Jinja, or uses what this program does not know.
    #[error("the chat template cannot be read: {0}")]
    Syntax(#[source] Error),
    /// It fails on this conversation.
    #[error("the chat template fails: {0}")]
    Render(#[source] Error),
    /// llama.cpp's own code fails on this conversation.
    #[error("the chat template fails: {0}")]
    Builtin(#[from] BuiltinTemplateError),
}

/// A chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    maker: Maker,
    takes_system: bool,
}

/// What makes the text of a conversation.
#[derive(Debug)]
enum Maker {
    Jinja {
        jinja: Box<Jinja>,
        bos_token: String,
        eos_token: String,
    },
    Builtin(BuiltinTemplate),
}

impl ChatTemplate {
    /// Reads a template. The tokens are the texts of the model's own, empty
    /// where it has none.
    ///
    /// # Errors
    /// When it cannot be read, or fails on a conversation of one message.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, TemplateError> {
        Self::with_clock(source, bos_token, eos_token, ZonedDateTime::now)
    }

    /// The same for another time than now.
    pub(super) fn with_clock(
        source: &str,
        bos_token: &str,
        eos_token: &str,
        now: impl Fn() -> ZonedDateTime + Send + Sync + 'static,
    ) -> Result<Self, TemplateError> {
        let maker = Maker::Jinja {
            jinja: Box::new(Jinja::new(source, now).map_err(TemplateError::Syntax)?),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
        };
        maker.render(&[Message::new(Role::User, "Hello")])?;
        Ok(Self::of(maker))
    }

    /// The template that llama.cpp knows by this name, if it knows one.
    pub fn builtin(name: &str) -> Option<Self> {
        BuiltinTemplate::named(name).map(|template| Self::of(Maker::Builtin(template)))
    }

    fn of(maker: Maker) -> Self {
        let mark = "a system message";
        let messages = [
            Message::new(Role::System, mark),
            Message::new(Role::User, "Hello"),
        ];
        let takes_system = maker
            .render(&messages)
            .is_ok_and(|text| text.contains(mark));
        Self {
            maker,
            takes_system,
        }
    }

    /// The text of a conversation, up to where the model's answer begins.
    ///
    /// Where the template refuses or drops a system message, its text goes in
    /// front of the first message of the user.
    ///
    /// # Errors
    /// When the template fails on it.
    pub fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        match messages {
            [system, user, rest @ ..]
                if system.role == Role::System && user.role == Role::User && !self.takes_system =>
            {
                let content = format!("{}\n\n{}", system.content, user.content);
                let mut merged = vec![Message::new(Role::User, content)];
                merged.extend_from_slice(rest);
                self.maker.render(&merged)
            }
            _ => self.maker.render(messages),
        }
    }

    /// What the template itself makes of a conversation.
    #[cfg(test)]
    pub(super) fn render_as_is(&self, messages: &[Message]) -> Result<String, TemplateError> {
        self.maker.render(messages)
    }
}

impl Maker {
    fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        match self {
            Self::Builtin(template) => {
                let said = |message: &Message| (message.role.as_str(), message.content.clone());
                Ok(template.render(messages.iter().map(said))?)
            }
            Self::Jinja {
                jinja,
                bos_token,
                eos_token,
            } => {
                let said = |message: &Message| context! { role => message.role.as_str(), content => message.content.as_str() };
                let messages: Vec<Value> = messages.iter().map(said).collect();
                let render = |nothing: Value| {
                    jinja.render(context! {
                        messages => messages.clone(),
                        add_generation_prompt => true,
                        bos_token => bos_token.as_str(),
                        eos_token => eos_token.as_str(),
                        tools => nothing.clone(),
                        documents => nothing,
                    })
                };
                // `transformers` says by none that there are no tools, llama.cpp
                // by nothing at all, and some templates know only one of them.
                render(Value::from(()))
                    .or_else(|error| render(Value::UNDEFINED).map_err(|_| error))
                    .map_err(TemplateError::Render)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SmolLM2's, shortened to its structure.
    const CHATML: &str = "{% for message in messages %}\
        {% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}\
        {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
        {% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn template(source: &str) -> Result<ChatTemplate, TemplateError> {
        ChatTemplate::new(source, "<s>", "</s>")
    }

    fn conversation() -> Vec<Message> {
        vec![
            Message::new(Role::System, "Be brief."),
            Message::new(Role::User, "Hi <b>& you</b>"),
            Message::new(Role::Assistant, "Hello."),
            Message::new(Role::User, "Bye"),
        ]
    }

    #[test]
    fn chatml_is_rendered_as_expected() {
        let chatml = template(CHATML).unwrap();
        assert_eq!(
            chatml.render(&conversation()).unwrap(),
            "<|im_start|>system\nBe brief.<|im_end|>\n\
             <|im_start|>user\nHi <b>& you</b><|im_end|>\n\
             <|im_start|>assistant\nHello.<|im_end|>\n\
             <|im_start|>user\nBye<|im_end|>\n\
             <|im_start|>assistant\n"
        );
        assert_eq!(
            chatml.render(&conversation()[1..2]).unwrap(),
            "<|im_start|>system\nYou help.<|im_end|>\n\
             <|im_start|>user\nHi <b>& you</b><|im_end|>\n\
             <|im_start|>assistant\n"
        );
    }

    /// What templates in the wild use: line statements on their own lines,
    /// namespaces, Python's methods and slices, loop controls, macros.
    #[test]
    fn the_usual_idioms_work() {
        let source = "{{- bos_token }}
{%- set ns = namespace(found=false) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'].strip() %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = none %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- macro show(message) -%}
    [{{ message.role.upper() }}] {{ message.content | trim }}
{%- endmacro %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message.content.startswith('skip') %}{% continue %}{% endif %}
    {%- if loop.last and system_message is not none and tools is none %}
        {{- '(' ~ system_message ~ ')' }}
        {%- set ns.found = true %}
    {%- endif %}
    {{- show(message) }}{{ eos_token if message.role == 'assistant' }}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}no{% endif %}
{%- if ns.found and add_generation_prompt %}[ASSISTANT]{% endif %}";
        let text = template(source).unwrap().render(&conversation()).unwrap();
        assert_eq!(
            text,
            "<s>[USER] Hi <b>& you</b>[ASSISTANT] Hello.</s>(Be brief.)[USER] Bye[ASSISTANT]"
        );
        let wrong = [Message::new(Role::User, "a"), Message::new(Role::User, "b")];
        let error = template(source).unwrap().render(&wrong).unwrap_err();
        assert!(
            error.to_string().contains("roles must alternate"),
            "{error}"
        );
    }

    #[test]
    fn json_is_pythons() {
        let source = "{{ messages[0] | tojson }} {{ {'b': [1, 2.5, true, none], 'a': {}} | tojson }} \
                      {{ [1, '\u{fc}<'] | tojson(indent=2) }}";
        assert_eq!(
            template(source)
                .unwrap()
                .render(&conversation()[1..2])
                .unwrap(),
            "{\"role\": \"user\", \"content\": \"Hi <b>& you</b>\"} \
             {\"b\": [1, 2.5, true, null], \"a\": {}} [\n  1,\n  \"\u{fc}<\"\n]"
        );
    }

    #[test]
    fn the_date_can_be_asked_for() {
        let text = template("{{ strftime_now('%Y-%m-%d') }}{{ messages[0].content }}")
            .unwrap()
            .render(&conversation()[3..])
            .unwrap();
        let date = text.strip_suffix("Bye").unwrap();
        assert!(date.parse::<jiff::civil::Date>().is_ok(), "{date}");
        let error = template("{{ strftime_now('%~') }}").unwrap_err();
        assert!(matches!(error, TemplateError::Render(_)), "{error}");
    }

    #[test]
    fn generation_marks_change_nothing() {
        let source = "{% for m in messages %}\n{%- generation -%}\n {{ m.content }} \n\
                      {%- endgeneration %}{% endfor %}{{ '{%' }}";
        let text = template(source).unwrap().render(&conversation()[..2]);
        assert_eq!(text.unwrap(), "Be brief.Hi <b>& you</b>{%");
    }

    #[test]
    fn a_system_message_that_is_refused_goes_to_the_user() {
        let dropped = "{% for m in messages if m.role != 'system' %}<{{ m.content }}>{% endfor %}";
        let refused = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}\
                       {% endif %}{% for m in messages %}<{{ m.content }}>{% endfor %}";
        for source in [dropped, refused] {
            let text = template(source).unwrap().render(&conversation()).unwrap();
            assert_eq!(text, "<Be brief.\n\nHi <b>& you</b>><Hello.><Bye>");
        }
    }

    #[test]
    fn bad_templates_are_errors() {
        for source in [
            "{% if %}",
            "{{ 'open",
            "{% for m in messages %}",
            "{% nonsense %}",
        ] {
            let error = template(source).unwrap_err();
            assert!(
                matches!(error, TemplateError::Syntax(_)),
                "{source}: {error}"
            );
        }
        for source in [
            "{{ raise_exception('no') }}",
            "{{ missing() }}",
            "{{ messages.missing.more }}",
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "{% include 'chat' %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        ] {
            assert!(template(source).is_err(), "{source}");
        }
    }
}
