//! Whole runs in folders: what they leave behind, how they go on, and what they refuse.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use foretoken_heads::MultiTokenModel;
use foretoken_train::{Error, TrainConfig, TrainOptions, train};
use tch::{Device, Kind};

use common::Place;

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn a_run_leaves_a_model_the_last_three_checkpoints_and_a_line_a_step() {
    let place = Place::new();
    let outcome = place.train("run", &["train.steps=12", "train.checkpoint_every=2"]).unwrap();
    assert!(!outcome.interrupted);
    assert_eq!((outcome.steps, outcome.tokens_seen), (12, 12 * 2 * 16));
    assert_eq!(outcome.validation_loss.len(), 2);
    assert!(outcome.peak_memory_bytes.unwrap() > 1 << 20);
    assert_eq!(place.names("run/checkpoints"), ["step-10", "step-12", "step-8"]);
    for file in ["config.json", "model.safetensors", "heads.safetensors", "tokenizer.json"] {
        assert!(place.path("run/model").join(file).exists(), "{file}");
        assert!(place.path("run/checkpoints/step-12").join(file).exists(), "{file}");
    }
    assert!(!place.path("run/model/optimizer.safetensors").exists());
    let losses = place.losses("run");
    let steps: Vec<u64> = losses.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
    assert!(losses.iter().all(|(_, losses)| losses.len() == 2));
    // A random byte model has ln 264 = 5.58 nats; the text is far from random.
    assert!(losses[11].1[0] < losses[0].1[0] - 0.5, "{losses:?}");
}

#[test]
fn two_runs_in_one_folder_are_refused() {
    let place = Place::new();
    let out = place.path("run");
    fs::create_dir_all(&out).unwrap();
    let other = fs::File::create(out.join(".lock")).unwrap();
    other.lock().unwrap();
    for resume in [false, true] {
        let options = TrainOptions { resume, ..TrainOptions::default() };
        let error = train(&place.config(&[]), &out, &options).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        assert!(error.to_string().contains(out.to_str().unwrap()));
    }
    assert_eq!(place.names("run"), [".lock"]);
    drop(other);
    place.train("run", &[]).unwrap();
}

#[test]
fn ten_steps_equal_five_and_a_resume_bit_for_bit() {
    for set in ["optimizer.type=muon", "optimizer.type=adamw", "train.precision=float64"] {
        let place = Place::new();
        place.train("whole", &[set]).unwrap();
        place.train("parts", &[set, "train.checkpoint_every=5"]).unwrap();
        // As if the run had been killed between the fifth step and the end.
        fs::remove_dir_all(place.path("parts/checkpoints/step-10")).unwrap();
        fs::remove_dir_all(place.path("parts/model")).unwrap();
        let text = fs::read_to_string(place.path("parts/metrics.jsonl")).unwrap();
        let seven: Vec<&str> = text.split_inclusive('\n').take(7).collect();
        fs::write(place.path("parts/metrics.jsonl"), seven.concat()).unwrap();
        let rest = place.resume("parts", &[set]).unwrap();
        assert_eq!(rest.steps, 10);
        assert_eq!(place.weights("whole/model"), place.weights("parts/model"), "{set}");
        assert_eq!(place.losses("whole"), place.losses("parts"), "{set}");
    }
}

#[test]
fn a_stopped_run_saves_says_so_and_goes_on() {
    let place = Place::new();
    let stop = Arc::new(AtomicBool::new(true));
    let options = TrainOptions { stop, ..TrainOptions::default() };
    let outcome = train(&place.config(&[]), &place.path("run"), &options).unwrap();
    assert!(outcome.interrupted && outcome.checkpoint.is_none());

    let options = TrainOptions { resume: true, max_seconds: Some(1e-9), ..TrainOptions::default() };
    let outcome = train(&place.config(&[]), &place.path("run"), &options).unwrap();
    assert!(outcome.interrupted && outcome.steps == 0);

    let outcome = place.resume("run", &[]).unwrap();
    assert_eq!((outcome.steps, outcome.interrupted), (10, false));
    // Once more changes nothing; with more steps it goes on.
    let before = place.weights("run/model");
    assert_eq!(place.resume("run", &[]).unwrap().steps, 10);
    assert_eq!(place.weights("run/model"), before);
    assert_eq!(place.resume("run", &["train.steps=13"]).unwrap().steps, 13);
    assert_eq!(place.losses("run").len(), 13);
    assert_ne!(place.weights("run/model"), before);
}

#[test]
fn a_folder_with_a_run_is_not_overwritten_without_being_asked() {
    let place = Place::new();
    place.train("run", &["train.steps=2"]).unwrap();
    let error = place.train("run", &["train.steps=2"]).unwrap_err();
    assert!(matches!(error, Error::Occupied { .. }));
    assert!(error.to_string().contains("--resume"));
}

#[test]
fn another_recipe_or_corpus_is_refused_by_its_key() {
    let place = Place::new();
    place.train("run", &["train.steps=2"]).unwrap();
    for (set, key) in [
        ("optimizer.learning_rate=1e-4", "optimizer.learning_rate"),
        ("train.batch=3", "train.batch"),
        ("heads.count=3", "heads.count"),
        ("model.head_dim=8", "model.head_dim"),
    ] {
        let error = place.resume("run", &["train.steps=3", set]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("`{key}`")) && error.contains("step-2"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
    fs::write(place.path("text.txt"), "something else entirely\n".repeat(400)).unwrap();
    let error = place.resume("run", &["train.steps=3"]).unwrap_err().to_string();
    assert!(error.starts_with("`data`"), "{error}");
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over_and_the_one_before_used() {
    let place = Place::new();
    for (index, file) in
        ["model.safetensors", "heads.safetensors", "optimizer.safetensors", "training.json"]
            .into_iter()
            .enumerate()
    {
        let run = format!("run{index}");
        place.train(&run, &["train.steps=4", "train.checkpoint_every=2"]).unwrap();
        let file = place.path(&run).join("checkpoints/step-4").join(file);
        if index % 2 == 0 {
            cut(&file);
        } else {
            fs::remove_file(&file).unwrap();
        }
        assert_eq!(place.resume(&run, &["train.steps=6"]).unwrap().steps, 6);
        // The schedule of the first four steps was another, so only the count is compared.
        assert_eq!(place.losses(&run).len(), 6);
    }
}

#[test]
fn when_all_checkpoints_are_damaged_one_line_names_the_file() {
    let place = Place::new();
    place.train("run", &["train.steps=2"]).unwrap();
    cut(&place.path("run/checkpoints/step-2/optimizer.safetensors"));
    let error = place.resume("run", &["train.steps=4"]).unwrap_err().to_string();
    assert!(error.contains("optimizer.safetensors"), "{error}");
    assert_eq!(error.lines().count(), 1);
    assert!(place.path("run/checkpoints/step-2/model.safetensors").exists());
}

#[test]
fn a_save_that_fails_leaves_what_was_there_and_no_half_written_folder() {
    let place = Place::new();
    fs::create_dir(place.path("run")).unwrap();
    fs::write(place.path("run/checkpoints"), "in the way").unwrap();
    let error = place.resume("run", &[]).unwrap_err().to_string();
    assert!(error.contains("checkpoints"), "{error}");
    assert_eq!(fs::read_to_string(place.path("run/checkpoints")).unwrap(), "in the way");
    assert!(!place.path("run/model").exists());
}

/// A recipe whose weights grow until nothing is finite any more.
const DIVERGES: [&str; 7] = [
    "train.steps=60",
    "optimizer.type=adamw",
    "optimizer.learning_rate=10",
    "optimizer.weight_decay=10",
    "optimizer.warmup=0",
    "optimizer.schedule=constant",
    "train.validate=0",
];

#[test]
fn a_gradient_that_stays_not_finite_ends_the_run_and_leaves_the_checkpoints_before_it() {
    let place = Place::new();
    let diverge = |out: &str, sets: &[&str]| {
        let error = place.train(out, &[&DIVERGES, sets].concat()).unwrap_err();
        assert!(error.to_string().contains("optimizer.learning_rate"));
        let Error::Diverged { step, steps: 20, before } = error else { panic!("{error}") };
        (step - 20, before)
    };
    let (last, none) = diverge("none", &["train.checkpoint_every=0"]);
    assert!(last > 0 && none.is_none());
    for every in [1, 2, 7] {
        let out = format!("every-{every}");
        let set = format!("train.checkpoint_every={every}");
        let (step, before) = diverge(&out, &[&set, "train.keep=2"]);
        assert_eq!(step, last);
        // The last step that moved anything led to weights without a finite gradient: a checkpoint of
        // them does not count among the two that are kept, nor is it the one that is named.
        let (newest, good) = (last - last % every, (last - 1) - (last - 1) % every);
        // Processors round differently: on some it diverges before the seventh step.
        let folder = format!("{out}/checkpoints");
        let kept = if last < every { Vec::new() } else { place.names(&folder) };
        assert_eq!(place.path(&folder).exists(), last >= every);
        let in_vain = u64::from(newest == last);
        assert_eq!(kept.len() as u64, 2.min(good / every) + in_vain, "{kept:?}");
        let path = place.path(&format!("{out}/checkpoints/step-{good}"));
        assert!(good == 0 || path.exists(), "{kept:?}");
        assert_eq!(before, (good > 0).then_some(path));
        for name in &kept {
            let weights = place.weights(&format!("{out}/checkpoints/{name}"));
            assert!(weights.iter().flat_map(|(_, w)| w).all(|number| number.is_finite()));
        }
    }
}

#[test]
fn steps_that_move_nothing_are_counted_and_a_stop_among_them_loses_no_checkpoint() {
    let place = Place::new();
    let Err(Error::Diverged { step, .. }) =
        place.train("whole", &[&DIVERGES[..], &["train.checkpoint_every=0"]].concat())
    else {
        panic!("it did not diverge")
    };
    let last = step - 20;
    let steps = format!("train.steps={}", last + 5);
    let sets = [&DIVERGES[1..], &[&steps, "train.checkpoint_every=1", "train.keep=1"]].concat();
    let outcome = place.train("run", &sets).unwrap();
    assert_eq!((outcome.steps, outcome.skipped_steps), (last + 5, 5));
    let mut expected = [last - 1, last, last + 5].map(|step| format!("step-{step}"));
    expected.sort();
    assert_eq!(place.names("run/checkpoints"), expected);
}

#[test]
fn a_damaged_checkpoint_of_a_later_step_does_not_push_out_good_ones() {
    let place = Place::new();
    place.train("run", &["train.steps=8", "train.checkpoint_every=4"]).unwrap();
    cut(&place.path("run/checkpoints/step-8/optimizer.safetensors"));
    place.resume("run", &["train.steps=6", "train.keep=1"]).unwrap();
    assert_eq!(place.names("run/checkpoints"), ["step-6", "step-8"]);
    assert_eq!(place.resume("run", &["train.steps=8"]).unwrap().steps, 8);
    assert_eq!(place.names("run/checkpoints"), ["step-6", "step-8"]);
}

#[test]
fn an_empty_or_missing_text_and_one_shorter_than_a_window_are_named() {
    let place = Place::new();
    let error = |text: &str| {
        let path = place.path("other.txt");
        if text.is_empty() {
            fs::write(&path, "").unwrap();
        } else if text == "missing" {
            fs::remove_file(&path).unwrap();
        } else {
            fs::write(&path, text).unwrap();
        }
        let mut config = place.config(&[]);
        config.data.path = Some(path);
        let error = train(&config, &place.path("other"), &TrainOptions::default()).unwrap_err();
        assert!(error.to_string().contains("other.txt"), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
        error.to_string()
    };
    error("");
    assert!(error("short\n").contains("train.sequence"));
    assert!(error("missing").contains("does not exist"));
}

/// A pretrained model in `base/model`, and a recipe that trains heads alone on it.
fn on_a_pretrained_model(place: &Place, sets: &[&str]) -> TrainConfig {
    const GROWN: &str = "[model]\n[heads]\ncount = 3\ntrain = \"alone\"\n[optimizer]\n\
        type = \"muon\"\nmuon_precision = \"float32\"\n[train]\nsteps = 10\nbatch = 2\n\
        sequence = 12\nseed = 3\ncheckpoint_every = 3\n";
    if !place.path("base").exists() {
        place.train("base", &["heads.count=1", "train.steps=30"]).unwrap();
    }
    let mut all = vec![
        format!("data.path='{}'", place.path("text.txt").display()),
        format!("model.init_from='{}'", place.path("base/model").display()),
    ];
    all.extend(sets.iter().map(|&set| set.to_owned()));
    TrainConfig::from_toml(GROWN, &all).unwrap()
}

#[test]
fn heads_that_are_trained_alone_learn_and_leave_the_model_as_it_is() {
    let place = Place::new();
    for (out, sets) in [
        ("block", vec!["heads.type=block"]),
        ("text", vec!["heads.targets=text"]),
        ("medusa", vec!["heads.type=medusa", "heads.draft_vocabulary=40"]),
        ("linear", vec!["heads.type=linear", "data.batches=4"]),
    ] {
        let mut sets = sets;
        sets.push("train.steps=60");
        let config = on_a_pretrained_model(&place, &sets);
        let outcome = train(&config, &place.path(out), &TrainOptions::default()).unwrap();
        assert_eq!(outcome.validation_loss.len(), 2, "{out}");
        let losses = place.losses(out);
        let mean = |lines: &[(u64, Vec<f64>)]| {
            lines.iter().map(|(_, losses)| losses[1]).sum::<f64>() / lines.len() as f64
        };
        assert!(mean(&losses[50..]) < mean(&losses[..5]), "{out}: {losses:?}");
        let stock = |weights: Vec<(String, Vec<f64>)>| {
            weights.into_iter().filter(|(name, _)| !name.starts_with("heads.")).collect::<Vec<_>>()
        };
        let (before, after) = (place.weights("base/model"), place.weights(&format!("{out}/model")));
        assert_eq!(stock(before), stock(after), "{out}");
        assert!(!place.path(out).join("states").exists());
    }
}

#[test]
fn drafts_are_chosen_among_the_most_frequent_tokens_where_the_text_is_learned() {
    let place = Place::new();
    let chosen = |targets: &str| {
        let targets = format!("heads.targets={targets}");
        let sets = ["train.steps=2", "heads.draft_vocabulary=12", &targets];
        let config = on_a_pretrained_model(&place, &sets);
        train(&config, &place.path(&targets), &TrainOptions::default()).unwrap();
        let model = place.path(&targets).join("model");
        let model = MultiTokenModel::load(&model, Kind::Float, Device::Cpu).unwrap();
        model.draft_vocabulary().unwrap().tokens().to_vec()
    };
    let mut counts = [0; 264];
    fs::read(place.path("text.txt")).unwrap().iter().for_each(|&b| counts[usize::from(b)] += 1);
    let tokens = chosen("text");
    let count = |token: u32| counts[token as usize];
    let rarest = tokens.iter().map(|&token| count(token)).min().unwrap();
    let others = (0..256).filter(|token| !tokens.contains(token)).map(count).max().unwrap();
    // Parts of the text are held back from the training.
    assert!(tokens.len() == 12 && 10 * rarest > 9 * others, "{rarest} and {others}: {tokens:?}");
    assert_eq!(chosen("model").len(), 12);
}

#[test]
fn heads_that_go_on_come_to_the_same_bits() {
    let place = Place::new();
    let few = ["heads.draft_vocabulary=20", "data.batches=4", "data.generated=0.5"];
    let written = [&few[..], &["data.prompt_tokens=4"]].concat();
    for (name, sets) in [("round", vec!["data.batches=4"]), ("once", vec![]), ("few", written)] {
        let config = on_a_pretrained_model(&place, &sets);
        let (whole, parts) = (format!("{name}-whole"), format!("{name}-parts"));
        train(&config, &place.path(&whole), &TrainOptions::default()).unwrap();
        let stopped = TrainOptions { max_seconds: Some(0.0), ..TrainOptions::default() };
        assert!(train(&config, &place.path(&parts), &stopped).unwrap().interrupted);
        // Asked to stop before what it learns from is made.
        fs::remove_dir_all(place.path(&parts).join("states")).unwrap_or_default();
        let stop = Arc::new(AtomicBool::new(true));
        let asked = TrainOptions { resume: true, stop, ..TrainOptions::default() };
        let outcome = train(&config, &place.path(&parts), &asked).unwrap();
        assert!(outcome.interrupted && outcome.steps == 0);
        assert!(fs::read_dir(place.path(&parts).join("states")).map_or(true, |all| {
            all.into_iter().all(|folder| fs::read_dir(folder.unwrap().path()).unwrap().count() == 0)
        }));
        let resume =
            |max_seconds| TrainOptions { resume: true, max_seconds, ..TrainOptions::default() };
        let mut pieces = 0;
        while train(&config, &place.path(&parts), &resume(Some(0.02))).unwrap().interrupted {
            pieces += 1;
            assert!(pieces < 100);
        }
        assert_eq!(
            place.weights(&format!("{whole}/model")),
            place.weights(&format!("{parts}/model")),
            "{name}"
        );
        assert_eq!(place.losses(&whole), place.losses(&parts), "{name}");
    }
}

#[test]
fn heads_do_not_go_on_on_another_model() {
    let place = Place::new();
    let config = on_a_pretrained_model(&place, &["train.steps=3"]);
    train(&config, &place.path("run"), &TrainOptions::default()).unwrap();
    place.train("other", &["heads.count=1", "train.steps=31"]).unwrap();
    fs::remove_dir_all(place.path("base/model")).unwrap();
    fs::rename(place.path("other/model"), place.path("base/model")).unwrap();
    let longer = on_a_pretrained_model(&place, &["train.steps=6"]);
    let resume = TrainOptions { resume: true, ..TrainOptions::default() };
    let error = train(&longer, &place.path("run"), &resume).unwrap_err().to_string();
    assert!(error.starts_with("`model.init_from` is a model with SHA-256"), "{error}");
}

#[test]
fn another_recipe_of_heads_alone_is_refused_by_its_key() {
    let place = Place::new();
    let config = on_a_pretrained_model(&place, &["train.steps=3"]);
    train(&config, &place.path("run"), &TrainOptions::default()).unwrap();
    let resume = TrainOptions { resume: true, ..TrainOptions::default() };
    for (set, key) in [("heads.count=4", "heads.count"), ("heads.type=medusa", "heads.type")] {
        let other = on_a_pretrained_model(&place, &["train.steps=6", set]);
        let error = train(&other, &place.path("run"), &resume).unwrap_err().to_string();
        assert!(error.starts_with(&format!("`{key}`")) && error.contains("step-3"), "{error}");
    }
    let config = on_a_pretrained_model(&place, &["train.steps=6"]);
    let tokenizer = place.path("base/model/tokenizer.json");
    let changed = fs::read_to_string(&tokenizer).unwrap().replace("reserved_1", "another_1");
    fs::write(&tokenizer, changed).unwrap();
    let error = train(&config, &place.path("run"), &resume).unwrap_err().to_string();
    assert!(error.starts_with("`model.init_from` is a tokenizer with SHA-256"), "{error}");
}

#[test]
fn heads_of_a_model_that_was_tuned_further_learn_on_or_make_room() {
    let place = Place::new();
    let train_ = |config: &TrainConfig, out: &str| {
        train(config, &place.path(out), &TrainOptions::default()).map(|_| ())
    };
    let config = on_a_pretrained_model(&place, &["train.steps=3", "heads.draft_vocabulary=40"]);
    train_(&config, "heads").unwrap();
    place.train("other", &["heads.count=1", "train.steps=31"]).unwrap();
    let stock = "model/model.safetensors";
    fs::copy(place.path("other").join(stock), place.path("heads").join(stock)).unwrap();
    assert!(MultiTokenModel::load(&place.path("heads/model"), Kind::Float, Device::Cpu).is_err());

    let from = format!("model.init_from='{}'", place.path("heads/model").display());
    let on_it = |sets: &[&str]| {
        on_a_pretrained_model(&place, &[&["train.steps=3", from.as_str()], sets].concat())
    };
    train_(&on_it(&["heads.draft_vocabulary=0"]), "on").unwrap();
    train_(&on_it(&["heads.type=medusa"]), "medusa").unwrap();
    let load = |name: &str| MultiTokenModel::load(&place.path(name), Kind::Float, Device::Cpu);
    let (on, medusa) = (load("on/model").unwrap(), load("medusa/model").unwrap());
    // All of the vocabulary, as the recipe says, although the heads had a part of it.
    assert!(on.draft_vocabulary().is_none());
    assert_eq!(medusa.config().heads.kind, "medusa");
    let other = load("other/model").unwrap().stock_sha256().unwrap();
    assert_eq!(on.stock_sha256().unwrap(), other);
    assert_eq!(medusa.stock_sha256().unwrap(), other);
    // Heads that are replaced need not be there.
    fs::remove_file(place.path("heads/model/heads.safetensors")).unwrap();
    train_(&on_it(&["heads.type=linear"]), "linear").unwrap();
    assert!(train_(&on_it(&[]), "missing").unwrap_err().to_string().contains("heads.safetensors"));
}

#[test]
fn rows_reach_as_far_as_the_models_context_and_no_further() {
    let place = Place::new();
    for kind in ["block", "informed"] {
        let sequence = |tokens: usize| {
            let (kind, tokens) = (format!("heads.type={kind}"), format!("train.sequence={tokens}"));
            let written = ["data.batches=2", "data.generated=0.5", "data.prompt_tokens=4"];
            let sets = [&["train.steps=2", &kind, &tokens], written.as_slice()].concat();
            let config = on_a_pretrained_model(&place, &sets);
            train(&config, &place.path(&format!("{kind}-{tokens}")), &TrainOptions::default())
        };
        // Three heads learn of two tokens behind the row, too.
        sequence(30).unwrap();
        let error = sequence(31).unwrap_err().to_string();
        assert!(error.starts_with("`train.sequence`") && error.contains("32"), "{error}");
    }
    // A model of one's own: heads that are told tokens see those behind the row.
    place.train("block", &["train.steps=2", "train.sequence=32"]).unwrap();
    let informed = ["train.steps=2", "heads.type=informed", "train.sequence=32"];
    let error = place.train("informed", &informed).unwrap_err().to_string();
    assert!(error.starts_with("`train.sequence`"), "{error}");
}

#[test]
fn a_grown_model_can_go_on_learning_as_a_whole() {
    const WHOLE: &str = "[model]\n[heads]\ncount = 3\n[optimizer]\nlearning_rate = 1e-4\n\
        muon_learning_rate = 1e-3\n[train]\nsteps = 4\nbatch = 2\nsequence = 12\n";
    let place = Place::new();
    let config = on_a_pretrained_model(&place, &[]);
    train(&config, &place.path("heads"), &TrainOptions::default()).unwrap();
    let sets = [
        format!("data.path='{}'", place.path("text.txt").display()),
        format!("model.init_from='{}'", place.path("heads/model").display()),
    ];
    let config = TrainConfig::from_toml(WHOLE, &sets).unwrap();
    let outcome = train(&config, &place.path("whole"), &TrainOptions::default()).unwrap();
    assert_eq!(outcome.validation_loss.len(), 3);
    let moved = |name: &str| {
        let (before, after) = (place.weights("heads/model"), place.weights("whole/model"));
        let find = |all: Vec<(String, Vec<f64>)>| all.into_iter().find(|(n, _)| n == name).unwrap();
        find(before) != find(after)
    };
    assert!(moved("model.embed_tokens.weight") && moved("heads.1.mlp.down_proj.weight"));
}
