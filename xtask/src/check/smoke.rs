//! The smoke reproduction: the whole way from text to report, and the report's contents.

use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{report, schema, steps};
use crate::process;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// Runs `foretoken reproduce speed --preset smoke` in a fresh folder and reads its report.
pub(crate) fn check(workspace: &Workspace, libtorch: &Libtorch) -> Result<()> {
    let out = workspace.target().join("xtask-smoke");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    let mut command = steps::cargo_in(workspace, libtorch);
    command
        .args(["run", "--quiet", "--package", "foretoken-cli", "--bin", "foretoken", "--"])
        .args(["reproduce", "speed", "--preset", "smoke", "--out"])
        .arg(&out);
    if std::env::var_os("FORETOKEN_CORPUS").is_none() {
        command.env("FORETOKEN_CORPUS", workspace.python_code());
    }
    process::run(&mut command)?;
    let folder = out.join("speed/smoke");
    let path = folder.join("report.json");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let mut problems = schema::problems(&value);
    problems.extend(report::smoke_problems(&value));
    for name in ["report.md", "report.html"] {
        let written = fs::metadata(folder.join(name)).is_ok_and(|metadata| metadata.len() > 0);
        if !written {
            problems.push(format!("{name} is missing or empty"));
        }
    }
    if !problems.is_empty() {
        bail!("{}:\n{}", path.display(), problems.join("\n"));
    }
    Ok(())
}
