//! Seeded places of a text, spread over all of it.

use crate::{Error, Result};

/// Starts of `count` stretches of `length` tokens in a text of `tokens`, in rising order.
///
/// The text is cut into `count` parts, and a stretch starts at a seeded place of each, so that
/// few stretches still cover all of the text's files. The same arguments give the same starts.
///
/// ```
/// let starts = foretoken_eval::seeded_starts(1000, 4, 100, 7)?;
/// assert_eq!(starts.len(), 4);
/// assert!(starts[0] < 226 && starts[3] >= 675);
/// # Ok::<(), foretoken_eval::Error>(())
/// ```
///
/// # Errors
///
/// When the text is shorter than one stretch.
pub fn seeded_starts(tokens: usize, count: usize, length: usize, seed: u64) -> Result<Vec<usize>> {
    if tokens < length {
        return Err(Error::TextTooShort { needed: length, found: tokens });
    }
    let room = tokens - length + 1;
    let mut state = seed;
    Ok((0..count)
        .map(|part| {
            let (from, to) = (part * room / count, (part + 1) * room / count);
            from + (split_mix(&mut state) % (to - from).max(1) as u64) as usize
        })
        .collect())
}

/// `SplitMix64` (Steele, Lea and Flood 2014): one well-mixed number a call.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_spread_over_the_text_and_leave_room_for_the_stretch() {
        let starts = seeded_starts(10_000, 32, 128, 1).unwrap();
        assert!(starts.is_sorted());
        assert!(starts[0] < 400 && starts[31] > 9_400);
        assert!(starts.iter().all(|start| start + 128 <= 10_000));
    }

    #[test]
    fn a_seed_gives_the_same_starts_and_another_one_others() {
        let starts = |seed| seeded_starts(9_999, 8, 64, seed).unwrap();
        assert_eq!(starts(3), starts(3));
        assert_ne!(starts(3), starts(4));
    }

    #[test]
    fn a_text_as_long_as_one_stretch_has_one_start() {
        assert_eq!(seeded_starts(64, 3, 64, 1).unwrap(), [0, 0, 0]);
        assert!(seeded_starts(63, 3, 64, 1).is_err());
    }
}
