//! Prompts made of chats, by the template that comes with a model.

use std::io;
use std::iter::once;

use minijinja::value::{Kwargs, Rest, Value, from_args};
use minijinja::{Environment, ErrorKind, State, filters};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;

use super::file::{guarded, one_line};
use crate::{Error, Result};

/// What the template is called in messages about it.
const NAME: &str = "chat_template";

/// Bytes of a template. The longest real ones have some 20 thousand.
const MOST_SOURCE: usize = 1 << 20;

/// Steps of the template engine: over a second of them. A message takes some fifty.
const MOST_STEPS: u64 = 10_000_000;

/// Bytes of a prompt: more than any model's context.
const MOST_OUTPUT: usize = 1 << 24;

/// Characters or values up to which a filter may fill up what it makes.
const MOST_WIDTH: u64 = 999;

/// Blocks and macros within each other.
const MOST_DEPTH: usize = 200;

/// One turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, …
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A Jinja template that makes a prompt of a chat, rendered as `transformers` renders one without
/// tools. Of what today is a template is not told: one that asks has a date of its own.
///
/// A template is a program that comes with a model. Its steps, its depth, what it writes and what
/// it fills up with spaces are bounded. What it keeps to itself is not: one that was made to do harm
/// can double a text until there is no more memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

/// The names that templates use.
#[derive(Serialize)]
struct Names<'a> {
    messages: &'a [Message],
    add_generation_prompt: bool,
    // There are none, which is not the same as undefined.
    tools: Option<()>,
    documents: Option<()>,
    // A template may ask whether these are defined: none at all is not the same as an empty one.
    #[serde(skip_serializing_if = "Option::is_none")]
    bos_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eos_token: Option<&'a str>,
}

/// Takes text up to [`MOST_OUTPUT`].
#[derive(Default)]
struct Output {
    text: Vec<u8>,
    overflowed: bool,
}

impl ChatTemplate {
    /// Checks the template's syntax.
    pub(super) fn new(
        source: &str,
        bos_token: Option<String>,
        eos_token: Option<String>,
    ) -> Result<Self> {
        if source.len() > MOST_SOURCE {
            let problem = format!("it has {} bytes and may have {MOST_SOURCE}", source.len());
            return Err(Error::ChatTemplate { problem });
        }
        let environment = environment();
        environment.template_from_named_str(NAME, source).map_err(|error| failed(&error))?;
        Ok(Self { source: source.to_owned(), bos_token, eos_token })
    }

    /// The prompt for a chat; with `add_generation_prompt`, followed by what stands before the
    /// model's answer.
    ///
    /// The marks of a chat are spelt out in the prompt: encode it with
    /// [`encode_chat`](crate::Tokenizer::encode_chat).
    ///
    /// # Errors
    /// When the template refuses the chat, fails, or goes on for too long.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let names = Names {
            messages,
            add_generation_prompt,
            tools: None,
            documents: None,
            bos_token: self.bos_token.as_deref(),
            eos_token: self.eos_token.as_deref(),
        };
        let environment = environment();
        let template = environment
            .template_from_named_str(NAME, &self.source)
            .map_err(|error| failed(&error))?;
        let mut output = Output::default();
        let rendered = guarded(|| template.render_captured_to(names, &mut output).map(drop));
        if output.overflowed {
            let problem = format!("it writes more than {MOST_OUTPUT} bytes");
            return Err(Error::ChatTemplate { problem });
        }
        rendered.map_err(|problem| Error::ChatTemplate { problem })?;
        String::from_utf8(output.text)
            .map_err(|error| Error::ChatTemplate { problem: error.to_string() })
    }
}

/// Blocks lose the line end after them and the spaces before them, a template loses its last line
/// end, and Python's methods work on strings: all as `transformers` has it.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_keep_trailing_newline(false);
    environment.set_unknown_method_callback(method);
    environment.add_filter("indent", indent);
    environment.add_filter("format", format);
    environment.add_filter("batch", counted(Value::from_function(filters::batch)));
    environment.add_filter("slice", counted(Value::from_function(filters::slice)));
    environment.add_function("raise_exception", raise_exception);
    environment.set_fuel(Some(MOST_STEPS));
    environment.set_recursion_limit(MOST_DEPTH);
    environment
}

/// The engine's filter, which would take any width.
#[allow(clippy::needless_pass_by_value)] // the form that filters have
fn indent(state: &State<'_, '_>, arguments: Rest<Value>) -> Result<Value, minijinja::Error> {
    type Named = (Value, Option<Value>, Option<Value>, Option<Value>, Kwargs);
    let (_, width, _, _, named): Named = from_args(&arguments)?;
    let width = match width {
        Some(width) => Some(width),
        None => named.get("width")?,
    };
    check_width(width.as_ref())?;
    Value::from_function(filters::indent).call(state, &arguments)
}

/// As [`indent`].
#[allow(clippy::needless_pass_by_value)] // the form that filters have
fn format(state: &State<'_, '_>, arguments: Rest<Value>) -> Result<Value, minijinja::Error> {
    let text = arguments.first().and_then(Value::as_str).unwrap_or_default().replace("%%", "");
    match text.contains("%(") {
        // A key may hold what a specification does.
        true => check_widths(once(text.as_str()))?,
        // %-08.3f: what stands before the letter.
        false => check_widths(text.split('%').skip(1).map(|rest| {
            let is_part = |letter: char| letter.is_ascii_digit() || "#- +.".contains(letter);
            rest.split(|letter| !is_part(letter)).next().unwrap_or_default()
        }))?,
    }
    Value::from_function(filters::format).call(state, &arguments)
}

/// One of the engine's filters that make room for as many values as their argument says.
fn counted(
    filter: Value,
) -> impl Fn(&State<'_, '_>, Rest<Value>) -> Result<Value, minijinja::Error> {
    move |state, arguments| {
        check_width(arguments.get(1))?;
        filter.call(state, &arguments)
    }
}

/// Python's methods, one of which fills up texts, and another of which never ends where it looks
/// for nothing.
fn method(
    state: &State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, minijinja::Error> {
    match (name, value.as_str()) {
        ("format", Some(text)) => {
            let text = text.replace("{{", "");
            if [":{", ":}", "["].into_iter().any(|odd| text.contains(odd)) {
                // What is filled with, or a key, may be a brace.
                check_widths(once(text.as_str()))?;
            } else {
                // {key:>8}: what stands behind the colon.
                let fields = text.split('{').skip(1).filter_map(|rest| rest.split('}').next());
                check_widths(fields.filter_map(|field| Some(field.split_once(':')?.1)))?;
            }
        }
        ("count", Some(_)) if arguments.first().and_then(Value::as_str) == Some("") => {
            let problem = "it counts the places of an empty text";
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, problem));
        }
        _ => {}
    }
    unknown_method_callback(state, value, name, arguments)
}

/// Refuses specifications of a format where one has a number above [`MOST_WIDTH`].
fn check_widths<'t>(
    mut specifications: impl Iterator<Item = &'t str>,
) -> Result<(), minijinja::Error> {
    let digits = MOST_WIDTH.to_string().len();
    let is_wide = |specification: &str| {
        specification.split(|letter: char| !letter.is_ascii_digit()).any(|n| n.len() > digits)
    };
    if specifications.any(is_wide) { Err(too_wide()) } else { Ok(()) }
}

/// Refuses a number above [`MOST_WIDTH`].
fn check_width(number: Option<&Value>) -> Result<(), minijinja::Error> {
    let number = number.and_then(|number| u64::try_from(number.clone()).ok());
    if number.is_some_and(|number| number > MOST_WIDTH) { Err(too_wide()) } else { Ok(()) }
}

fn too_wide() -> minijinja::Error {
    let problem = format!("it fills something up to more than {MOST_WIDTH} characters or values");
    minijinja::Error::new(ErrorKind::InvalidOperation, problem)
}

/// How a template refuses a chat.
fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

fn failed(error: &minijinja::Error) -> Error {
    Error::ChatTemplate { problem: one_line(&error.to_string()) }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MOST_OUTPUT - self.text.len() {
            self.overflowed = true;
            return Err(io::Error::other("the prompt is too long"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
