//! Bad input: one clear line that names what is wrong, a non-zero exit, nothing lost.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Place, SHORT, assert_refused, config, error_text, model, wait_until};

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// Copies the trained model, to damage it.
fn copy_of_model(place: &Place) -> String {
    let copy = place.path("copy");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy.to_str().unwrap().to_owned()
}

#[test]
fn a_command_line_that_makes_no_sense_exits_with_2() {
    let place = Place::new();
    let generate = ["generate", "--model", model(), "--prompt", "x"];
    for (more, parts) in [
        (&["--stop", ""][..], &["--stop"][..]),
        (&["--heads", "3"], &["--heads 3", "2"]),
        (&["--heads", "0"], &["--heads 0"]),
        (&["--heads", "2", "--decoding", "autoregressive"], &["--heads 2", "speculative"]),
        (&["--alternatives", "3", "--decoding", "autoregressive"], &["--alternatives 3"]),
        (&["--alternatives", "3", "--temperature", "1"], &["--alternatives 3", "temperature"]),
        (&["--alternatives", "3", "--heads", "1"], &["--alternatives 3", "one head"]),
        (&["--temperature", "1", "--heads", "2"], &["--temperature 1", "plainly"]),
        (&["--temperature", "1", "--decoding", "speculative"], &["--temperature 1", "plainly"]),
        (&["--system", "x"], &["--chat"]),
        (&["--top-p", "0.5"], &["--temperature"]),
        (&["--threads", "0"], &["--threads 0"]),
        (&["--prompts", "x.jsonl"], &["--prompt"]),
    ] {
        let output = place.run(&[&generate[..], more].concat());
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", error_text(&output));
        for part in parts {
            assert!(error_text(&output).contains(part), "{more:?}: {}", error_text(&output));
        }
    }
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let place = Place::new();
    let generate = ["generate", "--model", model(), "--prompt", "x", "--device", "cuda"];
    let logits = ["logits", "--model", model(), "--prompt", "x", "--device", "cuda", "--out", "o"];
    for arguments in [&generate[..], &logits] {
        let mut command = place.foretoken(arguments);
        // Wherever this runs: no python3, no libtorch with CUDA.
        command.env("PATH", place.path("none")).env_remove("LIBTORCH");
        command.env("FORETOKEN_TORCH_LIB", place.path("none"));
        assert_refused(&command.output().unwrap(), 1, &["--device cuda", "FORETOKEN_TORCH_LIB"]);
    }
}

#[test]
fn models_and_heads_that_are_not_there_or_something_else_are_named() {
    let place = Place::new();
    fs::write(place.path("text.gguf"), "Just a text.").unwrap();
    fs::create_dir(place.path("empty")).unwrap();
    fs::create_dir_all(place.path("run/model")).unwrap();
    for name in ["config.json", "heads.safetensors"] {
        fs::write(place.path("run/model").join(name), "{}").unwrap();
    }
    for (arguments, parts) in [
        (["--model", "model.gguf", "--with-heads", "x"], &["model.gguf", "no such"][..]),
        (["--model", "text.gguf", "--with-heads", "x"], &["text.gguf", "another format"]),
        (["--model", model(), "--with-heads", "other"], &["other", "No such file"]),
        (["--model", model(), "--with-heads", "text.gguf"], &["text.gguf", "safetensors"]),
        (["--model", model(), "--with-heads", "empty"], &["empty", "give a model folder"]),
        (
            ["--model", "empty", "--with-heads", "x"],
            &["empty", "config.json", "give a model folder"],
        ),
        (["--model", "run", "--with-heads", "x"], &["config.json", "give run/model"]),
        (
            ["--model", model(), "--with-heads", "run"],
            &["heads.safetensors", "run/model: give that"],
        ),
    ] {
        let output = place.run(&[&["generate", "--prompt", "x"][..], &arguments].concat());
        assert_refused(&output, 1, parts);
    }
    let output = place.run(&["generate", "--model", model(), "--prompt", "x", "--chat"]);
    assert_refused(&output, 1, &["--chat", "template"]);
}

#[test]
fn configs_that_cannot_be_run_are_refused_by_their_key() {
    let place = Place::new();
    for (set, parts) in [
        ("train.step=4", &["`train.step`", "`train.steps`"][..]),
        ("optimizer.lr=4", &["`optimizer.lr`"]),
        ("heads.count=4", &["`heads.count`", "model.layers"]),
        ("train.steps=many", &["train.steps"]),
        ("steps", &["--set steps"]),
        ("heads.type=other", &["heads.type", "block"]),
        ("data.tokenizer=nowhere.json", &["nowhere.json"]),
    ] {
        assert_refused(&place.train("run", &["--set", set]).output().unwrap(), 1, parts);
        assert!(!place.path("run/model").exists());
    }
    // What can be seen before the first file is written leaves none.
    let set = ["--set", "data.tokenizer=nowhere.json"];
    assert_refused(&place.train("other", &set).output().unwrap(), 1, &["nowhere.json"]);
    assert!(!place.path("other").exists());
    let missing = place.run(&["train", "--config", "nowhere.toml"]);
    assert_refused(&missing, 1, &["nowhere.toml"]);
    fs::write(place.path("broken.toml"), "[model]\nlayers = = 4\n").unwrap();
    let broken = place.run(&["train", "--config", "broken.toml"]);
    assert_refused(&broken, 1, &["broken.toml, line 2"]);
}

#[test]
fn texts_that_are_missing_empty_or_too_short_are_named() {
    let place = Place::new();
    fs::write(place.path("empty.txt"), "").unwrap();
    fs::write(place.path("short.txt"), "too short\n").unwrap();
    fs::create_dir(place.path("nothing")).unwrap();
    for name in ["empty.txt", "short.txt", "nothing", "nowhere"] {
        let set = format!("data.path={name}");
        assert_refused(&place.train("run", &["--set", &set]).output().unwrap(), 1, &[name]);
    }
    let output = place.foretoken(&["train", "--out", "run", "--corpus", "nowhere", "--config"]);
    let mut output = output;
    assert_refused(&output.arg(config()).output().unwrap(), 1, &["nowhere"]);
}

#[test]
fn models_that_are_missing_cut_short_or_mixed_up_are_refused_by_file() {
    let place = Place::new();
    let refused = |model: &str, parts: &[&str]| {
        assert_refused(&place.run(&["generate", "--model", model, "--prompt", "x"]), 1, parts);
        let logits = ["logits", "--model", model, "--prompt", "x", "--out", "l.safetensors"];
        assert_refused(&place.run(&logits), 1, parts);
        assert!(!place.path("l.safetensors").exists());
    };
    refused("nowhere", &["nowhere"]);
    let copy = copy_of_model(&place);
    for file in ["heads.safetensors", "model.safetensors", "config.json", "tokenizer.json"] {
        let path = Path::new(&copy).join(file);
        let whole = fs::read(&path).unwrap();
        cut(&path);
        refused(&copy, &[file]);
        fs::remove_file(&path).unwrap();
        refused(&copy, &[file]);
        fs::write(&path, whole).unwrap();
    }
    assert!(place.run(&["generate", "--model", &copy, "--prompt", "x"]).status.success());
}

#[test]
fn prompts_that_are_empty_too_long_or_no_prompts_are_refused() {
    let place = Place::new();
    let long = "x".repeat(257);
    for (prompt, parts) in [(long.as_str(), &["257", "256"][..]), ("", &["prompt", "empty"])] {
        let generate = ["generate", "--model", model(), "--prompt", prompt];
        assert_refused(&place.run(&generate), 1, parts);
        let logits = ["logits", "--model", model(), "--out", "l.safetensors", "--prompt", prompt];
        assert_refused(&place.run(&logits), 1, parts);
    }
    for (content, part) in [("", "prompts.jsonl"), ("{\"prompt\":\"x\"}\nx\n", "line 2")] {
        fs::write(place.path("prompts.jsonl"), content).unwrap();
        let generate = ["generate", "--model", model(), "--prompts", "prompts.jsonl"];
        assert_refused(&place.run(&generate), 1, &["prompts.jsonl", part]);
    }
}

#[test]
fn a_folder_that_holds_a_run_is_left_alone() {
    let place = Place::new();
    assert!(place.train("run", &SHORT).output().unwrap().status.success());
    let again = place.train("run", &SHORT).output().unwrap();
    assert_refused(&again, 1, &["run", "--resume", "--out"]);
    let other = [&SHORT[..], &["--resume", "--set", "train.seed=2"]].concat();
    assert_refused(&place.train("run", &other).output().unwrap(), 1, &["`train.seed`"]);
}

#[test]
fn damaged_checkpoints_are_named_and_an_older_one_is_used() {
    let place = Place::new();
    let sets = [&SHORT[..], &["--set", "train.checkpoint_every=3"]].concat();
    assert!(place.train("run", &sets).output().unwrap().status.success());
    cut(&place.path("run/checkpoints/step-6/optimizer.safetensors"));
    fs::remove_dir_all(place.path("run/model")).unwrap();
    let resume = [&sets[..], &["--resume"]].concat();
    let output = place.train("run", &resume).output().unwrap();
    assert!(output.status.success(), "{}", error_text(&output));
    let warning = error_text(&output);
    assert!(warning.contains("step-6") && warning.contains("optimizer.safetensors"), "{warning}");
    assert!(place.path("run/model/model.safetensors").exists());

    for step in ["step-3", "step-6"] {
        fs::remove_file(place.path("run/checkpoints").join(step).join("model.safetensors"))
            .unwrap();
    }
    let output = place.train("run", &resume).output().unwrap();
    assert_refused(&output, 1, &["step-6/model.safetensors"]);
}

/// The tokens that the run in `run` trains on.
fn train_shard(place: &Place) -> PathBuf {
    let shards: Vec<String> = place.names("run/shards");
    let train = shards.iter().find(|name| name.starts_with("train") && name.ends_with(".tokens"));
    place.path("run/shards").join(train.unwrap_or_else(|| panic!("{shards:?}")))
}

#[test]
fn a_shard_that_differs_from_its_manifest_is_never_trained_on() {
    let place = Place::new();
    assert!(place.train("run", &SHORT).output().unwrap().status.success());
    let shard = train_shard(&place);
    let whole = fs::read(&shard).unwrap();
    cut(&shard);
    let more = [&SHORT[..], &["--resume", "--set", "train.steps=8"]].concat();
    let refused = place.train("run", &more).output().unwrap();
    assert_refused(&refused, 1, &[".tokens", "does not match its manifest", "delete it"]);
    // What the message says to do does it.
    fs::remove_file(&shard).unwrap();
    assert!(place.train("run", &more).output().unwrap().status.success());
    assert!(fs::read(&shard).unwrap() == whole);
}

#[test]
fn a_shard_that_is_cut_short_under_a_training_ends_it_and_its_checkpoints_go_on() {
    let place = Place::new();
    let saving = [&SHORT[..], &["--set", "train.checkpoint_every=4"]].concat();
    let endless = [&saving[..], &["--set", "train.steps=1000000", "--max-seconds", "60"]].concat();
    let mut command = place.train("run", &endless);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until(&mut child, || place.newest("run") >= 8);
    let shard = train_shard(&place);
    let whole = fs::read(&shard).unwrap();
    let file = fs::File::options().write(true).open(&shard).unwrap();
    file.set_len(whole.len() as u64 / 2).unwrap();
    let output = child.wait_with_output().unwrap();
    let name = shard.file_name().unwrap().to_str().unwrap();
    assert_refused(&output, 1, &[name, "changed while it was in use", "its folder", "--resume"]);
    assert!(!place.path("run/model").exists());

    let checkpoints = place.names("run/checkpoints");
    for checkpoint in &checkpoints {
        let folder = place.path("run/checkpoints").join(checkpoint);
        let mut check = Command::new("sha256sum");
        check.args(["--check", "--quiet", "checksums.sha256"]).current_dir(folder);
        assert!(check.status().unwrap().success(), "{checkpoint} is not whole");
    }
    let newest = place.newest("run");
    assert!(newest >= 8, "{checkpoints:?}");

    // What the message says to do does it.
    fs::remove_dir_all(place.path("run/shards")).unwrap();
    let steps = format!("train.steps={}", newest + 2);
    let more = [&saving[..], &["--resume", "--set", &steps]].concat();
    let output = place.train("run", &more).output().unwrap();
    assert!(output.status.success(), "{}", error_text(&output));
    assert!(!error_text(&output).contains("damaged"), "{}", error_text(&output));
    assert!(fs::read(&shard).unwrap() == whole);
}

#[test]
fn a_full_disk_ends_in_one_line_and_loses_nothing() {
    let place = Place::new();
    assert!(place.train("run", &SHORT).output().unwrap().status.success());
    let before = fs::read(place.path("run/model/model.safetensors")).unwrap();
    // Files may grow to 100 blocks only; the model is larger, the log of a few steps isn't.
    let mut command = place.train("run", &[&SHORT[..], &["--resume"]].concat());
    command.args(["--set", "train.steps=8"]);
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let limited = format!("trap '' XFSZ; ulimit -f 100; exec {}", words.join(" "));
    let output = Command::new("sh")
        .args(["-c", &limited])
        .current_dir(place.path("."))
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert_refused(&output, 1, &["step-8", "--resume"]);
    assert_eq!(place.names("run/checkpoints"), ["step-6"]);
    assert!(fs::read(place.path("run/model/model.safetensors")).unwrap() == before);
    assert!(command.output().unwrap().status.success());

    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = place.foretoken(&["generate", "--model", model(), "--prompt", "x"]);
    assert_refused(&command.stdout(full).output().unwrap(), 1, &["stdout"]);
}

#[test]
fn logits_replace_plain_files_only() {
    let place = Place::new();
    for out in ["/dev/full", "."] {
        let logits = ["logits", "--model", model(), "--prompt", "x", "--out", out];
        assert_refused(&place.run(&logits), 1, &[out]);
    }
    let logits = ["logits", "--model", model(), "--prompt", "x", "--out", "nowhere/l.safetensors"];
    assert_refused(&place.run(&logits), 1, &["nowhere"]);
}
