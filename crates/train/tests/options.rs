//! The recipe's options in whole runs: parts of a batch, precision, curricula, the best checkpoint.

mod common;

use std::fs;

use foretoken_heads::MultiTokenModel;
use foretoken_train::{Precision, TrainConfig, TrainOptions, train};
use tch::{Device, Kind};

use common::Place;

/// The largest difference between the weights of two finished runs.
fn difference(place: &Place, a: &str, b: &str) -> f64 {
    let (a, b) = (place.weights(&format!("{a}/model")), place.weights(&format!("{b}/model")));
    let numbers = |all: Vec<(String, Vec<f64>)>| all.into_iter().flat_map(|(_, numbers)| numbers);
    numbers(a).zip(numbers(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn the_parts_of_a_batch_add_up_to_the_batch() {
    let place = Place::new();
    let sets = ["train.batch=4", "train.precision=float64", "optimizer.type=adamw"];
    place.train("whole", &sets).unwrap();
    for parts in [2, 4] {
        let (out, set) = (format!("parts-{parts}"), format!("train.accumulate={parts}"));
        place.train(&out, &[&sets[..], &[&set]].concat()).unwrap();
        // Adam divides by the size of the gradient: differences in the last bits stay small.
        assert!(difference(&place, "whole", &out) < 1e-9, "{parts}");
        for ((_, whole), (_, parts)) in place.losses("whole").iter().zip(place.losses(&out)) {
            assert!(whole.iter().zip(parts).all(|(a, b)| (a - b).abs() < 1e-9));
        }
    }
}

#[test]
fn blocks_that_are_computed_again_give_the_same_bits() {
    let place = Place::new();
    place.train("kept", &[]).unwrap();
    place.train("again", &["train.recompute=true"]).unwrap();
    assert_eq!(place.weights("kept/model"), place.weights("again/model"));
}

#[test]
fn heads_in_one_pass_learn_the_same() {
    let place = Place::new();
    let sets = ["train.precision=float64", "optimizer.type=adamw"];
    place.train("one-by-one", &sets).unwrap();
    place.train("one-pass", &[&sets[..], &["heads.execution=grouped"]].concat()).unwrap();
    assert!(difference(&place, "one-by-one", "one-pass") < 1e-9);
    let sets = ["heads.type=medusa", "heads.execution=grouped"].map(str::to_owned);
    let error = TrainConfig::from_toml(common::RECIPE, &sets).unwrap_err().to_string();
    assert!(error.contains("heads.execution") && error.contains("sequential"), "{error}");
}

#[test]
fn training_in_bfloat16_learns_and_keeps_weights_in_32_bits() {
    let place = Place::new();
    let sets = ["train.steps=60", "train.checkpoint_every=30"];
    place.train("wide", &sets).unwrap();
    let half = [&sets[..], &["train.precision=bfloat16"]].concat();
    let outcome = place.train("half", &half).unwrap();
    let last = |out: &str| place.losses(out)[50..].iter().map(|(_, l)| l[0]).sum::<f64>() / 10.0;
    let (wide, half_loss) = (last("wide"), last("half"));
    assert!((wide - half_loss).abs() < 0.1 * wide, "{wide} and {half_loss}");
    assert_eq!(outcome.validation_loss.len(), 2);
    let model = MultiTokenModel::load(&place.path("half/model"), Kind::Float, Device::Cpu).unwrap();
    let rounded = |tensor: &tch::Tensor| tensor.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    let exact = model.parameters().iter().all(|p| rounded(&p.tensor) == p.tensor);
    assert!(!exact, "the saved weights are those of the rounded copy");

    // A run that goes on comes to the same bits.
    fs::remove_dir_all(place.path("half/checkpoints/step-60")).unwrap();
    let before = place.weights("half/model");
    fs::remove_dir_all(place.path("half/model")).unwrap();
    place.resume("half", &half).unwrap();
    assert_eq!(place.weights("half/model"), before);
}

#[test]
fn the_fast_precision_is_the_one_that_the_device_has_products_of() {
    assert_eq!(Precision::Fast.products(Device::Cuda(0)), Kind::BFloat16);
    let place = Place::new();
    let steps = "train.steps=6";
    for precision in ["fast", "float32", "bfloat16"] {
        place.train(precision, &[steps, &format!("train.precision={precision}")]).unwrap();
    }
    let same = match Precision::Fast.products(Device::Cpu) {
        Kind::BFloat16 => "bfloat16",
        _ => "float32",
    };
    for other in ["float32", "bfloat16"] {
        let equal = place.weights("fast/model") == place.weights(&format!("{other}/model"));
        assert_eq!(equal, other == same, "fast and {other}");
    }
}

#[test]
fn a_curriculum_leaves_heads_out_and_their_weights_alone() {
    let place = Place::new();
    let sets = ["heads.count=3", "train.steps=12", "model.layers=6", "train.checkpoint_every=4"];
    place.train("forward", &[&sets[..], &["loss.curriculum=forward"]].concat()).unwrap();
    let losses = place.losses("forward");
    let learned: Vec<usize> =
        losses.iter().map(|(_, l)| l.iter().filter(|loss| loss.is_finite()).count()).collect();
    assert_eq!(learned, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);

    place.train("reverse", &[&sets[..], &["loss.curriculum=reverse"]].concat()).unwrap();
    assert_eq!(place.losses("reverse")[11].1.iter().filter(|loss| loss.is_finite()).count(), 1);
    // Neither decay nor momentum moves a head that is out.
    let head = |step: usize, head: usize| {
        let all = place.weights(&format!("reverse/checkpoints/step-{step}"));
        let prefix = format!("heads.{head}.");
        all.into_iter().filter(|(name, _)| name.starts_with(&prefix)).collect::<Vec<_>>()
    };
    assert_eq!(head(4, 2), head(12, 2));
    assert_ne!(head(4, 1), head(8, 1));
    assert_eq!(head(8, 1), head(12, 1));
}

#[test]
fn offsets_and_weights_of_the_recipe_reach_the_objective() {
    let place = Place::new();
    place.train("plain", &[]).unwrap();
    place.train("leap", &["loss.offsets=[0, 3]"]).unwrap();
    assert_ne!(place.losses("plain")[0].1[1], place.losses("leap")[0].1[1]);
    let heads = place.config(&["loss.offsets=[0, 3]"]).heads_config().unwrap();
    assert_eq!((heads.offsets(), heads.drafting()), (vec![0, 3], 1));
    let folder = place.path("leap").join("model");
    let model = MultiTokenModel::load(&folder, Kind::Float, Device::Cpu).unwrap();
    assert_eq!(model.config().heads, heads);
    place.train("light", &["loss.weights=lambda", "loss.lambda=0.1"]).unwrap();
    // The first step's losses are those of the same weights.
    assert_eq!(place.losses("plain")[0], place.losses("light")[0]);
    assert_ne!(place.losses("plain")[9], place.losses("light")[9]);
    place.train("smooth", &["loss.label_smoothing=0.1", "loss.z_loss=1e-3"]).unwrap();
    assert_ne!(place.losses("plain")[9], place.losses("smooth")[9]);
}

#[test]
fn the_best_checkpoint_stays_beside_the_newest() {
    let place = Place::new();
    // A rate at which the model only gets worse after the first steps.
    let sets = [
        "train.steps=16",
        "train.checkpoint_every=2",
        "train.keep=2",
        "optimizer.type=adamw",
        "optimizer.learning_rate=0.3",
        "optimizer.schedule=constant",
        "optimizer.warmup=15",
        "optimizer.clip=0",
    ];
    let outcome = place.train("run", &sets).unwrap();
    let best = outcome.best_checkpoint.unwrap();
    let names = place.names("run/checkpoints");
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.contains(&best.file_name().unwrap().to_str().unwrap().to_owned()));
    assert!(!["step-14", "step-16"].iter().any(|newest| best.ends_with(newest)), "{best:?}");

    let outcome = place.train("unjudged", &["train.validate=0"]).unwrap();
    assert!(outcome.best_checkpoint.is_none());
}

#[test]
fn heads_learn_from_what_the_model_writes_itself() {
    const GROWN: &str = "[model]\n[heads]\ncount = 3\ntype = \"informed\"\ntrain = \"alone\"\n\
        [data]\nbatches = 6\ngenerated = 0.5\nprompt_tokens = 4\n[optimizer]\ntype = \"muon\"\n\
        muon_precision = \"float32\"\n[train]\nsteps = 60\nbatch = 2\nsequence = 12\nseed = 3\n\
        checkpoint_every = 20\n";
    let place = Place::new();
    place.train("base", &["heads.count=1", "train.steps=30"]).unwrap();
    let sets = |more: &[&str]| {
        let mut all = vec![
            format!("data.path='{}'", place.path("text.txt").display()),
            format!("model.init_from='{}'", place.path("base/model").display()),
        ];
        all.extend(more.iter().map(|&set| set.to_owned()));
        TrainConfig::from_toml(GROWN, &all)
    };
    for (out, more) in [("wide", vec![]), ("half", vec!["train.precision=bfloat16"])] {
        let config = sets(&more).unwrap();
        train(&config, &place.path(out), &TrainOptions::default()).unwrap();
        let losses = place.losses(out);
        assert!(losses[59].1[0] < losses[0].1[0], "{out}: {losses:?}");
        let stock = |out: &str| {
            let weights = place.weights(&format!("{out}/model"));
            weights.into_iter().filter(|(name, _)| !name.starts_with("heads.")).collect::<Vec<_>>()
        };
        assert_eq!(stock("base"), stock(out));

        let parts = format!("{out}-parts");
        let pieces =
            |max_seconds| TrainOptions { resume: true, max_seconds, ..TrainOptions::default() };
        let mut count = 0;
        while train(&config, &place.path(&parts), &pieces(Some(0.1))).unwrap().interrupted {
            count += 1;
            assert!(count < 100);
        }
        assert_eq!(difference(&place, out, &parts), 0.0);
    }
    for (set, key) in [
        ("data.generated=1.5", "data.generated"),
        ("data.batches=0", "data.generated"),
        ("data.prompt_tokens=13", "data.prompt_tokens"),
        ("loss.z_loss=1e-4", "loss"),
        ("train.recompute=true", "train.recompute"),
    ] {
        let error = sets(&[set]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("`{key}`")), "{error}");
    }
}
