//! Small models of each family, as transformers saves them.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::form::{with_problems, words};
use super::logits::MOST_DIFFERENCE;
use super::sides::{Ours, Theirs, text};
use super::{Check, Plan};

/// What they are called in `benches/peers/pretrained.py`, which says what each of them has.
const FAMILIES: [&str; 4] = ["llama3_scaling", "llama_linear", "qwen2", "mistral"];

const PROMPTS: usize = 3;

/// transformers makes models with random weights and saves them; we open these folders, and the
/// GGUF files that we export of them.
pub(super) fn check(ours: &Ours<'_>, theirs: &mut Theirs, plan: &Plan) -> Result<Check> {
    let scratch = ours.scratch("families")?;
    let (mut figures, mut problems) = (json!({}), Vec::new());
    let mut largest: f64 = 0.0;
    for family in FAMILIES {
        let folder = scratch.join(family);
        let path = text(&folder)?.to_owned();
        let made = theirs.ask(&json!({"do": "make", "family": family, "path": path}))?;
        let opened = theirs.ask(&json!({"do": "open", "path": path, "made": true}))?;
        // That it is of another class than the first model is as it should be.
        let amiss = words(&opened["problems"])?.into_iter().filter(|it| !it.starts_with("a "));
        problems.extend(amiss.map(|problem| format!("{family}: transformers: {problem}")));
        let form = Ours { model: &folder, ..*ours };
        let file = ours.file("of-family.safetensors")?;
        let mut rows = Vec::new();
        for (index, prompt) in plan.some(PROMPTS) {
            form.logits(prompt, &file)?;
            let request = json!({"do": "logits", "prompt": prompt, "file": text(&file)?});
            let answer = theirs.ask(&request)?;
            // It says null of other tokens, another shape and of what is not a number.
            let difference = answer["largest_difference"].as_f64();
            largest = largest.max(difference.unwrap_or(f64::INFINITY));
            if difference.is_none_or(|difference| difference > MOST_DIFFERENCE) {
                problems.push(format!("{family}: logits of prompt {index} differ: {answer}"));
            }
            rows.push(json!({"prompt": index, "largest_difference": difference}));
        }
        theirs.ask(&json!({"do": "close"}))?;
        let exported = scratch.join(format!("{family}.gguf"));
        form.export("gguf", &exported)?;
        let again = ours.file("of-export.safetensors")?;
        let last = plan.some(PROMPTS).last().map_or("", |(_, prompt)| prompt);
        Ours { model: &exported, ..*ours }.logits(last, &again)?;
        let read = |path| fs::read(path).context("cannot read what was written");
        let same_bits = read(&file)? == read(&again)?;
        if !same_bits {
            problems.push(format!("{family}: our logits of the exported GGUF file differ"));
        }
        figures[family] = family_figures(&made, &rows, same_bits);
    }
    let summary = format!(
        "families: logits of {} small models of transformers' own differ by {largest:.2e} at most \
         (bar: {MOST_DIFFERENCE})",
        FAMILIES.len()
    );
    figures["bars"] = json!({"most_difference": MOST_DIFFERENCE});
    Ok(Check { passed: problems.is_empty(), summary: with_problems(summary, &problems), figures })
}

fn family_figures(made: &Value, prompts: &[Value], same_bits: bool) -> Value {
    json!({
        "class": made["class"], "dtype": made["dtype"], "files": made["files"],
        "rope": made["rope"], "tied": made["tied"], "prompts": prompts,
        "same_bits_after_export": same_bits,
    })
}
