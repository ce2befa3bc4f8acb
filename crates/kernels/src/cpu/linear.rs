//! y = x Wᵀ for a few rows, with weights packed once.

use super::aligned::{Aligned, PAD, Rows, View};
use super::dispatch::{Isa, Kernel};
use super::real::{Real, RealSimd, exp2};
use super::simd::Simd;
use super::team::Worker;
use super::tile::{Sums, tile, tile_rows, with_rows};

/// Vectors side by side in a panel.
const PANEL: usize = 4;

/// A weight `[out, in]` in column panels: four vectors' worth of outputs side by side, `in` times
/// one below the other, so that a product reads it from front to back once.
///
/// A row of a product has the same bits whatever the other rows, the number of rows and the
/// number of threads are.
///
/// ```
/// use foretoken_kernels::cpu::{PackedLinear, Rows};
///
/// let weight = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]; // [2, 3]
/// let linear = PackedLinear::pack(&weight, 2, 3);
/// let (mut x, mut y) = (Rows::new(1, 3), Rows::new(1, 2));
/// x.row_mut(0).copy_from_slice(&[1.0, 0.0, -1.0]);
/// linear.apply(&mut x, &mut y, 1, false);
/// assert_eq!(y.row(0), [-2.0, -2.0]);
/// ```
pub struct PackedLinear<T> {
    panels: Aligned<T>,
    inputs: usize,
    outputs: usize,
    /// Output vectors: for a gated layer, of gates and ups together.
    vectors: usize,
    isa: Isa,
}

impl<T: Real> PackedLinear<T> {
    /// Packs `weight`, `[outputs, inputs]` row by row.
    ///
    /// # Panics
    /// Where the slice has another length.
    pub fn pack(weight: &[T], outputs: usize, inputs: usize) -> Self {
        Self::pack_for(Isa::detect(), weight, outputs, inputs)
    }

    pub(super) fn pack_for(isa: Isa, weight: &[T], outputs: usize, inputs: usize) -> Self {
        assert_eq!(weight.len(), outputs * inputs, "the weight has another size");
        let lanes = isa.checked().lanes::<T>();
        Self::from_vectors(isa, inputs, outputs, outputs.div_ceil(lanes), |vector, lane| {
            let output = vector * lanes + lane;
            (output < outputs).then(|| &weight[output * inputs..][..inputs])
        })
    }

    /// Packs `weight`, `[2 · outputs, inputs]` with the gates' rows before the ups', so that a
    /// vector of gates stands beside its vector of ups: see [`PackedLinear::apply_gated`].
    pub(super) fn pack_gated(isa: Isa, weight: &[T], outputs: usize, inputs: usize) -> Self {
        assert_eq!(weight.len(), 2 * outputs * inputs, "the weight has another size");
        let lanes = isa.checked().lanes::<T>();
        Self::from_vectors(isa, inputs, outputs, 2 * outputs.div_ceil(lanes), |vector, lane| {
            let output = vector / 2 * lanes + lane;
            let row = output + vector % 2 * outputs;
            (output < outputs).then(|| &weight[row * inputs..][..inputs])
        })
    }

    fn from_vectors<'w>(
        isa: Isa,
        inputs: usize,
        outputs: usize,
        vectors: usize,
        row: impl Fn(usize, usize) -> Option<&'w [T]>,
    ) -> Self {
        let lanes = isa.lanes::<T>();
        let mut panels = Aligned::zeroed(vectors * lanes * inputs);
        for vector in 0..vectors {
            let first = vector / PANEL * PANEL;
            let width = (vectors - first).min(PANEL) * lanes;
            let start = first * lanes * inputs + (vector - first) * lanes;
            for lane in 0..lanes {
                for (i, &w) in row(vector, lane).unwrap_or(&[]).iter().enumerate() {
                    panels[start + i * width + lane] = w;
                }
            }
        }
        Self { panels, inputs, outputs, vectors, isa }
    }

    /// Values that a row goes in with.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Values that a row comes out with.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.panels)
    }

    /// The first `rows` rows: y = x Wᵀ, or y += x Wᵀ to `accumulate`.
    ///
    /// # Panics
    /// Where the rows have other widths or there are too few.
    pub fn apply(&self, x: &mut Rows<T>, y: &mut Rows<T>, rows: usize, accumulate: bool) {
        assert_eq!((x.width(), y.width()), (self.inputs, self.outputs), "rows of another width");
        assert!(rows <= x.rows().min(y.rows()), "fewer than {rows} rows");
        // SAFETY: the assertions above, and this thread alone has both buffers.
        unsafe {
            if accumulate {
                self.add_part(&Worker::ALONE, x.view(), y.view(), y.view(), rows);
            } else {
                self.apply_part(&Worker::ALONE, x.view(), y.view(), rows);
            }
        }
    }

    /// This worker's share of the columns of y = x Wᵀ.
    ///
    /// # Safety
    /// `x` and `y` have `rows` rows of `inputs` and `outputs` values, padded; nobody writes to `x`
    /// and nobody else touches this worker's columns of `y` before the team's next barrier.
    pub(super) unsafe fn apply_part(
        &self,
        worker: &Worker<'_>,
        x: View<T>,
        y: View<T>,
        rows: usize,
    ) {
        self.product::<Store>(worker, x, y, y, rows);
    }

    /// This worker's share of the columns of y = base + x Wᵀ; `base` may be `y`.
    ///
    /// # Safety
    /// As for [`PackedLinear::apply_part`]; `base` is like `y` and written to by nobody else.
    pub(super) unsafe fn add_part(
        &self,
        worker: &Worker,
        x: View<T>,
        base: View<T>,
        y: View<T>,
        rows: usize,
    ) {
        self.product::<Add>(worker, x, base, y, rows);
    }

    /// This worker's share of the columns of y = silu(x Gᵀ) · x Uᵀ, for a weight that was packed
    /// gated.
    ///
    /// # Safety
    /// As for [`PackedLinear::apply_part`].
    pub(super) unsafe fn apply_gated(&self, worker: &Worker, x: View<T>, y: View<T>, rows: usize) {
        self.product::<Gate>(worker, x, y, y, rows);
    }

    fn product<F: Finish>(
        &self,
        worker: &Worker,
        x: View<T>,
        base: View<T>,
        y: View<T>,
        rows: usize,
    ) {
        let panels = worker.share(self.vectors.div_ceil(PANEL));
        let product = Product {
            weights: self.panels.as_ptr(),
            depth: self.inputs,
            vectors: self.vectors,
            panels: (panels.start, panels.end),
            x,
            base,
            y,
            rows,
            finish: std::marker::PhantomData::<F>,
        };
        T::dispatch(self.isa, product);
    }
}

/// What becomes of the sums of a tile.
trait Finish {
    /// Writes one row's sums, which belong to the output vectors from `vector` on, to `row`.
    ///
    /// # Safety
    /// `row` and `base` have room for them.
    unsafe fn finish<S: Simd, const C: usize>(
        s: S,
        sums: [S::V; C],
        base: *const S::T,
        row: *mut S::T,
        vector: usize,
    );
}

/// The sums themselves.
struct Store;
/// The sums on top of what `base` has.
struct Add;
/// silu(gate) · up, of pairs of vectors.
struct Gate;

impl Finish for Store {
    #[inline(always)]
    unsafe fn finish<S: Simd, const C: usize>(
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

/// The arguments of a product, for the unit that it is dispatched to.
struct Product<T, F> {
    weights: *const T,
    depth: usize,
    vectors: usize,
    panels: (usize, usize),
    x: View<T>,
    base: View<T>,
    y: View<T>,
    rows: usize,
    finish: std::marker::PhantomData<F>,
}

impl<T: Real, F: Finish> Kernel<T> for Product<T, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        for panel in self.panels.0..self.panels.1 {
            let mut row = 0;
            while row < self.rows {
                let rows = tile_rows::<S>(self.rows - row);
                // SAFETY: panel < panels and row + rows ≤ rows; `apply_part` has the callers'
                // promise that the views hold as much.
                unsafe { with_rows!(rows, R => self.panel::<S, R>(s, panel, row)) };
                row += rows;
            }
        }
    }
}

impl<T: Real, F: Finish> Product<T, F> {
    /// `R` rows from `row` on times one panel.
    #[inline(always)]
    unsafe fn panel<S: Simd<T = T>, const R: usize>(&self, s: S, panel: usize, row: usize) {
        if R > S::WIDE_ROWS.max(S::NARROW_ROWS) {
            return; // `tile_rows` never asks for as many: no code for it
        }
        let first = panel * PANEL;
        let vectors = (self.vectors - first).min(PANEL);
        // SAFETY: the caller's promise; tiles cover the panel's vectors once.
        unsafe {
            if R <= S::WIDE_ROWS && vectors == PANEL {
                return self.tile::<S, R, PANEL>(s, first, 0, PANEL, row);
            }
            let mut vector = 0;
            while vector + 2 <= vectors {
                self.tile::<S, R, 2>(s, first, vector, vectors, row);
                vector += 2;
            }
            if vector < vectors {
                self.tile::<S, R, 1>(s, first, vector, vectors, row);
            }
        }
    }

    /// `R` rows times `C` vectors of the panel that starts at vector `first` and is `width`
    /// vectors wide.
    #[inline(always)]
    unsafe fn tile<S: Simd<T = T>, const R: usize, const C: usize>(
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
            tile(s, self.depth, x, w, width * S::LANES, AHEAD, &mut sums);
            for (r, sums) in sums.into_iter().enumerate() {
                let base = self.base.row(row + r).cast_const();
                F::finish(s, sums, base, self.y.row(row + r), first + vector);
            }
        }
    }
}

/// How far ahead of its use a weight is asked for, in values.
const AHEAD: usize = 96;

const _: () = assert!(PAD.is_multiple_of(16), "an output row has room for the last whole vector");
