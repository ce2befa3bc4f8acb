//! Heads of a published model that are kept: small, with the record of their training, so that
//! they can be measured and used where nobody trains.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use foretoken_heads::{MultiTokenModel, Registry};
use foretoken_train::TrainConfig;
use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::files::{file_sha256, write_atomically};
use crate::training::Trained;

/// The heads beyond the first, in bfloat16.
const HEADS: &str = "heads.safetensors";

/// What they were trained by: a config for `foretoken train`, but that the model is named as set-up
/// names it.
const CONFIG: &str = "config.toml";

/// [`Record`].
const RECORD: &str = "training.json";

/// What is known of the training of heads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The command that trained them.
    pub(crate) made_by: String,
    /// Of the file with the heads.
    pub(crate) heads_sha256: String,
    /// Of the text that they were trained on, as a report has it.
    pub(crate) corpus_sha256: String,
    /// `cpu` or `cuda`.
    pub(crate) device: String,
    /// What the training came to.
    pub(crate) trained: Trained,
    /// Tokens seen and the mean loss of the first head that was trained, as a report has it.
    pub(crate) loss_curve: Vec<(f64, f64)>,
}

/// A folder with kept heads.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    folder: PathBuf,
    pub(crate) record: Record,
    pub(crate) config: TrainConfig,
}

impl Kept {
    /// Reads the record and the config of `folder`, and checks that they are about its heads.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "cannot read {}: --pretrained-heads wants a folder that --keep-heads wrote",
                    path.display()
                )
            })
        };
        let record: Record = serde_json::from_str(&read(RECORD)?)
            .with_context(|| format!("{} is no record of a training", in_(folder, RECORD)))?;
        let config =
            TrainConfig::from_toml(&read(CONFIG)?, &[]).with_context(|| in_(folder, CONFIG))?;
        let found = file_sha256(&folder.join(HEADS))?;
        ensure!(
            found == record.heads_sha256,
            "{} is not the file that {RECORD} beside it tells of (its SHA-256 is {found}): keep the \
             heads once more",
            in_(folder, HEADS)
        );
        Ok(Self { folder: folder.to_owned(), record, config })
    }

    /// Writes the heads of `model` and what is known of their training to `folder`, in place of
    /// what was kept there. `record` needs no hash of the heads yet.
    pub(crate) fn write(
        folder: &Path,
        model: &MultiTokenModel,
        config: &str,
        mut record: Record,
    ) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let heads = folder.join(HEADS);
        model
            .save_heads_in(Kind::BFloat16, &heads)
            .with_context(|| format!("keeping the heads in {}", folder.display()))?;
        write_atomically(&folder.join(CONFIG), config)?;
        record.heads_sha256 = file_sha256(&heads)?;
        let mut text = serde_json::to_string_pretty(&record)?;
        text.push('\n');
        write_atomically(&folder.join(RECORD), &text)
    }

    /// Puts the heads on the model that they were trained for.
    pub(crate) fn join(&self, model: MultiTokenModel) -> anyhow::Result<MultiTokenModel> {
        let model = model.with_heads(&self.folder.join(HEADS), &Registry::stock())?;
        let (found, told) = (&model.config().heads, self.config.heads_config()?);
        ensure!(
            *found == told,
            "{} holds other heads than {CONFIG} beside it tells of: {} of type {}, not {} of type {}",
            in_(&self.folder, HEADS),
            found.count,
            found.kind,
            told.count,
            told.kind
        );
        Ok(model)
    }
}

fn in_(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

#[cfg(test)]
mod tests {
    use foretoken_heads::{HeadsConfig, ModelConfig};
    use foretoken_trunk::Architecture;
    use tch::Device;

    use super::*;

    const CONFIG_TOML: &str = "[model]\ninit_from = \"smollm2\"\n\
        [heads]\ncount = 3\ntype = \"medusa\"\ntrain = \"alone\"\n\
        [data]\ncorpus = \"python-code\"\n\
        [train]\nsteps = 7\nbatch = 1\nsequence = 10\n";

    fn model(count: usize) -> MultiTokenModel {
        let architecture = Architecture {
            vocab: 40,
            dim: 8,
            layers: 2,
            attention_heads: 2,
            kv_heads: 2,
            head_dim: 4,
            ffn: 16,
            context: 16,
            ..Architecture::default()
        };
        let heads = HeadsConfig::new("medusa", count);
        let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
        MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 5).unwrap()
    }

    fn record() -> Record {
        Record {
            made_by: "a test".to_owned(),
            heads_sha256: String::new(),
            corpus_sha256: "c0ffee".to_owned(),
            device: "cpu".to_owned(),
            trained: Trained {
                steps: 7,
                tokens_seen: 70,
                seconds: 1.5,
                peak_memory_bytes: 9,
                device: None,
            },
            loss_curve: vec![(10.0, 3.5), (70.0, 2.25)],
        }
    }

    #[test]
    fn heads_that_were_kept_come_back_with_their_record() {
        let folder = tempfile::tempdir().unwrap();
        let model = model(3);
        Kept::write(folder.path(), &model, CONFIG_TOML, record()).unwrap();
        let kept = Kept::open(folder.path()).unwrap();
        let heads_sha256 = kept.record.heads_sha256.clone();
        assert_eq!(heads_sha256.len(), 64);
        assert_eq!(kept.record, Record { heads_sha256, ..record() });
        assert_eq!(kept.config.heads.count, 3);
        let joined = kept.join(model).unwrap();
        assert_eq!(joined.config().heads, HeadsConfig::new("medusa", 3));

        let another = CONFIG_TOML.replace("count = 3", "count = 4");
        std::fs::write(folder.path().join(CONFIG), another).unwrap();
        let error = Kept::open(folder.path()).unwrap().join(joined).unwrap_err().to_string();
        assert!(error.contains("3 of type medusa, not 4"), "{error}");
    }

    #[test]
    fn heads_that_the_record_is_not_of_are_refused() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Kept::write(folder.path(), &model(3), CONFIG_TOML, record()).unwrap();
        Kept::write(other.path(), &model(2), CONFIG_TOML, record()).unwrap();
        std::fs::copy(other.path().join(HEADS), folder.path().join(HEADS)).unwrap();
        let error = Kept::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(HEADS) && error.contains(RECORD), "{error}");
    }

    #[test]
    fn a_folder_with_something_else_is_named_with_what_it_should_be() {
        let folder = tempfile::tempdir().unwrap();
        let error = |part: &str| {
            let error = format!("{:#}", Kept::open(folder.path()).unwrap_err());
            assert!(error.contains(part), "{error}");
        };
        error("--keep-heads");
        std::fs::write(folder.path().join(RECORD), "{}").unwrap();
        error("no record");
        Kept::write(folder.path(), &model(3), CONFIG_TOML, record()).unwrap();
        let without = CONFIG_TOML.replace("count = 3", "count = 1");
        std::fs::write(folder.path().join(CONFIG), without).unwrap();
        error("at least 2");
    }
}
