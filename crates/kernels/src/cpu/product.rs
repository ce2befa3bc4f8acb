//! A product panel by panel, and what becomes of its sums.

use super::aligned::View;
use super::dispatch::{Kernel, LevelKernel, PairKernel};
use super::levels::LevelSimd;
use super::pairs::PairSimd;
use super::real::{Real, RealSimd, exp2};
use super::simd::Simd;
use super::tile::{Sums, level_tile, pair_tile, tile, tile_rows, with_rows};

/// Vectors side by side in a panel.
pub(super) const PANEL: usize = 4;

/// How far ahead of its use a weight is asked for, in values: far enough to hide the way from the
/// outer cache or from memory (measured: half and double of it do about as well).
pub(super) const AHEAD: usize = 256;

/// The same for words of levels, a line of which takes several times as long.
const LEVELS_AHEAD: usize = 1024;

/// The arguments of a product, for the unit that it is dispatched to.
pub(super) struct Product<T, F> {
    /// Panels of weights, of pairs of them or of words of levels: a place is as wide in each.
    pub(super) weights: *const T,
    /// Places one below the other.
    pub(super) depth: usize,
    /// Output vectors in all.
    pub(super) vectors: usize,
    /// The first panel to compute and the one behind the last.
    pub(super) panels: (usize, usize),
    pub(super) x: View<T>,
    pub(super) base: View<T>,
    pub(super) y: View<T>,
    pub(super) rows: usize,
    pub(super) finish: F,
}

impl<T: Real, F: Finish> Kernel<T> for Product<T, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        self.run_tiles::<S, Single>(s);
    }
}

impl<T: Real, F: Finish> PairKernel<T> for Product<T, F> {
    #[inline(always)]
    fn run_pairs<S: PairSimd<T = T>>(self, s: S) {
        self.run_tiles::<S, Paired>(s);
    }
}

/// A product whose weights are pairs of float16.
pub(super) struct OfHalves<P>(pub(super) P);

impl<T: Real, F: Finish> LevelKernel<T> for OfHalves<Product<T, F>> {
    #[inline(always)]
    fn run_levels<S: LevelSimd<T = T>>(self, s: S) {
        self.0.run_tiles::<S, Halves>(s);
    }
}

/// A product whose weights are levels of the form with this index.
pub(super) struct OfLevels<P, const FORM: usize>(pub(super) P);

impl<T: Real, F: Finish, const FORM: usize> LevelKernel<T> for OfLevels<Product<T, F>, FORM> {
    #[inline(always)]
    fn run_levels<S: LevelSimd<T = T>>(self, s: S) {
        self.0.run_tiles::<S, Levels<FORM>>(s);
    }
}

/// How weights lie in their places.
trait Tiling<S: Simd> {
    /// Most rows of a tile of four vectors.
    const WIDE_ROWS: usize = S::WIDE_ROWS;
    /// Most rows of a tile. Half a panel's vectors at a time are slower to read than all of them, so
    /// that tiles of four vectors are best where these are of more than a few rows.
    const MOST_ROWS: usize = if S::WIDE_ROWS < 4 { S::NARROW_ROWS } else { S::WIDE_ROWS };

    /// Adds a tile's products: see [`tile`].
    ///
    /// # Safety
    /// As for [`tile`].
    unsafe fn add<const R: usize, const C: usize>(
        s: S,
        depth: usize,
        x: [*const S::T; R],
        w: [*const S::T; C],
        step: usize,
        sums: &mut Sums<S, R, C>,
    );
}

/// One weight in a place.
struct Single;
/// Two bfloat16 weights in a place.
struct Paired;
/// Two float16 weights in a place.
struct Halves;
/// A word of a block of levels in a place.
struct Levels<const FORM: usize>;

impl<S: Simd> Tiling<S> for Single {
    #[inline(always)]
    unsafe fn add<const R: usize, const C: usize>(
        s: S,
        depth: usize,
        x: [*const S::T; R],
        w: [*const S::T; C],
        step: usize,
        sums: &mut Sums<S, R, C>,
    ) {
        // SAFETY: the caller's promise.
        unsafe { tile(s, depth, x, w, step, AHEAD, sums) }
    }
}

impl<S: PairSimd> Tiling<S> for Paired {
    #[inline(always)]
    unsafe fn add<const R: usize, const C: usize>(
        s: S,
        depth: usize,
        x: [*const S::T; R],
        w: [*const S::T; C],
        step: usize,
        sums: &mut Sums<S, R, C>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let load = |at| s.load_pairs(at);
            pair_tile(s, depth, x, w.map(<*const S::T>::cast), step, load, sums);
        }
    }
}

impl<S: LevelSimd> Tiling<S> for Halves {
    #[inline(always)]
    unsafe fn add<const R: usize, const C: usize>(
        s: S,
        depth: usize,
        x: [*const S::T; R],
        w: [*const S::T; C],
        step: usize,
        sums: &mut Sums<S, R, C>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let load = |at| s.load_halves(at);
            pair_tile(s, depth, x, w.map(<*const S::T>::cast), step, load, sums);
        }
    }
}

impl<S: LevelSimd, const FORM: usize> Tiling<S> for Levels<FORM> {
    // Words, steps and leasts take registers too.
    const WIDE_ROWS: usize = if S::WIDE_ROWS < 4 { S::WIDE_ROWS } else { 4 };
    // Each tile computes the weights from their levels, so the fewer the better.
    const MOST_ROWS: usize = S::NARROW_ROWS;

    #[inline(always)]
    unsafe fn add<const R: usize, const C: usize>(
        s: S,
        depth: usize,
        x: [*const S::T; R],
        w: [*const S::T; C],
        step: usize,
        sums: &mut Sums<S, R, C>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let words = w.map(<*const S::T>::cast);
            level_tile::<S, R, C, FORM>(s, depth, x, words, step, LEVELS_AHEAD, sums);
        }
    }
}

impl<T: Real, F: Finish> Product<T, F> {
    #[inline(always)]
    fn run_tiles<S: Simd<T = T>, L: Tiling<S>>(&self, s: S) {
        for panel in self.panels.0..self.panels.1 {
            let mut row = 0;
            while row < self.rows {
                let rows = tile_rows(self.rows - row, L::MOST_ROWS);
                // SAFETY: panel < panels and row + rows ≤ rows; whoever made the product promised
                // that the views hold as much.
                unsafe { with_rows!(rows, R => self.panel::<S, L, R>(s, panel, row)) };
                row += rows;
            }
        }
    }

    /// `R` rows from `row` on times one panel.
    #[inline(always)]
    unsafe fn panel<S: Simd<T = T>, L: Tiling<S>, const R: usize>(
        &self,
        s: S,
        panel: usize,
        row: usize,
    ) {
        if R > L::MOST_ROWS {
            return; // `tile_rows` never asks for as many: no code for it
        }
        let first = panel * PANEL;
        let vectors = (self.vectors - first).min(PANEL);
        // SAFETY: the caller's promise; tiles cover the panel's vectors once.
        unsafe {
            if R <= L::WIDE_ROWS && vectors == PANEL {
                return self.tile::<S, L, R, PANEL>(s, first, 0, PANEL, row);
            }
            let mut vector = 0;
            while vector + 2 <= vectors {
                self.tile::<S, L, R, 2>(s, first, vector, vectors, row);
                vector += 2;
            }
            if vector < vectors {
                self.tile::<S, L, R, 1>(s, first, vector, vectors, row);
            }
        }
    }

    /// `R` rows times `C` vectors of the panel that starts at vector `first` and is `width`
    /// vectors wide.
    #[inline(always)]
    unsafe fn tile<S: Simd<T = T>, L: Tiling<S>, const R: usize, const C: usize>(
        &self,
        s: S,
        first: usize,
        vector: usize,
        width: usize,
        row: usize,
    ) {
        let mut sums: Sums<S, R, C> = [[s.zero(); C]; R];
        // SAFETY: the panel holds `depth` lines of `width` vectors, and the views the rows.
        unsafe {
            let start = self.weights.add((first * self.depth + vector) * S::LANES);
            let w = std::array::from_fn(|c| start.add(c * S::LANES));
            let x = std::array::from_fn(|r| self.x.row(row + r).cast_const());
            L::add(s, self.depth, x, w, width * S::LANES, &mut sums);
            for (r, sums) in sums.into_iter().enumerate() {
                let base = self.base.row(row + r).cast_const();
                self.finish.finish(s, sums, base, self.y.row(row + r), first + vector);
            }
        }
    }
}

/// What becomes of the sums of a tile.
pub(super) trait Finish {
    /// Writes one row's sums, which belong to the output vectors from `vector` on, to `row`.
    ///
    /// # Safety
    /// `row` and `base` have room for them.
    unsafe fn finish<S: Simd, const C: usize>(
        &self,
        s: S,
        sums: [S::V; C],
        base: *const S::T,
        row: *mut S::T,
        vector: usize,
    );
}

/// The sums themselves.
pub(super) struct Store;
/// The sums on top of what `base` has.
pub(super) struct Add;
/// silu(gate) · up, of pairs of vectors.
pub(super) struct Gate;

impl Finish for Store {
    #[inline(always)]
    unsafe fn finish<S: Simd, const C: usize>(
        &self,
        s: S,
        sums: [S::V; C],
        _base: *const S::T,
        row: *mut S::T,
        vector: usize,
    ) {
        for (c, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { s.store(row.add((vector + c) * S::LANES), sum) };
        }
    }
}

impl Finish for Add {
    #[inline(always)]
    unsafe fn finish<S: Simd, const C: usize>(
        &self,
        s: S,
        sums: [S::V; C],
        base: *const S::T,
        row: *mut S::T,
        vector: usize,
    ) {
        for (c, sum) in sums.into_iter().enumerate() {
            let at = (vector + c) * S::LANES;
            // SAFETY: the caller's promise.
            unsafe { s.store(row.add(at), s.add(s.load(base.add(at)), sum)) };
        }
    }
}

impl Finish for Gate {
    #[inline(always)]
    unsafe fn finish<S: Simd, const C: usize>(
        &self,
        s: S,
        sums: [S::V; C],
        _base: *const S::T,
        row: *mut S::T,
        vector: usize,
    ) {
        for pair in 0..C / 2 {
            let (gate, up) = (sums[2 * pair], sums[2 * pair + 1]);
            // SAFETY: the caller's promise; vectors 2p and 2p + 1 make output vector p.
            unsafe { s.store(row.add((vector / 2 + pair) * S::LANES), s.mul(silu(s, gate), up)) };
        }
    }
}

/// x / (1 + e^(−x)).
#[inline(always)]
fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    let power = s.mul(x, s.splat(S::T::from_f64(-std::f64::consts::LOG2_E)));
    let power = s.sub(s.zero(), s.max(s.splat(S::T::EXP2_FLOOR), s.sub(s.zero(), power)));
    s.div(x, s.add(s.splat(S::T::ONE), exp2(s, power)))
}
