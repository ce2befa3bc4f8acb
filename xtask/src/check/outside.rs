//! A crate outside the repository, built and run with the lines that `setup --print-config` prints.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::process;
use crate::setup::{Libtorch, print_config};
use crate::workspace::Workspace;

const PROGRAM: &str = include_str!("outside_main.rs.txt");

/// Writes such a crate where the repository's own `.cargo/config.toml` does not reach, runs it, and
/// runs its binary once more without Cargo.
pub(crate) fn check(workspace: &Workspace, libtorch: &Libtorch) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    write(folder.path(), workspace, libtorch)?;
    // Kept between runs, because libtorch's bindings take minutes to compile.
    let target = workspace.target().join("outside");
    let mut build = process::cargo();
    build
        .current_dir(folder.path())
        .args(["build", "--quiet", "--target-dir"])
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .env_remove("LD_LIBRARY_PATH");
    if matches!(libtorch, Libtorch::Fetched(_)) {
        build.env_remove("LIBTORCH");
    }
    process::run(&mut build)?;
    let mut binary = std::process::Command::new(target.join("debug/outside"));
    binary.env_remove("LIBTORCH").env_remove("LD_LIBRARY_PATH");
    let printed = process::stdout(&mut binary)?;
    ensure!(printed.trim() == "logits [1, 3, 11]", "the outside crate printed {printed:?}");
    Ok(())
}

fn write(folder: &Path, workspace: &Workspace, libtorch: &Libtorch) -> Result<()> {
    let crate_path = |name: &str| -> Result<String> {
        let path = workspace.root().join("crates").join(name);
        let path = path.to_str().context("the repository's path is not UTF-8")?;
        Ok(serde_json::to_string(path)?)
    };
    let (heads, trunk) = (crate_path("heads")?, crate_path("trunk")?);
    let manifest = format!(
        "[package]\nname = \"outside\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nforetoken-heads = {{ path = {heads} }}\nforetoken-trunk = {{ path = {trunk} }}\ntch = \"=0.24.0\"\n\n\
         [profile.dev]\ndebug = false\n\n[workspace]\n"
    );
    let files = [
        ("Cargo.toml", manifest),
        (".cargo/config.toml", print_config(libtorch)?),
        ("src/main.rs", PROGRAM.to_owned()),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        let describe = || format!("cannot write {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(describe)?;
        }
        fs::write(&path, text).with_context(describe)?;
    }
    let lock = workspace.root().join("Cargo.lock");
    fs::copy(&lock, folder.join("Cargo.lock"))
        .with_context(|| format!("cannot copy {}", lock.display()))?;
    Ok(())
}
