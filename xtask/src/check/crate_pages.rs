//! A crate's `lib.rs` is its table of contents: prose, `mod` and `use` lines, no logic.

use std::fs;

use anyhow::{Context, Result, bail};

use super::metadata::Metadata;
use crate::workspace::Workspace;

/// Checks the `lib.rs` of every crate of the repository.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut problems = Vec::new();
    for package in Metadata::read(workspace)?.members() {
        let page = package.manifest_path.with_file_name("src").join("lib.rs");
        if !page.is_file() {
            continue;
        }
        let text =
            fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
        if let Some(problem) = problem(&text) {
            problems.push(format!("{}: {problem}", page.display()));
        }
    }
    if !problems.is_empty() {
        bail!(problems.join("\n"));
    }
    Ok(())
}

/// What is wrong with a crate page, if anything.
fn problem(text: &str) -> Option<String> {
    if !text.trim_start().starts_with("//!") {
        return Some("it must open with a `//!` page on the crate".to_owned());
    }
    let code: String = text
        .lines()
        .map(|line| line.split_once("//").map_or(line, |(before, _)| before))
        .collect::<Vec<_>>()
        .join("\n");
    let mut rest = code.trim();
    while !rest.is_empty() {
        if let Some(attribute) = rest.strip_prefix("#!").or_else(|| rest.strip_prefix('#')) {
            rest = after_brackets(attribute)?;
            continue;
        }
        let end = rest.find(';').map_or(rest.len(), |end| end + 1);
        let statement = &rest[..end];
        if !is_listing(statement) {
            let start = statement.lines().next().unwrap_or_default().trim();
            return Some(format!("only `mod` and `use` lines belong here, not `{start}`"));
        }
        rest = rest[end..].trim_start();
    }
    None
}

/// The text after a bracketed attribute; `None` ends the check at one that the compiler rejects.
fn after_brackets(text: &str) -> Option<&str> {
    let mut depth = 0_i32;
    for (index, character) in text.char_indices() {
        match character {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 && character == ']' {
            return Some(text[index + 1..].trim_start());
        }
    }
    None
}

fn is_listing(statement: &str) -> bool {
    let statement = statement.trim();
    let bare = statement
        .strip_prefix("pub(crate)")
        .or_else(|| statement.strip_prefix("pub"))
        .unwrap_or(statement)
        .trim_start();
    let module = bare.starts_with("mod ") && !bare.contains('{');
    (module || bare.starts_with("use ")) && bare.ends_with(';')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "//! A layer.\n//!\n//! ```\n//! fn example() {}\n//! ```\n#![allow(dead_code, \
                        reason = \"x\")]\n\nmod a;\npub mod b;\n#[cfg(test)]\nmod c; // why\n\npub use \
                        a::{\n    One, Two,\n};\n";

    #[test]
    fn prose_modules_and_uses_pass() {
        assert_eq!(problem(GOOD), None);
    }

    #[test]
    fn logic_fails() {
        for logic in [
            "fn f() {}\n",
            "pub const X: u8 = 1;\n",
            "mod tests { fn f() {} }\n",
            "pub struct S;\n",
            "macro_rules! m { () => {} }\n",
        ] {
            assert!(problem(&format!("{GOOD}{logic}")).is_some(), "{logic}");
        }
    }

    #[test]
    fn a_page_without_prose_fails() {
        assert!(problem("mod a;\n").is_some());
    }
}
