//! A made-up report for the tests: its figures were never measured.

use foretoken_eval::Comparison;
use serde_json::to_value;

use crate::paper::PaperFigures;
use crate::report::{Corpus, DecodingRow, ModelRow, Report, Versions};
use crate::results::{
    Agreement, CompactRow, Difference, HeldOutRow, LossCurve, Machine, OutOfDomain, Sample,
    Settings, SpeedResults, Timing,
};

const HEADS: [usize; 4] = [1, 2, 4, 8];

fn model(heads: usize) -> ModelRow {
    let n = heads as f64;
    ModelRow {
        name: format!("n{heads}"),
        heads,
        head_type: "block".to_owned(),
        layers: 10,
        dim: 128,
        parameters: 2_010_000,
        vocab: 264,
        steps: 2_000,
        tokens_seen: 2_048_000,
        train_seconds: 300.0 + n,
        tokens_per_second: 6_800.0 - 10.0 * n,
        peak_memory_bytes: 412_000_000,
        validation_loss: (0..heads)
            .map(|head| 1.36 + 0.01 * n + 0.8 * (1.0 - (-(head as f64) / 2.0).exp()))
            .collect(),
    }
}

/// Acceptance up to each of k heads, decaying from a share that grows with quality.
fn acceptance(first: f64, heads_used: usize) -> Vec<f64> {
    (0..heads_used)
        .map(|head| match head {
            0 => 1.0,
            head => first * 0.62f64.powi(head as i32 - 1),
        })
        .collect()
}

fn decoding(heads: usize, heads_used: usize) -> DecodingRow {
    let own = acceptance(0.55, heads_used);
    let tokens_per_forward: f64 = own.iter().sum();
    let speedup =
        if heads_used == 1 { 1.0 } else { tokens_per_forward * (0.9 - 0.015 * heads_used as f64) };
    DecodingRow {
        model: format!("n{heads}"),
        heads_used,
        batch: 1,
        prompts: 32,
        new_tokens: 128,
        tokens_per_forward,
        held_out_tokens_per_forward: acceptance(0.43 + 0.01 * heads as f64, heads_used)
            .iter()
            .sum(),
        distinct_8grams: 0.61,
        acceptance: own,
        tokens_per_second: 1_050.0 * speedup,
        speedup,
        speedup_over_baseline: speedup * (1.0 + 0.05 * (heads as f64 - 1.0)),
        identical_outputs: true,
        mismatches: 0,
        near_ties: usize::from(heads_used == 3),
    }
}

fn held_out(scale: f64) -> Vec<HeldOutRow> {
    HEADS
        .into_iter()
        .flat_map(|heads| (1..=heads).map(move |k| (heads, k)))
        .map(|(heads, heads_used)| {
            let acceptance = acceptance(scale * (0.43 + 0.01 * heads as f64), heads_used);
            HeldOutRow {
                model: format!("n{heads}"),
                heads_used,
                tokens_per_forward: acceptance.iter().sum(),
                acceptance,
            }
        })
        .collect()
}

fn sample() -> Sample {
    let text = "self.assertEqual(x < y)\n        return torch.ops.aten.add(self, other)\n\n    \
                @classmethod\n    def from_pretrained(cls, name: str) -> None:\n        \
                \"\"\"Load the model.\n\n        Args:\n            name (str): the name.\n        \
                \"\"\"\n        if self.training and not isinstance(input, Tensor):\n            \
                raise ValueError(f\"expected {name}\")\n";
    let runs = [1, 3, 2, 1, 4, 8, 2, 5, 1, 6, 3, 7];
    let mut pieces = Vec::new();
    let mut characters = text.chars();
    let mut passes = 0;
    'text: for run in runs.into_iter().cycle() {
        for head in 0..run {
            let Some(character) = characters.next() else {
                break 'text;
            };
            pieces.push((character.to_string(), head));
        }
        passes += 1;
    }
    Sample {
        model: "n8".to_owned(),
        heads_used: 8,
        prompt: "    def test_add(self, x: List<b>, y):\n        ".to_owned(),
        tokens: text.len(),
        pieces,
        forward_passes: passes,
    }
}

fn results() -> SpeedResults {
    SpeedResults {
        settings: Settings {
            prompt_tokens: 128,
            repeats: 3,
            held_out_window: 256,
            held_out_prompt: 128,
            held_out_tokens: 65_536,
            validation_windows: 256,
            validation_sequence: 256,
            precision: "float32".to_owned(),
            draft_precision: "bfloat16".to_owned(),
        },
        machine: Machine { cpu: "an imagined processor".to_owned(), threads: 2, gpu: None },
        compact: [(1, false, 1.0, 200.0), (2, false, 1.7, 240.0), (4, true, 1.6, 235.0)]
            .map(|(heads_used, adaptive, tokens_per_forward, tokens_per_second)| CompactRow {
                model: "n4".to_owned(),
                heads_used,
                adaptive,
                tokens_per_forward,
                tokens_per_second,
                speedup: tokens_per_second / 200.0,
                speedup_over_full: tokens_per_second / 50.0,
                mismatches: 0,
                near_ties: 0,
            })
            .into(),
        timing: vec![Timing {
            model: "n4".to_owned(),
            heads_used: 4,
            step_cost: 1.2,
            speedup_with_prompt: 1.5,
            speedup_range: (1.4, 1.6),
        }],
        agreement: vec![Agreement {
            model: "n4".to_owned(),
            heads_used: 4,
            prompts: 1234,
            new_tokens: 157_952,
            mismatches: 0,
            near_ties: 0,
            differences: Vec::new(),
        }],
        differences: vec![Difference {
            model: "n4".to_owned(),
            heads_used: 3,
            prompt: 11,
            comparison: Comparison::NearTie { position: 77, gap: 3.1e-5 },
        }],
        held_out: held_out(1.0),
        out_of_domain: Some(OutOfDomain {
            corpus: "python-other".to_owned(),
            sha256: "ab".repeat(32),
            tokens: 65_536,
            loss: HEADS.into_iter().map(|heads| (format!("n{heads}"), vec![1.81; heads])).collect(),
            rows: held_out(0.8),
        }),
        loss_curves: HEADS
            .into_iter()
            .map(|heads| LossCurve {
                model: format!("n{heads}"),
                points: (1..=150)
                    .map(|i| {
                        let share = f64::from(i) / 150.0;
                        let wiggle = 0.03 * (f64::from(i) * 1.7 + heads as f64).sin();
                        let loss = 1.3 + 0.02 * heads as f64 + 0.25 / (share + 0.05);
                        (share * 2_048_000.0, loss + wiggle)
                    })
                    .collect(),
            })
            .collect(),
        sample: Some(sample()),
        notes: Vec::new(),
        trained_on: None,
    }
}

/// A report like one of the speed experiment.
pub(crate) fn report() -> Report {
    let decoding = HEADS.into_iter().flat_map(|heads| (1..=heads).map(move |k| decoding(heads, k)));
    Report {
        experiment: "speed".to_owned(),
        preset: "quick".to_owned(),
        pretrained_heads: false,
        without_bfloat16: false,
        seed: 1,
        device: "cpu".to_owned(),
        versions: Versions::current(),
        wall_seconds: 1_420.0,
        corpus: Corpus {
            name: "python-code".to_owned(),
            sha256: "0123456789abcdef".repeat(4),
            train_tokens: 35_000_000,
            validation_tokens: 350_000,
            test_tokens: 350_000,
        },
        models: HEADS.into_iter().map(model).collect(),
        decoding: decoding.collect(),
        results: to_value(results()).expect("plain structs are JSON"),
        paper: to_value(PaperFigures::for_heads(&HEADS)).expect("plain structs are JSON"),
    }
}
