//! How much of a text is new, and how much is loops.

use std::collections::HashSet;

/// Share of the n-grams of all texts together that are distinct: 1 when none comes twice.
///
/// An n-gram never spans two texts. Texts shorter than `n` have none; when no text has any, there
/// is nothing that could repeat and the share is 1.
pub fn distinct_ngrams<T: AsRef<[u32]>>(texts: &[T], n: usize) -> f64 {
    let grams = || texts.iter().flat_map(|text| text.as_ref().windows(n.max(1)));
    match grams().count() {
        0 => 1.0,
        total => grams().collect::<HashSet<_>>().len() as f64 / total as f64,
    }
}

/// [`distinct_ngrams`] of eight tokens, which stands beside every tokens-per-forward figure: a
/// weak model's greedy text falls into loops, which any head predicts.
pub fn distinct_8grams<T: AsRef<[u32]>>(texts: &[T]) -> f64 {
    distinct_ngrams(texts, 8)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "ratios of small counts are exact")]
mod tests {
    use super::*;

    #[test]
    fn a_text_without_repetition_is_all_distinct() {
        assert_eq!(distinct_8grams(&[(0..100).collect::<Vec<u32>>()]), 1.0);
    }

    #[test]
    fn a_loop_of_four_tokens_has_four_distinct_8grams() {
        let text: Vec<u32> = (0..47).map(|i| i % 4).collect();
        assert_eq!(distinct_8grams(&[text]), 4.0 / 40.0);
    }

    #[test]
    fn the_same_text_twice_halves_the_share() {
        let text: Vec<u32> = (0..20).collect();
        assert_eq!(distinct_8grams(&[text.clone(), text]), 0.5);
    }

    #[test]
    fn grams_do_not_span_texts() {
        let (left, right): (Vec<u32>, Vec<u32>) = ((0..8).collect(), (8..16).collect());
        assert_eq!(distinct_8grams(&[&left[..], &right[..], &left[..]]), 2.0 / 3.0);
    }

    #[test]
    fn texts_too_short_for_a_gram_repeat_nothing() {
        assert_eq!(distinct_8grams(&[vec![1, 1, 1]]), 1.0);
        assert_eq!(distinct_8grams::<Vec<u32>>(&[]), 1.0);
    }
}
