//! A run that is drawn: where its figures are, what it is called.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::metrics::{self, Line};

const METRICS: &str = "metrics.jsonl";

/// A training with its steps.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) lines: Vec<Line>,
    /// The head that the first loss is of, the nearest being 1.
    first_head: usize,
}

impl Run {
    /// Reads runs, each a training's folder or its metrics file, and names them by what tells
    /// their folders apart.
    pub(super) fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<Self>> {
        let files =
            paths.iter().map(|path| metrics_file(path)).collect::<anyhow::Result<Vec<_>>>()?;
        for (index, file) in files.iter().enumerate() {
            let twice = files[..index].contains(file);
            ensure!(!twice, "{} is given twice", paths[index].display());
        }
        let names = names(&files);
        let read = |(file, name): (&PathBuf, String)| {
            let lines = metrics::read(file)?;
            anyhow::Ok(Self { name, lines, first_head: first_head(file) })
        };
        files.iter().zip(names).map(read).collect()
    }

    /// The heads that there are losses of.
    pub(super) fn heads(&self) -> std::ops::Range<usize> {
        let most = self.lines.iter().map(|line| line.losses.len()).max().unwrap_or(0);
        self.first_head..self.first_head + most
    }

    /// The loss of a head in a step.
    pub(super) fn loss(&self, line: &Line, head: usize) -> Option<f64> {
        let index = head.checked_sub(self.first_head)?;
        line.losses.get(index).copied().flatten()
    }
}

/// The metrics file of a run, as a path that is the same however it was given.
fn metrics_file(run: &Path) -> anyhow::Result<PathBuf> {
    let file = if run.is_dir() { run.join(METRICS) } else { run.to_owned() };
    match fs::canonicalize(&file) {
        Ok(file) if file.is_file() => Ok(file),
        Err(_) if run.is_dir() => {
            bail!("{} has no {METRICS}: give a folder that training wrote", run.display())
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        Ok(_) => bail!("{} is no file", file.display()),
    }
}

/// A name for each file: as many of the last parts of its path as tell it from the others.
fn names(files: &[PathBuf]) -> Vec<String> {
    let parts: Vec<Vec<String>> = files.iter().map(|file| parts(file)).collect();
    let mut depths = vec![1; files.len()];
    loop {
        let named: Vec<String> = parts.iter().zip(&depths).map(|(p, &d)| last(p, d)).collect();
        let mut deeper = depths.clone();
        for (index, name) in named.iter().enumerate() {
            let again = named.iter().filter(|other| *other == name).count() > 1;
            if again && depths[index] < parts[index].len() {
                deeper[index] += 1;
            }
        }
        if deeper == depths {
            return named;
        }
        depths = deeper;
    }
}

fn last(parts: &[String], depth: usize) -> String {
    parts[parts.len().saturating_sub(depth)..].join("/")
}

/// The names on the way to a run; what every training calls its file is none.
fn parts(file: &Path) -> Vec<String> {
    let run = match file.file_name() == Some(OsStr::new(METRICS)) {
        true => file.parent().unwrap_or(file),
        false => file,
    };
    let names = run.components().filter_map(|component| match component {
        std::path::Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    });
    names.collect()
}

/// The head that a run's first loss is of: heads that were trained alone begin after the first. A
/// checkpoint beside the file says so.
fn first_head(file: &Path) -> usize {
    let checkpoints = fs::read_dir(file.with_file_name("checkpoints"));
    let alone = checkpoints.into_iter().flatten().flatten().find_map(|checkpoint| {
        let text = fs::read_to_string(checkpoint.path().join("training.json")).ok()?;
        let state: Value = serde_json::from_str(&text).ok()?;
        Some(state["config"]["heads"]["train"] == "alone")
    });
    if alone == Some(true) { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(files: &[&str]) -> Vec<String> {
        names(&files.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    #[test]
    fn runs_are_named_by_what_tells_their_folders_apart() {
        assert_eq!(named(&["/runs/tiny/metrics.jsonl"]), ["tiny"]);
        assert_eq!(named(&["/runs/a/metrics.jsonl", "/runs/b/metrics.jsonl"]), ["a", "b"]);
        assert_eq!(
            named(&["/x/a/run/metrics.jsonl", "/x/b/run/metrics.jsonl", "/x/c/metrics.jsonl"]),
            ["a/run", "b/run", "c"]
        );
        assert_eq!(
            named(&["/a/x/run/metrics.jsonl", "/b/x/run/metrics.jsonl"]),
            ["a/x/run", "b/x/run"]
        );
    }

    #[test]
    fn other_files_are_named_themselves() {
        assert_eq!(named(&["/x/old.jsonl", "/x/metrics.jsonl"]), ["old.jsonl", "x"]);
        // A name that is the end of another.
        assert_eq!(named(&["/run/metrics.jsonl", "/x/run/metrics.jsonl"]), ["run", "x/run"]);
    }
}
