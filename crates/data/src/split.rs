//! Which text goes into training, validation and test.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Documents from which on whole documents are dealt out; fewer are cut.
const DOCUMENTS_TO_DEAL: u64 = 200;
/// What a held-out span has at least, as long as that is no more than a tenth of the text.
const HELD_OUT_BYTES: f64 = 16.0 * 1024.0;
/// How far before its place a cut looks for the end of a line.
const LINE_SEARCH: u64 = 4096;

/// One of the three parts of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What a model learns from.
    Train,
    /// What is looked at while it learns.
    Validation,
    /// What the reports' figures come from.
    Test,
}

impl Split {
    /// The three, in order.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// `train`, `validation` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The share of a corpus that each split gets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitFractions {
    /// Share of the training split.
    pub train: f64,
    /// Share of the validation split.
    pub validation: f64,
    /// Share of the test split.
    pub test: f64,
}

impl Default for SplitFractions {
    /// 98%, 1% and 1%.
    fn default() -> Self {
        Self { train: 0.98, validation: 0.01, test: 0.01 }
    }
}

impl SplitFractions {
    /// Everything in the test split: for text that a model is only measured on.
    pub fn all_test() -> Self {
        Self { train: 0.0, validation: 0.0, test: 1.0 }
    }

    /// Everything in the training split.
    pub fn all_train() -> Self {
        Self { train: 1.0, validation: 0.0, test: 0.0 }
    }

    pub(crate) fn check(self) -> Result<()> {
        let shares = self.shares();
        let sum: f64 = shares.iter().sum();
        if shares.iter().all(|share| (0.0..=1.0).contains(share)) && (sum - 1.0).abs() < 1e-9 {
            return Ok(());
        }
        Err(Error::SplitFractions {
            train: self.train,
            validation: self.validation,
            test: self.test,
        })
    }

    fn shares(self) -> [f64; 3] {
        [self.train, self.validation, self.test]
    }

    /// The split of a document, by a hash of its key alone: what other documents there are makes
    /// no difference.
    pub(crate) fn of_key(self, key: &[u8]) -> Split {
        let digest = Sha256::digest(key);
        let high = digest.iter().take(8).fold(0_u64, |high, &byte| high << 8 | u64::from(byte));
        let place = (high >> 11) as f64 / (1_u64 << 53) as f64;
        if place < self.train {
            Split::Train
        } else if place < self.train + self.validation || self.test <= 0.0 {
            // Without a test split the sum may fall short of 1 by a rounding.
            if self.validation > 0.0 { Split::Validation } else { Split::Train }
        } else {
            Split::Test
        }
    }
}

/// How a corpus was divided; part of its manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitPlan {
    /// Whole documents or spans.
    pub rule: SplitRule,
    /// The shares asked for.
    pub fractions: SplitFractions,
    /// The same in words.
    pub note: String,
}

/// The two ways to divide a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum SplitRule {
    /// Each document goes to a split as a whole: a file by the hash of its path, a record of a
    /// `.jsonl` file by the hash of its text, so that equal records stay together.
    Document,
    /// Too few documents for that: the text from its beginning to `validation_from` is for
    /// training, from `test_from` to its end for testing, between them for validation. Cuts move
    /// back to the end of a line where there is one near.
    Span {
        /// Where validation begins, in bytes of the kept text in order.
        validation_from: u64,
        /// Where testing begins.
        test_from: u64,
        /// How far a cut may move back.
        slack: u64,
    },
}

impl SplitPlan {
    /// Chooses the rule for a corpus of `bytes` bytes whose documents the hash would deal out as
    /// `dealt`.
    pub(crate) fn choose(fractions: SplitFractions, bytes: u64, dealt: [u64; 3]) -> Self {
        let shares = fractions.shares();
        let documents: u64 = dealt.iter().sum();
        let one_split = shares.iter().filter(|&&share| share > 0.0).count() == 1;
        let none_empty = shares.iter().zip(dealt).all(|(&share, count)| share <= 0.0 || count > 0);
        if one_split || (documents >= DOCUMENTS_TO_DEAL && none_empty) {
            return Self {
                rule: SplitRule::Document,
                fractions,
                note: "whole documents, each by the hash of its path (records: of its text)"
                    .to_owned(),
            };
        }
        let total = bytes as f64;
        let held_out = |share: f64| {
            let least = HELD_OUT_BYTES.min(total / 10.0);
            if share > 0.0 { (total * share).max(least).ceil() as u64 } else { 0 }
        };
        let test = held_out(fractions.test).min(bytes);
        let validation = held_out(fractions.validation).min(bytes - test);
        let test_from = bytes - test;
        let shortest = [test, validation].into_iter().filter(|&span| span > 0).min();
        Self {
            rule: SplitRule::Span {
                validation_from: if fractions.train > 0.0 { test_from - validation } else { 0 },
                test_from,
                slack: LINE_SEARCH.min(shortest.unwrap_or(0) / 2),
            },
            fractions,
            note: format!(
                "contiguous spans, because {documents} documents are too few to deal out: \
                 the last {test} bytes for test, the {validation} before them for validation"
            ),
        }
    }
}

/// A run of text on its way into one split.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part<'t> {
    pub(crate) text: &'t str,
    pub(crate) split: Split,
    /// Whether the split's document ends with this part.
    pub(crate) ends: bool,
}

impl SplitRule {
    /// Divides a piece of a document that begins at byte `start` of the corpus. `dealt` is the
    /// split that the hash gives the document, `last` whether the document ends with the piece.
    pub(crate) fn divide(self, text: &str, start: u64, dealt: Split, last: bool) -> Vec<Part<'_>> {
        let Self::Span { validation_from, test_from, slack } = self else {
            return vec![Part { text, split: dealt, ends: last }];
        };
        let end = start + text.len() as u64;
        let span_of = |place: u64| match place {
            _ if place >= test_from => Split::Test,
            _ if place >= validation_from => Split::Validation,
            _ => Split::Train,
        };
        let mut parts = Vec::with_capacity(3);
        let mut from = 0;
        for cut in [validation_from, test_from] {
            if cut > start && cut < end {
                let to = line_cut(text, (cut - start) as usize, slack as usize).max(from);
                parts.push((&text[from..to], span_of(cut - 1)));
                from = to;
            }
        }
        parts.push((&text[from..], span_of(end.saturating_sub(1))));
        parts.retain(|(text, _)| !text.is_empty());
        let after = if last { None } else { Some(span_of(end)) };
        let splits: Vec<Option<Split>> = parts.iter().map(|&(_, split)| Some(split)).collect();
        let next = splits.into_iter().skip(1).chain([after]);
        parts
            .iter()
            .zip(next)
            .map(|(&(text, split), next)| Part { text, split, ends: next != Some(split) })
            .collect()
    }
}

/// A cut at `place` or up to `slack` bytes before it, behind a line's end if there is one, and
/// never at the very beginning.
fn line_cut(text: &str, place: usize, slack: usize) -> usize {
    let behind = text.as_bytes()[..place]
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |newline| newline + 1);
    if behind > 0 && behind + slack >= place {
        return behind;
    }
    let boundary = |at: &usize| *at > 0 && text.is_char_boundary(*at);
    let before = (0..=place).rev().take(4).find(boundary);
    before.or_else(|| (place..=text.len()).find(boundary)).unwrap_or(text.len())
}
