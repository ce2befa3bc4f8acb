//! A training's figures, seen: `foretoken plot` and event files for TensorBoard.

mod common;

use std::fs;

use common::{Place, SHORT, assert_refused, error_text, json, text};

/// Writes a metrics file of so many steps and two heads into `run`.
fn metrics(place: &Place, run: &str, steps: u32) {
    fs::create_dir_all(place.path(run)).unwrap();
    let lines = (1..=steps).map(|step| {
        let loss = 1.0 + 1.0 / f64::from(step);
        format!(
            "{{\"step\":{step},\"tokens\":{},\"losses\":[{loss},{}],\"learning_rate\":0.001,\
             \"grad_norm\":null,\"seconds\":{step}.5,\"tokens_per_second\":640.0}}\n",
            64 * step,
            loss + 1.0
        )
    });
    fs::write(place.path(run).join("metrics.jsonl"), lines.collect::<String>()).unwrap();
}

#[test]
fn the_help_has_examples_and_names_every_choice() {
    let place = Place::new();
    assert!(text(&place.run(&["--help"])).contains("plot"));
    let help = text(&place.run(&["plot", "--help"]));
    for part in ["Examples", "foretoken plot", "grad_norm", "tokens_per_second", "seconds"] {
        assert!(help.contains(part), "{part}: {help}");
    }
}

#[test]
fn a_training_for_tensorboard_is_drawn_and_goes_on_in_an_event_file_of_its_own() {
    let place = Place::new();
    let short = [&SHORT[..], &["--tensorboard"]].concat();
    let output = place.train("run", &short).output().unwrap();
    assert!(output.status.success(), "{}", error_text(&output));
    assert!(error_text(&output).contains("utilisation"), "{}", error_text(&output));
    let longer = [&short[..], &["--set", "train.steps=8", "--resume"]].concat();
    let output = place.train("run", &longer).output().unwrap();
    assert!(output.status.success(), "{}", error_text(&output));
    let files = place.names("run/tensorboard");
    assert_eq!(files.len(), 2);
    for file in &files {
        assert!(file.starts_with("events.out.tfevents."), "{file}");
        let bytes = fs::read(place.path("run/tensorboard").join(file)).unwrap();
        let has = |part: &str| bytes.windows(part.len()).any(|window| window == part.as_bytes());
        assert!(has("brain.Event:2") && has("loss/head-1") && has("loss/head-2"));
    }

    let written = json(&place.run(&["plot", "run", "--out", "run.svg", "--json"]));
    let expected = serde_json::json!({"out": "run.svg", "runs": ["run"], "charts": 2});
    assert_eq!(written, expected);
    let svg = fs::read_to_string(place.path("run.svg")).unwrap();
    assert_eq!(svg.matches("<polyline").count(), 2);
}

#[test]
fn several_runs_are_drawn_together_as_picture_or_page() {
    let place = Place::new();
    metrics(&place, "a/run", 40);
    metrics(&place, "b/run", 20);
    let svg = text(&place.run(&["plot", "a/run", "b/run/metrics.jsonl", "--heads", "1"]));
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("<polyline").count(), 2);
    assert!(svg.contains(">a/run<") && svg.contains(">b/run<"));
    let arguments = ["plot", "a/run", "b/run", "--x", "tokens", "--smooth", "5", "--metric"];
    let page = [&arguments[..], &["learning_rate", "--out", "both.html"]].concat();
    assert_eq!(text(&place.run(&page)), "both.html\n");
    let html = fs::read_to_string(place.path("both.html")).unwrap();
    for part in ["<!doctype html>", "Learning rate", "tokens seen", "mean of 5 steps", "a/run"] {
        assert!(html.contains(part), "{part}");
    }
}

#[test]
fn a_line_that_is_still_being_written_is_passed_over_with_a_warning() {
    let place = Place::new();
    metrics(&place, "run", 9);
    let file = place.path("run/metrics.jsonl");
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 9]).unwrap();
    let output = place.run(&["plot", "run"]);
    assert!(output.status.success() && text(&output).contains("<polyline"));
    assert!(error_text(&output).contains("cut off"), "{}", error_text(&output));
}

#[test]
fn what_cannot_be_drawn_is_refused_in_a_line() {
    let place = Place::new();
    metrics(&place, "run", 9);
    fs::create_dir(place.path("empty")).unwrap();
    fs::write(place.path("empty.jsonl"), "").unwrap();
    let damaged = "{\"step\":1,\"losses\":[1]}\nhalf\n{\"step\":2,\"losses\":[1]}\n";
    fs::write(place.path("damaged.jsonl"), damaged).unwrap();
    for (arguments, parts) in [
        (&["plot", "empty"][..], &["empty", "metrics.jsonl"][..]),
        (&["plot", "nowhere"], &["nowhere"]),
        (&["plot", "empty.jsonl"], &["empty.jsonl", "no line of a step"]),
        (&["plot", "damaged.jsonl"], &["damaged.jsonl", "line 2"]),
        (&["plot", "run", "run"], &["twice"]),
        (&["plot", "run", "--heads", "3"], &["head 3", "1, 2"]),
        (&["plot", "run", "--metric", "grad_norm"], &["gradient norm"]),
        (&["plot", "run", "--out", "no/such/folder.svg"], &["no/such/folder.svg"]),
    ] {
        assert_refused(&place.run(arguments), 1, parts);
    }
    for (arguments, parts) in [
        (&["plot"][..], &["RUN"][..]),
        (&["plot", "run", "--out", "run.png"], &["run.png", ".svg"]),
        (&["plot", "run", "--smooth", "0"], &["--smooth"]),
        (&["plot", "run", "--heads", "0"], &["--heads"]),
        (&["plot", "run", "--heads", "1", "--metric", "grad_norm"], &["--heads"]),
    ] {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{}", error_text(&output));
        for part in parts {
            assert!(error_text(&output).contains(part), "{part}: {}", error_text(&output));
        }
    }
    assert!(!place.path("run.png").exists());
}
