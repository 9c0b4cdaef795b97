//! Jinja as the `transformers` library runs it (jinja2 with its filters, tests
//! and Python's methods), which is what the chat templates of models are
//! written for. `jinja2_tests` holds it to jinja2's own output.
//!
//! What is known to differ, and no known template needs: `none` can be iterated
//! over (it holds nothing) and be compared by size, `%` does not format texts, and
//! a few filters, tests and methods that are not about conversations are missing.

use jiff::ZonedDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::python_json;

/// Steps that a template may take; a template is part of a file that anyone may
/// have written, and must not run for ever.
const MAX_STEPS: u64 = 50_000_000;

/// The name of the only template in an environment.
const NAME: &str = "chat";

/// A template and what it can use.
#[derive(Debug)]
pub(super) struct Jinja(Environment<'static>);

impl Jinja {
    /// Reads a template; `now` is the clock of those that state the date.
    pub fn new(
        source: &str,
        now: impl Fn() -> ZonedDateTime + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_unknown_method_callback(method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| strftime(format, &now()));
        environment.add_filter("tojson", tojson);
        environment.add_test("iterable", is_iterable);
        environment.add_test("sequence", is_sequence);
        environment.add_template_owned(NAME, without_generation_marks(source))?;
        Ok(Self(environment))
    }

    /// The text that it makes of its variables.
    pub fn render(&self, variables: Value) -> Result<String, Error> {
        self.0.get_template(NAME)?.render(variables)
    }
}

/// `{% generation %}` and its end mark what a trainer learns from; as blocks
/// that are always there they change nothing.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let inner = &tag[2..tag.len() - 2];
        let name = inner.trim_start_matches(['-', '+']);
        let name = name.trim_end_matches(['-', '+']).trim();
        match name {
            "generation" => out.push_str(&tag.replacen(name, "with", 1)),
            "endgeneration" => out.push_str(&tag.replacen(name, "endwith", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(invalid(message))
}

fn strftime(format: &str, time: &ZonedDateTime) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, time).map_err(|error| invalid(error.to_string()))
}

/// What Python's `iter` takes: unlike minijinja's own test, no `none`.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// What has a length and an order, for jinja2 texts and mappings, too.
fn is_sequence(value: &Value) -> bool {
    let kind = value.kind();
    value.is_undefined() || matches!(kind, ValueKind::Seq | ValueKind::String | ValueKind::Map)
}

/// `json.dumps` with the arguments that `transformers` passes on.
fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(invalid("an undefined value cannot be written as JSON"));
    }
    let mut style = python_json::Style {
        indent: options.get("indent")?,
        ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ..python_json::Style::default()
    };
    if let Some(separators) = options.get::<Option<Value>>("separators")? {
        let pair: Vec<Value> = separators.try_iter()?.collect();
        let (item, key) = from_args::<(String, String)>(&pair)?;
        style.separators = Some((item, key));
    }
    options.assert_all_used()?;
    let text = python_json::to_string(&value, &style)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

/// Python's methods: those that minijinja-contrib has, and more of `str`.
fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, name, args);
    };
    let parts = |parts: [&str; 3]| Value::from(Tuple::from(parts.map(Value::from)));
    Ok(match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            match text.split_once(separator) {
                Some((before, after)) => parts([before, separator, after]),
                None => parts([text, "", ""]),
            }
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            match text.rsplit_once(separator) {
                Some((before, after)) => parts([before, separator, after]),
                None => parts(["", "", text]),
            }
        }
        "rsplit" => {
            let (separator, most): (&str, Option<i64>) = from_args(args)?;
            if separator.is_empty() {
                return Err(invalid("empty separator"));
            }
            let most = most.and_then(|most| usize::try_from(most).ok());
            let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
            let mut found: Vec<_> = text.rsplitn(most, separator).map(Value::from).collect();
            found.reverse();
            found.into()
        }
        _ => return pycompat::unknown_method_callback(state, value, name, args),
    })
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        Jinja::new(source, ZonedDateTime::now)?.render(context! { tools => Value::from(()) })
    }

    /// Where there is no jinja2 to ask, the faults that there were.
    #[test]
    fn no_tools_are_none() {
        let source = "{{ none is iterable }} {{ tools is iterable and tools | length > 0 }} \
                      {{ undefined_tools | length }} {{ undefined_tools is iterable }} \
                      {{ 'a' is sequence }} {{ {} is sequence }} {{ 1 is sequence }}";
        assert_eq!(
            render(source).unwrap(),
            "False False 0 True True True False"
        );
        assert!(render("{{ tools | length }}").is_err());
    }

    #[test]
    fn texts_have_pythons_methods() {
        for (source, text) in [
            ("{{ 'a-b-c'.rsplit('-', 1) }}", "['a-b', 'c']"),
            ("{{ 'a-b-c'.rsplit('-')[0] }}", "a"),
            ("{{ 'a-b-c'.partition('-')[2] }}", "b-c"),
            ("{{ 'a-b-c'.rpartition('-')[0] }}", "a-b"),
            ("{{ 'abc'.rpartition('-') }}", "('', '', 'abc')"),
            ("{{ 'abc'.removeprefix('a') }}", "bc"),
            ("{{ 'abc'.removesuffix('a') }}", "abc"),
            ("{{ 'a b'.split() }}", "['a', 'b']"),
        ] {
            assert_eq!(render(source).unwrap(), text, "{source}");
        }
        for source in [
            "{{ 'a'.rsplit('') }}",
            "{{ 'a'.nonsense() }}",
            "{{ 1.partition('a') }}",
        ] {
            assert!(render(source).is_err(), "{source}");
        }
    }

    #[test]
    fn json_is_pythons() {
        for (source, text) in [
            (
                "{{ {'b': [1, 2.5, none], 'a': {}} | tojson }}",
                "{\"b\": [1, 2.5, null], \"a\": {}}",
            ),
            (
                "{{ {'b': 1, 'a': []} | tojson(sort_keys=true) }}",
                "{\"a\": [], \"b\": 1}",
            ),
            (
                "{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}",
                "[1,{\"a\":2}]",
            ),
            (
                "{{ [[], [1]] | tojson(indent=1) }}",
                "[\n [],\n [\n  1\n ]\n]",
            ),
            ("{{ '\u{fc}\u{1f600}<' | tojson }}", "\"\u{fc}\u{1f600}<\""),
            (
                "{{ '\u{fc}\u{1f600}<' | tojson(ensure_ascii=true) }}",
                "\"\\u00fc\\ud83d\\ude00<\"",
            ),
        ] {
            assert_eq!(render(source).unwrap(), text, "{source}");
        }
        for source in ["{{ missing | tojson }}", "{{ 1 | tojson(nonsense=1) }}"] {
            assert!(render(source).is_err(), "{source}");
        }
    }
}
