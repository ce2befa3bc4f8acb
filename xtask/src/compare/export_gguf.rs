//! A model folder exported as a GGUF file.

use anyhow::Result;
use serde_json::json;

use super::form::{Form, words};
use super::sides::{Ours, Theirs, text};
use super::{Check, Plan};

/// Exports what was imported; the package `gguf` lists the file, transformers opens it, and so do
/// we.
pub(super) fn check(ours: &Ours<'_>, theirs: &mut Theirs, plan: &Plan) -> Result<Check> {
    let scratch = ours.scratch("export-gguf")?;
    let (folder, file) = (scratch.join("model"), scratch.join("model.gguf"));
    ours.import(&folder)?;
    Ours { model: &folder, ..*ours }.export("gguf", &file)?;
    let listed = theirs.ask(&json!({"do": "gguf", "path": text(&file)?}))?;
    let form = Form::hold(ours, theirs, plan, &file)?;
    let figures = json!({
        "tensors": listed["tensors"], "types": listed["types"], "other_keys": listed["other_keys"],
    });
    form.check("export, GGUF", words(&listed["problems"])?, &figures)
}
