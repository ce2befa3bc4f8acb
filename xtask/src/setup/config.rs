//! The configuration lines for crates outside the repository.

use std::path::Path;

use anyhow::{Context, Result};

use super::Libtorch;

/// The `.cargo/config.toml` lines that a crate outside the repository needs.
pub(crate) fn print_config(libtorch: &Libtorch) -> Result<String> {
    let environment = match libtorch {
        Libtorch::Fetched(folder) | Libtorch::Folder(folder) => {
            format!("LIBTORCH = {}", quoted(folder)?)
        }
        Libtorch::Python(_) => "LIBTORCH_USE_PYTORCH = \"1\"".to_owned(),
    };
    let libraries = libtorch.libraries();
    let libraries = libraries.to_str().with_context(|| {
        format!("{} is not UTF-8: Cargo's configuration cannot name it", libraries.display())
    })?;
    let flags = format!(
        "[\"-C\", {}]",
        serde_json::to_string(&format!("link-arg=-Wl,-rpath,{libraries}"))?
    );
    Ok(format!(
        "# .cargo/config.toml of a crate that uses foretoken from outside its repository\n\
         [env]\n{environment}\n\n\
         [build]\nrustflags = {flags}\nrustdocflags = {flags}\n"
    ))
}

/// A TOML string: JSON's escapes are a subset of TOML's.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| {
        format!("{} is not UTF-8: Cargo's configuration cannot name it", path.display())
    })?;
    Ok(serde_json::to_string(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_name_the_library_folder_twice_and_the_root_once() -> Result<()> {
        let lines = print_config(&Libtorch::Fetched("/opt/a b".into()))?;
        assert!(lines.contains("LIBTORCH = \"/opt/a b\"\n"));
        assert_eq!(lines.matches("link-arg=-Wl,-rpath,/opt/a b/lib").count(), 2);
        let lines = print_config(&Libtorch::Python("/p/torch".into()))?;
        assert!(lines.contains("LIBTORCH_USE_PYTORCH = \"1\"\n"));
        assert!(lines.contains("-rpath,/p/torch/lib\""));
        Ok(())
    }
}
