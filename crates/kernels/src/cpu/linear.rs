//! y = x Wᵀ for a few rows, with weights packed once.

use super::aligned::{Aligned, PAD, Rows, View};
use super::dispatch::Isa;
use super::pairs::pack_pair;
use super::product::{Add, Finish, Gate, PANEL, Product, Store};
use super::real::Real;
use super::team::Worker;

/// What packed weights are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// The type that is computed in (the default): exact.
    #[default]
    Full,
    /// bfloat16 beside float32 activations, which some processors round to bfloat16 too: half the
    /// bytes, for results that may be off by a few thousandths. Float64 stays as it is.
    BFloat16,
}

/// A weight `[out, in]` in column panels: four vectors' worth of outputs side by side, `in` times
/// one below the other, so that a product reads it from front to back once.
///
/// A row of a product has the same bits whatever the other rows, the number of rows and the
/// number of threads are.
///
/// ```
/// use foretoken_kernels::cpu::{PackedLinear, Rows, WeightFormat};
///
/// let weight = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]; // [2, 3]
/// let linear = PackedLinear::pack(&weight, 2, 3, WeightFormat::Full);
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
    format: WeightFormat,
    isa: Isa,
}

impl<T: Real> PackedLinear<T> {
    /// Packs `weight`, `[outputs, inputs]` row by row.
    ///
    /// # Panics
    /// Where the slice has another length.
    pub fn pack(weight: &[T], outputs: usize, inputs: usize, format: WeightFormat) -> Self {
        Self::pack_for(Isa::detect(), weight, outputs, inputs, format)
    }

    pub(super) fn pack_for(
        isa: Isa,
        weight: &[T],
        outputs: usize,
        inputs: usize,
        format: WeightFormat,
    ) -> Self {
        assert_eq!(weight.len(), outputs * inputs, "the weight has another size");
        let lanes = isa.checked().lanes::<T>();
        let mut packed = Self::empty(isa, inputs, outputs, outputs.div_ceil(lanes), format);
        for output in 0..outputs {
            packed.set(output / lanes, output % lanes, &weight[output * inputs..][..inputs]);
        }
        packed
    }

    /// Packs `weight`, `[2 · outputs, inputs]` with the gates' rows before the ups', so that a
    /// vector of gates stands beside its vector of ups: see [`PackedLinear::apply_gated`].
    pub(super) fn pack_gated(
        isa: Isa,
        weight: &[T],
        outputs: usize,
        inputs: usize,
        format: WeightFormat,
    ) -> Self {
        assert_eq!(weight.len(), 2 * outputs * inputs, "the weight has another size");
        let lanes = isa.checked().lanes::<T>();
        let mut packed = Self::empty(isa, inputs, outputs, 2 * outputs.div_ceil(lanes), format);
        for output in 0..outputs {
            let (vector, lane) = (output / lanes * 2, output % lanes);
            packed.set(vector, lane, &weight[output * inputs..][..inputs]);
            packed.set(vector + 1, lane, &weight[(outputs + output) * inputs..][..inputs]);
        }
        packed
    }

    fn empty(
        isa: Isa,
        inputs: usize,
        outputs: usize,
        vectors: usize,
        format: WeightFormat,
    ) -> Self {
        let format = if T::HAS_PAIRS { format } else { WeightFormat::Full };
        let mut packed = Self { panels: Aligned::zeroed(0), inputs, outputs, vectors, format, isa };
        packed.panels = Aligned::in_large_pages(vectors * isa.lanes::<T>() * packed.depth());
        packed
    }

    /// Places one below the other in a panel.
    fn depth(&self) -> usize {
        match self.format {
            WeightFormat::Full => self.inputs,
            WeightFormat::BFloat16 => self.inputs.div_ceil(2),
        }
    }

    /// Where the weights of a lane start, and how far one is from the next.
    fn place(&self, vector: usize, lane: usize) -> (usize, usize) {
        let lanes = self.isa.lanes::<T>();
        let first = vector / PANEL * PANEL;
        let width = (self.vectors - first).min(PANEL) * lanes;
        (first * lanes * self.depth() + (vector - first) * lanes + lane, width)
    }

    /// Puts the weights of one output into their lane.
    fn set(&mut self, vector: usize, lane: usize, weights: &[T]) {
        let (start, width) = self.place(vector, lane);
        let places = self.panels[start..].iter_mut().step_by(width);
        match self.format {
            WeightFormat::Full => places.zip(weights).for_each(|(place, &w)| *place = w),
            WeightFormat::BFloat16 => {
                for (place, pair) in places.zip(weights.chunks(2)) {
                    let high = pair.get(1).map_or(0.0, |w| w.to_f64());
                    *place = T::from_bits32(pack_pair(pair[0].to_f64(), high));
                }
            }
        }
    }

    /// Values that a row goes in with.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Values that a row comes out with.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Writes the weights of one output to `into`: a row of an embedding that is the unembedding
    /// too. For weights in [`WeightFormat::Full`].
    ///
    /// # Panics
    /// Where there is no such output, `into` has another length than [`PackedLinear::inputs`], or
    /// the weights are in another format.
    pub fn copy_weights(&self, output: usize, into: &mut [T]) {
        assert!(output < self.outputs, "output {output} of {}", self.outputs);
        assert_eq!(into.len(), self.inputs, "room for another number of weights");
        assert_eq!(self.format, WeightFormat::Full, "rounded weights");
        let lanes = self.isa.lanes::<T>();
        let (start, width) = self.place(output / lanes, output % lanes);
        into.iter_mut()
            .zip(self.panels[start..].iter().step_by(width))
            .for_each(|(to, &w)| *to = w);
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
        self.product(worker, Store, (x, y, y), rows);
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
        self.product(worker, Add, (x, base, y), rows);
    }

    /// This worker's share of the columns of y = silu(x Gᵀ) · x Uᵀ, for a weight that was packed
    /// gated.
    ///
    /// # Safety
    /// As for [`PackedLinear::apply_part`].
    pub(super) unsafe fn apply_gated(&self, worker: &Worker, x: View<T>, y: View<T>, rows: usize) {
        self.product(worker, Gate, (x, y, y), rows);
    }

    fn product<F: Finish>(
        &self,
        worker: &Worker<'_>,
        finish: F,
        (x, base, y): (View<T>, View<T>, View<T>),
        rows: usize,
    ) {
        let panels = worker.share(self.vectors.div_ceil(PANEL));
        let product = Product {
            weights: self.panels.as_ptr(),
            depth: self.depth(),
            vectors: self.vectors,
            panels: (panels.start, panels.end),
            x,
            base,
            y,
            rows,
            finish,
        };
        match self.format {
            WeightFormat::Full => T::dispatch(self.isa, product),
            WeightFormat::BFloat16 => T::dispatch_pairs(self.isa, product),
        }
    }
}

const _: () = assert!(PAD.is_multiple_of(16), "an output row has room for the last whole vector");
