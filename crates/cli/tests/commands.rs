//! The commands at work, as a user types them.

mod common;

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use common::{Place, SHORT, error_text, json, model, signal, text, wait_until};
use serde_json::Value;

#[test]
fn help_names_every_command_and_shows_examples() {
    let place = Place::new();
    let help = text(&place.run(&["--help"]));
    for (command, explained) in [
        ("train", "Ctrl-C saves"),
        ("generate", "tokens_per_forward"),
        ("logits", "float32"),
        ("export", "llama.cpp"),
        ("import", "dequantised"),
        ("reproduce", "report.html"),
    ] {
        assert!(help.contains(command));
        let help = text(&place.run(&[command, "--help"]));
        assert!(help.contains(explained), "{help}");
        assert!(help.contains("Example") && help.contains("foretoken "), "{help}");
    }
}

#[test]
fn training_tells_in_json_what_it_came_to() {
    let place = Place::new();
    let output = place.train("run", &[&SHORT[..], &["--json"]].concat()).output().unwrap();
    let result = json(&output);
    assert_eq!(result["steps"], 6);
    assert_eq!(result["tokens_seen"], 6 * 2 * 32);
    assert_eq!(result["model"], "run/model");
    assert_eq!(result["interrupted"], false);
    assert_eq!(result["validation_loss"].as_array().unwrap().len(), 2);
    assert!(result["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(result["parameters"].as_u64().unwrap() > 100_000);
    assert!(error_text(&output).contains("step 6/6"));
    let files = [".lock", "checkpoints", "metrics.jsonl", "model", "shards"];
    assert_eq!(place.names("run"), files);
    let lines = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 6);
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    for key in
        ["step", "tokens", "epoch", "losses", "learning_rate", "grad_norm", "tokens_per_second"]
    {
        assert!(!last[key].is_null(), "{key}");
    }
}

#[test]
fn ctrl_c_saves_prints_the_command_that_goes_on_and_that_ends_in_the_same_bits() {
    let place = Place::new();
    // Saving after every step makes it likely that the signal comes in the middle of a save.
    let sets = ["--set", "train.steps=40", "--set", "train.checkpoint_every=1"];
    assert!(place.train("whole", &sets).output().unwrap().status.success());

    let mut command = place.train("parts", &sets);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let third = place.path("parts/checkpoints/step-3");
    wait_until(&mut child, || third.exists());
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let stderr = error_text(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!place.path("parts/model").exists());
    let (_, go_on) = stderr.lines().last().unwrap().split_once("go on with: ").expect(&stderr);
    assert!(go_on.contains("--resume"));

    let output = Command::new("sh")
        .args(["-c", go_on])
        .current_dir(place.path("."))
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", error_text(&output));
    for file in ["model.safetensors", "heads.safetensors"] {
        let read = |run: &str| fs::read(place.path(run).join("model").join(file)).unwrap();
        assert!(read("whole") == read("parts"), "{file} differs");
    }
    assert!(place.names("parts/checkpoints").iter().all(|name| name.starts_with("step-")));
}

#[test]
fn a_run_can_be_taken_in_pieces_of_seconds() {
    let place = Place::new();
    let short = [&SHORT[..], &["--max-seconds", "0.000001", "--json"]].concat();
    let piece = place.train("run", &short).output().unwrap();
    assert_eq!(piece.status.code(), Some(1));
    let result: Value = serde_json::from_slice(&piece.stdout).unwrap();
    assert_eq!((&result["interrupted"], &result["model"]), (&Value::from(true), &Value::Null));
    let rest = place.train("run", &[&SHORT[..], &["--resume"]].concat()).output().unwrap();
    assert!(rest.status.success(), "{}", error_text(&rest));
}

#[test]
fn both_decodings_give_the_same_text_and_the_figures_of_the_contract() {
    let place = Place::new();
    let generate = |decoding: &str| {
        let arguments = [
            "generate",
            "--model",
            model(),
            "--prompt",
            "def f1",
            "--max-new-tokens",
            "80",
            "--json",
            "--threads",
            "1",
            "--decoding",
            decoding,
        ];
        json(&place.run(&arguments))
    };
    let (plain, fast) = (generate("autoregressive"), generate("speculative"));
    assert_eq!(plain["text"], fast["text"]);
    assert_eq!(plain["tokens"], fast["tokens"]);
    assert_eq!(plain["tokens"].as_array().unwrap().len(), 80);
    assert_eq!(plain["tokens_per_forward"], 1.0);
    assert_eq!(plain["forward_passes"], 80);
    assert_eq!(plain["acceptance"], serde_json::json!([1.0]));
    assert!(fast["tokens_per_forward"].as_f64().unwrap() > 1.2, "{fast}");
    assert!(fast["forward_passes"].as_u64().unwrap() < 80);
    assert_eq!(fast["acceptance"][0], 1.0);
    assert_eq!(fast["acceptance"].as_array().unwrap().len(), 2);
    for result in [plain, fast] {
        let keys: Vec<&str> = result.as_object().unwrap().keys().map(String::as_str).collect();
        let contract = [
            "id",
            "text",
            "prompt_tokens",
            "tokens",
            "stopped_by",
            "forward_passes",
            "tokens_per_forward",
            "acceptance",
            "seconds",
            "tokens_per_second",
        ];
        assert_eq!(keys, contract);
        assert_eq!(result["prompt_tokens"], 6);
        assert_eq!(result["stopped_by"], "limit");
        assert!(result["seconds"]["prefill"].is_f64() && result["seconds"]["decode"].is_f64());
    }
}

#[test]
fn streamed_text_is_that_of_the_json_and_stderr_says_why_it_ended() {
    let place = Place::new();
    let arguments =
        ["generate", "--model", model(), "--prompt", "def f1", "--max-new-tokens", "40"];
    let streamed = place.run(&arguments);
    let whole = json(&place.run(&[&arguments[..], &["--json"]].concat()));
    assert_eq!(text(&streamed), format!("{}\n", whole["text"].as_str().unwrap()));
    assert!(error_text(&streamed).contains("--max-new-tokens reached"));
}

#[test]
fn a_stop_text_ends_the_text_before_itself_wherever_tokens_end() {
    let place = Place::new();
    let arguments = ["generate", "--model", model(), "--prompt", "def f1", "--json"];
    let free = json(&place.run(&[&arguments[..], &["--max-new-tokens", "60"]].concat()));
    let free = free["text"].as_str().unwrap();
    let stop = &free[20..24];
    let result =
        json(&place.run(&[&arguments[..], &["--stop", "nowhere", "--stop", stop]].concat()));
    assert_eq!(result["stopped_by"], "stop_text");
    assert_eq!(result["text"].as_str().unwrap(), &free[..free.find(stop).unwrap()]);
}

#[test]
fn the_end_of_the_context_ends_the_text_and_is_named() {
    let place = Place::new();
    let prompt = "x".repeat(250);
    let arguments =
        ["generate", "--model", model(), "--prompt", &prompt, "--max-new-tokens", "40", "--json"];
    let result = json(&place.run(&arguments));
    assert_eq!(result["stopped_by"], "context");
    assert!(result["tokens"].as_array().unwrap().len() <= 7);
}

#[test]
fn a_file_of_prompts_gives_a_line_each_under_its_id() {
    let place = Place::new();
    let prompts = "{\"id\":\"a\",\"prompt\":\"def \"}\n{\"id\":7,\"prompt\":\"return \"}\n";
    fs::write(place.path("prompts.jsonl"), prompts).unwrap();
    let arguments =
        ["generate", "--model", model(), "--prompts", "prompts.jsonl", "--max-new-tokens", "5"];
    let output = place.run(&[&arguments[..], &["--json"]].concat());
    let lines: Vec<Value> =
        text(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["id"], &lines[1]["id"]), (&Value::from("a"), &Value::from(7)));
    let plain = text(&place.run(&arguments));
    assert!(plain.starts_with("# a\n") && plain.contains("\n# 7\n"), "{plain}");
}

#[test]
fn a_seed_draws_the_same_text_and_another_one_another() {
    let place = Place::new();
    let draw = |seed: &str| {
        let arguments = [
            "generate",
            "--model",
            model(),
            "--prompt",
            "def ",
            "--temperature",
            "1.5",
            "--seed",
            seed,
            "--max-new-tokens",
            "60",
        ];
        let output = place.run(&arguments);
        assert!(output.status.success(), "{}", error_text(&output));
        text(&output)
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
}

#[test]
fn logits_of_every_head_lie_in_a_file_and_head_0_chooses_the_next_token() {
    let place = Place::new();
    let arguments =
        ["logits", "--model", model(), "--prompt", "def f1", "--out", "l.safetensors", "--json"];
    let written = json(&place.run(&arguments));
    assert_eq!(written["logits"], serde_json::json!([2, 6, 264]));
    let bytes = fs::read(place.path("l.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tokens = file.tensor("tokens").unwrap();
    assert_eq!((tokens.shape(), tokens.dtype()), (&[6][..], safetensors::Dtype::I64));
    let logits = file.tensor("logits").unwrap();
    assert_eq!((logits.shape(), logits.dtype()), (&[2, 6, 264][..], safetensors::Dtype::F32));
    let numbers: Vec<f32> =
        logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let last = &numbers[5 * 264..6 * 264];
    let best = (0..264).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
    let arguments =
        ["generate", "--model", model(), "--prompt", "def f1", "--max-new-tokens", "1", "--json"];
    assert_eq!(json(&place.run(&arguments))["tokens"], serde_json::json!([best]));
}

#[test]
fn a_reader_that_has_enough_ends_the_command_quietly() {
    let place = Place::new();
    let arguments =
        ["generate", "--model", model(), "--prompt", "def f1", "--max-new-tokens", "200"];
    let mut command = place.foretoken(&arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && !error_text(&output).contains("panicked"));

    let mut command = place.foretoken(&["--help"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(!error_text(&child.wait_with_output().unwrap()).contains("panicked"));
}
