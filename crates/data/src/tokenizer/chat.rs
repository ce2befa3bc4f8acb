//! Prompts made of chats, by the template that comes with a model.

use std::io;

use minijinja::value::{Kwargs, Rest, Value, from_args};
use minijinja::{Environment, ErrorKind, State, filters};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;

use super::file::one_line;
use crate::{Error, Result};

/// What the template is called in messages about it.
const NAME: &str = "chat_template";

/// Bytes of a template. The longest real ones have some 20 thousand.
const MOST_SOURCE: usize = 1 << 20;

/// Steps of the template engine: over a second of them. A message takes some fifty.
const MOST_STEPS: u64 = 10_000_000;

/// Bytes of a prompt: more than any model's context.
const MOST_OUTPUT: usize = 1 << 24;

/// Characters up to which a filter may fill a text.
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
            bos_token: self.bos_token.as_deref(),
            eos_token: self.eos_token.as_deref(),
        };
        let environment = environment();
        let template = environment
            .template_from_named_str(NAME, &self.source)
            .map_err(|error| failed(&error))?;
        let mut output = Output::default();
        let rendered = template.render_captured_to(names, &mut output).map(drop);
        if output.overflowed {
            let problem = format!("it writes more than {MOST_OUTPUT} bytes");
            return Err(Error::ChatTemplate { problem });
        }
        rendered.map_err(|error| failed(&error))?;
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
    if width.and_then(|width| u64::try_from(width).ok()).is_some_and(|width| width > MOST_WIDTH) {
        return Err(too_wide());
    }
    Value::from_function(filters::indent).call(state, &arguments)
}

/// As [`indent`].
#[allow(clippy::needless_pass_by_value)] // the form that filters have
fn format(state: &State<'_, '_>, arguments: Rest<Value>) -> Result<Value, minijinja::Error> {
    check_widths(arguments.first())?;
    Value::from_function(filters::format).call(state, &arguments)
}

/// Python's methods, of which one fills up texts.
fn method(
    state: &State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, minijinja::Error> {
    if name == "format" {
        check_widths(Some(value))?;
    }
    unknown_method_callback(state, value, name, arguments)
}

/// Refuses a text that says how others are written where it asks for more than [`MOST_WIDTH`]
/// characters of one, or leaves it to another how many it asks for.
fn check_widths(text: Option<&Value>) -> Result<(), minijinja::Error> {
    let text = text.and_then(Value::as_str).unwrap_or_default();
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit());
    let digits = MOST_WIDTH.to_string().len();
    match text.contains("%*") || numbers.any(|number| number.len() > digits) {
        true => Err(too_wide()),
        false => Ok(()),
    }
}

fn too_wide() -> minijinja::Error {
    let problem = format!("it fills up a text to more than {MOST_WIDTH} characters");
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
