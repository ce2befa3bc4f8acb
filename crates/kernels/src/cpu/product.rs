//! A product panel by panel, and what becomes of its sums.

use super::aligned::View;
use super::dispatch::{Kernel, LevelKernel, PairKernel};
use super::levels::{FORMS, LevelSimd};
use super::pairs::PairSimd;
use super::real::{Real, RealSimd, exp2};
use super::simd::Simd;
use super::tile::{
    MOST_ROWS, NOTHING, Sums, level_tile, open_halves, open_levels, pair_tile, tile, tile_rows,
    with_rows,
};

/// Vectors side by side in a panel.
pub(super) const PANEL: usize = 4;

/// How far ahead of its use a weight is asked for, in values: far enough to hide the way from the
/// outer cache or from memory (measured: half and double of it do about as well).
const AHEAD: usize = 256;

/// The same for words of levels, a line of which takes several times as long.
const LEVELS_AHEAD: usize = 1024;

/// The same where tiles take turns at chunks, in lines of a panel: two chunks.
const LINES_AHEAD: usize = 2 * OPEN;

/// Lines of an open chunk: with the rows' values and their sums they fit in the innermost cache.
const OPEN: usize = 32;

/// Rows that read a panel together.
const GROUP: usize = 16;

const _: () = {
    let mut form = 0;
    while form < FORMS.len() {
        assert!(OPEN.is_multiple_of(FORMS[form].block), "a chunk is whole blocks");
        form += 1;
    }
};

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
    /// Most rows of a tile: those whose sums the registers hold beside what they are made of.
    const ROWS: usize = S::ROWS;
    /// Places of a chunk, which the tiles of several rows read one after the other: [`OPEN`] lines of
    /// weights when it is open.
    const CHUNK: usize = OPEN;
    /// Whether tiles that take turns read weights where they are, in a panel of full width.
    const IN_PLACE: bool = true;
    /// How weights lie in an open chunk.
    type Open: Tiling<S>;

    /// How far ahead a tile asks for weights that it reads from front to back of a panel, in values.
    const AHEAD: usize = AHEAD;

    /// Values of a row that go with so many places.
    fn values(places: usize) -> usize;

    /// Adds the products of `R` rows with `places` lines of a panel of full width, and asks for what
    /// is `ahead` values behind: see [`tile`].
    ///
    /// # Safety
    /// As for [`tile`].
    unsafe fn add<const R: usize>(
        s: S,
        places: usize,
        x: [*const S::T; R],
        w: *const S::T,
        ahead: usize,
        sums: &mut Sums<S, R, PANEL>,
    );

    /// Writes a chunk's lines, each `width` vectors, to `open` as [`Tiling::Open`] reads them: to the
    /// first vectors of lines of full width, whose number is returned.
    ///
    /// # Safety
    /// The lines are readable at `w`, and `open` has room for [`OPEN`].
    #[inline(always)]
    unsafe fn open(s: S, places: usize, w: *const S::T, width: usize, open: *mut S::V) -> usize {
        for i in 0..places {
            for c in 0..width {
                // SAFETY: the caller's promise.
                unsafe { *open.add(i * PANEL + c) = s.load(w.add((i * width + c) * S::LANES)) };
            }
        }
        places
    }
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
    type Open = Self;

    fn values(places: usize) -> usize {
        places
    }

    #[inline(always)]
    unsafe fn add<const R: usize>(
        s: S,
        places: usize,
        x: [*const S::T; R],
        w: *const S::T,
        ahead: usize,
        sums: &mut Sums<S, R, PANEL>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let w = std::array::from_fn(|c| w.add(c * S::LANES));
            tile(s, places, x, w, PANEL * S::LANES, ahead, sums);
        }
    }
}

impl<S: PairSimd> Tiling<S> for Paired {
    type Open = Self;

    fn values(places: usize) -> usize {
        2 * places
    }

    #[inline(always)]
    unsafe fn add<const R: usize>(
        s: S,
        places: usize,
        x: [*const S::T; R],
        w: *const S::T,
        ahead: usize,
        sums: &mut Sums<S, R, PANEL>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let load = |at| s.load_pairs(at);
            pair_tile(s, places, x, w.cast(), ahead, load, sums);
        }
    }
}

impl<S: LevelSimd> Tiling<S> for Halves {
    const CHUNK: usize = OPEN / 2;
    const IN_PLACE: bool = false;
    type Open = Single;

    fn values(places: usize) -> usize {
        2 * places
    }

    #[inline(always)]
    unsafe fn add<const R: usize>(
        s: S,
        places: usize,
        x: [*const S::T; R],
        w: *const S::T,
        ahead: usize,
        sums: &mut Sums<S, R, PANEL>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let load = |at| s.load_halves(at);
            pair_tile(s, places, x, w.cast(), ahead, load, sums);
        }
    }

    #[inline(always)]
    unsafe fn open(s: S, places: usize, w: *const S::T, width: usize, open: *mut S::V) -> usize {
        // SAFETY: the caller's promise.
        unsafe { open_halves(s, places, w.cast(), width, LINES_AHEAD * PANEL * S::LANES, open) };
        <Self as Tiling<S>>::values(places)
    }
}

impl<S: LevelSimd, const FORM: usize> Tiling<S> for Levels<FORM> {
    // Words, steps and leasts take registers too; where there are few, a tile is two vectors wide.
    const ROWS: usize = if S::FEW { S::ROWS + 1 } else { 4 };
    const AHEAD: usize = LEVELS_AHEAD;
    const CHUNK: usize = OPEN / FORMS[FORM].block * FORMS[FORM].words();
    const IN_PLACE: bool = false;
    type Open = Single;

    fn values(places: usize) -> usize {
        places / FORMS[FORM].words() * FORMS[FORM].block
    }

    #[inline(always)]
    unsafe fn add<const R: usize>(
        s: S,
        places: usize,
        x: [*const S::T; R],
        w: *const S::T,
        ahead: usize,
        sums: &mut Sums<S, R, PANEL>,
    ) {
        // SAFETY: the caller's promise.
        unsafe { level_tile::<S, R, FORM>(s, places, x, w.cast(), ahead, sums) }
    }

    #[inline(always)]
    unsafe fn open(s: S, places: usize, w: *const S::T, width: usize, open: *mut S::V) -> usize {
        // SAFETY: the caller's promise.
        unsafe { open_levels::<S, FORM>(s, places, w.cast(), width, LEVELS_AHEAD, open) };
        <Self as Tiling<S>>::values(places)
    }
}

impl<T: Real, F: Finish> Product<T, F> {
    #[inline(always)]
    fn run_tiles<S: Simd<T = T>, L: Tiling<S>>(&self, s: S) {
        const { assert!(L::ROWS <= MOST_ROWS && <L::Open as Tiling<S>>::ROWS <= MOST_ROWS) };
        let mut open = [s.zero(); OPEN * PANEL];
        let mut sums = [[s.zero(); PANEL]; GROUP];
        for panel in self.panels.0..self.panels.1 {
            let mut row = 0;
            while row < self.rows {
                let sums = &mut sums[..tile_rows(self.rows - row, GROUP)];
                // SAFETY: panel < panels and row + rows ≤ rows; whoever made the product promised
                // that the views hold as much.
                unsafe { self.panel::<S, L>(s, panel, row, sums, &mut open) };
                row += sums.len();
            }
        }
    }

    /// The rows from `row` on, one for each of `sums`, times one panel.
    ///
    /// Where they are more than a tile has, tiles take turns at chunks of the panel, so that it
    /// comes from memory once, in one stream, and its levels are unpacked once. A last panel that is
    /// narrower is opened chunk by chunk whatever the rows, to be as wide as the others.
    #[inline(always)]
    unsafe fn panel<S: Simd<T = T>, L: Tiling<S>>(
        &self,
        s: S,
        panel: usize,
        row: usize,
        sums: &mut [[S::V; PANEL]],
        open: &mut [S::V; OPEN * PANEL],
    ) {
        let first = panel * PANEL;
        let width = (self.vectors - first).min(PANEL);
        let at_once = width == PANEL && sums.len() <= L::ROWS;
        let chunk = if at_once { self.depth } else { L::CHUNK };
        sums.fill([s.zero(); PANEL]);
        let mut from = 0;
        while from < self.depth {
            let places = chunk.min(self.depth - from);
            // SAFETY: the panel holds `depth` lines of `width` vectors, and the views the rows; a chunk's
            // weights are at most as many lines as `open` has.
            unsafe {
                let w = self.weights.add((first * self.depth + from * width) * S::LANES);
                let x = |r| self.x.row(row + r).cast_const().add(L::values(from));
                if at_once || L::IN_PLACE && width == PANEL {
                    let ahead = if at_once { L::AHEAD } else { LINES_AHEAD * PANEL * S::LANES };
                    Self::tiles::<S, L>(s, places, x, w, ahead, sums);
                } else {
                    let lines = L::open(s, places, w, width, open.as_mut_ptr());
                    let w = open.as_ptr().cast();
                    Self::tiles::<S, L::Open>(s, lines, x, w, NOTHING, sums);
                }
            }
            from += places;
        }
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let base = self.base.row(row + r).cast_const();
                self.finish.finish(s, &sums[..width], base, self.y.row(row + r), first);
            }
        }
    }

    /// Adds the products of all rows, whose values are at `x(r)`, with `places` places to `sums`.
    #[inline(always)]
    unsafe fn tiles<S: Simd<T = T>, L: Tiling<S>>(
        s: S,
        places: usize,
        x: impl Fn(usize) -> *const T,
        w: *const T,
        ahead: usize,
        sums: &mut [[S::V; PANEL]],
    ) {
        let mut row = 0;
        while row < sums.len() {
            let rows = tile_rows(sums.len() - row, L::ROWS);
            // What follows is asked for once, not by each tile that reads it.
            let ahead = if row == 0 { ahead } else { NOTHING };
            with_rows!(rows, R => {
                if R <= L::ROWS && let Some(sums) = sums[row..].first_chunk_mut::<R>() {
                    let x = std::array::from_fn(|r| x(row + r));
                    let mut registers = *sums;
                    // SAFETY: the caller's promise.
                    unsafe { L::add::<R>(s, places, x, w, ahead, &mut registers) };
                    *sums = registers;
                }
            });
            row += rows;
        }
    }
}

/// What becomes of the sums of a tile.
pub(super) trait Finish {
    /// Writes one row's sums, which belong to the output vectors from `vector` on, to `row`.
    ///
    /// # Safety
    /// `row` and `base` have room for them.
    unsafe fn finish<S: Simd>(
        &self,
        s: S,
        sums: &[S::V],
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
    unsafe fn finish<S: Simd>(
        &self,
        s: S,
        sums: &[S::V],
        _base: *const S::T,
        row: *mut S::T,
        vector: usize,
    ) {
        for (c, &sum) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { s.store(row.add((vector + c) * S::LANES), sum) };
        }
    }
}

impl Finish for Add {
    #[inline(always)]
    unsafe fn finish<S: Simd>(
        &self,
        s: S,
        sums: &[S::V],
        base: *const S::T,
        row: *mut S::T,
        vector: usize,
    ) {
        for (c, &sum) in sums.iter().enumerate() {
            let at = (vector + c) * S::LANES;
            // SAFETY: the caller's promise.
            unsafe { s.store(row.add(at), s.add(s.load(base.add(at)), sum)) };
        }
    }
}

impl Finish for Gate {
    #[inline(always)]
    unsafe fn finish<S: Simd>(
        &self,
        s: S,
        sums: &[S::V],
        _base: *const S::T,
        row: *mut S::T,
        vector: usize,
    ) {
        for (pair, sums) in sums.chunks_exact(2).enumerate() {
            let (gate, up) = (sums[0], sums[1]);
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
