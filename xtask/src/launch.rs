//! `cargo xtask launch`: several processes of one training on this machine.

use std::ffi::OsString;
use std::fmt;
use std::net::TcpListener;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process;
use crate::reproduce::{build_release, foretoken};
use crate::setup;
use crate::workspace::Workspace;

/// Once a process has failed, the others have so long to notice and to end by themselves.
const GRACE: Duration = Duration::from_secs(30);

/// Options of `cargo xtask launch`.
#[derive(Args)]
pub(crate) struct LaunchArguments {
    /// How many processes; each is told its rank and where to meet as torchrun would tell it, and its
    /// share of the cores (`OMP_NUM_THREADS`, unless it is set)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    processes: u16,
    /// The program and its arguments after `--`; `foretoken` is this workspace's, built first
    #[arg(last = true, required = true, value_name = "PROGRAM ARGUMENTS")]
    command: Vec<OsString>,
}

/// Runs `cargo xtask launch`: 0 where every process ended well.
pub(crate) fn run(workspace: &Workspace, arguments: &LaunchArguments) -> Result<ExitCode> {
    let (program, rest) = arguments.command.split_first().context("no program was named")?;
    let own = program == "foretoken";
    let libtorch = setup::ensure(workspace)?;
    if own {
        build_release(workspace, "foretoken-cli", &libtorch)?;
    }
    // Ctrl-C reaches every process of the terminal: the training saves and ends, and we wait.
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&stopped);
    ctrlc::set_handler(move || stop.store(true, Ordering::Relaxed))
        .context("cannot wait for Ctrl-C")?;
    let ended = together(usize::from(arguments.processes), || {
        let mut command = if own { foretoken(workspace, &libtorch) } else { Command::new(program) };
        command.args(rest);
        Ok(command)
    });
    match ended {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Processes that stop when they are asked to do not end well, but not by a fault either.
        Err(error) if stopped.load(Ordering::Relaxed) && error.is::<EndedBadly>() => {
            eprintln!("stopped: all {} processes have ended", arguments.processes);
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error),
    }
}

/// All processes have ended, not all of them well.
#[derive(Debug)]
struct EndedBadly {
    /// The first that did not.
    rank: usize,
    status: ExitStatus,
}

impl fmt::Display for EndedBadly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} failed first ({})", self.rank, self.status)
    }
}

impl std::error::Error for EndedBadly {}

/// Starts `size` processes of one training, each of them what `make` gives and told its rank, and
/// waits until all have ended; an error where one of them failed.
pub(crate) fn together(size: usize, make: impl Fn() -> Result<Command>) -> Result<()> {
    let port = free_port()?;
    let threads = thread::available_parallelism().map_or(1, |cores| (cores.get() / size).max(1));
    let mut children = Children(Vec::new());
    for rank in 0..size {
        let mut command = make()?;
        for (name, value) in [
            ("RANK", rank),
            ("LOCAL_RANK", rank),
            ("WORLD_SIZE", size),
            ("LOCAL_WORLD_SIZE", size),
            ("MASTER_PORT", usize::from(port)),
        ] {
            command.env(name, value.to_string());
        }
        command.env("MASTER_ADDR", "127.0.0.1").env_remove("TORCHELASTIC_USE_AGENT_STORE");
        if std::env::var_os("OMP_NUM_THREADS").is_none() {
            command.env("OMP_NUM_THREADS", threads.to_string());
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", process::line(&command)))?;
        children.0.push(Some(child));
    }
    children.wait()
}

/// A port that nobody listens at now.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no port is free on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

/// The processes that still run, by rank; those that do when it is dropped are ended.
struct Children(Vec<Option<Child>>);

impl Children {
    /// Waits for all; once one has failed, the others have [`GRACE`].
    fn wait(mut self) -> Result<()> {
        let mut failed: Option<(usize, ExitStatus, Instant)> = None;
        loop {
            let mut running = Vec::new();
            for (rank, slot) in self.0.iter_mut().enumerate() {
                let Some(child) = slot else { continue };
                match child.try_wait().context("cannot wait for a process")? {
                    None => running.push(rank),
                    Some(status) => {
                        *slot = None;
                        if !status.success() && failed.is_none() {
                            failed = Some((rank, status, Instant::now()));
                        }
                    }
                }
            }
            match failed {
                _ if running.is_empty() => break,
                Some((rank, status, since)) if since.elapsed() > GRACE => {
                    bail!("rank {rank} failed ({status}) and ranks {running:?} did not end: ended");
                }
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
        match failed {
            None => Ok(()),
            Some((rank, status, _)) => Err(EndedBadly { rank, status }.into()),
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for child in self.0.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(scripts: &[&str]) -> Children {
        let child = |script: &&str| Some(Command::new("sh").args(["-c", script]).spawn().unwrap());
        Children(scripts.iter().map(child).collect())
    }

    #[test]
    fn all_have_to_end_well_and_the_first_that_did_not_is_named() {
        assert!(start(&["exit 0", "sleep 0.1"]).wait().is_ok());
        let error = start(&["sleep 0.3", "exit 3", "sleep 0.3; exit 4"]).wait().unwrap_err();
        assert!(error.to_string().starts_with("rank 1 failed first"), "{error}");
        assert!(error.is::<EndedBadly>());
    }

    #[test]
    fn each_process_is_told_its_rank_and_where_all_meet() {
        let folder = tempfile::tempdir().unwrap();
        together(3, || {
            let mut command = Command::new("sh");
            command.args(["-c", "echo $WORLD_SIZE $MASTER_ADDR > $RANK"]);
            command.current_dir(folder.path());
            Ok(command)
        })
        .unwrap();
        for rank in ["0", "1", "2"] {
            let told = std::fs::read_to_string(folder.path().join(rank)).unwrap();
            assert_eq!(told, "3 127.0.0.1\n");
        }
    }

    #[test]
    fn a_free_port_can_be_listened_at() {
        let port = free_port().unwrap();
        TcpListener::bind(("127.0.0.1", port)).unwrap();
    }
}
