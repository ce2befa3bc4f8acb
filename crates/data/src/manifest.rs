//! The manifest of a shard folder: what is in it and where that came from.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::write_atomically;
use crate::{Error, FilterCounts, Result, Split, SplitPlan, Tokenizer, TokenizerInfo};

/// The manifest's name in a shard folder.
pub(crate) const FILE_NAME: &str = "manifest.json";
/// Version of the shard folder's layout and of the filters. A folder of another is made anew.
pub(crate) const FORMAT: u32 = 1;

/// What a shard folder holds: `manifest.json`.
///
/// It is written last, so a folder that has one is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the folder's layout.
    pub format: u32,
    /// The corpus's name, as reports call it.
    pub name: String,
    /// Where the text came from.
    pub source: SourceInfo,
    /// SHA-256 of the kept text with its documents' names, in hexadecimal: the same for the same
    /// corpus on every machine, whatever the tokenizer and the splits.
    pub sha256: String,
    /// What made tokens of it.
    pub tokenizer: TokenizerInfo,
    /// One more than the largest token that can occur.
    pub vocab_size: usize,
    /// Bytes a token takes in the shards, little-endian: 2 where the vocabulary allows, else 4.
    pub token_bytes: usize,
    /// How the corpus was divided.
    pub split: SplitPlan,
    /// The three shards.
    pub splits: Splits,
    /// What the filters kept and dropped; `dropped.jsonl` names each file.
    pub filters: FilterCounts,
}

/// Where a corpus came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// `python-code` or `text`.
    pub kind: String,
    /// The folder or file it was read from, on the machine that prepared it.
    pub path: String,
    /// Files in it, before the filters.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// SHA-256 of their names and contents, before the filters.
    pub sha256: String,
}

/// The three shards of a corpus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Splits {
    /// Training.
    pub train: SplitInfo,
    /// Validation.
    pub validation: SplitInfo,
    /// Test.
    pub test: SplitInfo,
}

impl Splits {
    /// The shard of a split.
    pub fn get(&self, split: Split) -> &SplitInfo {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
            Split::Test => &self.test,
        }
    }
}

/// A shard: tokens in one file, the documents' ends in another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitInfo {
    /// File of the tokens, in the manifest's folder.
    pub file: String,
    /// How many tokens, those between documents included.
    pub tokens: u64,
    /// How many documents.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// SHA-256 of the tokens' file.
    pub sha256: String,
    /// File of the place behind each document's last token, as little-endian u64.
    pub documents_file: String,
    /// SHA-256 of the documents' file.
    pub documents_sha256: String,
}

/// The part of a manifest that every version has.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

impl Manifest {
    /// Reads the manifest of a shard folder.
    ///
    /// # Errors
    /// When there is none, or none that this version reads.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE_NAME);
        let raw = fs::read(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NotPrepared { dir: dir.to_path_buf() },
            _ => Error::io("read", &path)(source),
        })?;
        let refuse = |problem: String| Error::Manifest { path: path.clone(), problem };
        let Versioned { format } =
            serde_json::from_slice(&raw).map_err(|error| refuse(error.to_string()))?;
        if format != FORMAT {
            return Err(refuse(format!("it has format {format} and this version reads {FORMAT}")));
        }
        let manifest: Self =
            serde_json::from_slice(&raw).map_err(|error| refuse(error.to_string()))?;
        manifest.check().map_err(refuse)?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        if !matches!(self.token_bytes, 2 | 4) {
            return Err(format!("`token_bytes` is {}, not 2 or 4", self.token_bytes));
        }
        for split in Split::ALL {
            let info = self.splits.get(split);
            for name in [&info.file, &info.documents_file] {
                let plain = Path::new(name).file_name().is_some_and(|last| last == name.as_str());
                if !plain {
                    return Err(format!("`{name}` is not a file name"));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE_NAME);
        let json = serde_json::to_string_pretty(self)
            .map_err(|error| Error::Manifest { path: path.clone(), problem: error.to_string() })?;
        write_atomically(&path, format!("{json}\n").as_bytes())
    }

    /// Makes sure that the shards speak a tokenizer's language.
    ///
    /// # Errors
    /// [`Error::OtherVocabulary`] where they do not; `dir` is the folder that it names.
    pub fn check_tokenizer(&self, dir: &Path, tokenizer: &Tokenizer) -> Result<()> {
        let wanted = tokenizer.info();
        if self.tokenizer == wanted {
            return Ok(());
        }
        Err(Error::OtherVocabulary {
            dir: dir.to_path_buf(),
            shard: self.tokenizer.to_string(),
            wanted: wanted.to_string(),
        })
    }

    /// Whether a preparation with these inputs would give the same shards.
    pub(crate) fn made_from(&self, wanted: &Inputs) -> bool {
        let same = |a: f64, b: f64| (a - b).abs() < 1e-12;
        let (had, wants) = (self.split.fractions, wanted.fractions);
        self.name == wanted.name
            && self.source.kind == wanted.source.kind
            && self.source.sha256 == wanted.source.sha256
            && self.tokenizer == wanted.tokenizer
            && same(had.train, wants.train)
            && same(had.validation, wants.validation)
            && same(had.test, wants.test)
    }
}

/// What the content of a shard folder follows from.
pub(crate) struct Inputs {
    pub(crate) name: String,
    pub(crate) source: SourceInfo,
    pub(crate) tokenizer: TokenizerInfo,
    pub(crate) fractions: crate::SplitFractions,
}
