//! `cargo xtask reproduce`: set up, build, hand over to `foretoken reproduce`.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Result, anyhow};
use clap::Args;

use crate::process;
use crate::setup::{self, Libtorch};
use crate::workspace::Workspace;

/// The experiment that needs a published model.
const PRETRAINED: &str = "pretrained";

/// The option that takes heads which were trained before.
const KEPT_HEADS: &str = "--pretrained-heads";

/// Options of `cargo xtask reproduce`: those of `foretoken reproduce`.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct ReproduceArguments {
    /// The experiment (speed, the default, or pretrained), --preset smoke|quick|long|full, --out DIR, …;
    /// `--help` prints them all
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// Runs `cargo xtask reproduce`. Where all goes well it does not return: the process becomes
/// `foretoken`, so that Ctrl-C, other signals and the exit code are its own.
pub(crate) fn run(workspace: &Workspace, arguments: &ReproduceArguments) -> Result<ExitCode> {
    let libtorch = setup::ensure(workspace)?;
    if arguments.arguments.iter().any(|argument| argument == PRETRAINED) {
        setup::ensure_pretrained(workspace)?;
    }
    build_release(workspace, "foretoken-cli", &libtorch)?;
    let mut command = foretoken(workspace, &libtorch);
    command.arg("reproduce");
    let kept = workspace.root().join("pretrained/smollm2");
    command.args(arguments.arguments.iter().map(|argument| with_kept_heads(argument, &kept)));
    if !has_option(&arguments.arguments, "--out") {
        command.arg("--out").arg(workspace.target().join("reproduce"));
    }
    let error = command.exec();
    Err(anyhow!(error).context(format!("cannot start {}", process::line(&command))))
}

/// Builds a package's optimised binaries.
pub(crate) fn build_release(
    workspace: &Workspace,
    package: &str,
    libtorch: &Libtorch,
) -> Result<()> {
    let mut build = process::cargo();
    build.current_dir(workspace.root()).args(["build", "--release", "--package", package]);
    libtorch.apply(&mut build);
    process::run(&mut build)
}

/// The optimised `foretoken`, told where the corpus lies.
pub(crate) fn foretoken(workspace: &Workspace, libtorch: &Libtorch) -> Command {
    let mut command = Command::new(release_binary(workspace, "foretoken"));
    libtorch.apply(&mut command);
    if std::env::var_os("FORETOKEN_CORPUS").is_none() {
        command.env("FORETOKEN_CORPUS", workspace.python_code());
    }
    command
}

/// The path of an optimised binary.
pub(crate) fn release_binary(workspace: &Workspace, name: &str) -> PathBuf {
    workspace.target().join("release").join(name)
}

/// `--pretrained-heads` alone means the repository's own, wherever the command is given.
fn with_kept_heads(argument: &OsStr, kept: &Path) -> OsString {
    let mut whole = argument.to_owned();
    if argument == KEPT_HEADS {
        whole.push("=");
        whole.push(kept);
    }
    whole
}

fn has_option(arguments: &[OsString], option: &str) -> bool {
    let with_value = format!("{option}=");
    arguments
        .iter()
        .filter_map(|argument| argument.to_str())
        .any(|argument| argument == option || argument.starts_with(&with_value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_heads_are_the_repositorys_where_no_others_are_named() {
        let kept = Path::new("/repository/pretrained/smollm2");
        let of = |argument: &str| with_kept_heads(argument.as_ref(), kept);
        assert_eq!(of("--pretrained-heads"), "--pretrained-heads=/repository/pretrained/smollm2");
        assert_eq!(of("--pretrained-heads=mine"), "--pretrained-heads=mine");
        assert_eq!(of("pretrained"), "pretrained");
    }

    #[test]
    fn an_option_is_found_in_both_spellings() {
        let arguments = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(has_option(&arguments(&["speed", "--out", "x"]), "--out"));
        assert!(has_option(&arguments(&["--out=x"]), "--out"));
        assert!(!has_option(&arguments(&["--output"]), "--out"));
    }
}
