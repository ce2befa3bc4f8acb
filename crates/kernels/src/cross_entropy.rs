//! Cross-entropy of a linear layer's outputs, without keeping the logits.

use crate::buffers::{SharedRows, floats_mut, for_row_ranges, fusable, integers};
use crate::native::recording;
use crate::simd::{cross_entropy_row, distillation_row};
use crate::{Error, Result, custom_gradient};
use tch::{Kind, Reduction, Tensor, no_grad};

/// A target that counts nowhere.
pub const IGNORED: i64 = -100;

/// Logits held at a time: 4M values, 16 MB in float32.
const CHUNK_ELEMENTS: i64 = 1 << 22;

/// Mean over the tokens of −log softmax(hidden · weightᵀ) at the target.
///
/// `hidden`: `[tokens, dim]`, `weight`: `[vocab, dim]`, `targets`: `[tokens]` int64, where
/// [`IGNORED`] leaves a token out of sum and count. Returns a scalar. Logits exist for a chunk of
/// tokens at a time: both gradients, (softmax − one-hot) / count times weight and hidden, are
/// computed with the value and scaled by what arrives in the backward pass.
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
    let (tokens, dim) = hidden.size2()?;
    let (vocab, width) = weight.size2()?;
    if width != dim || targets.size() != [tokens] {
        return Err(Error::Shape {
            what: "weight and targets of a linear cross-entropy",
            expected: format!("[vocab, {dim}] and [{tokens}]"),
            found: format!("{:?} and {:?}", weight.size(), targets.size()),
        });
    }
    let counted = targets.f_ne(IGNORED)?;
    let used = targets.f_masked_select(&counted)?;
    let count = used.numel();
    if count > 0 {
        let (low, high) = (i64::try_from(used.min())?, i64::try_from(used.max())?);
        if low < 0 || high >= vocab {
            return Err(Error::Shape {
                what: "a target of a linear cross-entropy",
                expected: format!("0 to {}", vocab - 1),
                found: format!("{low} to {high}"),
            });
        }
    }
    let targets = targets.contiguous();
    let pass = Pass { scale: 1.0 / count.max(1) as f64, wants: Wants::of(hidden, weight) };
    pass.run(hidden, weight, |logits, start, len| {
        row_losses(logits, &targets.f_narrow(0, start, len)?, pass.scale)
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
    let (tokens, dim) = hidden.size2()?;
    let (_, width) = weight.size2()?;
    if width != dim || teacher.size() != [tokens, dim] {
        return Err(Error::Shape {
            what: "weight and teacher of a distillation",
            expected: format!("[vocab, {dim}] and [{tokens}, {dim}]"),
            found: format!("{:?} and {:?}", weight.size(), teacher.size()),
        });
    }
    let (teacher, transposed) = (teacher.detach(), weight.detach().f_transpose(0, 1)?);
    let pass = Pass { scale: 1.0 / tokens.max(1) as f64, wants: Wants::of(hidden, weight) };
    pass.run(hidden, weight, |logits, start, len| {
        let teacher = teacher.f_narrow(0, start, len)?.f_matmul(&transposed)?;
        row_distillations(logits, teacher, pass.scale)
    })
}

/// The gradients that are asked for.
#[derive(Clone, Copy)]
struct Wants {
    hidden: bool,
    weight: bool,
}

impl Wants {
    fn of(hidden: &Tensor, weight: &Tensor) -> Self {
        let recording = recording();
        Self {
            hidden: recording && hidden.requires_grad(),
            weight: recording && weight.requires_grad(),
        }
    }
}

#[derive(Clone, Copy)]
struct Pass {
    scale: f64,
    wants: Wants,
}

impl Pass {
    /// The loss, joined to the graph with the gradients that are wanted, chunk by chunk.
    ///
    /// `rows` makes of the logits of some tokens (and of where these start and how many there are)
    /// the sum of their losses and the gradient of the scaled sum by the logits.
    fn run(
        self,
        hidden: &Tensor,
        weight: &Tensor,
        rows: impl Fn(Tensor, i64, i64) -> Result<(Tensor, Tensor)>,
    ) -> Result<Tensor> {
        let (hidden_value, weight_value) = (hidden.detach(), weight.detach());
        let (loss, dhidden, dweight) = no_grad(|| self.chunks(&hidden_value, &weight_value, rows))?;
        if dhidden.is_none() && dweight.is_none() {
            return Ok(loss);
        }
        custom_gradient(&[hidden, weight], &[&loss], move |gradients| {
            let Some(g) = &gradients[0] else { return Ok(vec![None, None]) };
            let times = |d: &Option<Tensor>| d.as_ref().map(|d| d.f_mul(g)).transpose();
            Ok(vec![times(&dhidden)?, times(&dweight)?])
        })?;
        Ok(loss)
    }

    fn chunks(
        self,
        hidden: &Tensor,
        weight: &Tensor,
        rows: impl Fn(Tensor, i64, i64) -> Result<(Tensor, Tensor)>,
    ) -> Result<(Tensor, Option<Tensor>, Option<Tensor>)> {
        let (tokens, vocab) = (hidden.size2()?.0, weight.size2()?.0);
        let most = (CHUNK_ELEMENTS / vocab.max(1)).clamp(1, tokens.max(1));
        let mut total = Tensor::f_zeros([0i64; 0], (accumulator(hidden.kind()), hidden.device()))?;
        let dhidden = self.wants.hidden.then(|| Tensor::empty_like(hidden));
        let mut dweight: Option<Tensor> = None;
        for start in (0..tokens).step_by(most as usize) {
            let len = most.min(tokens - start);
            let chunk = hidden.f_narrow(0, start, len)?;
            let logits = chunk.f_matmul(&weight.f_transpose(0, 1)?)?;
            let (loss, dlogits) = rows(logits, start, len)?;
            total += loss;
            if let Some(dhidden) = &dhidden {
                dhidden.f_narrow(0, start, len)?.f_copy_(&dlogits.f_matmul(weight)?)?;
            }
            if self.wants.weight {
                let part = dlogits.f_transpose(0, 1)?.f_matmul(&chunk)?;
                dweight = Some(match dweight {
                    Some(mut sum) => sum.f_add_(&part)?,
                    None => part,
                });
            }
        }
        if self.wants.weight && dweight.is_none() {
            dweight = Some(Tensor::zeros_like(weight));
        }
        Ok((total * self.scale, dhidden, dweight))
    }
}

/// Sum of the losses of some tokens and the gradient of their scaled sum by the logits.
fn row_losses(mut logits: Tensor, targets: &Tensor, scale: f64) -> Result<(Tensor, Tensor)> {
    if !fusable(&[&logits]) {
        let log_probabilities = logits.f_log_softmax(-1, accumulator(logits.kind()))?;
        let loss =
            log_probabilities.f_nll_loss::<Tensor>(targets, None, Reduction::Sum, IGNORED)?;
        let counted = targets.f_ne(IGNORED)?.f_unsqueeze(1)?;
        let safe = targets.f_clamp_min(0)?.f_unsqueeze(1)?;
        let ones =
            Tensor::f_ones([safe.size()[0], 1], (log_probabilities.kind(), logits.device()))?;
        let gradient = log_probabilities.exp().f_scatter_add(1, &safe, &-ones)? * counted * scale;
        return Ok((loss, gradient.f_to_kind(logits.kind())?));
    }
    let width = logits.size2()?.1 as usize;
    let targets = integers(targets);
    let mut losses = vec![0f32; targets.len()];
    {
        let logits = SharedRows::new(floats_mut(&mut logits), width);
        let losses = SharedRows::new(&mut losses, 1);
        for_row_ranges(targets.len(), width, |_, range| {
            let (logits, losses) = (logits.range(&range), losses.range(&range));
            for (i, row) in range.enumerate() {
                let logits = &mut logits[i * width..][..width];
                if targets[row] == IGNORED {
                    logits.fill(0.0);
                } else {
                    losses[i] = cross_entropy_row(logits, targets[row] as usize, scale as f32);
                }
            }
        });
    }
    Ok((sum_of(&losses), logits))
}

/// As [`row_losses`], with the teacher's logits in place of targets.
fn row_distillations(
    mut logits: Tensor,
    mut teacher: Tensor,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    if !fusable(&[&logits, &teacher]) {
        let kind = accumulator(logits.kind());
        let expected = teacher.f_softmax(-1, kind)?;
        let log_probabilities = logits.f_log_softmax(-1, kind)?;
        let loss = -(&expected * &log_probabilities).f_sum(kind)?;
        let gradient = (log_probabilities.exp() - expected) * scale;
        return Ok((loss, gradient.f_to_kind(logits.kind())?));
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
    Ok((sum_of(&losses), logits))
}

fn sum_of(losses: &[f32]) -> Tensor {
    let sum: f64 = losses.iter().map(|&x| f64::from(x)).sum();
    Tensor::from(sum).to_kind(Kind::Float)
}

fn accumulator(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
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
    let logits = hidden.f_matmul(&weight.f_transpose(0, 1)?)?;
    Ok(logits.f_log_softmax(-1, accumulator(logits.kind()))?.f_nll_loss::<Tensor>(
        targets,
        None,
        Reduction::Mean,
        IGNORED,
    )?)
}
