//! Losses of rows of logits, and their gradients by the logits: fused on the CPU in float32, in
//! libtorch's operators elsewhere.

use super::pass::Rows;
use super::{CrossEntropyOptions, IGNORED};
use crate::Result;
use crate::buffers::{SharedRows, accumulator, floats_mut, for_row_ranges, fusable, integers};
use crate::simd::{RowTerms, cross_entropy_row, distillation_row};
use tch::{Kind, Tensor};

/// Rows against targets: `[tokens, vocab]` and `[tokens]` int64.
pub(super) fn row_losses(
    mut logits: Tensor,
    targets: &Tensor,
    options: &CrossEntropyOptions,
    scale: f64,
) -> Result<Rows> {
    if !fusable(&[&logits]) {
        return plain_rows(&logits, targets, options, scale);
    }
    let width = logits.size2()?.1 as usize;
    let targets = integers(targets);
    let terms = RowTerms {
        scale: scale as f32,
        smoothing: options.label_smoothing as f32,
        z: options.z_loss as f32,
    };
    // Loss and plain cross-entropy of every row.
    let mut losses = vec![0f32; 2 * targets.len()];
    {
        let logits = SharedRows::new(floats_mut(&mut logits), width);
        let losses = SharedRows::new(&mut losses, 2);
        for_row_ranges(targets.len(), width, |_, range| {
            let rows = logits.range(&range).chunks_exact_mut(width);
            let pairs = losses.range(&range).as_chunks_mut::<2>().0;
            for ((row, pair), &target) in rows.zip(pairs).zip(&targets[range]) {
                if target == IGNORED {
                    row.fill(0.0);
                } else {
                    *pair = cross_entropy_row(row, target as usize, terms).into();
                }
            }
        });
    }
    let sum_of = |which: usize| sum(losses.iter().skip(which).step_by(2));
    Ok(Rows { loss: sum_of(0), nats: sum_of(1), dlogits: logits })
}

/// [`row_losses`] in libtorch's operators.
fn plain_rows(
    logits: &Tensor,
    targets: &Tensor,
    options: &CrossEntropyOptions,
    scale: f64,
) -> Result<Rows> {
    let (kind, vocab) = (logits.kind(), logits.size2()?.1);
    let CrossEntropyOptions { label_smoothing: s, z_loss: z } = *options;
    let counts = targets.f_ne(IGNORED)?.f_unsqueeze(1)?;
    let targets = targets.f_clamp_min(0)?.f_unsqueeze(1)?;
    let over_counted = |losses: &Tensor| losses.f_mul(&counts)?.f_sum(kind);
    let mut log_p = logits.f_log_softmax(-1, kind)?;
    let nats = log_p.f_gather(1, &targets, false)?.f_neg()?;
    let mut losses = nats.f_mul_scalar(1.0 - s)?;
    if s > 0.0 {
        let means = log_p.f_mean_dim([-1i64].as_slice(), true, kind)?;
        losses = losses.f_sub(&means.f_mul_scalar(s)?)?;
    }
    let scales = counts.f_to_kind(kind)?.f_mul_scalar(scale)?;
    let mut factors = scales.shallow_clone();
    if z > 0.0 {
        let log_sums = logits.f_gather(1, &targets, false)?.f_add(&nats)?;
        losses = losses.f_add(&log_sums.f_square()?.f_mul_scalar(z)?)?;
        factors = factors.f_mul(&log_sums.f_mul_scalar(2.0 * z)?.f_add_scalar(1.0)?)?;
    }
    let mut dlogits = log_p.f_exp_()?.f_mul_(&factors)?;
    if s > 0.0 {
        dlogits = dlogits.f_sub_(&scales.f_mul_scalar(s / vocab as f64)?)?;
    }
    let dlogits = dlogits.f_scatter_add_(1, &targets, &scales.f_mul_scalar(s - 1.0)?)?;
    Ok(Rows { loss: over_counted(&losses)?, nats: over_counted(&nats)?, dlogits })
}

/// As [`row_losses`], with the teacher's logits in place of targets.
pub(super) fn row_distillations(
    mut logits: Tensor,
    mut teacher: Tensor,
    scale: f64,
) -> Result<Rows> {
    if !fusable(&[&logits, &teacher]) {
        let kind = accumulator(logits.kind());
        let expected = teacher.f_softmax(-1, kind)?;
        let log_p = logits.f_log_softmax(-1, kind)?;
        let loss = expected.f_mul(&log_p)?.f_sum(kind)?.f_neg()?;
        let dlogits = log_p.f_exp()?.f_sub(&expected)?.f_mul_scalar(scale)?;
        return Ok(Rows { nats: loss.shallow_clone(), loss, dlogits });
    }
    let (rows, width) = logits.size2()?;
    let (rows, width) = (rows as usize, width as usize);
    let mut losses = vec![0f32; rows];
    {
        let logits = SharedRows::new(floats_mut(&mut logits), width);
        let teacher = SharedRows::new(floats_mut(&mut teacher), width);
        let losses = SharedRows::new(&mut losses, 1);
        for_row_ranges(rows, width, |_, range| {
            let (logits, teacher) = (logits.range(&range), teacher.range(&range));
            let pairs = logits.chunks_exact_mut(width).zip(teacher.chunks_exact_mut(width));
            for ((logits, teacher), loss) in pairs.zip(losses.range(&range)) {
                *loss = distillation_row(logits, teacher, scale as f32);
            }
        });
    }
    let loss = sum(losses.iter());
    Ok(Rows { nats: loss.shallow_clone(), loss, dlogits: logits })
}

/// A sum in float64, as a float32 scalar.
fn sum<'a>(losses: impl Iterator<Item = &'a f32>) -> Tensor {
    let sum: f64 = losses.map(|&x| f64::from(x)).sum();
    Tensor::from(sum).to_kind(Kind::Float)
}
