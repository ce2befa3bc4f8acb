//! Tensors as slices: the fused CPU paths read and write libtorch's memory directly.
#![allow(unsafe_code)]

use crate::native::parallel;
use std::marker::PhantomData;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Whether the fused paths may take these tensors: float32, on the CPU.
pub(crate) fn fusable(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.kind() == Kind::Float && t.device() == Device::Cpu)
}

/// Whether a tensor is in half precision on the CPU: the fused paths take it in float32 then, and
/// what leaves them is rounded once.
pub(crate) fn half_on_cpu(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && matches!(tensor.kind(), Kind::BFloat16 | Kind::Half)
}

/// The format that sums over numbers of `kind` are kept in: float64, else float32.
pub fn accumulator(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// The elements of a contiguous float32 CPU tensor, for which `fusable` holds.
pub(crate) fn floats(tensor: &Tensor) -> &[f32] {
    assert!(fusable(&[tensor]) && tensor.is_contiguous(), "a contiguous float32 CPU tensor");
    // SAFETY: kind, device and layout were just checked; the borrow keeps the storage alive.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
}

/// As [`floats`], to write. The tensor must be fresh: nothing else may hold its storage.
pub(crate) fn floats_mut(tensor: &mut Tensor) -> &mut [f32] {
    assert!(fusable(&[tensor]) && tensor.is_contiguous(), "a contiguous float32 CPU tensor");
    // SAFETY: as in `floats`; callers pass tensors that they have just made.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
}

/// The elements of a contiguous int64 CPU tensor.
pub(crate) fn integers(tensor: &Tensor) -> &[i64] {
    assert!(
        tensor.kind() == Kind::Int64 && tensor.device() == Device::Cpu && tensor.is_contiguous(),
        "a contiguous int64 CPU tensor"
    );
    // SAFETY: kind, device and layout were just checked; the borrow keeps the storage alive.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<i64>(), tensor.numel()) }
}

/// Rows of a mutable buffer that tasks write side by side, each its own range.
pub(crate) struct SharedRows<'a> {
    data: *mut f32,
    width: usize,
    rows: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: `range` hands out disjoint ranges when each task asks for its own, which
// `for_row_ranges` ensures: it gives every row to exactly one task.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    pub(crate) fn new(data: &'a mut [f32], width: usize) -> Self {
        let rows = data.len() / width.max(1);
        Self { data: data.as_mut_ptr(), width, rows, lifetime: PhantomData }
    }

    /// The rows of `range`, which must be the calling task's own.
    #[allow(clippy::mut_from_ref)]
    pub(crate) fn range(&self, range: &Range<usize>) -> &mut [f32] {
        assert!(range.end <= self.rows && range.start <= range.end, "rows inside the buffer");
        // SAFETY: in bounds by the assertion; disjoint between tasks by the type's contract.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.data.add(range.start * self.width),
                range.len() * self.width,
            )
        }
    }
}

/// Elements below which a second thread costs more than it saves.
const SERIAL_ELEMENTS: usize = 16 * 1024;
/// Tasks a large operation is cut into: fixed, so that sums do not depend on the thread count.
pub(crate) const TASKS: usize = 8;

/// Cuts `rows` rows of `width` elements into ranges and runs `body(task, range)` for each on
/// libtorch's threads. The cut depends on the sizes alone.
pub(crate) fn for_row_ranges(rows: usize, width: usize, body: impl Fn(usize, Range<usize>) + Sync) {
    let tasks = if rows * width < SERIAL_ELEMENTS { 1 } else { TASKS.min(rows) };
    let per_task = rows.div_ceil(tasks.max(1));
    parallel(tasks, |task| {
        let range = (task * per_task).min(rows)..((task + 1) * per_task).min(rows);
        if !range.is_empty() {
            body(task, range);
        }
    });
}
