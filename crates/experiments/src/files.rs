//! Small files, whole or not at all.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
pub(crate) use foretoken_data::file_sha256;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// Writes `text` so that a reader sees the old file or the new one.
pub(crate) fn write_atomically(path: &Path, text: &str) -> anyhow::Result<()> {
    foretoken_trunk::io::write_atomically(path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// What a cached result was made from, and the result.
#[derive(serde::Serialize, serde::Deserialize)]
struct Cached<T> {
    fingerprint: String,
    value: T,
}

/// The result cached at `path`, if it was made from what `fingerprint` stands for.
pub(crate) fn cached<T: DeserializeOwned>(path: &Path, fingerprint: &str) -> Option<T> {
    let text = std::fs::read_to_string(path).ok()?;
    let cached: Cached<T> = serde_json::from_str(&text).ok()?;
    (cached.fingerprint == fingerprint).then_some(cached.value)
}

/// Keeps a result at `path` for [`cached`].
pub(crate) fn cache<T: Serialize>(path: &Path, fingerprint: &str, value: T) -> anyhow::Result<()> {
    let cached = Cached { fingerprint: fingerprint.to_owned(), value };
    write_atomically(path, &serde_json::to_string_pretty(&cached)?)
}

/// A hash of several texts in order.
pub(crate) fn fingerprint(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_result_is_used_only_for_what_it_was_made_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        assert_eq!(cached::<u64>(&path, "a"), None);
        cache(&path, "a", 7).unwrap();
        assert_eq!(cached(&path, "a"), Some(7));
        assert_eq!(cached::<u64>(&path, "b"), None);
        std::fs::write(&path, "{half").unwrap();
        assert_eq!(cached::<u64>(&path, "a"), None);
    }

    #[test]
    fn fingerprints_tell_where_one_part_ends() {
        assert_ne!(fingerprint(&["ab", "c"]), fingerprint(&["a", "bc"]));
        assert_eq!(fingerprint(&["ab", "c"]), fingerprint(&["ab", "c"]));
    }

    #[test]
    fn the_hash_of_a_file_is_its_sha256() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        assert!(file_sha256(&path).unwrap().starts_with("ba7816bf8f01cfea"));
        assert!(file_sha256(&folder.path().join("none")).is_err());
    }

    #[test]
    fn an_unwritable_place_is_named() {
        let error = write_atomically(Path::new("/nowhere/at/all.json"), "x").unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all.json"));
    }
}
