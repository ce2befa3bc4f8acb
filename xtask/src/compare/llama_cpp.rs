//! llama.cpp, with the GGUF file itself and with what we export.

use anyhow::Result;
use serde_json::{Value, json};

use super::greedy::{self, Parting};
use super::sides::{Ours, Theirs};
use super::{Check, Plan};
use crate::bench::answers::{self, Answer, tokens_per_second};
use crate::bench::conversation::Conversation;
use crate::bench::statistics::{median, rounded};

const SCRIPT: &str = "llama_cpp.py";
/// Prompts of which speed is measured.
const PROMPTS: usize = 4;

/// The sides whose speed is measured, as the results call them.
const SIDES: [&str; 3] = ["ours", "llama_cpp", "llama_cpp_float32"];

/// Exports the model; llama.cpp has to open the file and to continue every prompt as we do. Its own
/// way with the file itself, where it rounds activations to 8 bits, is measured beside ours, without
/// a bar.
pub(super) fn check(ours: &Ours<'_>, theirs: &mut Theirs, plan: &Plan) -> Result<Check> {
    let scratch = ours.scratch("llama-cpp")?;
    let exported = scratch.join("model.gguf");
    ours.export("gguf", &exported)?;
    let mut peers = Vec::new();
    let mut greeting = Value::Null;
    for model in [ours.model, &exported] {
        let (peer, said) = theirs.peer(SCRIPT, model, ours.threads)?;
        peers.push(peer);
        greeting = said;
    }
    let mine = ours.generate(&plan.prompts, plan.tokens)?;
    let with_file = answers::theirs(&mut peers[0], &plan.prompts, plan.tokens)?;
    let with_export = answers::theirs(&mut peers[1], &plan.prompts, plan.tokens)?;
    let prompts: Vec<(usize, &str)> = plan.some(plan.prompts.len()).collect();
    let parted = greedy::partings(theirs, &prompts, [&mine, &with_export])?;
    let mismatches = parted.iter().filter(|parting| !parting.is_near_tie()).count();
    let other = other_texts(&mine, &with_file);
    let speeds = speeds(ours, &mut peers, plan)?;
    let medians = speeds.each_ref().map(|speeds| median(speeds));
    let mut summary = vec![format!(
        "llama.cpp opens what we export: {} of {} prompts the same over {} tokens, {mismatches} mismatches \
         (bar: 0, but for near ties); plain decoding: {:.1} tokens/s, llama.cpp {:.1} with the file itself \
         (other text after {other} prompts) and {:.1} with the export",
        plan.prompts.len() - parted.len(),
        plan.prompts.len(),
        plan.tokens,
        medians[0],
        medians[1],
        medians[2],
    )];
    summary.extend(parted.iter().map(|parting| format!("  {}", parting.line())));
    let mut figures = json!({
        "peer": greeting,
        "prompts": plan.prompts.len(), "new_tokens_each": plan.tokens,
        "mismatches": mismatches, "near_ties": parted.len() - mismatches,
        "parted": parted.iter().map(Parting::json).collect::<Vec<_>>(),
        "other_texts_with_the_file": other,
        "alternations": plan.rounds,
        "ratio": rounded(medians[0] / medians[1], 3),
        "ratio_float32": rounded(medians[0] / medians[2], 3),
    });
    for ((side, median), all) in SIDES.iter().zip(medians).zip(&speeds) {
        let all: Vec<f64> = all.iter().map(|&speed| rounded(speed, 2)).collect();
        figures[*side] = json!({"tokens_per_second": rounded(median, 2), "all": all});
    }
    Ok(Check { passed: mismatches == 0, summary: summary.join("\n"), figures })
}

/// Prompts that two sides continue otherwise.
fn other_texts(mine: &[Answer], others: &[Answer]) -> usize {
    mine.iter().zip(others).filter(|(mine, other)| mine.tokens != other.tokens).count()
}

/// Tokens a second of each side in turns, after a turn each to warm up.
fn speeds(ours: &Ours<'_>, peers: &mut [Conversation], plan: &Plan) -> Result<[Vec<f64>; 3]> {
    let prompts: Vec<String> = plan.some(PROMPTS).map(|(_, prompt)| prompt.to_owned()).collect();
    let mut speeds = [const { Vec::new() }; 3];
    for round in 0..=plan.rounds {
        for turn in 0..SIDES.len() {
            let side = (turn + round) % SIDES.len();
            let answers = match side {
                0 => ours.generate(&prompts, plan.tokens)?,
                peer => answers::theirs(&mut peers[peer - 1], &prompts, plan.tokens)?,
            };
            // Round 0 warms up.
            if round > 0 {
                speeds[side].push(tokens_per_second(&answers));
            }
        }
    }
    Ok(speeds)
}
