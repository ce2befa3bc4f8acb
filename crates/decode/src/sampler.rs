//! Drawing from a row of logits.

use crate::Sampling;

/// Draws tokens; the same seed draws the same ones.
pub(crate) struct Sampler {
    options: Sampling,
    state: u64,
    /// Tokens and their weights, reused from draw to draw.
    candidates: Vec<(u32, f64)>,
}

impl Sampler {
    pub(crate) fn new(options: Sampling) -> Self {
        Self { options, state: options.seed, candidates: Vec::new() }
    }

    /// A token with probability softmax(logits / temperature), cut to the most likely tokens that
    /// together reach `top_p`.
    pub(crate) fn draw(&mut self, logits: &[f64]) -> u32 {
        let Sampling { temperature, top_p, .. } = self.options;
        let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        self.candidates.clear();
        let weights = logits.iter().map(|logit| ((logit - top) / temperature).exp());
        self.candidates.extend((0..).zip(weights).filter(|(_, weight)| *weight > 0.0));
        let mut total: f64 = self.candidates.iter().map(|(_, weight)| weight).sum();
        if top_p < 1.0 {
            self.candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let mut sum = 0.0;
            let reached = self.candidates.iter().position(|(_, weight)| {
                sum += weight;
                sum >= top_p * total
            });
            self.candidates.truncate(reached.map_or(usize::MAX, |last| last + 1));
            total = self.candidates.iter().map(|(_, weight)| weight).sum();
        }
        let mut left = uniform(&mut self.state) * total;
        let mut drawn = self.candidates.first().map_or(0, |(token, _)| *token);
        for &(token, weight) in &self.candidates {
            drawn = token;
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        drawn
    }
}

/// From 0 to below 1 (`SplitMix64`, Steele et al. 2014).
pub(crate) fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(temperature: f64, top_p: f64, logits: &[f64], draws: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(Sampling { temperature, top_p, seed: 3 });
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sampler.draw(logits) as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn tokens_are_drawn_as_often_as_the_softmax_says() {
        let logits = [1.0, 3.0, 0.0, 2.0, f64::NEG_INFINITY];
        for temperature in [0.5, 1.0, 2.0] {
            let weights = logits.map(|l: f64| (l / temperature).exp());
            let total: f64 = weights.iter().sum();
            let drawn = frequencies(temperature, 1.0, &logits, 40_000);
            for (drawn, weight) in drawn.iter().zip(weights) {
                assert!((drawn - weight / total).abs() < 0.01, "{drawn} for {}", weight / total);
            }
        }
    }

    #[test]
    fn top_p_keeps_just_the_tokens_that_reach_it() {
        let probabilities = [0.15f64, 0.5, 0.05, 0.3];
        let logits = probabilities.map(f64::ln);
        let drawn = frequencies(1.0, 0.7, &logits, 20_000);
        assert!(drawn[0] + drawn[2] == 0.0);
        assert!((drawn[1] - 0.625).abs() < 0.015);
        assert!(frequencies(1.0, 1e-9, &logits, 100)[1] > 0.999);
    }

    #[test]
    fn a_seed_gives_the_same_tokens_again() {
        let logits: Vec<f64> = (0..50).map(|i| f64::from(i) * 0.01).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { temperature: 1.0, top_p: 0.9, seed });
            (0..20).map(|_| sampler.draw(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
