//! What the training comparisons run: sizes, vocabularies, and how long each row takes.

use std::path::PathBuf;

/// A network, named for its parameters without embedding and unembedding.
#[derive(Debug, PartialEq)]
pub(crate) struct Size {
    pub(crate) name: &'static str,
    /// Blocks in all; n heads take n of them.
    pub(crate) layers: usize,
    pub(crate) dim: usize,
    pub(crate) attention_heads: usize,
    pub(crate) ffn: usize,
}

/// 1.19 million.
pub(crate) const SMALL: Size =
    Size { name: "1M", layers: 6, dim: 128, attention_heads: 4, ffn: 344 };
/// 9.92 million.
pub(crate) const MIDDLE: Size =
    Size { name: "10M", layers: 8, dim: 320, attention_heads: 5, ffn: 864 };
/// 49.6 million.
pub(crate) const LARGE: Size =
    Size { name: "50M", layers: 10, dim: 640, attention_heads: 10, ffn: 1728 };

/// Which tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Vocabulary {
    /// 256 bytes and the byte tokenizer's eight special tokens.
    Bytes,
    /// 32,768: the same text, two bytes a token.
    Pairs,
}

impl Vocabulary {
    /// The argument of `train_steps prepare`; none for its default.
    pub(crate) fn size(self) -> Option<usize> {
        match self {
            Self::Bytes => None,
            Self::Pairs => Some(32_768),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Pairs => "32768",
        }
    }
}

/// A network with a vocabulary, and how much of it a comparison runs.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) size: &'static Size,
    pub(crate) vocabulary: Vocabulary,
    /// Sequences of 256 tokens in a step.
    pub(crate) batch: usize,
    /// Steps of a turn.
    pub(crate) turn: usize,
    /// Turns of each side that count.
    pub(crate) rounds: usize,
    /// Held-out batches at the end.
    pub(crate) held_out: usize,
}

const fn load(
    size: &'static Size,
    vocabulary: Vocabulary,
    [batch, turn, rounds, held_out]: [usize; 4],
) -> Load {
    Load { size, vocabulary, batch, turn, rounds, held_out }
}

/// From the lightest to the heaviest. A turn takes about a second on two cores, and as few steps as
/// one where a step does.
pub(crate) const LOADS: [Load; 6] = [
    load(&SMALL, Vocabulary::Bytes, [4, 8, 9, 16]),
    load(&SMALL, Vocabulary::Pairs, [4, 2, 9, 8]),
    load(&MIDDLE, Vocabulary::Bytes, [4, 2, 9, 8]),
    load(&MIDDLE, Vocabulary::Pairs, [4, 1, 9, 4]),
    load(&LARGE, Vocabulary::Bytes, [2, 1, 7, 4]),
    load(&LARGE, Vocabulary::Pairs, [2, 1, 7, 4]),
];

/// One training of a comparison.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) load: &'static Load,
    pub(crate) heads: usize,
    pub(crate) optimizer: &'static str,
    /// Further keys of the recipe, `section.key=value`.
    pub(crate) sets: Vec<&'static str>,
}

impl Row {
    pub(crate) fn new(load: &'static Load, heads: usize, optimizer: &'static str) -> Self {
        Self { load, heads, optimizer, sets: Vec::new() }
    }

    pub(crate) fn with(mut self, set: &'static str) -> Self {
        self.sets.push(set);
        self
    }

    /// `SIZE/VOCABULARY/nHEADS/OPTIMISER`.
    pub(crate) fn id(&self) -> String {
        let Load { size, vocabulary, .. } = self.load;
        format!("{}/{}/n{}/{}", size.name, vocabulary.name(), self.heads, self.optimizer)
    }

    /// Whether a step is mostly logits: few layers under many tokens.
    pub(crate) fn logits_dominate(&self) -> bool {
        *self.load.size == SMALL && self.load.vocabulary == Vocabulary::Pairs
    }
}

/// The rows beside PyTorch: everything with `AdamW`, and Muon for bytes at 1M (n = 1, 4) and 10M
/// (n = 4).
pub(crate) fn pytorch_rows() -> Vec<Row> {
    let adamw = LOADS.iter().flat_map(|load| [1, 4].map(|heads| Row::new(load, heads, "adamw")));
    let muon = [(0, 1), (0, 4), (2, 4)];
    adamw.chain(muon.map(|(load, heads)| Row::new(&LOADS[load], heads, "muon"))).collect()
}

/// Options that the training comparisons share.
pub(crate) struct Plan {
    /// Turns of each side that count, where the table of loads is not to say.
    pub(crate) rounds: Option<usize>,
    pub(crate) threads: usize,
    pub(crate) out: PathBuf,
    /// Texts of which a row's name has to contain one; none for all rows.
    pub(crate) rows: Vec<String>,
    /// A few light rows, three turns each.
    pub(crate) quick: bool,
    /// Whether `torch.compile` takes part.
    pub(crate) compiled: bool,
}

impl Plan {
    /// Whether a row of this name is run.
    pub(crate) fn wants(&self, id: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|text| id.contains(text.as_str()))
    }

    /// Whether a row is light enough for a quick look: 1M, and 10M over bytes.
    pub(crate) fn light_enough(&self, load: &Load) -> bool {
        let light =
            *load.size == SMALL || *load.size == MIDDLE && load.vocabulary == Vocabulary::Bytes;
        !self.quick || light
    }

    /// Turns of each side that count.
    pub(crate) fn rounds(&self, load: &Load) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { load.rounds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rows: &[&str], quick: bool) -> Plan {
        Plan {
            rounds: None,
            threads: 2,
            out: PathBuf::new(),
            rows: rows.iter().map(|&text| text.to_owned()).collect(),
            quick,
            compiled: true,
        }
    }

    #[test]
    fn every_row_has_a_name_of_its_own_and_all_sizes_and_vocabularies_are_there() {
        let rows = pytorch_rows();
        let names: std::collections::BTreeSet<String> = rows.iter().map(Row::id).collect();
        assert_eq!(names.len(), rows.len());
        for size in ["1M", "10M", "50M"] {
            for vocabulary in ["bytes", "32768"] {
                for heads in [1, 4] {
                    assert!(names.contains(&format!("{size}/{vocabulary}/n{heads}/adamw")));
                }
            }
        }
    }

    #[test]
    fn sizes_are_what_they_are_called() {
        for (size, millions) in [(&SMALL, 1.19), (&MIDDLE, 9.92), (&LARGE, 49.6)] {
            let matrices = 4 * size.dim * size.dim + 3 * size.dim * size.ffn;
            let all = size.layers * (matrices + 2 * size.dim) + size.dim;
            assert!((all as f64 / 1e6 / millions - 1.0).abs() < 0.005, "{} has {all}", size.name);
            assert!(size.dim % (2 * size.attention_heads) == 0 && size.layers > 4);
        }
    }

    #[test]
    fn rows_are_chosen_by_parts_of_their_names() {
        let chosen = |plan: &Plan| {
            pytorch_rows()
                .iter()
                .filter(|row| plan.wants(&row.id()) && plan.light_enough(row.load))
                .map(Row::id)
                .collect::<Vec<_>>()
        };
        assert_eq!(chosen(&plan(&["50M/bytes/n1"], false)), ["50M/bytes/n1/adamw"]);
        assert_eq!(chosen(&plan(&["10M/bytes/n4", "nothing"], false)).len(), 2);
        assert!(chosen(&plan(&[], true)).iter().all(|id| !id.contains("50M")));
        assert_eq!(chosen(&plan(&[], false)).len(), pytorch_rows().len());
    }
}
