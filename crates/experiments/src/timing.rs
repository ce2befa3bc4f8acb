//! Medians over repeats in which every way of decoding takes its turn.

use foretoken_decode::Generation;

/// What one way of decoding took, repeat by repeat, over all prompts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times {
    /// Seconds after the prompt's pass.
    pub(crate) decode: Vec<f64>,
    /// Seconds with the prompt's pass.
    pub(crate) total: Vec<f64>,
}

impl Times {
    /// Opens the next repeat.
    pub(crate) fn open(&mut self) {
        self.decode.push(0.0);
        self.total.push(0.0);
    }

    /// Adds a prompt to the repeat that is open.
    pub(crate) fn add(&mut self, run: &Generation) {
        self.add_seconds(run.prefill.as_secs_f64(), run.decode.as_secs_f64());
    }

    /// Whether the first repeat is open.
    pub(crate) fn is_first(&self) -> bool {
        self.decode.len() == 1
    }

    fn add_seconds(&mut self, prefill: f64, decode: f64) {
        if let (Some(sum), Some(total)) = (self.decode.last_mut(), self.total.last_mut()) {
            *sum += decode;
            *total += prefill + decode;
        }
    }

    /// Median seconds after the prompt's pass.
    pub(crate) fn median_decode(&self) -> f64 {
        median(self.decode.clone())
    }

    /// How many times faster than `reference`, repeat by repeat: median, smallest, largest.
    pub(crate) fn speedup_over(&self, reference: &Self) -> (f64, f64, f64) {
        let ratios = ratios(&reference.decode, &self.decode);
        let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let high = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (median(ratios), low, high)
    }

    /// As [`Times::speedup_over`], the prompt's pass counted.
    pub(crate) fn speedup_with_prompt(&self, reference: &Self) -> f64 {
        median(ratios(&reference.total, &self.total))
    }
}

fn ratios(reference: &[f64], ours: &[f64]) -> Vec<f64> {
    let pairs = reference.iter().zip(ours);
    pairs.map(|(reference, ours)| reference / ours.max(1e-12)).collect()
}

/// The middle value, or the mean of the two middle ones; 0 of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small whole numbers are exact")]
mod tests {
    use super::*;

    fn times(repeats: &[f64]) -> Times {
        let mut times = Times::default();
        for &seconds in repeats {
            times.open();
            times.add_seconds(1.0, seconds / 2.0);
            times.add_seconds(1.0, seconds / 2.0);
        }
        times
    }

    #[test]
    fn a_slow_repeat_of_both_ways_leaves_the_speed_up_alone() {
        let plain = times(&[4.0, 40.0, 4.0]);
        let fast = times(&[2.0, 20.0, 2.0]);
        assert_eq!(fast.speedup_over(&plain), (2.0, 2.0, 2.0));
        assert_eq!(fast.median_decode(), 2.0);
    }

    #[test]
    fn the_prompts_pass_makes_the_speed_up_smaller() {
        let (plain, fast) = (times(&[4.0]), times(&[2.0]));
        assert_eq!(fast.speedup_with_prompt(&plain), 6.0 / 4.0);
    }

    #[test]
    fn medians_of_even_counts_lie_between_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![]), 0.0);
    }
}
