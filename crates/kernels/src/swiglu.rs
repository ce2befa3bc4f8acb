//! The gated unit of Llama's feed-forward layer (Shazeer 2020).

use crate::buffers::{SharedRows, floats, floats_mut, for_row_ranges, fusable, half_on_cpu};
use crate::simd::{swiglu_row, swiglu_row_gradient};
use crate::{Error, Result, custom_gradient};
use tch::{Kind, Tensor};

/// silu(gate) · up, where `gate_up` holds both side by side: `[…, 2·ffn]` → `[…, ffn]`.
///
/// # Errors
/// When the last dimension is odd or missing.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let mut shape = gate_up.size();
    let Some(last) = shape.last_mut().filter(|last| **last % 2 == 0) else {
        return Err(Error::Shape {
            what: "the input of a gated unit",
            expected: "an even last dimension".into(),
            found: format!("{:?}", gate_up.size()),
        });
    };
    *last /= 2;
    let ffn = *last as usize;
    if half_on_cpu(gate_up) {
        return Ok(swiglu(&gate_up.f_to_kind(Kind::Float)?)?.f_to_kind(gate_up.kind())?);
    }
    if !fusable(&[gate_up]) {
        return swiglu_reference(gate_up);
    }
    let saved = gate_up.detach().contiguous();
    let rows = saved.numel() / (2 * ffn).max(1);
    let mut y = Tensor::empty(&shape, (saved.kind(), saved.device()));
    {
        let input = floats(&saved);
        let y = SharedRows::new(floats_mut(&mut y), ffn);
        for_row_ranges(rows, 2 * ffn, |_, range| {
            let y = y.range(&range);
            for (i, row) in range.enumerate() {
                let (gate, up) = input[row * 2 * ffn..][..2 * ffn].split_at(ffn);
                swiglu_row(gate, up, &mut y[i * ffn..][..ffn]);
            }
        });
    }
    custom_gradient(&[gate_up], &[&y], move |gradients| {
        Ok(vec![gradients[0].as_ref().map(|dy| swiglu_gradient(&saved, dy, ffn))])
    })?;
    Ok(y)
}

fn swiglu_gradient(gate_up: &Tensor, dy: &Tensor, ffn: usize) -> Tensor {
    let dy = dy.contiguous();
    let mut gradient = Tensor::empty_like(gate_up);
    {
        let (input, dy) = (floats(gate_up), floats(&dy));
        let rows = SharedRows::new(floats_mut(&mut gradient), 2 * ffn);
        for_row_ranges(dy.len() / ffn.max(1), 2 * ffn, |_, range| {
            let out = rows.range(&range);
            for (i, row) in range.enumerate() {
                let (gate, up) = input[row * 2 * ffn..][..2 * ffn].split_at(ffn);
                let (dgate, dup) = out[i * 2 * ffn..][..2 * ffn].split_at_mut(ffn);
                swiglu_row_gradient(gate, up, &dy[row * ffn..][..ffn], dgate, dup);
            }
        });
    }
    gradient
}

/// [`swiglu`] in libtorch's own operators.
///
/// # Errors
/// When the last dimension is odd.
pub fn swiglu_reference(gate_up: &Tensor) -> Result<Tensor> {
    let parts = gate_up.f_chunk(2, -1)?;
    Ok(parts[0].f_silu()?.f_mul(&parts[1])?)
}
