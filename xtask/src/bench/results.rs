//! What a comparison writes: a JSON file that is never edited by hand.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::process;
use crate::workspace::Workspace;

/// Writes `results` with a description of the machine and of the commit, atomically.
pub(crate) fn write(workspace: &Workspace, path: &Path, results: Value) -> Result<()> {
    let mut file = json!({ "machine": machine(), "commit": commit(workspace) });
    if let (Some(file), Value::Object(results)) = (file.as_object_mut(), results) {
        file.extend(results);
    }
    let describe = || format!("cannot write {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(describe)?;
    let mut beside = tempfile::NamedTempFile::new_in(folder).with_context(describe)?;
    let text = serde_json::to_string_pretty(&file).with_context(describe)? + "\n";
    beside.write_all(text.as_bytes()).with_context(describe)?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    beside.as_file().set_permissions(readable).with_context(describe)?;
    beside.persist(path).with_context(describe)?;
    println!("written to {}", path.display());
    Ok(())
}

/// The processor's name and the number of its threads that we may use.
fn machine() -> Value {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or("unknown", |(_, name)| name.trim());
    json!({ "processor": name, "cores": std::thread::available_parallelism().map_or(1, usize::from) })
}

/// Whether the processor multiplies bfloat16 in hardware.
pub(crate) fn has_bfloat16_products() -> bool {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|flag| flag == "avx512_bf16"))
}

fn commit(workspace: &Workspace) -> Value {
    let mut git = std::process::Command::new("git");
    git.current_dir(workspace.root()).args(["describe", "--always", "--dirty"]);
    process::stdout(&mut git).map_or(Value::Null, |text| json!(text.trim()))
}
