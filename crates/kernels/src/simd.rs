//! Inner loops, compiled once for AVX2 and once for any x86-64, chosen at run time.
#![allow(unsafe_code)]

/// Defines functions whose bodies the compiler vectorises for AVX2 + FMA where the processor has
/// them and for the baseline otherwise.
macro_rules! vectorised {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        pub(crate) fn $name($($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, clippy::inline_always)]
            fn body($($arg: $type),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $type),*) $(-> $out)? {
                    body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                {
                    // SAFETY: the processor has the features that `avx2` was compiled for.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )*};
}

const LANES: usize = 8;

/// Sum of products in eight running sums.
#[inline(always)]
#[allow(clippy::inline_always)]
fn dot_lanes(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_body, a_tail) = a.as_chunks::<LANES>();
    let (b_body, b_tail) = b.as_chunks::<LANES>();
    for (x, y) in a_body.iter().zip(b_body) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + tail
}

/// e^x to about one unit in the last place, for x ≤ 88; zero far below.
///
/// Cody–Waite reduction to |r| ≤ ln 2 / 2 and a degree-6 polynomial; branch-free, so that loops
/// over it vectorise.
#[inline(always)]
#[allow(clippy::inline_always, clippy::excessive_precision)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer
    let x = x.clamp(-87.3, 88.7);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_375 + n * 2.121_944_4e-4;
    let mut p = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let scale = f32::from_bits(
        (shifted.to_bits() as i32)
            .wrapping_sub(ROUND.to_bits() as i32)
            .wrapping_add(127)
            .wrapping_shl(23) as u32,
    );
    p * scale
}

/// What [`exp_row`] finds out about a row on its way.
struct RowSums {
    /// Σ exp(x − peak).
    total: f32,
    /// The largest element.
    peak: f32,
    /// Σ x.
    plain: f32,
}

/// Replaces a row by exp(x − peak).
#[inline(always)]
#[allow(clippy::inline_always)]
fn exp_row(row: &mut [f32]) -> RowSums {
    let mut peaks = [f32::NEG_INFINITY; LANES];
    let mut plain = [0f32; LANES];
    let (body, tail) = row.as_chunks::<LANES>();
    for x in body {
        for lane in 0..LANES {
            peaks[lane] = if x[lane] > peaks[lane] { x[lane] } else { peaks[lane] };
            plain[lane] += x[lane];
        }
    }
    let peak = peaks.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max);
    let plain = plain.iter().chain(tail).sum();
    let mut sums = [0f32; LANES];
    let (body, tail) = row.as_chunks_mut::<LANES>();
    for x in body {
        for lane in 0..LANES {
            x[lane] = exp(x[lane] - peak);
            sums[lane] += x[lane];
        }
    }
    let mut total: f32 = sums.iter().sum();
    for x in tail {
        *x = exp(*x - peak);
        total += *x;
    }
    RowSums { total, peak, plain }
}

/// What a row of logits is held to beside its target, and by what its gradient is scaled.
#[derive(Clone, Copy)]
pub(crate) struct RowTerms {
    /// Of the gradient: 1 / counted tokens.
    pub(crate) scale: f32,
    /// s: share of the target's weight that is spread over the vocabulary.
    pub(crate) smoothing: f32,
    /// z: factor of (log Σ exp)².
    pub(crate) z: f32,
}

vectorised! {
    /// One row of [`crate::rms_norm`]: writes `y` and returns 1 / rms.
    fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) -> f32 {
        let scale = 1.0 / (dot_lanes(x, x) / x.len() as f32 + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * w;
        }
        scale
    }

    /// Gradient of one row of the norm: writes `dx`, adds to `dweight`.
    fn rms_norm_row_gradient(
        x: &[f32], weight: &[f32], scale: f32, dy: &[f32], dx: &mut [f32], dweight: &mut [f32],
    ) {
        for (((dx, dy), w), (x, dw)) in
            dx.iter_mut().zip(dy).zip(weight).zip(x.iter().zip(dweight.iter_mut()))
        {
            *dx = dy * w;
            *dw += dy * x * scale;
        }
        let pull = dot_lanes(dx, x) * scale * scale / x.len() as f32;
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = scale * (*dx - x * pull);
        }
    }

    /// One row of [`crate::swiglu`]: silu(gate) · up.
    fn swiglu_row(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = g / (1.0 + exp(-g)) * u;
        }
    }

    /// Gradient of one row of the gated unit.
    fn swiglu_row_gradient(
        gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32],
    ) {
        for (((dg, du), dy), (g, u)) in
            dgate.iter_mut().zip(dup.iter_mut()).zip(dy).zip(gate.iter().zip(up))
        {
            let sigmoid = 1.0 / (1.0 + exp(-g));
            let silu = g * sigmoid;
            *du = dy * silu;
            *dg = dy * u * (sigmoid + silu * (1.0 - sigmoid));
        }
    }

    /// Turns the halves `(a, b)` of one head by the angles of its position; `sign` −1 turns back.
    fn rotate_halves(a: &mut [f32], b: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        for ((a, b), (c, s)) in a.iter_mut().zip(b.iter_mut()).zip(cos.iter().zip(sin)) {
            let (x, y, s) = (*a, *b, s * sign);
            *a = x * c - y * s;
            *b = y * c + x * s;
        }
    }

    /// Replaces a row of logits by the gradient of its loss, and returns the loss and, of it, the
    /// plain cross-entropy. With L = log Σ exp(logits) and V logits these are
    ///
    /// - scale · ((1 + 2zL) · softmax − (1 − s) · one-hot(target) − s / V),
    /// - L − (1 − s) · logits\[target\] − s · mean(logits) + z · L²,
    /// - L − logits\[target\].
    fn cross_entropy_row(logits: &mut [f32], target: usize, terms: RowTerms) -> (f32, f32) {
        let RowTerms { scale, smoothing, z } = terms;
        let at_target = logits[target];
        let share = 1.0 / logits.len() as f32;
        let RowSums { total, peak, plain } = exp_row(logits);
        let log_sum = total.ln() + peak;
        let nats = log_sum - at_target;
        let mut loss = nats;
        if smoothing > 0.0 {
            loss += smoothing * (at_target - plain * share);
        }
        if z > 0.0 {
            loss += z * log_sum * log_sum;
        }
        let factor = scale * (1.0 + 2.0 * z * log_sum) / total;
        let floor = scale * smoothing * share;
        for x in logits.iter_mut() {
            *x = *x * factor - floor;
        }
        logits[target] -= scale * (1.0 - smoothing);
        (loss, nats)
    }

    /// Replaces a row of logits by `scale · (softmax(logits) − softmax(teacher))` and returns the
    /// cross-entropy −Σ softmax(teacher) · log softmax(logits). The teacher's logits are spent.
    fn distillation_row(logits: &mut [f32], teacher: &mut [f32], scale: f32) -> f32 {
        let normal = 1.0 / exp_row(teacher).total;
        for x in teacher.iter_mut() {
            *x *= normal;
        }
        // Before the logits are overwritten: what the teacher expects of them.
        let expected = dot_lanes(teacher, logits);
        let RowSums { total, peak, .. } = exp_row(logits);
        let normal = 1.0 / total;
        for (x, p) in logits.iter_mut().zip(teacher.iter()) {
            *x = (*x * normal - p) * scale;
        }
        total.ln() + peak - expected
    }

    /// `sum += x`.
    fn add_row(sum: &mut [f32], x: &[f32]) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.4e-7, "exp({x}) is off by {error}");
        }
        assert!((exp(0.0) - 1.0).abs() < f32::EPSILON);
        assert!(exp(-1000.0) < 2e-38);
    }
}
