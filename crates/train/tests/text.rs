//! Texts of several documents and corpora in whole runs.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use foretoken_train::TrainConfig;
use serde_json::json;

use common::Place;

/// Documents of 1 to 40 short words each.
fn write_documents(path: &Path, count: usize, word: &str) {
    let mut lines = String::new();
    for number in 0..count {
        let words = 1 + number * number % 40;
        let text: Vec<String> = (0..words).map(|i| format!("{word}{}", i * number % 11)).collect();
        writeln!(lines, "{}", json!({"text": text.join(" ")})).unwrap();
    }
    fs::write(path, lines).unwrap();
}

fn from(path: &Path) -> String {
    format!("data.path='{}'", path.display())
}

fn difference(place: &Place, a: &str, b: &str) -> f64 {
    let numbers = |out: &str| {
        let weights = place.weights(&format!("{out}/model"));
        weights.into_iter().flat_map(|(_, numbers)| numbers).collect::<Vec<_>>()
    };
    numbers(a).iter().zip(numbers(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn documents_are_kept_apart_and_parts_of_a_batch_still_add_up() {
    let place = Place::new();
    let text = place.path("documents.jsonl");
    write_documents(&text, 400, "w");
    let text = from(&text);
    let base = [text.as_str(), "train.batch=4", "train.precision=float64", "optimizer.type=adamw"];
    place.train("joined", &base).unwrap();
    for documents in ["apart", "packed"] {
        let set = format!("data.documents={documents}");
        let sets = [&base[..], &[&set]].concat();
        let outcome = place.train(documents, &sets).unwrap();
        assert_eq!(outcome.validation_loss.len(), 2);
        assert!(outcome.validation_loss.iter().all(|loss| loss.is_finite() && *loss > 0.0));
        assert!(difference(&place, "joined", documents) > 1e-4, "{documents} changes nothing");
        let parts = format!("{documents}-parts");
        place.train(&parts, &[&sets[..], &["train.accumulate=2"]].concat()).unwrap();
        assert!(difference(&place, documents, &parts) < 1e-9, "{documents}");
        for ((_, whole), (_, parts)) in place.losses(documents).iter().zip(place.losses(&parts)) {
            assert!(whole.iter().zip(parts).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
}

#[test]
fn a_mixture_of_corpora_is_resumed_to_the_same_bits() {
    let place = Place::new();
    let paths = ["one.jsonl", "two.jsonl"].map(|name| place.path(name));
    write_documents(&paths[0], 300, "a");
    write_documents(&paths[1], 300, "b");
    let part = |index: usize, weight: f64| {
        format!("{{ path = '{}', weight = {weight} }}", paths[index].display())
    };
    let mixture = format!("data.mixture=[{}, {}]", part(0, 3.0), part(1, 1.0));
    let config = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        TrainConfig::from_toml(common::RECIPE, &sets)
    };
    let sets = [mixture.as_str(), "data.documents=packed", "train.checkpoint_every=4"];
    let train = |out: &str, resume: bool| {
        let options = foretoken_train::TrainOptions { resume, ..Default::default() };
        foretoken_train::train(&config(&sets).unwrap(), &place.path(out), &options).unwrap()
    };
    let outcome = train("whole", false);
    assert_eq!(outcome.validation_loss.len(), 2);
    train("resumed", false);
    fs::remove_dir_all(place.path("resumed/model")).unwrap();
    fs::remove_dir_all(place.path("resumed/checkpoints/step-10")).unwrap();
    train("resumed", true);
    assert_eq!(place.weights("whole/model"), place.weights("resumed/model"));

    // Another weight is another recipe.
    let other = format!("data.mixture=[{}, {}]", part(0, 2.0), part(1, 1.0));
    let sets = [other.as_str(), sets[1], sets[2], "train.steps=12"];
    let options = foretoken_train::TrainOptions { resume: true, ..Default::default() };
    let error = foretoken_train::train(&config(&sets).unwrap(), &place.path("whole"), &options);
    assert!(error.unwrap_err().to_string().contains("data.mixture"));

    for (set, message) in [
        ("data.mixture=[{ weight = 1 }]", "part 1 needs a corpus"),
        ("data.mixture=[{ path = 'a', corpus = 'b', weight = 1 }]", "one of the two"),
        ("data.mixture=[{ path = 'a', weight = 0 }]", "weight 0"),
        ("data.mixture=[{ path = 'a', weigth = 1 }]", "weigth"),
        ("data.documents=alone", "packed"),
    ] {
        let error = config(&[set]).unwrap_err().to_string();
        assert!(error.contains(message) && error.lines().count() == 1, "{set}: {error}");
    }
    let both = config(&[&mixture, "data.path='a'"]).unwrap_err().to_string();
    assert!(both.starts_with("`data.mixture`"), "{both}");
}
