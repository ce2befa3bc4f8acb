//! The merges of a BPE model: as the file lists them, or found from the pieces' scores.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::problem::VocabularyProblem;

/// Bytes of merges for each byte of vocabulary. Llama 2 has 2; one that is made for it can have
/// half of its longest piece.
const MOST_GROWTH: usize = 16;

/// Bytes of merges that any vocabulary may have, however small.
const ALWAYS_ALLOWED: usize = 1 << 16;

/// A text piece that other pieces can be merged into.
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) score: f32,
}

/// Checks that every merge is of known tokens and makes a known one.
pub(super) fn listed(
    merges: &[String],
    ids: &HashMap<&str, usize>,
) -> Result<Vec<Value>, VocabularyProblem> {
    merges
        .iter()
        .enumerate()
        .map(|(index, merge)| {
            let (left, right) = halves(merge)
                .ok_or_else(|| VocabularyProblem::MalformedMerge { index, merge: merge.clone() })?;
            let whole = format!("{left}{right}");
            match [left, right, whole.as_str()].into_iter().find(|token| !ids.contains_key(token)) {
                None => Ok(json!([left, right])),
                Some(token) => {
                    Err(VocabularyProblem::MergeOfUnknown { index, token: token.to_owned() })
                }
            }
        })
        .collect()
}

/// Splits at the first space; one in front belongs to the left token.
pub(super) fn halves(merge: &str) -> Option<(&str, &str)> {
    let (at, _) = merge.char_indices().skip(1).find(|&(_, character)| character == ' ')?;
    let (left, right) = (&merge[..at], &merge[at + 1..]);
    (!right.is_empty()).then_some((left, right))
}

/// Every split of a piece into two pieces, the best score first: sentence-piece always merges the
/// pair whose result scores best, and `transformers` breaks ties by the halves' lengths.
///
/// The cost is bounded by the lengths of the pieces, which the caller bounds; the result by
/// [`MOST_GROWTH`].
pub(super) fn derived(pieces: &[Piece<'_>]) -> Result<Vec<Value>, VocabularyProblem> {
    let known: HashSet<&str> = pieces.iter().map(|piece| piece.text).collect();
    let total: usize = pieces.iter().map(|piece| piece.text.len()).sum();
    let most = total.saturating_mul(MOST_GROWTH).saturating_add(ALWAYS_ALLOWED);

    let mut spent = 0;
    let mut found = Vec::new();
    for piece in pieces {
        for (at, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(at);
            if !known.contains(left) || !known.contains(right) {
                continue;
            }
            spent += piece.text.len();
            if spent > most {
                return Err(VocabularyProblem::TooManyMerges { most });
            }
            let lengths = (left.chars().count(), right.chars().count());
            // Adding zero makes one of the two zeros that would be ordered apart.
            found.push((piece.score + 0.0, lengths, left, right));
        }
    }
    // Stable: what ties keeps the order of the ids.
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| b.1.cmp(&a.1)));
    Ok(found.into_iter().map(|(_, _, left, right)| json!([left, right])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, score: f32) -> Piece<'_> {
        Piece { text, score }
    }

    #[test]
    fn a_merge_splits_at_the_first_space_that_is_not_its_first_character() {
        assert_eq!(halves("a b"), Some(("a", "b")));
        assert_eq!(halves("  b"), Some((" ", "b")));
        assert_eq!(halves("é b c"), Some(("é", "b c")));
        for malformed in ["", " ", "a", "a ", "ab"] {
            assert_eq!(halves(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn pieces_merge_by_score_then_by_length_then_by_place() {
        let pieces = [
            piece("a", -9.0),
            piece("b", -9.0),
            piece("aa", 0.0),
            piece("ab", -0.0),
            piece("aab", 0.0),
            piece("ba", 1.0),
        ];
        let merges = derived(&pieces).unwrap();
        let expected = [
            json!(["b", "a"]),
            json!(["aa", "b"]),
            json!(["a", "ab"]),
            json!(["a", "a"]),
            json!(["a", "b"]),
        ];
        assert_eq!(merges, expected);
    }

    #[test]
    fn a_vocabulary_of_runs_is_given_up_on() {
        let runs: Vec<String> = ('a'..='z')
            .flat_map(|letter| (1..=200).map(move |length| letter.to_string().repeat(length)))
            .collect();
        let pieces: Vec<Piece<'_>> = runs.iter().map(|run| piece(run, 0.0)).collect();
        assert!(matches!(derived(&pieces), Err(VocabularyProblem::TooManyMerges { .. })));
    }
}
