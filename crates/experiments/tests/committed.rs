//! The reports in `docs/results` are reports of this version, and the heads in `pretrained` are
//! theirs.

use std::path::Path;

use foretoken_data::file_sha256;
use foretoken_experiments::{EXPERIMENTS, Preset, Recipe, Report, SpeedResults, render};
use serde_json::Value;

#[test]
fn committed_reports_are_read_and_rendered_and_no_output_in_them_differs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/results");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let experiment = name.split('-').next().unwrap_or_default();
        if !is_json || !EXPERIMENTS.contains(&experiment) {
            continue;
        }
        let report = Report::read(&path).unwrap();
        found.push(report.name());
        assert_eq!(name, format!("{}.json", report.name()));
        let rendered = render(&report).unwrap();
        let headline = rendered.markdown.lines().next().unwrap();
        let committed = std::fs::read_to_string(path.with_extension("md")).unwrap();
        assert_eq!(committed.lines().next(), Some(headline), "{name}");
        assert!(path.with_extension("svg").exists());
        for row in &report.decoding {
            assert!(row.identical_outputs, "{name}: {} with k = {}", row.model, row.heads_used);
        }
        for row in SpeedResults::of(&report).unwrap().compact {
            assert_eq!(
                row.mismatches, 0,
                "{name}: compact, {} with k = {}",
                row.model, row.heads_used
            );
        }
    }
    found.sort_unstable();
    assert_eq!(
        found,
        [
            "pretrained-long",
            "pretrained-long-kept-heads",
            "pretrained-quick",
            "pretrained-quick-kept-heads",
            "pretrained-quick-without-bfloat16",
            "speed-long",
            "speed-quick"
        ]
    );
}

/// Tokens a pass that heads of a CPU's half hour, of its hundred minutes and of a GPU have to bring,
/// and how much of that has to become speed.
#[test]
fn the_heads_of_committed_reports_bring_what_they_are_for() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/results");
    for (name, least) in [
        ("pretrained-quick", 1.5),
        ("pretrained-quick-without-bfloat16", 1.5),
        ("pretrained-long", 1.7),
        ("pretrained-long-kept-heads", 1.7),
        ("pretrained-quick-kept-heads", 2.2),
    ] {
        let report = Report::read(&folder.join(format!("{name}.json"))).unwrap();
        let row = report.decoding.iter().find(|row| row.heads_used == 4).unwrap();
        let (tokens, speedup) = (row.tokens_per_forward, row.speedup);
        assert!(tokens >= least, "{name}: {tokens}");
        assert!(speedup > 1.2 && speedup >= 0.7 * tokens, "{name}: {speedup} at {tokens}");
    }
}

#[test]
fn committed_heads_are_those_of_the_committed_report_and_recipe() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let kept = root.join("pretrained/smollm2");
    let text = |name: &str| std::fs::read_to_string(kept.join(name)).unwrap();
    let record: Value = serde_json::from_str(&text("training.json")).unwrap();
    let heads = kept.join("heads.safetensors");
    assert_eq!(record["heads_sha256"], file_sha256(&heads).unwrap());
    assert!(std::fs::metadata(&heads).unwrap().len() <= 25 << 20);

    let results = root.join("docs/results/pretrained-quick-kept-heads.json");
    let report = Report::read(&results).unwrap();
    let (model, trained) = (&report.models[0], &record["trained"]);
    assert_eq!(record["made_by"], "cargo xtask reproduce pretrained --preset full --device cuda");
    assert_eq!(record["corpus_sha256"], report.corpus.sha256);
    assert_eq!(
        (&trained["steps"], &trained["tokens_seen"]),
        (&model.steps.into(), &model.tokens_seen.into())
    );
    assert_eq!(trained["seconds"], model.train_seconds);
    let recipe = Recipe::named("pretrained", Preset::Full).unwrap();
    assert_eq!(text("config.toml"), recipe.config_toml(model.heads).unwrap());
}
