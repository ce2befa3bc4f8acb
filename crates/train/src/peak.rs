//! What a machine can do at most, as far as training is concerned.

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use crate::Error;

/// How long products are repeated; the last one begins within it.
const BUDGET: Duration = Duration::from_millis(200);

/// Floating-point operations a second of libtorch's product of two square matrices of `kind` on
/// `device`: of several, the fastest, with as many threads as libtorch has.
///
/// It takes about a fifth of a second. The matrices are large enough for full speed and small
/// enough not to matter beside a training: 1,024 rows on a processor (12 MB in float32), 4,096 on
/// a GPU (200 MB). No random numbers are drawn.
///
/// # Errors
/// When libtorch has no such product, or the memory cannot be had.
///
/// ```
/// use foretoken_train::product_rate;
/// use tch::{Device, Kind};
///
/// let rate = product_rate(Kind::Float, Device::Cpu)?;
/// println!("{:.0} GFLOP/s", rate / 1e9);
/// assert!(rate > 0.0);
/// # Ok::<(), foretoken_train::Error>(())
/// ```
pub fn product_rate(kind: Kind, device: Device) -> Result<f64, Error> {
    // A GPU is given several products at a time: waiting for each would be measured too.
    let (side, group) = match device {
        Device::Cuda(_) => (4096, 8),
        _ => (1024, 1),
    };
    let _guard = tch::no_grad_guard();
    let a = matrix(side, kind, device)?;
    let out = a.f_mm(&a)?;
    finished(&out)?;
    let began = Instant::now();
    let mut best = f64::INFINITY;
    while began.elapsed() < BUDGET {
        let start = Instant::now();
        for _ in 0..group {
            let _ = a.f_mm_out(&out, &a)?;
        }
        finished(&out)?;
        best = best.min(start.elapsed().as_secs_f64() / f64::from(group));
    }
    Ok(2.0 * (side as f64).powi(3) / best)
}

/// `[side, side]`, numbers between −1 and 1: a processor may be faster with zeros.
fn matrix(side: i64, kind: Kind, device: Device) -> Result<Tensor, Error> {
    let numbers = Tensor::f_arange(side * side, (Kind::Float, device))?.f_cos()?;
    Ok(numbers.f_view([side, side])?.f_to_kind(kind)?)
}

/// Waits until the device has computed `x`, by reading a number of it.
fn finished(x: &Tensor) -> Result<(), Error> {
    x.f_double_value(&[0, 0])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_one_that_a_machine_can_have() {
        for kind in [Kind::Float, Kind::Double] {
            let rate = product_rate(kind, Device::Cpu).unwrap();
            assert!((1e8..1e15).contains(&rate), "{kind:?}: {rate}");
        }
    }

    #[test]
    fn the_random_numbers_stay_where_they_were() {
        tch::manual_seed(3);
        let expected = Tensor::rand([4], (Kind::Float, Device::Cpu));
        tch::manual_seed(3);
        product_rate(Kind::Float, Device::Cpu).unwrap();
        assert_eq!(Tensor::rand([4], (Kind::Float, Device::Cpu)), expected);
    }

    #[test]
    fn numbers_without_a_product_are_an_error() {
        assert!(product_rate(Kind::Bool, Device::Cpu).is_err());
    }
}
