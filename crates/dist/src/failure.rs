//! What ended a group, in the form in which ranks tell each other.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a group can't go on. The first rank to notice puts it into the store, so that all ranks
/// report the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Failure {
    /// A rank's heartbeat stands still: the process was killed or stopped, or its machine is gone.
    #[error("rank {rank} of {size} has not been heard of for {}", seconds(*.milliseconds))]
    Silent {
        /// That rank.
        rank: usize,
        /// The size of the group.
        size: usize,
        /// How long, in milliseconds.
        milliseconds: u64,
    },
    /// A rank is alive but did not start the collective that the others are in.
    #[error("rank {rank} of {size} did not join {collective} within {}", seconds(*.milliseconds))]
    Late {
        /// That rank.
        rank: usize,
        /// The size of the group.
        size: usize,
        /// What the others are in.
        collective: String,
        /// How long they waited, in milliseconds.
        milliseconds: u64,
    },
    /// A rank said that it failed.
    #[error("rank {rank} of {size} failed: {reason}")]
    Failed {
        /// That rank.
        rank: usize,
        /// The size of the group.
        size: usize,
        /// What it said.
        reason: String,
    },
    /// A rank ended its group while others waited for it.
    #[error("rank {rank} of {size} left while the others waited for it in {collective}")]
    Left {
        /// That rank.
        rank: usize,
        /// The size of the group.
        size: usize,
        /// What the others are in.
        collective: String,
    },
    /// Ranks did not come.
    #[error(
        "{} of {size} did not come within {}; {}",
        named(.missing), seconds(*.milliseconds), came(.missing, *.size)
    )]
    Missing {
        /// Those ranks.
        missing: Vec<usize>,
        /// The size of the group.
        size: usize,
        /// The time given, in milliseconds.
        milliseconds: u64,
    },
    /// Two ranks were told different sizes.
    #[error(
        "world sizes differ: rank {rank} was told {size}, another rank {expected}; start all ranks \
         with one WORLD_SIZE"
    )]
    WorldSize {
        /// The rank that came later.
        rank: usize,
        /// Its size.
        size: usize,
        /// The other's.
        expected: usize,
    },
    /// Two processes were told the same rank.
    #[error("two processes say that they are rank {rank} of {size}; give each its own RANK")]
    SameRank {
        /// The rank.
        rank: usize,
        /// The size of the group.
        size: usize,
    },
    /// The connection to the store is lost.
    #[error("{} cannot be reached any more at {address}", server(*.rank, *.size))]
    StoreLost {
        /// The rank that serves it; none where the launcher does.
        rank: Option<usize>,
        /// The size of the group.
        size: usize,
        /// Where it was.
        address: String,
    },
}

impl Failure {
    /// The rank at fault, if it is one.
    ///
    /// ```
    /// use foretoken_dist::Failure;
    ///
    /// let failure = Failure::Silent { rank: 3, size: 4, milliseconds: 30_000 };
    /// assert_eq!(failure.rank(), Some(3));
    /// assert_eq!(failure.to_string(), "rank 3 of 4 has not been heard of for 30 s");
    /// ```
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::Silent { rank, .. }
            | Self::Late { rank, .. }
            | Self::Failed { rank, .. }
            | Self::Left { rank, .. }
            | Self::WorldSize { rank, .. }
            | Self::SameRank { rank, .. } => Some(*rank),
            Self::Missing { missing, .. } => missing.first().copied(),
            Self::StoreLost { rank, .. } => *rank,
        }
    }

    /// As one line, for the store.
    pub(crate) fn to_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// From such a line; none for any other text.
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

/// A duration as [`Failure`] holds it.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(milliseconds: u64) -> String {
    match milliseconds {
        0..10_000 if !milliseconds.is_multiple_of(1000) => {
            format!("{:.1} s", milliseconds as f64 / 1000.0)
        }
        _ => format!("{} s", milliseconds / 1000),
    }
}

/// "rank 1", "ranks 1 and 2", "ranks 1, 2 and 4", "ranks 1, 2, 3 and 60 more".
fn named(ranks: &[usize]) -> String {
    const SHOWN: usize = 8;
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    let mut names: Vec<String> = ranks.iter().take(SHOWN).map(ToString::to_string).collect();
    if ranks.len() > SHOWN {
        names.push(format!("{} more", ranks.len() - SHOWN));
    }
    match names.split_last() {
        Some((last, [])) => format!("{word} {last}"),
        Some((last, others)) => format!("{word} {} and {last}", others.join(", ")),
        None => "no rank".to_owned(),
    }
}

fn came(missing: &[usize], size: usize) -> String {
    let present: Vec<usize> = (0..size).filter(|rank| !missing.contains(rank)).collect();
    format!("{} did", named(&present))
}

fn server(rank: Option<usize>, size: usize) -> String {
    match rank {
        Some(rank) => format!("rank {rank} of {size}, which serves the others,"),
        None => "the launcher, which serves the ranks,".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_named_in_words() {
        let failure = |missing: &[usize], size| {
            Failure::Missing { missing: missing.to_vec(), size, milliseconds: 1500 }.to_string()
        };
        assert_eq!(failure(&[3], 4), "rank 3 of 4 did not come within 1.5 s; ranks 0, 1 and 2 did");
        assert_eq!(failure(&[1, 2], 3), "ranks 1 and 2 of 3 did not come within 1.5 s; rank 0 did");
        let many: Vec<usize> = (1..64).collect();
        assert!(failure(&many, 64).starts_with("ranks 1, 2, 3, 4, 5, 6, 7, 8 and 55 more of 64"));
    }

    #[test]
    fn a_failure_survives_the_store_in_one_line() {
        let failure =
            Failure::Failed { rank: 1, size: 2, reason: "first\nsecond \"quoted\"\t\0".to_owned() };
        let line = failure.to_line();
        assert!(!line.contains(['\n', '\0']));
        assert_eq!(Failure::from_line(&line), Some(failure));
        assert_eq!(Failure::from_line("-"), None);
    }
}
