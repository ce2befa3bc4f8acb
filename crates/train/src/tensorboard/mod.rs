//! A training's figures as TensorBoard reads them.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::log_file::LogFile;
use crate::usage::Usage;
use crate::{Error, StepMetrics};

mod message;
mod record;
#[cfg(test)]
mod tests;

use message::{What, event};
use record::record;

/// What readers of this form of events look for.
const VERSION: &str = "brain.Event:2";

/// How names of event files begin.
const PREFIX: &str = "events.out.tfevents.";

/// An event file of TensorBoard, open for more steps.
///
/// Every part of a training, from its beginning or from a resume to its end, has a file of its
/// own. Each opens with a `SessionLog` of status `START` at the step that comes next: of what
/// earlier files have from there on, TensorBoard shows nothing.
#[derive(Debug)]
pub(crate) struct EventFile {
    log: LogFile,
    first_head: usize,
}

impl EventFile {
    /// A new file in `folder` for the steps after `steps`, whose losses are those of head
    /// `first_head` (the nearest is 1) and those after it.
    pub(crate) fn create(folder: &Path, steps: u64, first_head: usize) -> Result<Self, Error> {
        let failed = |path: &Path, source| Error::Write { path: path.to_owned(), source };
        fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
        let (path, file) = new_file(folder).map_err(|source| failed(folder, source))?;
        let mut events = Self { log: LogFile::new(path, file), first_head };
        events.write(0, What::Version(VERSION))?;
        events.write(steps.saturating_add(1), What::Start)?;
        events.flush()?;
        Ok(events)
    }

    /// Appends the figures of a step.
    pub(crate) fn push(&mut self, line: &StepMetrics, usage: &Usage) -> Result<(), Error> {
        self.write(line.step, What::Scalars(&self.scalars(line, usage)))
    }

    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.log.flush()
    }

    fn scalars(&self, line: &StepMetrics, usage: &Usage) -> Vec<(String, f64)> {
        let head =
            |(at, loss): (usize, &f64)| (format!("loss/head-{}", self.first_head + at), *loss);
        // A head that a curriculum leaves out has none.
        let losses = line.losses.iter().enumerate().filter(|(_, loss)| loss.is_finite());
        let mut scalars: Vec<(String, f64)> = losses.map(head).collect();
        let memory = usage.memory_bytes.map(|bytes| bytes as f64);
        let figures = [
            ("learning_rate", Some(line.learning_rate)),
            ("grad_norm", Some(line.grad_norm)),
            ("tokens_per_second", Some(line.tokens_per_second)),
            ("epoch", Some(line.epoch as f64)),
            ("memory", memory),
            ("utilisation", usage.utilisation),
        ];
        let known = figures.into_iter().filter_map(|(tag, value)| Some((tag.to_owned(), value?)));
        scalars.extend(known);
        scalars
    }

    fn write(&mut self, step: u64, what: What<'_>) -> Result<(), Error> {
        self.log.append(&record(&event(now(), step, what)))
    }
}

/// Opens `events.out.tfevents.SECONDS.HOST.PID.0`. TensorBoard reads the files of a folder in the
/// order of their names, so a file is never named for a second before that of the newest, whatever
/// the clock says.
fn new_file(folder: &Path) -> io::Result<(PathBuf, File)> {
    let newest = fs::read_dir(folder)?.filter_map(|entry| seconds_in(&entry.ok()?.file_name()));
    let first = newest.max().map_or(0, |newest| newest + 1).max(now() as u64);
    let (host, process) = (host(), std::process::id());
    let mut seconds = first;
    loop {
        let path = folder.join(format!("{PREFIX}{seconds:010}.{host}.{process}.0"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => seconds += 1,
            opened => return Ok((path, opened?)),
        }
    }
}

/// The time in the name of an event file.
fn seconds_in(name: &OsStr) -> Option<u64> {
    let seconds = name.to_str()?.strip_prefix(PREFIX)?.split('.').next()?;
    // Ten digits: what has more is no time, and would not sort as one.
    (seconds.len() == 10).then(|| seconds.parse().ok()).flatten()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// This machine's name, as far as a file's name can have it.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.chars().map(plain).collect(),
    }
}
