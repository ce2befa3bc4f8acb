//! A crate outside the repository that adds a head: `docs/extending.md`, built and run as it stands
//! there, with the lines that `setup --print-config` prints.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::process;
use crate::setup::{Libtorch, print_config};
use crate::workspace::Workspace;

/// What the page's program ends by printing.
const EXPECTED: &str = "the same 24 tokens";

/// Where the page's manifest says that the repository is.
const PLACEHOLDER: &str = "PATH/TO/foretoken";

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
    // The program trains on its own source, which it names from its own folder.
    let mut binary = std::process::Command::new(target.join("debug/outside"));
    binary.current_dir(folder.path());
    binary.env_remove("LIBTORCH").env_remove("LD_LIBRARY_PATH");
    let printed = process::stdout(&mut binary)?;
    ensure!(printed.trim() == EXPECTED, "the crate of docs/extending.md printed {printed:?}");
    Ok(())
}

fn write(folder: &Path, workspace: &Workspace, libtorch: &Libtorch) -> Result<()> {
    let page = workspace.root().join("docs/extending.md");
    let text =
        fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let block = |language: &str| {
        block(&text, language)
            .with_context(|| format!("{} has no block of {language}", page.display()))
    };
    let root = workspace.root().to_str().context("the repository's path is not UTF-8")?;
    let manifest = format!(
        "[package]\nname = \"outside\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n{}\n\
         [profile.dev]\ndebug = false\n\n[workspace]\n",
        block("toml")?.replace(PLACEHOLDER, root)
    );
    let files = [
        ("Cargo.toml", manifest),
        (".cargo/config.toml", print_config(libtorch)?),
        ("src/main.rs", block("rust")?.to_owned()),
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

/// The first fenced block of a language in a Markdown page.
fn block<'a>(page: &'a str, language: &str) -> Option<&'a str> {
    let (_, rest) = page.split_once(&format!("```{language}\n"))?;
    Some(rest.split_once("\n```")?.0)
}
