//! Rotary position embedding (Su et al. 2021), in the layout of Hugging Face's Llama: the two
//! coordinates of a pair lie half a head apart.

use crate::buffers::accumulator;
use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// The angle between two positions for each pair of a head's coordinates: ωᵢ = theta^(−2i /
/// `head_dim`).
///
/// ```
/// assert_eq!(foretoken_kernels::rotary_frequencies(4, 100.0), [1.0, 0.1]);
/// ```
pub fn rotary_frequencies(head_dim: usize, theta: f64) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

/// Cosines and sines of all positions up to a limit.
///
/// The angle of pair i at position p is p · ωᵢ ([`rotary_frequencies`]). Tables are computed in
/// float64 and kept in float32, or in float64 for a model of that kind.
#[derive(Debug)]
pub struct Rotary {
    /// `[positions, head_dim / 2]`
    pub(crate) cos: Tensor,
    /// `[positions, head_dim / 2]`
    pub(crate) sin: Tensor,
}

impl Rotary {
    /// Tables for heads of `head_dim` coordinates and `positions` positions.
    ///
    /// # Errors
    /// When `head_dim` is odd or not positive.
    pub fn new(
        head_dim: i64,
        theta: f64,
        positions: i64,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        if head_dim <= 0 || head_dim % 2 != 0 {
            return Err(Error::Shape {
                what: "a head of a rotary embedding",
                expected: "an even number of coordinates".into(),
                found: head_dim.to_string(),
            });
        }
        Self::with_frequencies(
            &rotary_frequencies(head_dim as usize, theta),
            positions,
            kind,
            device,
        )
    }

    /// Tables for pairs with these angles between two positions, such as scaled ones.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn with_frequencies(
        frequencies: &[f64],
        positions: i64,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let frequencies = Tensor::f_from_slice(frequencies)?;
        let angles =
            Tensor::f_arange(positions, (Kind::Double, Device::Cpu))?.f_outer(&frequencies)?;
        let table = |t: Tensor| t.f_to_kind(accumulator(kind))?.f_to_device(device);
        Ok(Self { cos: table(angles.cos())?, sin: table(angles.sin())? })
    }

    /// The same tables: the tensors are these.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// Positions that the tables reach.
    pub fn positions(&self) -> i64 {
        self.cos.size()[0]
    }

    /// Checks that `start .. start + len` lies within the tables.
    pub(crate) fn check(&self, start: i64, len: i64) -> Result<()> {
        let (needed, capacity) = (start + len, self.positions());
        if needed > capacity {
            return Err(Error::Capacity { what: "the rotary table", needed, capacity });
        }
        Ok(())
    }

    /// Turns `x` `[batch, heads, seq, head_dim]`, whose first position is `start`.
    ///
    /// # Errors
    /// When a position lies beyond the tables or the shapes differ.
    pub fn apply(&self, x: &Tensor, start: i64) -> Result<Tensor> {
        let seq = x.size4()?.2;
        self.check(start, seq)?;
        let cos = self.cos.f_narrow(0, start, seq)?;
        let sin = self.sin.f_narrow(0, start, seq)?;
        let halves = x.f_to_kind(self.cos.kind())?.f_chunk(2, -1)?;
        let (a, b) = (&halves[0], &halves[1]);
        let turned_a = a.f_mul(&cos)?.f_sub(&b.f_mul(&sin)?)?;
        let turned_b = b.f_mul(&cos)?.f_add(&a.f_mul(&sin)?)?;
        Ok(Tensor::f_cat(&[turned_a, turned_b], -1)?.f_to_kind(x.kind())?)
    }
}
