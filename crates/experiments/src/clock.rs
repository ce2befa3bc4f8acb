//! Seconds of work, added up over the pieces of an interrupted run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::files::write_atomically;

/// Seconds of each stage of a run, kept in a file so that interruptions do not count.
///
/// A stage that starts from nothing resets its seconds; one that goes on adds to them; one whose
/// result is at hand already is not started at all.
pub(crate) struct Clock {
    path: PathBuf,
    stages: BTreeMap<String, f64>,
    running: Option<(String, Instant)>,
    saved: Instant,
}

/// How often a running stage is written down.
const EVERY: Duration = Duration::from_secs(5);

impl Clock {
    /// The clock of a run in `folder`, going on where it was.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("stages.json");
        let stages = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| {
                format!("{} is broken: delete it, only times are lost", path.display())
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        Ok(Self { path, stages, running: None, saved: Instant::now() })
    }

    /// Starts a stage, ending the one before.
    pub(crate) fn start(&mut self, stage: &str, from_nothing: bool) -> anyhow::Result<()> {
        self.stop()?;
        let seconds = self.stages.entry(stage.to_owned()).or_insert(0.0);
        if from_nothing {
            *seconds = 0.0;
        }
        self.running = Some((stage.to_owned(), Instant::now()));
        Ok(())
    }

    /// Writes the running stage down if that was not done lately.
    pub(crate) fn tick(&mut self) -> anyhow::Result<()> {
        if self.saved.elapsed() < EVERY {
            return Ok(());
        }
        self.account();
        self.save()
    }

    /// Ends the running stage.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        if self.running.is_none() {
            return Ok(());
        }
        self.account();
        self.running = None;
        self.save()
    }

    /// Seconds of all stages together, the running one included.
    pub(crate) fn seconds(&self) -> f64 {
        let running = self.running.as_ref();
        let running = running.map_or(0.0, |(_, since)| since.elapsed().as_secs_f64());
        self.stages.values().sum::<f64>() + running
    }

    /// Moves what the running stage took so far into its account.
    fn account(&mut self) {
        if let Some((stage, since)) = &mut self.running {
            let now = Instant::now();
            *self.stages.entry(stage.clone()).or_insert(0.0) += (now - *since).as_secs_f64();
            *since = now;
        }
    }

    fn save(&mut self) -> anyhow::Result<()> {
        self.saved = Instant::now();
        write_atomically(&self.path, &serde_json::to_string_pretty(&self.stages)?)
    }
}

impl Drop for Clock {
    /// An error that ends the run must not lose the time of the running stage.
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_adds_up_over_pieces_and_a_fresh_start_forgets_it() {
        let folder = tempfile::tempdir().unwrap();
        let work = Duration::from_millis(20);
        let mut total = 0.0;
        for _ in 0..2 {
            let mut clock = Clock::open(folder.path()).unwrap();
            clock.start("train", false).unwrap();
            std::thread::sleep(work);
            clock.stop().unwrap();
            assert!(clock.seconds() >= total + 0.02);
            total = clock.seconds();
        }
        let mut clock = Clock::open(folder.path()).unwrap();
        assert!((clock.seconds() - total).abs() < 1e-6);
        clock.start("train", true).unwrap();
        assert!(clock.seconds() < 0.02);
    }

    #[test]
    fn a_run_that_ends_by_an_error_keeps_its_time() {
        let folder = tempfile::tempdir().unwrap();
        {
            let mut clock = Clock::open(folder.path()).unwrap();
            clock.start("measure", false).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(Clock::open(folder.path()).unwrap().seconds() >= 0.02);
    }
}
