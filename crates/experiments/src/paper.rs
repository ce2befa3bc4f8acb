//! Decoding figures of the paper (Gloeckle et al. 2024, arXiv 2404.19737).

use serde::{Deserialize, Serialize};

/// One cell of the paper's decoding tables.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PaperRow {
    /// Heads of the model, n.
    pub heads: usize,
    /// Heads used, k.
    pub heads_used: usize,
    /// Wall-clock speed-up over autoregressive decoding of the same model.
    pub speedup: f64,
    /// Tokens a forward pass on the model's own greedy text.
    pub tokens_per_forward: f64,
}

/// The paper's figures beside which ours stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PaperFigures {
    /// Where they are from.
    pub source: String,
    /// On which models they were measured, by number of heads.
    pub models: Vec<PaperModel>,
    /// The figures.
    pub rows: Vec<PaperRow>,
}

/// What the paper measured on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaperModel {
    /// Heads of the model, n.
    pub heads: usize,
    /// The table that has the figures.
    pub table: String,
    /// Model, prompts and batch.
    pub setup: String,
}

impl PaperFigures {
    /// Tables S2 (the column for code) and S3, as far as they have a model with so many heads.
    pub fn for_heads(heads: &[usize]) -> Self {
        let rows = [
            (4, 1, 1.00, 1.00),
            (4, 2, 1.85, 1.94),
            (4, 3, 2.54, 2.78),
            (4, 4, 3.05, 3.50),
            (8, 2, 1.94, 1.98),
            (8, 4, 3.67, 3.84),
            (8, 8, 6.39, 7.04),
        ];
        let models = [
            (4, "S2", "7B, tokens, code; 4,200 prompts of 512 tokens, 512 new ones, batch 42"),
            (8, "S3", "7B, bytes, code; 4,096 prompts of 1,024 bytes, batch 16"),
        ];
        Self {
            source: "Gloeckle et al. 2024, arXiv 2404.19737v1, tables S2 and S3".to_owned(),
            models: models
                .into_iter()
                .filter(|(n, ..)| heads.contains(n))
                .map(|(heads, table, setup)| PaperModel {
                    heads,
                    table: table.to_owned(),
                    setup: setup.to_owned(),
                })
                .collect(),
            rows: rows
                .into_iter()
                .filter(|(n, ..)| heads.contains(n))
                .map(|(heads, heads_used, speedup, tokens_per_forward)| PaperRow {
                    heads,
                    heads_used,
                    speedup,
                    tokens_per_forward,
                })
                .collect(),
        }
    }

    /// The figures for a model with `heads` heads of which `heads_used` are used.
    pub fn row(&self, heads: usize, heads_used: usize) -> Option<&PaperRow> {
        self.rows.iter().find(|row| row.heads == heads && row.heads_used == heads_used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_model_with_eight_heads_is_table_s3() {
        let figures = PaperFigures::for_heads(&[1, 8]);
        let row = figures.row(8, 8).unwrap();
        assert_eq!((row.speedup, row.tokens_per_forward), (6.39, 7.04));
        assert!(figures.row(4, 4).is_none());
    }

    #[test]
    fn models_that_the_paper_did_not_measure_have_no_figures() {
        assert!(PaperFigures::for_heads(&[1, 2]).rows.is_empty());
    }
}
