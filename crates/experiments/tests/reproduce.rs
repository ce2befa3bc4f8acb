//! A whole run of the speed experiment, as small as it can be.

use std::path::Path;
use std::sync::atomic::Ordering;

use foretoken_experiments::{
    Outcome, Preset, Recipe, Report, ReproduceOptions, SpeedResults, Training, render,
    reproduce_with,
};

/// Two models of three layers, a dozen steps, on a few kilobytes of text.
fn recipe(text: &Path) -> Recipe {
    let toml = format!(
        r#"
        minutes = 0.1
        heads = [1, 2]
        [decoding]
        prompts = 3
        prompt_tokens = 16
        new_tokens = 24
        repeats = 2
        sample_tokens = 20
        precision = "float32"
        [held_out]
        tokens = 400
        window = 32
        prompt = 8
        [validation]
        windows = 4
        [config.model]
        layers = 3
        attention_heads = 2
        dim = 16
        ffn = 32
        context = 64
        [config.data]
        path = "{}"
        [config.train]
        steps = 12
        batch = 2
        sequence = 32
        seed = 3
        checkpoint_every = 4
        "#,
        text.display()
    );
    Recipe::from_toml(&toml).unwrap()
}

fn text(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("corpus.txt");
    let lines = (0..3000).map(|i| format!("def f{}(x):\n    return x + {}\n", i % 7, i % 5));
    std::fs::write(&path, lines.collect::<Vec<_>>().concat()).unwrap();
    path
}

fn options(folder: &Path) -> ReproduceOptions {
    // The tests run side by side, and nothing here is large enough to be divided.
    tch::set_num_threads(1);
    let mut options = ReproduceOptions::new("speed", Preset::Smoke).unwrap();
    options.out = folder.join("out");
    options.training = Training::InProcess;
    let other = folder.join("other");
    std::fs::create_dir_all(&other).unwrap();
    let lines: Vec<String> =
        (0..60).map(|i| format!("value_{i} = compute({i}, other)\n")).collect();
    let source = lines.concat();
    std::fs::write(other.join("a.py"), source).unwrap();
    options.other_corpus = Some(other);
    options
}

/// When a file was last written.
fn written(path: &Path) -> std::time::SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}

#[test]
fn a_run_ends_in_a_report_and_a_second_one_trains_and_measures_nothing_again() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(&text(folder.path()));
    let mut options = options(folder.path());
    let outcome = reproduce_with(&options, &recipe).unwrap();
    let Outcome::Finished { json, markdown, html } = outcome else {
        panic!("the run was interrupted");
    };
    let report = Report::read(&json).unwrap();
    check(&report);
    assert!(std::fs::read_to_string(&markdown).unwrap().contains("n = 2"));
    assert!(std::fs::read_to_string(&html).unwrap().contains("<svg"));

    let models = options.folder().join("models");
    let kept = ["n1/model/model.safetensors", "n2/model/model.safetensors", "n2/measured.json"];
    let before = kept.map(|file| written(&models.join(file)));
    options.publish = Some(folder.path().join("docs"));
    reproduce_with(&options, &recipe).unwrap();
    assert_eq!(before, kept.map(|file| written(&models.join(file))));
    let again = Report::read(&json).unwrap();
    assert_eq!((&again.models, &again.decoding), (&report.models, &report.decoding));
    let published = folder.path().join("docs/speed-smoke.json");
    assert_eq!(Report::read(&published).unwrap(), again);

    // A longer training is another model; the baseline stays what it is only if its config does.
    let mut longer = recipe.clone();
    let steps = longer.config["train"].as_table_mut().unwrap();
    steps.insert("steps".to_owned(), 14.into());
    reproduce_with(&options, &longer).unwrap();
    let report = Report::read(&json).unwrap();
    assert!(report.models.iter().all(|model| model.steps == 14));
}

fn check(report: &Report) {
    assert_eq!(report.corpus.sha256.len(), 64);
    let heads: Vec<usize> = report.models.iter().map(|model| model.heads).collect();
    assert_eq!(heads, [1, 2]);
    for model in &report.models {
        assert_eq!(model.validation_loss.len(), model.heads);
        assert!(model.validation_loss.iter().all(|loss| (0.1..6.0).contains(loss)));
        assert_eq!(model.tokens_seen, 12 * 2 * 32);
        assert!(model.peak_memory_bytes > 1_000_000 && model.train_seconds > 0.0);
    }
    assert_eq!(report.models[0].parameters, report.models[1].parameters);
    let rows: Vec<_> =
        report.decoding.iter().map(|row| (row.model.as_str(), row.heads_used)).collect();
    assert_eq!(rows, [("n1", 1), ("n2", 1), ("n2", 2)]);
    for row in &report.decoding {
        assert_eq!(row.acceptance.len(), row.heads_used);
        let bounds = 1.0..=row.heads_used as f64;
        assert!(bounds.contains(&row.tokens_per_forward));
        assert!(bounds.contains(&row.held_out_tokens_per_forward));
        assert!((row.acceptance.iter().sum::<f64>() - row.tokens_per_forward).abs() < 1e-9);
        assert!(row.tokens_per_second > 0.0 && row.speedup > 0.0);
        assert!(row.identical_outputs, "{row:?}");
    }
    let results = SpeedResults::of(report).unwrap();
    assert_eq!(results.out_of_domain.unwrap().rows.len(), 3);
    assert_eq!(results.loss_curves.len(), 2);
    assert_eq!(results.sample.unwrap().tokens, 20);
    assert!(render(report).is_ok());
}

#[test]
fn a_run_that_is_stopped_says_so_and_goes_on_later() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(&text(folder.path()));
    let options = options(folder.path());
    options.stop.store(true, Ordering::Relaxed);
    assert!(reproduce_with(&options, &recipe).unwrap().interrupted());
    assert!(!options.folder().join("report.json").exists());
    options.stop.store(false, Ordering::Relaxed);
    assert!(!reproduce_with(&options, &recipe).unwrap().interrupted());
}

#[test]
fn a_missing_corpus_is_named_and_nothing_is_written_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nowhere.txt");
    let options = options(folder.path());
    let error = reproduce_with(&options, &recipe(&missing)).unwrap_err();
    assert!(format!("{error:#}").contains("nowhere.txt"));
    assert!(!options.folder().join("report.json").exists());
}

#[test]
fn a_child_that_cannot_train_is_an_error_that_names_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(&text(folder.path()));
    let mut options = options(folder.path());
    options.training = Training::Child { program: "/bin/false".into() };
    let error = reproduce_with(&options, &recipe).unwrap_err();
    assert!(error.to_string().contains("models/n1 failed"), "{error:#}");
}
