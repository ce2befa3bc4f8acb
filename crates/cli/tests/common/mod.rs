//! What the tests of the command line share: a text, the tiny config, and the binary.

// Each test file uses its own part of this.
#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The config of the tests and of the first tutorial.
pub fn config() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments/configs/tiny.toml")
}

/// A folder with a small text, `text.txt`, and what commands make in it.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_text(&folder.path().join("text.txt"));
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The binary with one thread: tests run beside each other.
    pub fn foretoken(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foretoken"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("OMP_NUM_THREADS", "1")
            .env_remove("RUST_LOG")
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.foretoken(arguments).output().unwrap()
    }

    /// `foretoken train` on the text, into `out`.
    pub fn train(&self, out: &str, more: &[&str]) -> Command {
        let config = config();
        let mut command = self.foretoken(&["train", "--config", config.to_str().unwrap()]);
        command.args(["--set", "data.path=text.txt", "--out", out]).args(more);
        command
    }

    /// The step of a run's newest checkpoint, 0 where there is none.
    pub fn newest(&self, run: &str) -> u64 {
        let folder = format!("{run}/checkpoints");
        let names = if self.path(&folder).exists() { self.names(&folder) } else { Vec::new() };
        names.iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max().unwrap_or(0)
    }

    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Sets that make a training as short as it can be.
pub const SHORT: [&str; 6] =
    ["--set", "train.steps=6", "--set", "train.batch=2", "--set", "train.sequence=32"];

fn write_text(path: &Path) {
    let functions = (0..1200).map(|i| format!("def f{i}(x):\n    return x + {}\n\n", i * i));
    fs::write(path, functions.collect::<String>()).unwrap();
}

/// The folder of a model that was trained once for all tests of a file.
pub fn model() -> &'static str {
    static MODEL: OnceLock<String> = OnceLock::new();
    MODEL.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_CRATE_NAME"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let place = Place::new();
        let run = folder.join("run");
        let output = place.train(run.to_str().unwrap(), &[]).output().unwrap();
        assert!(output.status.success(), "{}", error_text(&output));
        run.join("model").to_str().unwrap().to_owned()
    })
}

pub fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn error_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The one JSON object on stdout.
pub fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", error_text(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asserts that a command failed with `code` and one clear line that has all of `parts`.
pub fn assert_refused(output: &Output, code: i32, parts: &[&str]) {
    let stderr = error_text(output);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    for part in parts {
        assert!(errors[0].contains(part), "no {part:?} in: {stderr}");
    }
    if code == 1 {
        assert_eq!(stderr.lines().last(), Some(errors[0]), "{stderr}");
    }
}

/// Waits until `done` or panics after a minute.
pub fn wait_until(child: &mut Child, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing happened");
        assert!(child.try_wait().unwrap().is_none(), "the command ended too soon");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal as a terminal would.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}
