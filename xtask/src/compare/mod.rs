//! `cargo xtask compare`: our reading of a pretrained model beside that of transformers.
//!
//! Both sides read one GGUF file, which transformers dequantises to float32, and what we make of
//! that file for others. Every check is a file here: it asks both sides the same and says whether
//! its bar is passed.

mod export_gguf;
mod export_medusa;
mod families;
mod form;
mod greedy;
mod llama_cpp;
mod loading;
mod logits;
mod prompts;
mod round_trip;
mod scratch;
mod sides;
mod speed;
mod tokenizer;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::bench::peers::Peers;
use crate::bench::results;
use crate::reproduce::build_release;
use crate::setup;
use crate::workspace::Workspace;
use sides::{Ours, Theirs};

/// Options of `cargo xtask compare`.
#[derive(Args)]
pub(crate) struct CompareArguments {
    /// The model's file [default: smollm2, which set-up fetches]
    #[arg(long, value_name = "FILE.gguf")]
    model: Option<PathBuf>,
    /// Ask with other lines and prompts: programming problems, and code cut anywhere
    #[arg(long)]
    held_back: bool,
    /// New tokens of every prompt
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// Lines for the tokenizers
    #[arg(long, default_value_t = 10_000)]
    lines: usize,
    /// Turns of each side where speed is compared, alternately
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Threads of each side [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Run only the checks whose name contains this text, and write no file unless --out is given
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Measure the binaries that were built last, as they are
    #[arg(long)]
    no_build: bool,
    /// The folder for compare-MODEL.json [default: docs/results]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What both sides are asked.
struct Plan {
    prompts: Vec<String>,
    /// New tokens of every prompt.
    tokens: usize,
    /// Lines for the tokenizers, and what they follow from.
    lines: usize,
    seed: u64,
    rounds: usize,
}

impl Plan {
    /// So many of the prompts, spread over all of them, with their places.
    fn some(&self, count: usize) -> impl Iterator<Item = (usize, &str)> {
        let apart = (self.prompts.len() / count).max(1);
        let prompts = self.prompts.iter().map(String::as_str).enumerate();
        prompts.step_by(apart).take(count)
    }
}

/// What came of one comparison.
struct Check {
    passed: bool,
    /// For people.
    summary: String,
    figures: Value,
}

type Measure = fn(&Ours<'_>, &mut Theirs, &Plan) -> Result<Check>;

/// All of them, in the order in which they run, each with its key in the results.
const CHECKS: [(&str, Measure); 10] = [
    ("tokenizer", tokenizer::check),
    ("greedy", greedy::check),
    ("logits", logits::check),
    ("loading", loading::check),
    ("speed", speed::check),
    ("round_trip", round_trip::check),
    ("export_gguf", export_gguf::check),
    ("export_medusa", export_medusa::check),
    ("llama_cpp", llama_cpp::check),
    ("families", families::check),
];

/// Runs `cargo xtask compare`.
pub(crate) fn run(workspace: &Workspace, arguments: &CompareArguments) -> Result<ExitCode> {
    let CompareArguments { tokens, lines, rounds, held_back, .. } = *arguments;
    ensure!(rounds >= 3, "--rounds {rounds}: a median needs at least 3");
    ensure!(tokens > 0 && lines > 0, "--tokens and --lines are at least 1");
    let checks = chosen(arguments.only.as_deref())?;
    let libtorch = setup::ensure(workspace)?;
    if arguments.model.is_none() || held_back {
        setup::ensure_pretrained(workspace)?;
    }
    let [standard, problems] = setup::pretrained_files(workspace);
    let model = arguments.model.as_ref().unwrap_or(&standard);
    ensure!(model.is_file(), "--model {}: there is no such file", model.display());
    if !arguments.no_build {
        for package in ["foretoken-cli", "foretoken-benches"] {
            build_release(workspace, package, &libtorch)?;
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(cores).max(1);
    let ours = Ours { workspace, libtorch: &libtorch, model, threads };
    let mut theirs = Theirs::start(Peers::ensure(workspace)?, model, threads)?;
    let seed = if held_back { 2 } else { 1 };
    let prompts = match held_back {
        true => theirs.held_back_prompts(workspace, &problems, seed)?,
        false => prompts::FIXED.map(str::to_owned).to_vec(),
    };
    let plan = Plan { prompts, tokens, lines, seed, rounds };
    let name = name(model, &standard)?;
    println!("{name}: {}, {threads} threads, float32, greedy", model.display());
    let mut results = json!({
        "comparison": "a pretrained model beside transformers, from the same GGUF file",
        "versions": theirs.greeting["versions"],
        "model": theirs.describe(&name),
        "threads": threads,
        "held_back": held_back,
        "prompts": {"count": plan.prompts.len(), "of": prompts::named(held_back), "seed": seed},
    });
    let mut passed = true;
    for (key, measure) in checks {
        let mut check = measure(&ours, &mut theirs, &plan)?;
        println!("{}{}", check.summary, if check.passed { "" } else { "  ← misses the bar" });
        passed &= check.passed;
        check.figures["passed"] = json!(check.passed);
        results[key] = check.figures;
    }
    if arguments.out.is_some() || arguments.only.is_none() {
        let folder = arguments.out.clone().unwrap_or_else(|| workspace.root().join("docs/results"));
        let suffix = if held_back { "-held-back" } else { "" };
        results::write(workspace, &folder.join(format!("compare-{name}{suffix}.json")), results)?;
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The checks whose name contains a text.
fn chosen(only: Option<&str>) -> Result<Vec<(&'static str, Measure)>> {
    let has = |name: &str| only.is_none_or(|text| name.contains(text));
    let checks: Vec<(&str, Measure)> = CHECKS.into_iter().filter(|(name, _)| has(name)).collect();
    let names = || CHECKS.map(|(name, _)| name).join(", ");
    ensure!(!checks.is_empty(), "--only {}: there are {}", only.unwrap_or_default(), names());
    Ok(checks)
}

/// What a model is called in the results: a file that is named as set-up's own is the same model.
fn name(model: &Path, standard: &Path) -> Result<String> {
    if model.file_name() == standard.file_name() {
        return Ok("smollm2".to_owned());
    }
    let stem = model.file_stem().and_then(|stem| stem.to_str());
    let stem = stem.with_context(|| format!("{}: a name that is not UTF-8", model.display()))?;
    Ok(stem.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_set_ups_model_keeps_its_name() -> Result<()> {
        let standard = Path::new("/home/models/SmolLM2-135M.gguf");
        assert_eq!(name(Path::new("/tmp/SmolLM2-135M.gguf"), standard)?, "smollm2");
        assert_eq!(name(Path::new("/tmp/Other-1B.Q4_0.gguf"), standard)?, "other-1b.q4_0");
        Ok(())
    }

    #[test]
    fn checks_are_chosen_by_a_part_of_their_name() -> Result<()> {
        assert_eq!(chosen(None)?.len(), CHECKS.len());
        let names: Vec<&str> = chosen(Some("export"))?.iter().map(|&(name, _)| name).collect();
        assert_eq!(names, ["export_gguf", "export_medusa"]);
        let error = chosen(Some("exprot")).err().map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.contains("exprot") && text.contains("round_trip")));
        Ok(())
    }

    #[test]
    fn some_prompts_are_spread_over_all() {
        let prompts = ["a", "b", "c", "d", "e", "f", "g"].map(str::to_owned).to_vec();
        let plan = Plan { prompts, tokens: 1, lines: 1, seed: 1, rounds: 3 };
        assert_eq!(plan.some(3).collect::<Vec<_>>(), [(0, "a"), (2, "c"), (4, "e")]);
        assert_eq!(plan.some(9).count(), 7);
    }
}
