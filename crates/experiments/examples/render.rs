//! Renders a `report.json` again: `cargo run -p foretoken-experiments --example render -- FILE DIR`
//! writes `report.md`, `report.html` and `speed.svg` to DIR.

use std::path::PathBuf;

use anyhow::Context;
use foretoken_experiments::{Report, render};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let usage = "usage: render REPORT.json DIR";
    let report = Report::read(&arguments.next().context(usage)?)?;
    let folder = arguments.next().context(usage)?;
    let rendered = render(&report)?;
    for (name, text) in [
        ("report.md", &rendered.markdown),
        ("report.html", &rendered.html),
        ("speed.svg", &rendered.svg),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
