//! The one inner loop behind every product: a few rows times a few vectors, held in registers.

use super::levels::{FORMS, LevelSimd};
use super::pairs::PairSimd;
use super::product::AHEAD;
use super::simd::Simd;

/// The sums of a tile: `R` rows of `C` vectors.
pub(super) type Sums<S, const R: usize, const C: usize> = [[<S as Simd>::V; C]; R];

/// Adds to `sums[r][c]`, for i = 0, 1, …, `depth` − 1 in this order, `x[r][i] · w[c][i · step ..]`.
///
/// A sum is one chain of multiply-adds over i whatever `R` and `C` are: this is why a row's result
/// has the same bits alone and among others. The weight that is `ahead` values behind the one in
/// use is prefetched; 0 for none.
///
/// # Safety
/// `depth` values are readable at each `x[r]`, and a vector at each `w[c] + i · step`.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const R: usize, const C: usize>(
    s: S,
    depth: usize,
    x: [*const S::T; R],
    w: [*const S::T; C],
    step: usize,
    ahead: usize,
    sums: &mut Sums<S, R, C>,
) {
    for i in 0..depth {
        // SAFETY: i < depth, so the caller's promise covers each read.
        unsafe {
            let mut v = [s.zero(); C];
            for c in 0..C {
                let at = w[c].add(i * step);
                v[c] = s.load(at);
                if ahead > 0 {
                    s.prefetch(at.wrapping_add(ahead));
                }
            }
            for r in 0..R {
                let xi = s.splat(*x[r].add(i));
                for c in 0..C {
                    sums[r][c] = s.fma(xi, v[c], sums[r][c]);
                }
            }
        }
    }
}

/// As [`tile`], with two weights in each place of `w`, read by `load`: `depth` counts places, and `x`
/// has two values for each.
///
/// # Safety
/// As for [`tile`]; `load` may read a vector at each place.
#[inline(always)]
pub(super) unsafe fn pair_tile<S: PairSimd, const R: usize, const C: usize>(
    s: S,
    depth: usize,
    x: [*const S::T; R],
    w: [*const u32; C],
    step: usize,
    load: impl Fn(*const u32) -> S::Weights,
    sums: &mut Sums<S, R, C>,
) {
    for i in 0..depth {
        // SAFETY: i < depth, so the caller's promise covers each read.
        unsafe {
            let mut v = [load(w[0].add(i * step)); C];
            for c in 0..C {
                let at = w[c].add(i * step);
                v[c] = load(at);
                s.prefetch(at.wrapping_add(AHEAD).cast());
            }
            for r in 0..R {
                let xi = s.splat_pair(x[r].add(2 * i));
                for c in 0..C {
                    sums[r][c] = s.add_pairs(sums[r][c], xi, v[c]);
                }
            }
        }
    }
}

/// As [`tile`], with weights in blocks of levels of the form with index `FORM`: `depth` counts their
/// words, and `x` has a value for each level.
///
/// Weights come out of their levels with all their bits, so sums do too.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
pub(super) unsafe fn level_tile<S: LevelSimd, const R: usize, const C: usize, const FORM: usize>(
    s: S,
    depth: usize,
    x: [*const S::T; R],
    w: [*const u32; C],
    step: usize,
    ahead: usize,
    sums: &mut Sums<S, R, C>,
) {
    match FORMS[FORM].bits {
        // SAFETY: the caller's promise.
        4 => unsafe { level_tile_of::<S, R, C, FORM, 4>(s, depth, x, w, step, ahead, sums) },
        // SAFETY: the caller's promise.
        _ => unsafe { level_tile_of::<S, R, C, FORM, 8>(s, depth, x, w, step, ahead, sums) },
    }
}

/// [`level_tile`] with the form's bits.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn level_tile_of<
    S: LevelSimd,
    const R: usize,
    const C: usize,
    const FORM: usize,
    const BITS: usize,
>(
    s: S,
    depth: usize,
    x: [*const S::T; R],
    w: [*const u32; C],
    step: usize,
    ahead: usize,
    sums: &mut Sums<S, R, C>,
) {
    let form = FORMS[FORM];
    let zeros = [s.zero(); C];
    for block in 0..depth / form.words() {
        // SAFETY: blocks lie within `depth` words, so the caller's promise covers each read.
        unsafe {
            let first = block * form.words();
            let word = |at: usize, c: usize| w[c].add((first + at) * step);
            let (mut steps, mut leasts) = (zeros, zeros);
            for c in 0..C {
                for at in 0..form.header() {
                    s.prefetch(word(at, c).wrapping_add(ahead).cast());
                }
                [steps[c], leasts[c]] = if form.wide {
                    [0, 1].map(|at| s.load(word(at, c).cast()))
                } else {
                    s.halves(s.load_words(word(0, c)))
                };
            }
            for at in form.header()..form.words() {
                let mut words = [s.load_words(word(at, 0)); C];
                for c in 0..C {
                    let here = word(at, c);
                    words[c] = s.load_words(here);
                    s.prefetch(here.wrapping_add(ahead).cast());
                }
                let start = block * form.block + (at - form.header()) * (32 / BITS);
                for i in start..start + 32 / BITS {
                    for c in 0..C {
                        let v = s.weight(steps[c], s.level::<BITS>(words[c]), leasts[c]);
                        words[c] = s.next::<BITS>(words[c]);
                        for r in 0..R {
                            sums[r][c] = s.fma(s.splat(*x[r].add(i)), v, sums[r][c]);
                        }
                    }
                }
            }
        }
    }
}

/// How many of `rows` rows the next tile takes, where one takes `most`: all where they fit, else
/// shares as equal as can be.
#[inline(always)]
pub(super) fn tile_rows(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most))
}

/// Calls `$body` with the constant `$R` set to the run-time number `$rows` (1 to 8).
macro_rules! with_rows {
    ($rows:expr, $R:ident => $body:expr) => {
        match $rows {
            1 => {
                const $R: usize = 1;
                $body
            }
            2 => {
                const $R: usize = 2;
                $body
            }
            3 => {
                const $R: usize = 3;
                $body
            }
            4 => {
                const $R: usize = 4;
                $body
            }
            5 => {
                const $R: usize = 5;
                $body
            }
            6 => {
                const $R: usize = 6;
                $body
            }
            7 => {
                const $R: usize = 7;
                $body
            }
            _ => {
                const $R: usize = 8;
                $body
            }
        }
    };
}
pub(super) use with_rows;
