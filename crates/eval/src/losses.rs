//! Mean loss of each head over seeded windows of a shard.

use foretoken_data::TokenShard;
use foretoken_heads::MultiTokenModel;
use foretoken_loss::MultiTokenLoss;
use tch::Tensor;

use crate::{Error, Result, seeded_starts};

/// Room kept behind every window for the farthest head's target, whatever the number of heads:
/// models with 1 and with 8 heads are scored on the same windows.
const RESERVED: usize = 64;

/// Which windows [`head_losses`] scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossOptions {
    /// Number of windows.
    pub windows: usize,
    /// Positions in a window.
    pub sequence: usize,
    /// Windows in one forward pass; changes the memory needed, not the result.
    pub batch: usize,
    /// Chooses the windows: the same seed, shard and sizes give the same ones.
    pub seed: u64,
}

/// Mean loss of each head in nats a token, over seeded windows of `shard`.
///
/// Head i is scored on the tokens at offset i + 1 from each of a window's positions, a leap head at
/// its own offset. No gradient is recorded.
///
/// # Errors
///
/// When an option is 0, when the shard is shorter than a window, or when the model fails.
pub fn head_losses(
    model: &MultiTokenModel,
    shard: &TokenShard,
    options: &LossOptions,
) -> Result<Vec<f64>> {
    let heads = model.config().heads.count;
    let loss = MultiTokenLoss::new(heads).with_offsets(model.config().heads.offsets());
    let starts = window_starts(shard.len(), loss.reach(), options)?;
    let columns = options.sequence + loss.reach();
    let mut sums = vec![0.0; heads];
    for batch in starts.chunks(options.batch) {
        let mut tokens = Vec::with_capacity(batch.len() * columns);
        for &start in batch {
            let window = shard.tokens(start..start + columns)?;
            tokens.extend(window.into_iter().map(i64::from));
        }
        let tokens = Tensor::f_from_slice(&tokens)?
            .f_view([batch.len() as i64, columns as i64])?
            .f_to_device(model.device())?;
        let means = loss.evaluate(model, &tokens)?.to_vec()?;
        for (sum, mean) in sums.iter_mut().zip(means) {
            *sum += mean * batch.len() as f64;
        }
    }
    Ok(sums.into_iter().map(|s| s / starts.len() as f64).collect())
}

/// Seeded starts of windows, each with room for the farthest target.
fn window_starts(tokens: usize, reach: usize, options: &LossOptions) -> Result<Vec<usize>> {
    for (option, value) in
        [("windows", options.windows), ("sequence", options.sequence), ("batch", options.batch)]
    {
        if value == 0 {
            return Err(Error::Zero { option });
        }
    }
    let needed = options.sequence.saturating_add(reach);
    let reserved = options.sequence.saturating_add(reach.max(RESERVED));
    let length = if tokens < reserved { needed } else { reserved };
    seeded_starts(tokens, options.windows, length, options.seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: LossOptions = LossOptions { windows: 50, sequence: 32, batch: 4, seed: 7 };

    #[test]
    fn models_with_one_and_eight_heads_see_the_same_windows() {
        let one = window_starts(10_000, 1, &OPTIONS).unwrap();
        assert_eq!(one, window_starts(10_000, 8, &OPTIONS).unwrap());
        let other_seed = LossOptions { seed: 8, ..OPTIONS };
        assert_ne!(one, window_starts(10_000, 1, &other_seed).unwrap());
    }

    #[test]
    fn every_window_fits_into_the_shard() {
        for tokens in [33, 40, 96, 97, 200] {
            let starts = window_starts(tokens, 1, &OPTIONS).unwrap();
            assert!(starts.iter().all(|start| start + 33 <= tokens));
        }
    }

    #[test]
    fn a_shard_shorter_than_a_window_is_refused() {
        assert!(matches!(
            window_starts(39, 8, &OPTIONS),
            Err(Error::TextTooShort { needed: 40, found: 39 })
        ));
    }

    #[test]
    fn no_windows_are_refused_by_name() {
        let none = LossOptions { windows: 0, ..OPTIONS };
        let error = window_starts(1_000, 1, &none).unwrap_err();
        assert!(error.to_string().contains("windows"));
    }
}
