//! Imported as a model folder, the model stays what it is.

use anyhow::Result;
use serde_json::Value;

use super::form::Form;
use super::sides::{Ours, Theirs};
use super::{Check, Plan};

/// Imports the file; transformers opens the folder as it is, and so do we.
pub(super) fn check(ours: &Ours<'_>, theirs: &mut Theirs, plan: &Plan) -> Result<Check> {
    let scratch = ours.scratch("round-trip")?;
    let folder = scratch.join("model");
    ours.import(&folder)?;
    let form = Form::hold(ours, theirs, plan, &folder)?;
    form.check("round trip, a model folder", Vec::new(), &Value::Null)
}
