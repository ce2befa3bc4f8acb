//! From a corpus to a folder of token shards.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::encode::write_shards;
use crate::files::{PARTIAL, hex, write_atomically};
use crate::filters::DropReason;
use crate::manifest::{FORMAT, Inputs, SourceInfo};
use crate::scan::{Scanned, scan};
use crate::source::SourceFile;
use crate::writer::token_bytes;
use crate::{
    CorpusSource, Error, FilterCounts, Manifest, Result, Split, SplitFractions, SplitPlan,
    Tokenizer, open_split,
};

/// Names each file that the filters dropped, with the reason.
const DROPPED: &str = "dropped.jsonl";

/// What to prepare, and where to.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// The corpus.
    pub source: CorpusSource,
    /// What makes tokens of it.
    pub tokenizer: Tokenizer,
    /// The shard folder: `manifest.json` and the shards lie in it itself. Made when missing.
    pub out_dir: PathBuf,
    /// The corpus's name, as reports call it.
    pub name: String,
    /// How much of it goes where.
    pub split: SplitFractions,
}

/// How far a preparation is. Counts are bytes of source files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Files are being read, hashed and filtered.
    Scanning {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Another process prepares the same folder; this one waits for it.
    Waiting,
    /// Text is being turned into shards.
    Tokenizing {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The folder was complete, its shards are sound and it is used as it is.
    Reused,
    /// The new shards are in place.
    Finished,
}

/// Prepares a corpus: reads, filters, splits and tokenizes it into memory-mapped shards.
///
/// The result depends on the files' names and contents, the tokenizer and the split alone, not on
/// threads, machines or the order of a folder. A folder that already holds just that, with the
/// right checksums, is used as it is. The manifest is written last: a preparation that is killed
/// leaves the folder's former content valid, or a folder without a manifest. Files in `out_dir`
/// that are not of its making are not touched. Two processes that prepare one folder take turns.
///
/// `progress` is called on this thread.
///
/// # Errors
/// When the corpus is missing, empty or malformed, or a file cannot be read or written.
pub fn prepare(options: &PrepareOptions, progress: &dyn Fn(Progress)) -> Result<Manifest> {
    options.split.check()?;
    let out = &options.out_dir;
    let files = options.source.files(out)?;
    let scanned = scan(&options.source, options.split, &files, progress)?;
    let filters = count(&files, &scanned);
    if filters.kept.bytes == 0 {
        return Err(Error::EmptyCorpus {
            path: options.source.path().to_path_buf(),
            found: nothing_kept(&filters),
        });
    }
    let inputs = Inputs {
        name: options.name.clone(),
        source: SourceInfo {
            kind: options.source.kind().to_owned(),
            path: options.source.path().display().to_string(),
            files: files.len() as u64,
            bytes: files.iter().map(|file| file.bytes).sum(),
            sha256: source_sha256(&files, &scanned),
        },
        tokenizer: options.tokenizer.info(),
        fractions: options.split,
    };

    fs::create_dir_all(out).map_err(Error::io("create", out))?;
    let _lock = lock(out, progress)?;
    if let Some(manifest) = reusable(out, &inputs)? {
        progress(Progress::Reused);
        return Ok(manifest);
    }
    remove_leftovers(out, None)?;

    let dealt = scanned.iter().fold([0; 3], |sum: [u64; 3], file| {
        std::array::from_fn(|split| sum[split] + file.dealt[split])
    });
    let plan = SplitPlan::choose(options.split, filters.kept.bytes, dealt);
    let (sha256, splits) = write_shards(options, plan.rule, &files, &scanned, progress)?;
    write_atomically(&out.join(DROPPED), &dropped_list(&files, &scanned))?;
    let manifest = Manifest {
        format: FORMAT,
        name: inputs.name,
        source: inputs.source,
        sha256,
        vocab_size: inputs.tokenizer.vocab_size,
        token_bytes: token_bytes(inputs.tokenizer.vocab_size),
        tokenizer: inputs.tokenizer,
        split: plan,
        splits,
        filters,
    };
    manifest.write(out)?;
    remove_leftovers(out, Some(&manifest))?;
    progress(Progress::Finished);
    Ok(manifest)
}

fn count(files: &[SourceFile], scanned: &[Scanned]) -> FilterCounts {
    let mut counts = FilterCounts::default();
    for (file, found) in files.iter().zip(scanned) {
        match found.dropped {
            None => counts.kept.add(found.documents, found.bytes),
            Some(reason) => counts.dropped.entry(reason).or_default().add(1, file.bytes),
        }
        if found.empty > 0 {
            counts.dropped.entry(DropReason::Empty).or_default().add(found.empty, 0);
        }
    }
    counts
}

fn nothing_kept(filters: &FilterCounts) -> String {
    let dropped: u64 = filters.dropped.values().map(|count| count.documents).sum();
    let reasons: Vec<String> = filters
        .dropped
        .iter()
        .map(|(reason, count)| format!("{} {}", count.documents, reason.words()))
        .collect();
    match reasons.as_slice() {
        [] => "it is empty".to_owned(),
        reasons => format!("all {dropped} documents were left out ({})", reasons.join(", ")),
    }
}

fn source_sha256(files: &[SourceFile], scanned: &[Scanned]) -> String {
    let mut hash = Sha256::new();
    for (file, found) in files.iter().zip(scanned) {
        hash.update(file.key.as_bytes());
        hash.update([0xFF]);
        hash.update(found.sha256);
    }
    hex(&hash.finalize())
}

fn dropped_list(files: &[SourceFile], scanned: &[Scanned]) -> Vec<u8> {
    let mut list = String::new();
    for (file, found) in files.iter().zip(scanned) {
        if let Some(reason) = found.dropped {
            let line = serde_json::json!({"file": file.key, "reason": reason, "bytes": file.bytes});
            list.push_str(&line.to_string());
            list.push('\n');
        }
    }
    list.into_bytes()
}

/// Waits until no other process works on the folder; a process that dies lets go of it. Some
/// network file systems have no locks: there it is the user who must not start two at once.
fn lock(out: &Path, progress: &dyn Fn(Progress)) -> Result<File> {
    let path = out.join(".lock");
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress(Progress::Waiting);
            file.lock().map_err(Error::io("lock", &path))?;
        }
        Err(TryLockError::Error(error)) => {
            tracing::warn!("{} cannot be locked: {error}", path.display());
        }
    }
    Ok(file)
}

/// The folder's manifest, if it is what the preparation would give and its shards are there.
///
/// A shard with other content than its manifest says is an error, not a reason to make it again:
/// something went wrong with this disk or with another program, and its owner should know.
fn reusable(out: &Path, inputs: &Inputs) -> Result<Option<Manifest>> {
    let manifest = match Manifest::read(out) {
        Ok(manifest) => manifest,
        Err(Error::NotPrepared { .. }) => return Ok(None),
        Err(error) => {
            tracing::warn!("preparing the corpus again: {error}");
            return Ok(None);
        }
    };
    if !manifest.made_from(inputs) {
        return Ok(None);
    }
    let sound = Split::ALL.into_iter().try_for_each(|split| open_split(out, split)?.verify());
    match sound {
        Ok(()) => Ok(Some(manifest)),
        Err(error @ (Error::ShardLength { .. } | Error::ShardChecksum { .. })) => Err(error),
        Err(error) => {
            tracing::warn!("preparing the corpus again: {error}");
            Ok(None)
        }
    }
}

/// Removes unfinished files of killed preparations and shards that no manifest names.
fn remove_leftovers(out: &Path, current: Option<&Manifest>) -> Result<()> {
    let manifest = current.cloned().or_else(|| Manifest::read(out).ok());
    let named: HashSet<&str> = manifest
        .iter()
        .flat_map(|manifest| Split::ALL.map(|split| manifest.splits.get(split)))
        .flat_map(|info| [info.file.as_str(), info.documents_file.as_str()])
        .collect();
    for entry in fs::read_dir(out).map_err(Error::io("read", out))? {
        let path = entry.map_err(Error::io("read", out))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let of_a_shard =
            Split::ALL.iter().any(|split| name.trim_start_matches('.').starts_with(split.name()));
        let partial = name.starts_with('.') && name.ends_with(PARTIAL);
        let shard = name.ends_with(".tokens") || name.ends_with(".documents");
        if partial || (of_a_shard && shard && !named.contains(name)) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}
