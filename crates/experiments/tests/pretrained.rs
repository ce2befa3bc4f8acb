//! A whole run of the pretrained experiment with a tiny model in place of the published one: its
//! heads are trained, kept, and measured once more where nothing is trained.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use foretoken_data::Tokenizer;
use foretoken_experiments::{
    Outcome, Preset, Recipe, Report, ReproduceOptions, SpeedResults, Training, render,
    reproduce_with,
};
use foretoken_heads::{GgufNumbers, HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_trunk::Architecture;
use serde_json::Value;
use tch::{Device, Kind};

const RECIPE: &str = r#"
    minutes = 0.1
    heads = [3]
    [decoding]
    prompts = 3
    prompt_tokens = 16
    new_tokens = 24
    repeats = 1
    sample_tokens = 20
    alternatives = 4
    precision = "float32"
    [decoding.compact]
    alternatives = 1
    [held_out]
    tokens = 400
    window = 32
    prompt = 8
    [validation]
    windows = 4
    [config.model]
    init_from = "smollm2"
    [config.heads]
    type = "informed"
    train = "alone"
    draft_vocabulary = 50
    [config.data]
    corpus = "python-code"
    batches = 3
    [config.train]
    steps = 6
    batch = 2
    sequence = 32
    seed = 3
    checkpoint_every = 4
"#;

/// What set-up would have fetched, small: a model, problems, a corpus.
fn set_up(folder: &Path) -> PathBuf {
    let model = folder.join("models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let problems = folder.join("prompts/human-eval/HumanEval.jsonl.gz");
    let corpus = folder.join("corpus/python-code");
    for place in [&model, &problems] {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
    }
    fs::create_dir_all(&corpus).unwrap();

    let tokenizer = Tokenizer::bytes();
    let architecture = Architecture {
        vocab: tokenizer.vocabulary().unwrap().tokens.len(),
        dim: 16,
        layers: 3,
        attention_heads: 2,
        kv_heads: 2,
        head_dim: 8,
        ffn: 32,
        context: 96,
        ..Architecture::default()
    };
    let heads = HeadsConfig::new("block", 1);
    let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
    MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 5)
        .unwrap()
        .export_gguf(&model, "tiny", &tokenizer, GgufNumbers::Float32)
        .unwrap();

    let mut file = GzEncoder::new(fs::File::create(&problems).unwrap(), Compression::fast());
    for i in 0..5 {
        writeln!(file, "{{\"prompt\": \"def f{i}(x):\\n    return\"}}").unwrap();
    }
    file.finish().unwrap();

    let lines = (0..3000).map(|i| format!("def f{}(x):\n    return x + {}\n", i % 7, i % 5));
    fs::write(corpus.join("a.py"), lines.collect::<Vec<_>>().concat()).unwrap();
    corpus
}

fn run(options: &ReproduceOptions) -> Report {
    let recipe = Recipe::from_toml(RECIPE).unwrap();
    match reproduce_with(options, &recipe).unwrap() {
        Outcome::Finished { json, .. } => Report::read(&json).unwrap(),
        Outcome::Interrupted => panic!("the run was interrupted"),
    }
}

#[test]
fn heads_are_trained_and_kept_and_kept_ones_are_measured_without_a_training() {
    // The tests run side by side, and nothing here is large enough to be divided.
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let other = folder.path().join("other");
    fs::create_dir_all(&other).unwrap();
    let lines = (0..60).map(|i| format!("value_{i} = compute({i}, other)\n"));
    fs::write(other.join("b.py"), lines.collect::<Vec<_>>().concat()).unwrap();
    let training = ReproduceOptions {
        other_corpus: Some(other),
        out: folder.path().join("out"),
        corpus: Some(set_up(folder.path())),
        training: Training::InProcess,
        publish: Some(folder.path().join("docs")),
        keep_heads: Some(kept.clone()),
        ..ReproduceOptions::new("pretrained", Preset::Smoke).unwrap()
    };
    let report = run(&training);
    check(&report);
    assert_eq!(report.name(), "pretrained-smoke");
    assert!(!report.command().contains("--pretrained-heads"));

    let again = ReproduceOptions {
        pretrained_heads: Some(kept.clone()),
        keep_heads: None,
        ..training.clone()
    };
    let of_kept = run(&again);
    check(&of_kept);
    assert!(of_kept.pretrained_heads && of_kept.command().ends_with("--pretrained-heads"));
    assert!(!again.folder().join("models/n3/model").exists(), "something was trained");
    let (trained, from_kept) = (&report.models[0], &of_kept.models[0]);
    assert_eq!(
        (from_kept.steps, from_kept.tokens_seen, from_kept.peak_memory_bytes),
        (trained.steps, trained.tokens_seen, trained.peak_memory_bytes)
    );
    // Decoding packs matrices of heads in bfloat16 either way: it drafts the same.
    for (row, before) in of_kept.decoding.iter().zip(&report.decoding) {
        assert_eq!(row.acceptance, before.acceptance);
    }
    let curves = |report: &Report| SpeedResults::of(report).unwrap().loss_curves;
    assert_eq!(curves(&of_kept), curves(&report));
    for name in ["pretrained-smoke.json", "pretrained-smoke-kept-heads.json"] {
        assert!(folder.path().join("docs").join(name).exists(), "{name}");
    }

    let both = ReproduceOptions { keep_heads: Some(kept), ..again };
    let error = reproduce_with(&both, &Recipe::from_toml(RECIPE).unwrap()).unwrap_err();
    assert!(error.to_string().contains("--keep-heads"), "{error}");
}

#[test]
fn heads_are_kept_before_they_are_measured_and_may_have_been_trained_elsewhere() {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let options = ReproduceOptions {
        out: folder.path().join("out"),
        corpus: Some(set_up(folder.path())),
        training: Training::InProcess,
        keep_heads: Some(kept.clone()),
        ..ReproduceOptions::new("pretrained", Preset::Smoke).unwrap()
    };
    let record = || -> Value {
        serde_json::from_str(&fs::read_to_string(kept.join("training.json")).unwrap()).unwrap()
    };
    // The measuring fails: there are not so many problems.
    let recipe = Recipe::from_toml(&RECIPE.replace("prompts = 3", "prompts = 9")).unwrap();
    let error = reproduce_with(&options, &recipe).unwrap_err().to_string();
    assert!(error.contains("5 problems"), "{error}");
    assert_eq!(record()["device"], "cpu");
    assert!(!record()["made_by"].as_str().unwrap().contains("--device"));

    let path = options.folder().join("models/n3/trained.json");
    let mut trained: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    trained["value"]["device"] = "cuda".into();
    fs::write(&path, trained.to_string()).unwrap();
    let of_here = run(&options);
    assert_eq!(record()["device"], "cuda");
    assert_eq!(record()["trained"]["device"], Value::Null);
    assert!(record()["made_by"].as_str().unwrap().ends_with(" --device cuda"));
    let of_kept =
        ReproduceOptions { pretrained_heads: Some(kept.clone()), keep_heads: None, ..options };
    for (report, told) in [(of_here, "trained on cuda"), (run(&of_kept), "on cuda)")] {
        assert_eq!(report.device, "cpu");
        let page = render(&report).unwrap().markdown;
        for part in [told, "All but that training ran", "the host's"] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }
}

fn check(report: &Report) {
    let model = &report.models[0];
    assert_eq!((model.heads, model.steps, model.tokens_seen), (3, 6, 6 * 2 * 32));
    assert_eq!(report.decoding.len(), 3);
    for row in &report.decoding {
        assert!(row.identical_outputs, "{row:?}");
        assert!((1.0..=row.heads_used as f64).contains(&row.tokens_per_forward));
    }
    let compact = SpeedResults::of(report).unwrap().compact;
    let ways: Vec<_> = compact.iter().map(|row| (row.heads_used, row.adaptive)).collect();
    assert_eq!(ways, [(1, false), (2, false), (3, false), (3, true)]);
    assert!(compact.iter().all(|row| (row.mismatches, row.near_ties) == (0, 0)), "{compact:?}");
    let page = render(report).unwrap().markdown;
    assert!(
        page.contains("over k = 1 in float32") && page.contains("(1 with compact weights, as many")
    );
    assert!(page.contains("| up to 3 |"), "{page}");
    assert!(page.contains("A published model of 3 layers") && page.contains("4 alternatives"));
}

#[test]
fn models_that_are_trained_from_scratch_have_no_heads_to_keep() {
    let folder = tempfile::tempdir().unwrap();
    let options = ReproduceOptions {
        out: folder.path().join("out"),
        keep_heads: Some(folder.path().join("kept")),
        ..ReproduceOptions::new("speed", Preset::Smoke).unwrap()
    };
    let recipe = Recipe::named("speed", Preset::Smoke).unwrap();
    let error = reproduce_with(&options, &recipe).unwrap_err().to_string();
    assert!(error.contains("--keep-heads"), "{error}");
    assert!(!options.out.exists());
}
