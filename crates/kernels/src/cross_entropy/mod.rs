//! Cross-entropy of a linear layer's outputs, without keeping the logits.

mod options;
mod pass;
mod rows;
#[cfg(test)]
mod tests;

pub use options::{CrossEntropy, CrossEntropyOptions};

use crate::buffers::accumulator;
use crate::{Error, Result};
use pass::{Pass, chunk_elements};
use rows::{row_distillations, row_losses};
use tch::{Kind, Reduction, Tensor};

/// A target that counts nowhere.
pub const IGNORED: i64 = -100;

/// Mean over the tokens of −log softmax(hidden · weightᵀ) at the target.
///
/// `hidden`: `[tokens, dim]`, `weight`: `[vocab, dim]`, `targets`: `[tokens]` int64, where
/// [`IGNORED`] leaves a token out of sum and count; where all are ignored the loss is 0. Returns a
/// scalar, in float32 at least. Logits exist for a chunk of tokens at a time: both gradients,
/// (softmax − one-hot) / count times weight and hidden, are computed with the value and scaled by
/// what arrives in the backward pass.
///
/// # Errors
/// When shapes differ or a target is outside the vocabulary.
///
/// ```
/// use foretoken_kernels::linear_cross_entropy;
/// use tch::{Kind, Device, Tensor};
///
/// let hidden = Tensor::zeros([2, 4], (Kind::Float, Device::Cpu));
/// let weight = Tensor::ones([8, 4], (Kind::Float, Device::Cpu));
/// let loss = linear_cross_entropy(&hidden, &weight, &Tensor::from_slice(&[3i64, 5]))?;
/// assert!((loss.double_value(&[]) - 8f64.ln()).abs() < 1e-6);
/// # Ok::<(), foretoken_kernels::Error>(())
/// ```
pub fn linear_cross_entropy(hidden: &Tensor, weight: &Tensor, targets: &Tensor) -> Result<Tensor> {
    Ok(linear_cross_entropy_with(hidden, weight, targets, &CrossEntropyOptions::default())?.loss)
}

/// As [`linear_cross_entropy`], with label smoothing and z-loss: what [`CrossEntropyOptions`] says,
/// and beside it the plain cross-entropy, to report.
///
/// # Errors
/// As [`linear_cross_entropy`], and when an option is outside its range.
///
/// ```
/// use foretoken_kernels::{CrossEntropyOptions, linear_cross_entropy_with};
/// use tch::{Kind, Device, Tensor};
///
/// let hidden = Tensor::randn([2, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let weight = Tensor::randn([8, 4], (Kind::Float, Device::Cpu));
/// let targets = Tensor::from_slice(&[3i64, 5]);
/// let options = CrossEntropyOptions { label_smoothing: 0.1, z_loss: 1e-4 };
/// let both = linear_cross_entropy_with(&hidden, &weight, &targets, &options)?;
/// both.loss.backward();
/// assert!(hidden.grad().defined());
/// println!("{:.3} nats a token", both.nats.double_value(&[]));
/// # Ok::<(), foretoken_kernels::Error>(())
/// ```
pub fn linear_cross_entropy_with(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    options: &CrossEntropyOptions,
) -> Result<CrossEntropy> {
    in_chunks(hidden, weight, targets, options, chunk_elements(weight))
}

/// [`linear_cross_entropy_with`] with at most `chunk` logits at a time, but those of one token.
fn in_chunks(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    options: &CrossEntropyOptions,
    chunk: i64,
) -> Result<CrossEntropy> {
    options.check()?;
    let (tokens, vocab) = sizes(hidden, weight)?;
    check_beside(hidden, "the targets of a linear cross-entropy", targets, &[tokens])?;
    let count = counted(targets, vocab)?;
    let targets = targets.contiguous();
    let pass = Pass::new(1.0 / count.max(1) as f64, hidden, weight, chunk);
    pass.run(hidden, weight, |logits, start, len| {
        row_losses(logits, &targets.f_narrow(0, start, len)?, options, pass.scale)
    })
}

/// Mean over the tokens of the cross-entropy between two distributions over the vocabulary: what
/// `teacher` makes of it, softmax(teacher · weightᵀ), and softmax(hidden · weightᵀ).
///
/// `hidden`, `teacher`: `[tokens, dim]`, `weight`: `[vocab, dim]`. Returns a scalar; its gradients
/// reach `hidden` and, by way of the student's logits alone, `weight`. Neither logits exist whole.
///
/// # Errors
/// When shapes differ.
///
/// ```
/// use foretoken_kernels::linear_distillation;
/// use tch::{Kind, Device, Tensor};
///
/// let weight = Tensor::randn([8, 4], (Kind::Float, Device::Cpu));
/// let hidden = Tensor::randn([2, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// // A student that agrees with its teacher has nothing to learn.
/// linear_distillation(&hidden, &weight, &hidden.detach())?.backward();
/// assert!(hidden.grad().abs().max().double_value(&[]) < 1e-6);
/// # Ok::<(), foretoken_kernels::Error>(())
/// ```
pub fn linear_distillation(hidden: &Tensor, weight: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (tokens, _) = sizes(hidden, weight)?;
    check_beside(hidden, "the teacher of a distillation", teacher, &hidden.size())?;
    let (teacher, transposed) = (teacher.detach(), weight.detach().f_transpose(0, 1)?);
    let pass = Pass::new(1.0 / tokens.max(1) as f64, hidden, weight, chunk_elements(weight));
    let both = pass.run(hidden, weight, |logits, start, len| {
        let teacher = teacher.f_narrow(0, start, len)?.f_matmul(&transposed)?;
        let teacher = teacher.f_to_kind(accumulator(teacher.kind()))?;
        row_distillations(logits, teacher, pass.scale)
    })?;
    Ok(both.loss)
}

/// [`linear_cross_entropy`] with all logits at once, in libtorch's own operators.
///
/// # Errors
/// When libtorch refuses the shapes.
pub fn linear_cross_entropy_reference(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
) -> Result<Tensor> {
    let options = CrossEntropyOptions::default();
    linear_cross_entropy_with_reference(hidden, weight, targets, &options)
}

/// The loss of [`linear_cross_entropy_with`] with all logits at once, in libtorch's own operators.
///
/// # Errors
/// When libtorch refuses the shapes, or an option is outside its range.
pub fn linear_cross_entropy_with_reference(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    options: &CrossEntropyOptions,
) -> Result<Tensor> {
    options.check()?;
    let logits = hidden.f_matmul(&weight.f_transpose(0, 1)?)?;
    let kind = accumulator(logits.kind());
    let logits = logits.f_to_kind(kind)?;
    let smoothing = options.label_smoothing;
    let mut sum =
        logits.f_cross_entropy_loss::<Tensor>(targets, None, Reduction::Sum, IGNORED, smoothing)?;
    let counted = targets.f_ne(IGNORED)?;
    if options.z_loss > 0.0 {
        let log_sums = logits.f_logsumexp([-1i64].as_slice(), false)?;
        let squares = log_sums.f_square()?.f_mul(&counted)?.f_sum(kind)?;
        sum = sum.f_add(&squares.f_mul_scalar(options.z_loss)?)?;
    }
    Ok(sum.f_div(&counted.f_sum(kind)?.f_clamp_min(1)?)?)
}

/// Tokens and vocabulary of a state and a weight that fit.
fn sizes(hidden: &Tensor, weight: &Tensor) -> Result<(i64, i64)> {
    let ((tokens, dim), (vocab, width)) = (hidden.size2()?, weight.size2()?);
    if vocab < 1 || width != dim {
        return Err(Error::Shape {
            what: "the weight of a linear cross-entropy",
            expected: format!("[vocab, {dim}]"),
            found: format!("{:?}", weight.size()),
        });
    }
    Ok((tokens, vocab))
}

/// Refuses what has not the shape `expected` or is not where `hidden` is.
fn check_beside(
    hidden: &Tensor,
    what: &'static str,
    other: &Tensor,
    expected: &[i64],
) -> Result<()> {
    if other.size() == expected && other.device() == hidden.device() {
        return Ok(());
    }
    Err(Error::Shape {
        what,
        expected: format!("{expected:?} on {:?}", hidden.device()),
        found: format!("{:?} on {:?}", other.size(), other.device()),
    })
}

/// How many targets are not ignored, all of them inside the vocabulary.
fn counted(targets: &Tensor, vocab: i64) -> Result<usize> {
    if targets.kind() != Kind::Int64 {
        return Err(Error::Shape {
            what: "the targets of a linear cross-entropy",
            expected: "numbers of the kind Int64".into(),
            found: format!("{:?}", targets.kind()),
        });
    }
    let used = targets.f_masked_select(&targets.f_ne(IGNORED)?)?;
    if used.numel() > 0 {
        let (low, high) = (i64::try_from(used.f_min()?)?, i64::try_from(used.f_max()?)?);
        if low < 0 || high >= vocab {
            return Err(Error::Shape {
                what: "a target of a linear cross-entropy",
                expected: format!("0 to {}", vocab - 1),
                found: format!("{low} to {high}"),
            });
        }
    }
    Ok(used.numel())
}
