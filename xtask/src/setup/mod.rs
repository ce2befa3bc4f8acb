//! `cargo xtask setup`: libtorch and the default corpus, in one git-ignored folder.
//!
//! Everything is unpacked in a staging folder and then renamed, and a stamp file says what is in
//! place: a second run returns at once, a half-finished one is redone. A LIBTORCH or
//! `LIBTORCH_USE_PYTORCH` of the user's own wins: then only the corpus is fetched.

mod config;
mod download;
mod libtorch;
mod parts;
mod unpack;
mod wheels;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

pub(crate) use config::print_config;
pub(crate) use libtorch::Libtorch;

use download::Downloader;
use parts::{Part, Stamp};

use crate::workspace::Workspace;

/// Options of `cargo xtask setup`.
#[derive(Args)]
pub(crate) struct SetupArguments {
    /// Print the .cargo/config.toml lines that a crate outside this repository needs
    #[arg(long)]
    print_config: bool,
    /// Fetch and unpack again what is already there
    #[arg(long)]
    force: bool,
    /// Take libtorch's CUDA part and NVIDIA's libraries too (several GB)
    #[arg(long)]
    cuda: bool,
    /// Fill this folder instead of the repository's .libtorch
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// Fetch a pretrained model too, with the prompts that it is measured on: smollm2
    #[arg(long, value_name = "NAME", value_parser = ["smollm2"])]
    model: Option<String>,
}

/// Runs `cargo xtask setup`.
pub(crate) fn run(workspace: &Workspace, arguments: &SetupArguments) -> Result<ExitCode> {
    let home = match &arguments.into {
        Some(folder) => std::path::absolute(folder)
            .with_context(|| format!("{} is not a usable path", folder.display()))?,
        None => workspace.libtorch(),
    };
    let libtorch = match arguments.into {
        Some(_) => Libtorch::Fetched(home.clone()),
        None => Libtorch::detect(workspace)?,
    };
    let options = Options {
        force: arguments.force,
        cuda: arguments.cuda,
        pretrained: arguments.model.is_some(),
    };
    let changed = fill(&home, &libtorch, options)?;
    if arguments.print_config {
        print!("{}", print_config(&libtorch)?);
    } else {
        if arguments.model.is_some() {
            for part in Part::PRETRAINED {
                eprintln!("{} is in {}", part.what(), home.join(part.folders()[0]).display());
            }
        }
        let how = if changed { "is ready" } else { "is complete" };
        eprintln!(
            "set-up {how}: libtorch {}, corpus in {}",
            libtorch.describe(),
            home.join("corpus").display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What other commands call first: set-up where it is needed, quietly where it is not.
pub(crate) fn ensure(workspace: &Workspace) -> Result<Libtorch> {
    let libtorch = Libtorch::detect(workspace)?;
    fill(&workspace.libtorch(), &libtorch, Options::default())?;
    if let Some(folder) = libtorch.search_path() {
        eprintln!(
            "using the libtorch {}: what is started from here finds it through LD_LIBRARY_PATH={}",
            libtorch.describe(),
            folder.display()
        );
    }
    Ok(libtorch)
}

/// As [`ensure`], for the standard pretrained model and the problems that it is measured on.
pub(crate) fn ensure_pretrained(workspace: &Workspace) -> Result<()> {
    let libtorch = Libtorch::detect(workspace)?;
    let options = Options { pretrained: true, ..Options::default() };
    fill(&workspace.libtorch(), &libtorch, options)?;
    Ok(())
}

/// Where set-up puts that model's file and that of the problems.
pub(crate) fn pretrained_files(workspace: &Workspace) -> [PathBuf; 2] {
    Part::pretrained_files(&workspace.libtorch())
}

#[derive(Clone, Copy, Default)]
struct Options {
    force: bool,
    cuda: bool,
    pretrained: bool,
}

/// Puts every missing part in place; returns whether there was one.
fn fill(home: &Path, libtorch: &Libtorch, options: Options) -> Result<bool> {
    let wanted: Vec<Part> = Part::all(options.cuda)
        .into_iter()
        .filter(|part| !part.is_library() || matches!(libtorch, Libtorch::Fetched(_)))
        .chain(Part::PRETRAINED.into_iter().filter(|_| options.pretrained))
        .collect();
    let missing = |stamp: &Stamp| -> Vec<Part> {
        wanted
            .iter()
            .copied()
            .filter(|part| options.force || !part.is_in_place(home, stamp))
            .collect()
    };
    if missing(&Stamp::read(home)).is_empty() {
        return Ok(false);
    }
    fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
    let _lock = lock(home)?;
    let mut stamp = Stamp::read(home);
    if !options.force {
        for part in missing(&stamp) {
            if part.is_recognised(home)? {
                eprintln!("{} was already in place", part.what());
                stamp.record(part, home)?;
            }
        }
    }
    let missing = missing(&stamp);
    remove_leftovers(home)?;
    if !missing.is_empty() {
        place(home, libtorch, &missing, &mut stamp)?;
    }
    let downloads = home.join("downloads");
    if downloads.is_dir() {
        fs::remove_dir_all(&downloads)
            .with_context(|| format!("cannot remove {}", downloads.display()))?;
    }
    Ok(true)
}

fn place(home: &Path, libtorch: &Libtorch, missing: &[Part], stamp: &mut Stamp) -> Result<()> {
    let mut downloader = Downloader::new(home.join("downloads"))?;
    check_space(home, missing)?;
    for &part in missing {
        let staging = tempfile::Builder::new()
            .prefix(STAGING)
            .tempdir_in(home)
            .with_context(|| format!("cannot write in {}", home.display()))?;
        let fresh = staging.path().join("new");
        part.make(&fresh, &mut downloader, libtorch.python_files())?;
        for folder in part.folders() {
            exchange(&fresh.join(folder), &home.join(folder), &staging.path().join("old"))?;
        }
        stamp.record(part, home)?;
        eprintln!("{} is in place", part.what());
    }
    Ok(())
}

const STAGING: &str = ".staging-";

/// Renames `fresh` to `place`; what was there goes to `old`, which is removed with the staging.
fn exchange(fresh: &Path, place: &Path, old: &Path) -> Result<()> {
    let describe = || format!("cannot move {} to {}", fresh.display(), place.display());
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).with_context(describe)?;
    }
    if place.exists() {
        fs::create_dir_all(old).with_context(describe)?;
        let name = place.file_name().context("a part's folder has a name")?;
        fs::rename(place, old.join(name)).with_context(describe)?;
    }
    fs::rename(fresh, place).with_context(describe)
}

/// Removes the staging folders of runs that were cut off.
fn remove_leftovers(home: &Path) -> Result<()> {
    for entry in fs::read_dir(home).with_context(|| format!("cannot read {}", home.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", home.display()))?;
        if entry.file_name().to_string_lossy().starts_with(STAGING) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Waits for another set-up of the same folder to end.
fn lock(home: &Path) -> Result<File> {
    let path = home.join("setup.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("another set-up is at work in {}; waiting for it", home.display());
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

fn check_space(home: &Path, missing: &[Part]) -> Result<()> {
    let needed: u64 = missing.iter().map(|part| part.space()).sum();
    let found = rustix::fs::statvfs(home)
        .with_context(|| format!("cannot read the free space of {}", home.display()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free < needed {
        bail!(
            "set-up needs {} MB of free space in {}, of which {} MB are there; make room and run the \
             same command again",
            needed.div_ceil(1_000_000),
            home.display(),
            free / 1_000_000
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_replaces_a_folder_and_removes_the_old_one_with_the_staging() -> Result<()> {
        let home = tempfile::tempdir()?;
        let staging = home.path().join(".staging-x");
        for (folder, text) in [(staging.join("new/lib"), "new"), (home.path().join("lib"), "old")] {
            fs::create_dir_all(&folder)?;
            fs::write(folder.join("a"), text)?;
        }
        exchange(&staging.join("new/lib"), &home.path().join("lib"), &staging.join("old"))?;
        remove_leftovers(home.path())?;
        assert_eq!(fs::read_to_string(home.path().join("lib/a"))?, "new");
        assert!(!staging.exists());
        Ok(())
    }
}
