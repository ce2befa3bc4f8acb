//! The Newton–Schulz iteration that takes a matrix near its orthogonal factor.

use tch::Tensor;

use crate::Error;

/// a, b, c of the quintic x ↦ a x + b x³ + c x⁵, from Keller Jordan's Muon: chosen for the
/// steepest slope at 0 under which singular values still end up near 1.
pub(super) const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);

/// Applications of the quintic.
pub(super) const ITERATIONS: usize = 5;

/// Keeps a matrix of zeros from dividing by zero.
const NORM_FLOOR: f64 = 1e-7;

/// Which side of the matrices is the smaller, and with it the Gram matrix's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Orientation {
    /// Rows ≤ columns: X Xᵀ, multiplied from the left.
    Wide,
    /// Rows > columns: Xᵀ X, multiplied from the right.
    Tall,
}

impl Orientation {
    pub(super) fn of(rows: i64, columns: i64) -> Self {
        if rows <= columns { Self::Wide } else { Self::Tall }
    }
}

/// Orthogonalises every matrix of `stack` `[matrices, rows, columns]`: the singular vectors stay,
/// the singular values come near 1 (between 0.6 and 1.3, unless they were almost 0).
///
/// ```
/// use foretoken_train::orthogonalize;
/// use tch::{Device, Kind, Tensor};
///
/// tch::manual_seed(0);
/// let stack = Tensor::randn([3, 8, 20], (Kind::Double, Device::Cpu));
/// let values = orthogonalize(&stack)?.svd(true, false).1;
/// assert!(values.min().double_value(&[]) > 0.6 && values.max().double_value(&[]) < 1.3);
/// # Ok::<(), foretoken_train::Error>(())
/// ```
///
/// # Errors
/// When `stack` hasn't three dimensions.
pub fn orthogonalize(stack: &Tensor) -> Result<Tensor, Error> {
    let (_, rows, columns) = stack.size3()?;
    let normalized = stack.f_empty_like()?;
    normalize_into(stack, &normalized)?;
    iterate(&normalized, Orientation::of(rows, columns))
}

/// Writes `stack`, each matrix divided by its Frobenius norm, to `out`, whatever its type.
pub(super) fn normalize_into(stack: &Tensor, out: &Tensor) -> Result<(), Error> {
    let norm = stack.f_norm_scalaropt_dim(2.0, [1, 2].as_slice(), true)?;
    let norm = norm.f_add_scalar(NORM_FLOOR)?;
    let _ = stack.f_div_out(out, &norm)?;
    Ok(())
}

/// The iteration's result on a normalised `stack`: X ← a X + (b G + c G²) X with the Gram matrix
/// G, [`ITERATIONS`] times.
///
/// All factors are the same in every step on purpose: libtorch's bfloat16 products compile code
/// for each factor that they meet and keep it.
pub(super) fn iterate(stack: &Tensor, orientation: Orientation) -> Result<Tensor, Error> {
    let (a, b, c) = COEFFICIENTS;
    let mut x = stack.shallow_clone();
    for _ in 0..ITERATIONS {
        let transposed = x.f_transpose(1, 2)?;
        let gram = match orientation {
            Orientation::Wide => x.f_bmm(&transposed)?,
            Orientation::Tall => transposed.f_bmm(&x)?,
        };
        let polynomial = gram.f_baddbmm(&gram, &gram, b, c)?;
        x = match orientation {
            Orientation::Wide => x.f_baddbmm(&polynomial, &x, a, 1.0)?,
            Orientation::Tall => x.f_baddbmm(&x, &polynomial, a, 1.0)?,
        };
    }
    Ok(x)
}
