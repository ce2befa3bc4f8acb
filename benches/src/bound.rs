//! How fast a training step can be on this machine with libtorch's products.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use foretoken_train::orthogonalize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor, no_grad};

use crate::work::{Linear, Stack, StepWork};

/// Time spent on measuring one operation.
const BUDGET: Duration = Duration::from_millis(150);
/// The most rows that a product is measured with; more take proportionally longer.
const MOST_ROWS: i64 = 512;
/// Elements beyond which a buffer lies in memory and not in a cache.
const MOST_ELEMENTS: i64 = 32 << 20;

/// The least time of a step: products at the measured rate, then an update that moves weights,
/// gradients and optimiser state at the measured bandwidth.
///
/// ```text
/// t ≥ F / R + B / W
/// ```
///
/// F: operations of [`StepWork`], R: rate of libtorch's products in the step's own shapes, B:
/// [`StepWork::update_bytes`], W: bandwidth of `a += b` over buffers as large as the model. The two
/// terms add up, since no weight moves before the norm of all gradients is known. The products' own
/// traffic is part of R; activations' is left out. A step that takes t' cannot be beaten by more
/// than t' / t while both use the same products.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// F of linear layers and attention.
    pub flops: f64,
    /// R.
    pub flops_per_second: f64,
    /// Newton–Schulz, measured as it is.
    pub orthogonalise_seconds: f64,
    /// B.
    pub update_bytes: f64,
    /// W.
    pub bytes_per_second: f64,
}

impl Bound {
    /// Measures on libtorch's threads as they are set; `kind` is that of the products, `muon` that
    /// of Newton–Schulz. Takes a few seconds.
    ///
    /// # Errors
    /// When memory for the operands is short.
    pub fn measure(work: &StepWork, parameters: usize, kind: Kind, muon: Kind) -> Result<Self> {
        no_grad(|| {
            let mut seconds = 0.0;
            for linear in &work.linears {
                seconds += linear_seconds(linear, work.tokens, kind)?;
            }
            let mut orthogonalise_seconds = 0.0;
            for stack in &work.stacks {
                orthogonalise_seconds += stack_seconds(stack, muon)?;
            }
            Ok(Self {
                flops: work.model_flops,
                flops_per_second: work.linear_flops() / seconds,
                orthogonalise_seconds,
                update_bytes: work.update_bytes,
                bytes_per_second: bandwidth(parameters as i64)?,
            })
        })
    }

    /// F / R and Newton–Schulz.
    pub fn product_seconds(&self) -> f64 {
        self.flops / self.flops_per_second + self.orthogonalise_seconds
    }

    /// B / W.
    pub fn traffic_seconds(&self) -> f64 {
        self.update_bytes / self.bytes_per_second
    }

    /// All figures, and `seconds`, the least time of a step.
    pub fn to_json(&self) -> Value {
        json!({
            "flops": self.flops,
            "flops_per_second": self.flops_per_second,
            "orthogonalise_seconds": self.orthogonalise_seconds,
            "update_bytes": self.update_bytes,
            "bytes_per_second": self.bytes_per_second,
            "product_seconds": self.product_seconds(),
            "traffic_seconds": self.traffic_seconds(),
            "seconds": self.product_seconds() + self.traffic_seconds(),
        })
    }
}

/// Seconds of a step in linear layers of one shape: forward, both gradients.
fn linear_seconds(linear: &Linear, tokens: f64, kind: Kind) -> Result<f64> {
    let rows = MOST_ROWS.min(tokens as i64).max(1);
    let operand = |size: [i64; 2]| Tensor::f_full(size, 0.5, (kind, Device::Cpu));
    let (inputs, outputs) = (linear.inputs, linear.outputs);
    let (x, y) = (operand([rows, inputs])?, operand([rows, outputs])?);
    let (dx, dy) = (operand([rows, inputs])?, operand([rows, outputs])?);
    let (weight, dweight) = (operand([outputs, inputs])?, operand([outputs, inputs])?);
    let forward = shortest(|| Ok(x.f_matmul_out(&y, &weight.f_transpose(0, 1)?)?))?;
    let by_input = shortest(|| Ok(dy.f_matmul_out(&dx, &weight)?))?;
    let by_weight = shortest(|| Ok(dy.f_transpose(0, 1)?.f_matmul_out(&dweight, &x)?))?;
    let seconds = forward + by_input + by_weight;
    Ok(seconds * linear.count * tokens / rows as f64)
}

fn stack_seconds(stack: &Stack, kind: Kind) -> Result<f64> {
    let size = [stack.matrices, stack.rows, stack.columns];
    let matrices = Tensor::f_full(size, 0.5, (kind, Device::Cpu))?;
    shortest(|| Ok(orthogonalize(&matrices)?))
}

/// Bytes a second of `a += b`, which reads both and writes one, over as many buffers as an update
/// has: weights, gradients, two moments.
fn bandwidth(parameters: i64) -> Result<f64> {
    let elements = parameters.clamp(1, MOST_ELEMENTS);
    let buffer = || Tensor::f_full([elements], 0.5, (Kind::Float, Device::Cpu));
    let gradients = buffer()?;
    let mut moved = [buffer()?, buffer()?, buffer()?];
    let seconds = shortest(|| {
        for buffer in &mut moved {
            let _ = buffer.f_add_(&gradients)?;
        }
        Ok(())
    })?;
    Ok(3.0 * 3.0 * 4.0 * elements as f64 / seconds)
}

/// The shortest time of `work`, which runs three times at least.
fn shortest<T>(mut work: impl FnMut() -> Result<T>) -> Result<f64> {
    work()?;
    let (begun, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < 3 || begun.elapsed() < BUDGET {
        let start = Instant::now();
        black_box(work()?);
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(best.max(f64::MIN_POSITIVE))
}
