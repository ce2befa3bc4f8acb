//! Rotary positions: the two halves of a head are turned against each other.

use super::aligned::{Aligned, View};
use super::cache::Places;
use super::dispatch::{Isa, Kernel};
use super::real::Real;
use super::simd::Simd;

/// cos(p ωᵢ) and sin(p ωᵢ) for every position p and pair i of a head's two halves, computed in
/// float64 and rounded once, when the first text comes so far.
pub(super) struct RotaryTable<T> {
    frequencies: Vec<f64>,
    /// `[positions, 2, head_dim / 2]`: cosines, then sines.
    angles: Aligned<T>,
    /// Positions that are computed; behind them are zeros, for which no memory is taken yet.
    reached: usize,
    positions: usize,
}

impl<T: Real> RotaryTable<T> {
    /// A table for up to `positions` positions and heads of twice as many dimensions as there are
    /// frequencies ωᵢ.
    pub(super) fn new(frequencies: &[f64], positions: usize) -> Self {
        let angles = Aligned::zeroed(positions * 2 * frequencies.len());
        Self { frequencies: frequencies.to_vec(), angles, reached: 0, positions }
    }

    /// How many positions the table can have.
    pub(super) fn positions(&self) -> usize {
        self.positions
    }

    /// Computes the angles of the first `positions` positions, as far as they are not.
    pub(super) fn reach(&mut self, positions: usize) {
        let (half, from) = (self.frequencies.len(), self.reached);
        let lines = self.angles.chunks_exact_mut((2 * half).max(1)).enumerate();
        for (p, line) in lines.take(positions).skip(from) {
            let (cosines, sines) = line.split_at_mut(half);
            for ((cos, sin), frequency) in cosines.iter_mut().zip(sines).zip(&self.frequencies) {
                let angle = p as f64 * frequency;
                (*cos, *sin) = (T::from_f64(angle.cos()), T::from_f64(angle.sin()));
            }
        }
        self.reached = from.max(positions.min(self.positions));
    }

    /// Turns heads `first..last` of each row in place, by the angles of its position, and multiplies
    /// them by `factor`.
    ///
    /// # Safety
    /// `x` has rows of `last` heads for all places, the table reaches their positions, and nobody else
    /// touches those heads meanwhile.
    pub(super) unsafe fn turn(&self, isa: Isa, turn: Turn<'_, T>) {
        T::dispatch(isa, Turning { table: self, turn });
    }
}

/// What [`RotaryTable::turn`] turns.
pub(super) struct Turn<'p, T> {
    pub(super) x: View<T>,
    pub(super) places: Places<'p>,
    pub(super) heads: (usize, usize),
    pub(super) factor: T,
}

struct Turning<'t, T> {
    table: &'t RotaryTable<T>,
    turn: Turn<'t, T>,
}

impl<T: Real> Kernel<T> for Turning<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T = T>>(self, _s: S) {
        let Turn { x, places, heads, factor } = self.turn;
        let half = self.table.frequencies.len();
        let angles = &self.table.angles[..self.table.reached * 2 * half];
        for r in 0..places.count() {
            let line = &angles[places.position(r) * 2 * half..][..2 * half];
            let (cosines, sines) = line.split_at(half);
            for head in heads.0..heads.1 {
                // SAFETY: the caller's promise: row r has this head.
                let (first, second) = unsafe {
                    let at = x.row(r).add(head * 2 * half);
                    (
                        std::slice::from_raw_parts_mut(at, half),
                        std::slice::from_raw_parts_mut(at.add(half), half),
                    )
                };
                for i in 0..half {
                    let (a, b) = (first[i], second[i]);
                    first[i] = (a * cosines[i] - b * sines[i]) * factor;
                    second[i] = (b * cosines[i] + a * sines[i]) * factor;
                }
            }
        }
    }
}
