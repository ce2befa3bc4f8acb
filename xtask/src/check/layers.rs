//! The layer check: a crate imports only crates of a lower row.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use super::metadata::Metadata;
use crate::workspace::Workspace;

/// Where a crate stands; the table of the architecture page.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// A layer: imports layers of lower rows only.
    Row(u8),
    /// Beside the layers: imports any of them and is imported by none.
    Above,
    /// Imports no crate of the repository and is imported by none.
    Apart,
}

const PLACES: [(&str, Place); 14] = [
    ("foretoken-kernels", Place::Row(0)),
    ("foretoken-data", Place::Row(0)),
    ("foretoken-dist", Place::Row(0)),
    ("foretoken-trunk", Place::Row(1)),
    ("foretoken-heads", Place::Row(2)),
    ("foretoken-loss", Place::Row(3)),
    ("foretoken-decode", Place::Row(3)),
    ("foretoken-train", Place::Row(4)),
    ("foretoken-eval", Place::Row(4)),
    ("foretoken-experiments", Place::Row(5)),
    ("foretoken", Place::Row(6)),
    ("foretoken-cli", Place::Row(6)),
    ("foretoken-benches", Place::Above),
    ("xtask", Place::Apart),
];

/// Crates that must build without libtorch, however indirectly it might come in.
const WITHOUT_LIBTORCH: [&str; 2] = ["foretoken-data", "xtask"];
const LIBTORCH_CRATES: [&str; 2] = ["tch", "torch-sys"];

/// What the repository's packages use.
#[derive(Debug, Default)]
struct Imports {
    /// Package to the packages of the repository that it declares.
    own: BTreeMap<String, BTreeSet<String>>,
    /// Package to everything that its build reaches.
    reached: BTreeMap<String, BTreeSet<String>>,
}

/// Checks the repository.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let problems = problems(&read(&Metadata::read(workspace)?));
    if !problems.is_empty() {
        bail!(problems.join("\n"));
    }
    Ok(())
}

fn read(metadata: &Metadata) -> Imports {
    let members: BTreeSet<&str> = metadata.members().map(|package| package.name.as_str()).collect();
    let mut imports = Imports::default();
    for package in metadata.members() {
        let own = package
            .dependencies
            .iter()
            .map(|dependency| dependency.name.clone())
            .filter(|name| members.contains(name.as_str()) && *name != package.name)
            .collect();
        imports.own.insert(package.name.clone(), own);
        imports.reached.insert(package.name.clone(), reached(metadata, &package.id));
    }
    imports
}

fn reached(metadata: &Metadata, start: &str) -> BTreeSet<String> {
    let edges: BTreeMap<&str, &[String]> = metadata
        .resolve
        .nodes
        .iter()
        .map(|node| (node.id.as_str(), node.dependencies.as_slice()))
        .collect();
    let names: BTreeMap<&str, &str> = metadata
        .packages
        .iter()
        .map(|package| (package.id.as_str(), package.name.as_str()))
        .collect();
    let mut seen = BTreeSet::from([start]);
    let mut open = vec![start];
    while let Some(id) = open.pop() {
        for next in edges.get(id).copied().unwrap_or_default() {
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    seen.into_iter().filter_map(|id| names.get(id)).map(|&name| name.to_owned()).collect()
}

fn place(name: &str) -> Option<Place> {
    PLACES.iter().find(|(known, _)| *known == name).map(|&(_, place)| place)
}

fn problems(imports: &Imports) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, own) in &imports.own {
        let Some(from) = place(name) else {
            problems.push(format!(
                "{name} has no row: add it to xtask/src/check/layers.rs and to the docs"
            ));
            continue;
        };
        for import in own {
            let allowed = match (from, place(import)) {
                (Place::Row(upper), Some(Place::Row(lower))) => lower < upper,
                (Place::Above, Some(Place::Row(_))) => true,
                _ => false,
            };
            if !allowed {
                problems.push(format!("{name} imports {import}, which is not of a lower row"));
            }
        }
    }
    for name in WITHOUT_LIBTORCH {
        let reached = imports.reached.get(name);
        for libtorch in LIBTORCH_CRATES {
            if reached.is_some_and(|reached| reached.contains(libtorch)) {
                problems
                    .push(format!("{name} reaches {libtorch}, but must build without libtorch"));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(pairs: &[(&str, &[&str])]) -> Imports {
        let set =
            |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        Imports {
            own: pairs.iter().map(|&(name, own)| (name.to_owned(), set(own))).collect(),
            reached: BTreeMap::new(),
        }
    }

    #[test]
    fn imports_that_point_downwards_pass() {
        let good = imports(&[
            ("foretoken-heads", &["foretoken-trunk", "foretoken-kernels"]),
            ("foretoken-train", &["foretoken-data", "foretoken-loss"]),
            ("foretoken-benches", &["foretoken-train"]),
            ("xtask", &[]),
        ]);
        assert_eq!(problems(&good), Vec::<String>::new());
    }

    #[test]
    fn imports_upwards_and_sideways_fail() {
        for (from, to) in [
            ("foretoken-trunk", "foretoken-heads"),
            ("foretoken-decode", "foretoken-train"),
            ("foretoken-decode", "foretoken-loss"),
            ("foretoken-data", "foretoken-kernels"),
            ("foretoken-cli", "foretoken"),
            ("foretoken-cli", "foretoken-benches"),
            ("xtask", "foretoken-data"),
            ("foretoken-experiments", "xtask"),
        ] {
            let found = problems(&imports(&[(from, &[to])]));
            assert_eq!(found.len(), 1, "{from} imports {to}");
            assert!(found[0].contains(from) && found[0].contains(to));
        }
    }

    #[test]
    fn an_unknown_crate_fails() {
        assert_eq!(problems(&imports(&[("foretoken-misc", &[])])).len(), 1);
    }

    #[test]
    fn libtorch_may_not_reach_data_by_any_way() {
        let mut indirect = imports(&[("foretoken-data", &[])]);
        indirect
            .reached
            .insert("foretoken-data".to_owned(), BTreeSet::from(["torch-sys".to_owned()]));
        assert_eq!(problems(&indirect).len(), 1);
    }

    #[test]
    fn the_graph_is_walked_to_its_end() -> Result<()> {
        let text = r#"{
            "packages": [
                {"name": "xtask", "id": "x", "dependencies": [{"name": "a"}], "manifest_path": "/x/Cargo.toml"},
                {"name": "a", "id": "a", "dependencies": [{"name": "tch"}], "manifest_path": "/a/Cargo.toml"},
                {"name": "tch", "id": "t", "dependencies": [], "manifest_path": "/t/Cargo.toml"}
            ],
            "workspace_members": ["x"],
            "resolve": {"nodes": [
                {"id": "x", "dependencies": ["a"]},
                {"id": "a", "dependencies": ["t"]},
                {"id": "t", "dependencies": []}
            ]}
        }"#;
        let found = problems(&read(&serde_json::from_str(text)?));
        assert_eq!(found, ["xtask reaches tch, but must build without libtorch"]);
        Ok(())
    }
}
