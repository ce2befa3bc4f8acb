//! Root-mean-square normalisation (Zhang & Sennrich 2019).

use crate::buffers::{
    SharedRows, TASKS, accumulator, floats, floats_mut, for_row_ranges, fusable, half_on_cpu,
};
use crate::simd::{add_row, rms_norm_row, rms_norm_row_gradient};
use crate::{Result, custom_gradient};
use tch::{Kind, Tensor};

/// y = x / √(mean(x²) + eps) · weight, over the last dimension.
///
/// `x`: `[…, dim]`, `weight`: `[dim]`. On the CPU value and gradient are one pass each, in
/// float32; on an NVIDIA GPU, where `x` and `weight` are of one kind, it is libtorch's own operator,
/// which rounds half precisions once, at the end; elsewhere it is [`rms_norm_reference`].
///
/// # Errors
/// When the last dimension of `x` is not that of `weight`.
///
/// ```
/// use foretoken_kernels::rms_norm;
/// use tch::Tensor;
///
/// let x = Tensor::from_slice(&[3.0f32, 4.0]).view([1, 2]);
/// let y = rms_norm(&x, &Tensor::from_slice(&[1.0f32, 2.0]), 0.0)?;
/// assert!((y.double_value(&[0, 1]) - 8.0 / 12.5f64.sqrt()).abs() < 1e-6);
/// # Ok::<(), foretoken_kernels::Error>(())
/// ```
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let dim = weight.size().iter().product::<i64>();
    if x.size().last() != Some(&dim) {
        return Err(crate::Error::Shape {
            what: "the input of a norm",
            expected: format!("[…, {dim}]"),
            found: format!("{:?}", x.size()),
        });
    }
    if x.device().is_cuda() && x.kind() == weight.kind() {
        return Ok(x.f_rms_norm(&[dim][..], Some(weight), eps)?);
    }
    if half_on_cpu(x) {
        let (wide, weight) = (x.f_to_kind(Kind::Float)?, weight.f_to_kind(Kind::Float)?);
        return Ok(rms_norm(&wide, &weight, eps)?.f_to_kind(x.kind())?);
    }
    if !fusable(&[x, weight]) {
        return rms_norm_reference(x, weight, eps);
    }
    let (x_saved, weight_saved) = (x.detach().contiguous(), weight.detach().contiguous());
    let width = dim as usize;
    let rows = x.numel() / width.max(1);
    let mut y = Tensor::empty_like(&x_saved);
    let mut scales = vec![0f32; rows];
    {
        let (x, w) = (floats(&x_saved), floats(&weight_saved));
        let (y, scales) =
            (SharedRows::new(floats_mut(&mut y), width), SharedRows::new(&mut scales, 1));
        for_row_ranges(rows, width, |_, range| {
            let (y, scales) = (y.range(&range), scales.range(&range));
            for (i, row) in range.enumerate() {
                let out = &mut y[i * width..][..width];
                scales[i] = rms_norm_row(&x[row * width..][..width], w, eps as f32, out);
            }
        });
    }
    custom_gradient(&[x, weight], &[&y], move |gradients| {
        let Some(dy) = &gradients[0] else { return Ok(vec![None, None]) };
        let (dx, dweight) = rms_norm_gradient(&x_saved, &weight_saved, &scales, dy);
        Ok(vec![Some(dx), Some(dweight)])
    })?;
    Ok(y)
}

fn rms_norm_gradient(x: &Tensor, weight: &Tensor, scales: &[f32], dy: &Tensor) -> (Tensor, Tensor) {
    let dy = dy.contiguous();
    let width = weight.numel();
    let mut dx = Tensor::empty_like(x);
    let mut partial = vec![0f32; TASKS * width];
    {
        let (x, w, dy) = (floats(x), floats(weight), floats(&dy));
        let (dx, partial) =
            (SharedRows::new(floats_mut(&mut dx), width), SharedRows::new(&mut partial, width));
        for_row_ranges(scales.len(), width, |task, range| {
            let (dx, dweight) = (dx.range(&range), partial.range(&(task..task + 1)));
            for (i, row) in range.enumerate() {
                let at = row * width;
                rms_norm_row_gradient(
                    &x[at..][..width],
                    w,
                    scales[row],
                    &dy[at..][..width],
                    &mut dx[i * width..][..width],
                    dweight,
                );
            }
        });
    }
    let (total, rest) = partial.split_at_mut(width);
    for part in rest.chunks_exact(width) {
        add_row(total, part);
    }
    (dx, Tensor::from_slice(total))
}

/// [`rms_norm`] in libtorch's own operators, for any kind and device; half precisions are
/// normalised in float32, as Llama does.
///
/// # Errors
/// When libtorch refuses the shapes.
pub fn rms_norm_reference(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let kind = x.kind();
    let wide = accumulator(kind);
    let x = x.f_to_kind(wide)?;
    let mean = (&x * &x).f_mean_dim(-1, true, wide)?;
    let normed = &x * (mean + eps).rsqrt();
    Ok(normed.f_to_kind(kind)?.f_mul(weight)?)
}
