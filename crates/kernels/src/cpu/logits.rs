//! What is read off a row of logits.

use super::dispatch::{Isa, Kernel};
use super::real::Real;
use super::simd::Simd;

/// The index of the largest logit, the lowest of equal ones; 0 where none is a number.
pub fn argmax<T: Real>(logits: &[T]) -> usize {
    argmax_for(Isa::detect(), logits)
}

/// [`argmax`] on a given unit.
pub(super) fn argmax_for<T: Real>(isa: Isa, logits: &[T]) -> usize {
    let peak = T::dispatch(isa, Peak { logits });
    logits.iter().position(|&logit| logit == peak).unwrap_or(0)
}

/// How far the largest logit stands above the second largest; zero for fewer than two.
pub fn top_gap<T: Real>(logits: &[T]) -> T {
    let best = argmax(logits);
    let Some(&top) = logits.get(best) else { return T::ZERO };
    let others = logits[..best].iter().chain(&logits[best + 1..]).copied();
    others.reduce(|a, b| if b > a { b } else { a }).map_or(T::ZERO, |second| top - second)
}

struct Peak<'l, T> {
    logits: &'l [T],
}

impl<T: Real> Kernel<T> for Peak<'_, T> {
    type Output = T;

    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) -> T {
        let mut peak = s.splat(T::NEG_INFINITY);
        let chunks = self.logits.chunks_exact(S::LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            // SAFETY: the chunk has as many values as a vector.
            peak = s.max(unsafe { s.load(chunk.as_ptr()) }, peak);
        }
        let peak = s.peak(peak);
        rest.iter().fold(peak, |a, &b| if b > a { b } else { a })
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_logits_wins_on_every_unit() {
        for isa in Isa::available() {
            let mut logits = vec![0.0f32; 37];
            assert_eq!(argmax_for(isa, &logits), 0);
            logits[36] = 2.0;
            assert_eq!(argmax_for(isa, &logits), 36);
            logits[5] = 2.0;
            assert_eq!(argmax_for(isa, &logits), 5);
            logits[1] = f32::NAN;
            assert_eq!(argmax_for(isa, &logits), 5);
        }
    }

    #[test]
    fn the_gap_is_to_the_second_largest() {
        assert_eq!(top_gap(&[1.0f64, 4.0, 2.5]), 1.5);
        assert_eq!(top_gap(&[4.0f64, 4.0]), 0.0);
        assert_eq!(top_gap(&[4.0f64]), 0.0);
        assert_eq!(top_gap::<f64>(&[]), 0.0);
    }
}
