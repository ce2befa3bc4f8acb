//! y = x Wᵀ for a few rows, with weights packed once.

use super::aligned::{Aligned, PAD, Rows, View};
use super::dispatch::{Isa, Widened};
use super::levels::{self, FORMS, half_pair};
use super::pairs::{pack_pair, widened};
use super::product::{Add, Finish, Gate, OfHalves, OfLevels, PANEL, Product, Store};
use super::real::Real;
use super::team::Worker;
use crate::native::for_each;

/// What packed weights are kept in. Float64 weights are kept as they are in any of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// The type that is computed in (the default).
    #[default]
    Full,
    /// The fewest bytes that have the same bits (but for the sign of a zero, which no sum sees): those
    /// of float32 weights that are blocks of levels, bfloat16 or float16 numbers, as the weights of
    /// published models are.
    Compact,
    /// bfloat16 beside float32 activations, which some processors round to bfloat16 too: half the
    /// bytes, for results that may be off by a few thousandths. Levels where these are fewer bytes.
    BFloat16,
}

/// What stands in the places of packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// A weight.
    Single,
    /// Two, rounded to bfloat16.
    Rounded,
    /// Two that are bfloat16 numbers.
    Pairs,
    /// Two that are float16 numbers.
    Halves,
    /// A word of a block of levels, of the form with this index.
    Levels(usize),
}

impl Kept {
    /// Places one below the other for `inputs` weights.
    fn depth(self, inputs: usize) -> usize {
        match self {
            Self::Single => inputs,
            Self::Rounded | Self::Pairs | Self::Halves => inputs.div_ceil(2),
            Self::Levels(form) => inputs / FORMS[form].block * FORMS[form].words(),
        }
    }
}

/// What `weight`, with rows of `inputs`, is kept as in `format`, and the words of its levels, row by
/// row, where it is kept in these.
fn smallest<T: Real>(
    isa: Isa,
    weight: &[T],
    inputs: usize,
    format: WeightFormat,
) -> (Kept, Vec<u32>) {
    if format == WeightFormat::Full || !T::HAS_COMPACT {
        return (Kept::Single, Vec::new());
    }
    let mut forms = FORMS.iter().enumerate();
    let found =
        forms.find_map(|(form, layout)| Some((form, layout.find_all(isa, weight, inputs)?)));
    if let Some((form, words)) = found {
        return (Kept::Levels(form), words);
    }
    let all = |test: fn(f32) -> bool| weight.iter().all(|w| test(w.to_f64() as f32));
    let kept = if format == WeightFormat::BFloat16 {
        Kept::Rounded
    } else if all(|w| w.to_bits().trailing_zeros() >= 16) {
        Kept::Pairs
    } else if all(levels::is_half) {
        Kept::Halves
    } else {
        Kept::Single
    };
    (kept, Vec::new())
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
    kept: Kept,
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
        let packed = Self::empty(isa, inputs, outputs, outputs.div_ceil(lanes));
        packed.filled(weight, format, |vector, lane| {
            let output = vector * lanes + lane;
            (output < outputs).then_some(output)
        })
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
        let packed = Self::empty(isa, inputs, outputs, 2 * outputs.div_ceil(lanes));
        packed.filled(weight, format, |vector, lane| {
            let output = vector / 2 * lanes + lane;
            (output < outputs).then_some(vector % 2 * outputs + output)
        })
    }

    fn empty(isa: Isa, inputs: usize, outputs: usize, vectors: usize) -> Self {
        let kept = Kept::Single;
        Self { panels: Aligned::zeroed(0), inputs, outputs, vectors, kept, isa }
    }

    /// Puts into each lane the weights of the row that `row_of` gives for it, in `format`.
    fn filled(
        mut self,
        weight: &[T],
        format: WeightFormat,
        row_of: impl Fn(usize, usize) -> Option<usize> + Sync,
    ) -> Self {
        let (kept, words) = smallest(self.isa, weight, self.inputs, format);
        self.kept = kept;
        let (depth, lanes, inputs) = (kept.depth(self.inputs), self.isa.lanes::<T>(), self.inputs);
        self.panels = Aligned::in_large_pages(self.vectors * lanes * depth);
        let panels = self.panels.chunks_mut((PANEL * lanes * depth).max(1));
        for_each(panels.enumerate(), |(index, panel)| {
            let width = panel.len() / depth;
            for at in 0..width {
                let Some(row) = row_of(index * PANEL + at / lanes, at % lanes) else { continue };
                let weights = &weight[row * inputs..][..inputs];
                let places = panel[at..].iter_mut().step_by(width);
                match kept {
                    Kept::Single => put(places, weights.iter().copied()),
                    Kept::Levels(_) => {
                        let words = words[row * depth..][..depth].iter();
                        put(places, words.map(|&word| T::from_bits32(word)));
                    }
                    Kept::Rounded | Kept::Pairs | Kept::Halves => {
                        let pair = if kept == Kept::Halves { half_pair } else { pack_pair };
                        let pairs = weights.chunks(2).map(|weights| {
                            let high = weights.get(1).map_or(0.0, |w| w.to_f64());
                            T::from_bits32(pair(weights[0].to_f64(), high))
                        });
                        put(places, pairs);
                    }
                }
            }
        });
        self
    }

    /// Where the weights of a lane start, and how far one is from the next.
    fn place(&self, vector: usize, lane: usize) -> (usize, usize) {
        let lanes = self.isa.lanes::<T>();
        let first = vector / PANEL * PANEL;
        let width = (self.vectors - first).min(PANEL) * lanes;
        (first * lanes * self.kept.depth(self.inputs) + (vector - first) * lanes + lane, width)
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
    /// too. For weights that kept their bits.
    ///
    /// # Panics
    /// Where there is no such output, `into` has another length than [`PackedLinear::inputs`], or
    /// the weights were rounded.
    pub fn copy_weights(&self, output: usize, into: &mut [T]) {
        assert!(output < self.outputs, "output {output} of {}", self.outputs);
        assert_eq!(into.len(), self.inputs, "room for another number of weights");
        assert_ne!(self.kept, Kept::Rounded, "rounded weights");
        let lanes = self.isa.lanes::<T>();
        let (start, width) = self.place(output / lanes, output % lanes);
        let mut places = self.panels[start..].iter().step_by(width);
        if self.kept == Kept::Single {
            return into.iter_mut().zip(places).for_each(|(to, &weight)| *to = weight);
        }
        let (block, count) = match self.kept {
            Kept::Levels(form) => (FORMS[form].block, FORMS[form].words()),
            _ => (2, 1),
        };
        let mut words = [0; levels::MOST_WORDS];
        for into in into.chunks_mut(block) {
            let words = &mut words[..count];
            words.iter_mut().zip(&mut places).for_each(|(word, place)| *word = place.to_bits32());
            let weights: &mut dyn Iterator<Item = f32> = match self.kept {
                Kept::Levels(form) => &mut FORMS[form].weights(words),
                Kept::Halves => &mut levels::halves(words[0]).into_iter(),
                _ => &mut widened(words[0]).into_iter(),
            };
            into.iter_mut().zip(weights).for_each(|(to, w)| *to = T::from_f64(w.into()));
        }
    }

    /// Whether the weights are in the type that is computed in, although it has smaller forms.
    pub fn is_full(&self) -> bool {
        self.kept == Kept::Single && T::HAS_COMPACT
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
            depth: self.kept.depth(self.inputs),
            vectors: self.vectors,
            panels: (panels.start, panels.end),
            x,
            base,
            y,
            rows,
            finish,
        };
        match self.kept {
            Kept::Single => T::dispatch(self.isa, product),
            Kept::Rounded => T::dispatch_pairs(self.isa, product),
            Kept::Pairs => T::dispatch_levels(self.isa, Widened(product)),
            Kept::Halves => T::dispatch_levels(self.isa, OfHalves(product)),
            Kept::Levels(0) => T::dispatch_levels(self.isa, OfLevels::<_, 0>(product)),
            Kept::Levels(1) => T::dispatch_levels(self.isa, OfLevels::<_, 1>(product)),
            Kept::Levels(2) => T::dispatch_levels(self.isa, OfLevels::<_, 2>(product)),
            Kept::Levels(3) => T::dispatch_levels(self.isa, OfLevels::<_, 3>(product)),
            Kept::Levels(_) => T::dispatch_levels(self.isa, OfLevels::<_, 4>(product)),
        }
    }
}

/// Puts what is kept of one output's weights into their places.
fn put<'p, T: 'p>(places: impl Iterator<Item = &'p mut T>, kept: impl Iterator<Item = T>) {
    places.zip(kept).for_each(|(place, w)| *place = w);
}

const _: () = assert!(FORMS.len() == 5, "a product for each form");
const _: () = assert!(PAD.is_multiple_of(16), "an output row has room for the last whole vector");
