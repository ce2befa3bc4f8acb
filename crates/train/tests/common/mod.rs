//! Small runs in a folder of their own.
#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use foretoken_heads::MultiTokenModel;
use foretoken_train::{Error, TrainConfig, TrainOptions, TrainOutcome, train};
use tch::{Device, Kind};

/// First weights come from libtorch's one generator, so runs whose bits are compared take turns.
static TURN: Mutex<()> = Mutex::new(());

pub struct Place {
    pub folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

pub const RECIPE: &str = r#"
[model]
layers = 4
attention_heads = 2
kv_heads = 1
dim = 16
ffn = 24
context = 32
[heads]
count = 2
[optimizer]
type = "muon"
warmup = 1
muon_precision = "float32"
[train]
steps = 10
batch = 2
sequence = 16
seed = 5
checkpoint_every = 0
"#;

impl Place {
    pub fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // So small a model only loses by threads that wait for each other.
        tch::set_num_threads(1);
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<String> =
            (0..600).map(|i| format!("line {i} of {} says {}\n", i * i, i % 7)).collect();
        fs::write(folder.path().join("text.txt"), lines.concat()).unwrap();
        Self { folder, _turn: turn }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn config(&self, sets: &[&str]) -> TrainConfig {
        let mut all = vec![format!("data.path='{}'", self.path("text.txt").display())];
        all.extend(sets.iter().map(|&set| set.to_owned()));
        TrainConfig::from_toml(RECIPE, &all).unwrap()
    }

    pub fn train(&self, out: &str, sets: &[&str]) -> Result<TrainOutcome, Error> {
        train(&self.config(sets), &self.path(out), &TrainOptions::default())
    }

    pub fn resume(&self, out: &str, sets: &[&str]) -> Result<TrainOutcome, Error> {
        let options = TrainOptions { resume: true, ..TrainOptions::default() };
        train(&self.config(sets), &self.path(out), &options)
    }

    pub fn weights(&self, out: &str) -> Vec<(String, Vec<f64>)> {
        let model = MultiTokenModel::load(&self.path(out), Kind::Double, Device::Cpu).unwrap();
        let parameters = model.parameters();
        let named = parameters.iter().flat_map(|parameter| parameter.named().unwrap());
        named.map(|(name, tensor)| (name, Vec::try_from(tensor.reshape([-1])).unwrap())).collect()
    }

    pub fn losses(&self, out: &str) -> Vec<(u64, Vec<f64>)> {
        let text = fs::read_to_string(self.path(out).join("metrics.jsonl")).unwrap();
        text.lines()
            .map(|line| {
                let line: foretoken_train::StepMetrics = serde_json::from_str(line).unwrap();
                (line.step, line.losses)
            })
            .collect()
    }

    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
