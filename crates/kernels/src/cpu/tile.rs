//! The one inner loop behind every product: a few rows times a few vectors, held in registers.

use super::levels::{FORMS, Form, LevelSimd};
use super::pairs::PairSimd;
use super::product::PANEL;
use super::simd::Simd;

/// The sums of a tile: `R` rows of `C` vectors.
pub(super) type Sums<S, const R: usize, const C: usize> = [[<S as Simd>::V; C]; R];

/// No weight is asked for ahead of its use.
pub(super) const NOTHING: usize = 0;

/// Steps of a tile's loop that are written out, so that what it counts costs little.
const UNROLLED: usize = 4;

/// Whether the vector with index `c` of several side by side is where a line of the cache begins.
#[inline(always)]
fn begins_line<S: Simd>(c: usize) -> bool {
    (c * S::LANES * size_of::<S::T>()).is_multiple_of(64)
}

/// Adds to `sums[r][c]`, for i = 0, 1, …, `depth` − 1 in this order, `x[r][i] · w[c][i · step ..]`.
///
/// A sum is one chain of multiply-adds over i whatever `R` and `C` are: this is why a row's result
/// has the same bits alone and among others. The weight that is `ahead` values behind the one in
/// use is prefetched, or [`NOTHING`].
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
    // SAFETY: the caller's promise.
    unsafe {
        if ahead == NOTHING {
            tile_steps::<S, R, C, false>(s, depth, x, w, step, ahead, sums);
        } else {
            tile_steps::<S, R, C, true>(s, depth, x, w, step, ahead, sums);
        }
    }
}

/// The steps of [`tile`], `FETCH` to prefetch.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn tile_steps<S: Simd, const R: usize, const C: usize, const FETCH: bool>(
    s: S,
    depth: usize,
    x: [*const S::T; R],
    w: [*const S::T; C],
    step: usize,
    ahead: usize,
    sums: &mut Sums<S, R, C>,
) {
    let mut i = 0;
    // SAFETY: every step is below `depth`, so the caller's promise covers it.
    unsafe {
        while i + UNROLLED <= depth {
            for i in i..i + UNROLLED {
                tile_step::<S, R, C, FETCH>(s, i, x, w, step, ahead, sums);
            }
            i += UNROLLED;
        }
        while i < depth {
            tile_step::<S, R, C, FETCH>(s, i, x, w, step, ahead, sums);
            i += 1;
        }
    }
}

/// Step i of [`tile`].
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn tile_step<S: Simd, const R: usize, const C: usize, const FETCH: bool>(
    s: S,
    i: usize,
    x: [*const S::T; R],
    w: [*const S::T; C],
    step: usize,
    ahead: usize,
    sums: &mut Sums<S, R, C>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut v = [s.zero(); C];
        for c in 0..C {
            let at = w[c].add(i * step);
            v[c] = s.load(at);
            if FETCH && begins_line::<S>(c) {
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

/// As [`tile`], with two weights in each place of `w`, read by `load`, `C` places side by side:
/// `depth` counts places one below the other, and `x` has two values for each.
///
/// # Safety
/// As for [`tile`]; `load` may read a vector at each place.
#[inline(always)]
pub(super) unsafe fn pair_tile<S: PairSimd, const R: usize, const C: usize>(
    s: S,
    depth: usize,
    x: [*const S::T; R],
    w: *const u32,
    ahead: usize,
    load: impl Fn(*const u32) -> S::Weights,
    sums: &mut Sums<S, R, C>,
) {
    for i in 0..depth {
        // SAFETY: i < depth, so the caller's promise covers each read.
        unsafe {
            let mut v = [load(w.add(i * C * S::LANES)); C];
            for c in 0..C {
                let at = w.add((i * C + c) * S::LANES);
                v[c] = load(at);
                if begins_line::<S>(c) {
                    s.prefetch(at.wrapping_add(ahead).cast());
                }
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

/// As [`tile`], with weights in blocks of levels of the form with index `FORM`, in lines of
/// [`PANEL`] vectors of words: `depth` counts words one below the other, and `x` has a value for
/// each level.
///
/// Weights come out of their levels with all their bits, so sums do too.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
pub(super) unsafe fn level_tile<S: LevelSimd, const R: usize, const FORM: usize>(
    s: S,
    depth: usize,
    x: [*const S::T; R],
    w: *const u32,
    ahead: usize,
    sums: &mut Sums<S, R, PANEL>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (FORMS[FORM].bits, S::FEW) {
            (4, true) => level_tile_of::<S, R, 2, FORM, 4>(s, depth, x, w, ahead, sums),
            (4, false) => level_tile_of::<S, R, PANEL, FORM, 4>(s, depth, x, w, ahead, sums),
            (_, true) => level_tile_of::<S, R, 2, FORM, 8>(s, depth, x, w, ahead, sums),
            (_, false) => level_tile_of::<S, R, PANEL, FORM, 8>(s, depth, x, w, ahead, sums),
        }
    }
}

/// [`level_tile`] with the form's bits, `C` vectors of a block at a time.
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
    w: *const u32,
    ahead: usize,
    sums: &mut Sums<S, R, PANEL>,
) {
    let (form, line) = (FORMS[FORM], PANEL * S::LANES);
    for block in 0..depth / form.words() {
        for first in (0..PANEL).step_by(C) {
            // SAFETY: blocks lie within `depth` words, so the caller's promise covers each read.
            unsafe {
                let w = w.add(block * form.words() * line + first * S::LANES);
                let (mut steps, mut leasts) = ([s.zero(); C], [s.zero(); C]);
                for c in 0..C {
                    let at = w.add(c * S::LANES);
                    if begins_line::<S>(c) {
                        for word in 0..form.header() {
                            s.prefetch(at.wrapping_add(word * line + ahead).cast());
                        }
                    }
                    [steps[c], leasts[c]] = ends(s, form, at, line);
                }
                for word in form.header()..form.words() {
                    let w = w.add(word * line);
                    let mut words = [s.load_words(w); C];
                    for c in 0..C {
                        let at = w.add(c * S::LANES);
                        words[c] = s.load_words(at);
                        if begins_line::<S>(c) {
                            s.prefetch(at.wrapping_add(ahead).cast());
                        }
                    }
                    let start = block * form.block + (word - form.header()) * (32 / BITS);
                    for i in start..start + 32 / BITS {
                        for c in 0..C {
                            let v = s.weight(steps[c], s.level::<BITS>(words[c]), leasts[c]);
                            words[c] = s.next::<BITS>(words[c]);
                            for r in 0..R {
                                let sum = &mut sums[r][first + c];
                                *sum = s.fma(s.splat(*x[r].add(i)), v, *sum);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Steps and leasts of a vector of blocks, whose first words are at `at`, the next ones `step` words
/// behind.
///
/// # Safety
/// As many vectors as the form's header has are readable there.
#[inline(always)]
unsafe fn ends<S: LevelSimd>(s: S, form: Form, at: *const u32, step: usize) -> [S::V; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        if form.wide {
            [at, at.add(step)].map(|at| s.load(at.cast()))
        } else {
            s.halves(s.load_words(at))
        }
    }
}

/// Writes the weights of `depth` lines of `width` vectors of words, in blocks of levels of the form
/// with index `FORM`, to lines of [`PANEL`] vectors.
///
/// # Safety
/// The words are readable, and `open` has room for the weights.
#[inline(always)]
pub(super) unsafe fn open_levels<S: LevelSimd, const FORM: usize>(
    s: S,
    depth: usize,
    w: *const u32,
    width: usize,
    ahead: usize,
    open: *mut S::V,
) {
    match FORMS[FORM].bits {
        // SAFETY: the caller's promise.
        4 => unsafe { open_levels_of::<S, FORM, 4>(s, depth, w, width, ahead, open) },
        // SAFETY: the caller's promise.
        _ => unsafe { open_levels_of::<S, FORM, 8>(s, depth, w, width, ahead, open) },
    }
}

/// [`open_levels`] with the form's bits.
///
/// # Safety
/// As for [`open_levels`].
#[inline(always)]
unsafe fn open_levels_of<S: LevelSimd, const FORM: usize, const BITS: usize>(
    s: S,
    depth: usize,
    w: *const u32,
    width: usize,
    ahead: usize,
    open: *mut S::V,
) {
    let (form, step) = (FORMS[FORM], width * S::LANES);
    for block in 0..depth / form.words() {
        for c in 0..width {
            // SAFETY: blocks lie within `depth` words, so the caller's promise covers each read, and
            // each write as well.
            unsafe {
                let first = w.add(block * form.words() * step + c * S::LANES);
                if begins_line::<S>(c) {
                    for at in 0..form.words() {
                        s.prefetch(first.wrapping_add(at * step + ahead).cast());
                    }
                }
                let [steps, leasts] = ends(s, form, first, step);
                let mut open = open.add(block * form.block * PANEL + c);
                for at in form.header()..form.words() {
                    let mut words = s.load_words(first.add(at * step));
                    for _ in 0..32 / BITS {
                        *open = s.weight(steps, s.level::<BITS>(words), leasts);
                        words = s.next::<BITS>(words);
                        open = open.wrapping_add(PANEL);
                    }
                }
            }
        }
    }
}

/// As [`open_levels`], of float16 pairs.
///
/// # Safety
/// As for [`open_levels`].
#[inline(always)]
pub(super) unsafe fn open_halves<S: LevelSimd>(
    s: S,
    depth: usize,
    w: *const u32,
    width: usize,
    ahead: usize,
    open: *mut S::V,
) {
    for i in 0..depth {
        for c in 0..width {
            // SAFETY: i < depth, so the caller's promise covers the read and both writes.
            unsafe {
                let at = w.add((i * width + c) * S::LANES);
                if begins_line::<S>(c) {
                    s.prefetch(at.wrapping_add(ahead).cast());
                }
                let [low, high] = s.load_halves(at);
                *open.add(2 * i * PANEL + c) = low;
                *open.add((2 * i + 1) * PANEL + c) = high;
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

/// Most rows of a tile on any unit.
pub(super) const MOST_ROWS: usize = 6;

/// Calls `$body` with the constant `$R` set to the run-time number `$rows`, 1 to [`MOST_ROWS`].
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
            _ => {
                const $R: usize = 6;
                $body
            }
        }
    };
}
pub(super) use with_rows;
