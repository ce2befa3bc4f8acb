//! Rows of whole documents.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::TokenShard;
use crate::permutation::{Permutation, below, mix};

/// Pieces among which a row looks for the one that fits best.
const WAITING: usize = 4096;
/// Plans that are made of a shard. Later epochs take them up again, with the rows in another order.
const PLANS: usize = 4;

/// How the rows of a batch are cut out of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// Windows of the stream of tokens, wherever documents begin and end (the default). Every
    /// token of a row counts; long documents are cut at places that differ from epoch to epoch.
    #[default]
    Windows,
    /// Whole documents side by side, each with an end-of-text token before and behind it, and the
    /// rest of the row padded. Each row takes the longest piece that still fits, of 4,096 that
    /// wait (best fit). A document longer than a row is cut into rows of its own, which begin a
    /// stride apart, and what remains of it is packed with others.
    Documents,
}

/// What rows of documents follow from; the plans are made when they are first needed.
#[derive(Debug)]
pub(crate) struct Plans {
    shard: Arc<TokenShard>,
    columns: usize,
    stride: usize,
    seed: u64,
    made: [OnceLock<Arc<Plan>>; PLANS],
}

/// An epoch among all that follow each other.
pub(crate) struct PlannedEpoch {
    pub(crate) number: u128,
    /// Rows of the epochs before it.
    pub(crate) first: u128,
    pub(crate) plan: Arc<Plan>,
}

impl Plans {
    /// `stride` is how far apart the pieces of a long document begin: at least 1, at most a row.
    pub(crate) fn new(shard: Arc<TokenShard>, columns: usize, stride: usize, seed: u64) -> Self {
        Self { shard, columns, stride, seed, made: Default::default() }
    }

    pub(crate) fn rows_of_first_epoch(&self) -> u64 {
        self.plan(0).rows()
    }

    /// The epoch that a row is of. Epochs differ in their number of rows, so those before it have
    /// to be planned; but after [`PLANS`] of them it all repeats.
    pub(crate) fn epoch_of(&self, row: u128) -> PlannedEpoch {
        let (mut number, mut first) = (0, 0);
        loop {
            let round = first;
            for index in 0..PLANS {
                let plan = self.plan(index);
                let rows = u128::from(plan.rows());
                if row < first + rows {
                    return PlannedEpoch { number, first, plan: Arc::clone(plan) };
                }
                number += 1;
                first += rows;
            }
            // A plan has at least one row.
            let more = (row - first) / (first - round);
            number += more * PLANS as u128;
            first += more * (first - round);
        }
    }

    fn plan(&self, index: usize) -> &Arc<Plan> {
        self.made[index].get_or_init(|| {
            let seed = mix(self.seed ^ mix(index as u64 ^ 0xD1B5_4A32_D192_ED03));
            Arc::new(Plan::new(&self.shard, self.columns, self.stride, seed))
        })
    }
}

/// Which pieces of documents each row of an epoch is made of.
#[derive(Default)]
pub(crate) struct Plan {
    /// Where each piece begins, row after row.
    starts: Vec<usize>,
    /// Tokens of each piece.
    lengths: Vec<u32>,
    /// For each row, the place behind its last piece.
    ends: Vec<usize>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan of {} pieces in {} rows", self.starts.len(), self.ends.len())
    }
}

impl Plan {
    /// Packs all documents of a shard in a seeded order. Rows have at most `u32::MAX` columns.
    fn new(shard: &TokenShard, columns: usize, stride: usize, seed: u64) -> Self {
        let spans = shard.spans();
        let order = Permutation::new(spans as u64, seed);
        let mut pieces = (0..spans).flat_map(|index| {
            let span = order.apply(index as u64) as usize;
            let first = 1 + below(mix(seed ^ mix(span as u64)), stride as u64) as usize;
            pieces(shard.span(span), columns, stride, first)
        });
        let mut plan = Self::default();
        let mut waiting = Waiting::default();
        loop {
            waiting.fill(&mut pieces);
            let mut room = columns;
            while let Some(piece) = waiting.take_best(room) {
                room -= piece.len();
                plan.starts.push(piece.start);
                plan.lengths.push(piece.len() as u32);
            }
            // A shard without any text still has one row, all padding.
            if room == columns && !plan.ends.is_empty() {
                return plan;
            }
            plan.ends.push(plan.starts.len());
        }
    }

    /// How many rows there are: at least one.
    pub(crate) fn rows(&self) -> u64 {
        self.ends.len() as u64
    }

    /// The pieces of a row.
    pub(crate) fn row(&self, index: u64) -> impl Iterator<Item = Range<usize>> {
        let index = index as usize;
        let from = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        let pieces = from..self.ends[index];
        let lengths = self.lengths[pieces.clone()].iter().map(|&length| length as usize);
        self.starts[pieces].iter().zip(lengths).map(|(&start, length)| start..start + length)
    }
}

/// Cuts a document into pieces of at most `columns` tokens that begin `stride` tokens apart, the
/// second of them `first` behind the first.
fn pieces(
    span: Range<usize>,
    columns: usize,
    stride: usize,
    first: usize,
) -> impl Iterator<Item = Range<usize>> {
    let overlap = columns - stride;
    let mut length = if span.len() > columns { first + overlap } else { columns };
    let mut begin = span.start;
    let mut over = span.is_empty();
    std::iter::from_fn(move || {
        if over {
            return None;
        }
        let end = span.end.min(begin + length);
        let piece = begin..end;
        over = end == span.end;
        begin = end - overlap.min(end);
        length = columns;
        Some(piece)
    })
}

/// Pieces that no row has yet, by their length and, among equals, in the order in which they came.
#[derive(Default)]
struct Waiting {
    starts: BTreeMap<(usize, u64), usize>,
    arrived: u64,
}

impl Waiting {
    fn fill(&mut self, pieces: &mut impl Iterator<Item = Range<usize>>) {
        let wanted = WAITING - self.starts.len();
        for piece in pieces.take(wanted) {
            self.starts.insert((piece.len(), self.arrived), piece.start);
            self.arrived += 1;
        }
    }

    /// The longest piece of at most `room` tokens, the one that has waited longest.
    fn take_best(&mut self, room: usize) -> Option<Range<usize>> {
        let (&(length, _), _) = self.starts.range(..=(room, u64::MAX)).next_back()?;
        let (&key, _) = self.starts.range((length, 0)..).next()?;
        let start = self.starts.remove(&key)?;
        Some(start..start + length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_of_a_long_document_begin_a_stride_apart_and_miss_nothing(
            start in 0_usize..100,
            length in 0_usize..300,
            columns in 1_usize..40,
            overlap in 0_usize..40,
            first: u64,
        ) {
            let stride = columns - overlap.min(columns - 1);
            let first = 1 + (first as usize % stride);
            let span = start..start + length;
            let cut: Vec<_> = pieces(span.clone(), columns, stride, first).collect();
            if length <= columns {
                prop_assert_eq!(cut, if length == 0 { vec![] } else { vec![span] });
                return Ok(());
            }
            prop_assert_eq!(cut[0].start, span.start);
            prop_assert_eq!(cut[1].start, span.start + first);
            prop_assert_eq!(cut[cut.len() - 1].end, span.end);
            for (index, pair) in cut.windows(2).enumerate() {
                prop_assert_eq!(pair[0].end - pair[1].start, columns - stride);
                prop_assert!(pair[1].end > pair[0].end);
                prop_assert!(index == 0 || pair[1].start - pair[0].start == stride);
            }
            prop_assert!(cut.iter().all(|piece| (1..=columns).contains(&piece.len())));
        }

        #[test]
        fn the_best_fit_is_the_longest_that_fits_and_of_equals_the_first(
            lengths in prop::collection::vec(1_usize..50, 1..200),
            room in 1_usize..60,
        ) {
            let mut waiting = Waiting::default();
            // Told apart by where they begin.
            let mut pieces: Vec<_> = (0..)
                .step_by(100)
                .zip(&lengths)
                .map(|(start, length)| start..start + length)
                .collect();
            waiting.fill(&mut pieces.clone().into_iter());
            while let Some(best) = waiting.take_best(room) {
                let fits = pieces.iter().filter(|piece| piece.len() <= room);
                let longest = fits.map(ExactSizeIterator::len).max().unwrap();
                let expected = pieces.iter().position(|piece| piece.len() == longest).unwrap();
                prop_assert_eq!(best, pieces.remove(expected));
            }
            prop_assert!(pieces.iter().all(|piece| piece.len() > room));
        }
    }
}
