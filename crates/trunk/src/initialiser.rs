//! First values of the weights.

use crate::{Architecture, Result};
use tch::{Device, Kind, Tensor};

/// Makes seeded first weights, or unset ones that a file will fill.
///
/// Matrices are normal with standard deviation 1/√inputs, those that write to the residual stream
/// smaller by √(2·layers), as in GPT-2; norms are ones. Values are drawn in float64 on the CPU, so that
/// a seed gives the same model in every kind and on every device.
#[derive(Debug)]
pub struct Initialiser {
    kind: Kind,
    device: Device,
    residual_scale: f64,
    random: bool,
}

impl Initialiser {
    /// Seeded first weights. Sets libtorch's global seed.
    pub fn new(sizes: &Architecture, kind: Kind, device: Device, seed: i64) -> Self {
        tch::manual_seed(seed);
        let residual_scale = 1.0 / (2.0 * sizes.layers.max(1) as f64).sqrt();
        Self { kind, device, residual_scale, random: true }
    }

    /// Room for weights that are loaded next: matrices are of any numbers, and nothing must be computed
    /// with them. On a CPU their memory is taken only as it is written.
    pub fn unset(kind: Kind, device: Device) -> Self {
        Self { kind, device, residual_scale: 1.0, random: false }
    }

    /// A matrix `[outputs, inputs]`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn matrix(&self, outputs: i64, inputs: i64) -> Result<Tensor> {
        self.normal(&[outputs, inputs], 1.0 / (inputs as f64).sqrt())
    }

    /// A matrix `[outputs, inputs]` that writes to the residual stream.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn residual_matrix(&self, outputs: i64, inputs: i64) -> Result<Tensor> {
        self.normal(&[outputs, inputs], self.residual_scale / (inputs as f64).sqrt())
    }

    /// An embedding `[vocab, dim]` with elements of standard deviation 1/√dim.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn embedding(&self, vocab: i64, dim: i64) -> Result<Tensor> {
        self.normal(&[vocab, dim], 1.0 / (dim as f64).sqrt())
    }

    /// The weight of a norm: ones `[dim]`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn norm(&self, dim: i64) -> Result<Tensor> {
        Ok(Tensor::f_ones([dim], (self.kind, self.device))?.set_requires_grad(true))
    }

    /// A bias: zeros `[width]`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn bias(&self, width: i64) -> Result<Tensor> {
        Ok(Tensor::f_zeros([width], (self.kind, self.device))?.set_requires_grad(true))
    }

    fn normal(&self, size: &[i64], deviation: f64) -> Result<Tensor> {
        let tensor = if self.random {
            let drawn = Tensor::f_randn(size, (Kind::Double, Device::Cpu))? * deviation;
            drawn.f_to_kind(self.kind)?.f_to_device(self.device)?
        } else {
            Tensor::f_empty(size, (self.kind, self.device))?
        };
        Ok(tensor.set_requires_grad(true))
    }
}
