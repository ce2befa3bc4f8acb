//! What a training left in its `metrics.jsonl`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;

/// A step's line, as far as curves need it. What is not there, or is no finite number, is none.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Line {
    pub(crate) step: u64,
    #[serde(default)]
    pub(crate) tokens: Option<u64>,
    #[serde(default)]
    pub(crate) seconds: Option<f64>,
    #[serde(default)]
    pub(crate) losses: Vec<Option<f64>>,
    #[serde(default)]
    pub(crate) learning_rate: Option<f64>,
    #[serde(default)]
    pub(crate) grad_norm: Option<f64>,
    #[serde(default)]
    pub(crate) tokens_per_second: Option<f64>,
}

/// The steps of a training in order. A line that was cut off at the end, as that of a training
/// which was killed or still runs, is passed over with a warning.
///
/// # Errors
///
/// When the file cannot be read, has no step, or has another line that is not JSON.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Line>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (lines, torn) = parse(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
    if torn {
        tracing::warn!("the last line of {} is cut off; passed over", path.display());
    }
    if lines.is_empty() {
        bail!("{} has no line of a step yet", path.display());
    }
    Ok(lines)
}

/// The steps, and whether the last line was cut off. Of a step that was taken again after an
/// interruption, the last time counts; objects of another kind are passed over.
fn parse(bytes: &[u8]) -> anyhow::Result<(Vec<Line>, bool)> {
    /// What any line has to be.
    #[derive(Deserialize)]
    struct Any {
        step: Option<serde::de::IgnoredAny>,
    }
    let mut steps = BTreeMap::new();
    let mut lines = bytes
        .split(|&byte| byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .peekable();
    while let Some((index, line)) = lines.next() {
        match serde_json::from_slice::<Line>(line) {
            Ok(line) => {
                steps.insert(line.step, line);
            }
            Err(_) if serde_json::from_slice::<Any>(line).is_ok_and(|any| any.step.is_none()) => {}
            Err(_) if lines.peek().is_none() => return Ok((steps.into_values().collect(), true)),
            Err(error) => return Err(error).context(format!("line {}", index + 1)),
        }
    }
    Ok((steps.into_values().collect(), false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(text: &str) -> Vec<(u64, Option<f64>)> {
        let (lines, _) = parse(text.as_bytes()).unwrap();
        lines.iter().map(|line| (line.step, line.losses.first().copied().flatten())).collect()
    }

    #[test]
    fn a_step_taken_again_counts_once_and_other_objects_not_at_all() {
        let text = "{\"step\":1,\"tokens\":10,\"losses\":[5.0,6.0]}\n\
                    {\"step\":2,\"tokens\":20,\"losses\":[4.0,6.0]}\n\
                    {\"event\":\"resumed\"}\n\n\
                    {\"step\":2,\"tokens\":20,\"losses\":[3.0,6.0]}\n";
        assert_eq!(steps(text), [(1, Some(5.0)), (2, Some(3.0))]);
    }

    #[test]
    fn what_is_not_finite_is_none() {
        let text = "{\"step\":1,\"losses\":[null],\"grad_norm\":null}\n{\"step\":2}\n";
        assert_eq!(steps(text), [(1, None), (2, None)]);
    }

    #[test]
    fn only_the_last_line_may_be_cut_off_wherever() {
        let whole = "{\"step\":1,\"losses\":[5.0]}\n{\"step\":2,\"losses\":[4.0]}\n";
        let first = whole.find('\n').unwrap() + 1;
        for end in first + 1..whole.len() - 1 {
            let (lines, torn) = parse(&whole.as_bytes()[..end]).unwrap();
            assert!(torn && lines.len() == 1, "{end}");
        }
        let damaged = whole.replacen("1,", "1,,", 1);
        let error = parse(damaged.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
        assert!(parse(b"\xff\xfe\n{\"step\":1}\n").is_err());
        assert!(parse(b"{\"step\":\"one\"}\n{\"step\":1}\n").is_err());
    }

    #[test]
    fn a_file_that_is_not_there_or_empty_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert!(read(&path).unwrap_err().to_string().contains("metrics.jsonl"));
        std::fs::write(&path, "").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("no line of a step"));
    }
}
