//! The bridge to libtorch's autograd engine and thread pool.
#![allow(unsafe_code)]

use crate::{Error, Result};
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use tch::Tensor;
use torch_sys::C_tensor;

type BackwardFn = extern "C" fn(*mut c_void, *mut *mut C_tensor, *mut *mut C_tensor) -> bool;

unsafe extern "C" {
    fn foretoken_attach(
        inputs: *mut *mut C_tensor,
        input_count: usize,
        outputs: *mut *mut C_tensor,
        output_count: usize,
        backward: BackwardFn,
        drop: extern "C" fn(*mut c_void),
        closure: *mut c_void,
    ) -> *mut c_char;
    fn foretoken_backward(output: *mut C_tensor, gradient: *mut C_tensor) -> *mut c_char;
    fn foretoken_parallel(
        tasks: i64,
        body: extern "C" fn(*mut c_void, i64),
        data: *mut c_void,
    ) -> *mut c_char;
    fn foretoken_allow_tf32(allow: bool) -> *mut c_char;
    fn foretoken_allow_cudnn_attention(allow: bool) -> *mut c_char;
    fn foretoken_tf32_allowed() -> bool;
    fn foretoken_recording() -> bool;
    fn foretoken_free(message: *mut c_char);
}

/// From the outputs' gradients (`None` where none arrived) to the inputs' (`None` for none).
type Gradient = dyn Fn(&[Option<Tensor>]) -> Result<Vec<Option<Tensor>>>;

struct Closure {
    gradient: Box<Gradient>,
    inputs: usize,
    outputs: usize,
}

/// Gives `outputs`, computed from `inputs` without a graph, a gradient written in Rust.
///
/// `gradient` runs once, during the backward pass, with gradients disabled; what it captured is
/// freed right after. Nothing is recorded where no input requires a gradient.
///
/// # Errors
/// When libtorch refuses the graph edge, for instance because an output is a leaf.
///
/// ```
/// use foretoken_kernels::custom_gradient;
/// use tch::{Tensor, no_grad};
///
/// let x = Tensor::from_slice(&[3.0f64]).set_requires_grad(true);
/// let square = no_grad(|| &x * &x);
/// let saved = x.detach();
/// custom_gradient(&[&x], &[&square], move |gradients| {
///     Ok(vec![gradients[0].as_ref().map(|g| g * 2.0 * &saved)])
/// })?;
/// square.backward();
/// assert_eq!(x.grad().double_value(&[0]), 6.0);
/// # Ok::<(), foretoken_kernels::Error>(())
/// ```
pub fn custom_gradient(
    inputs: &[&Tensor],
    outputs: &[&Tensor],
    gradient: impl Fn(&[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> + 'static,
) -> Result<()> {
    let pointers =
        |tensors: &[&Tensor]| tensors.iter().map(|t| t.as_ptr().cast_mut()).collect::<Vec<_>>();
    let (mut ins, mut outs) = (pointers(inputs), pointers(outputs));
    let closure = Box::new(Closure {
        gradient: Box::new(gradient),
        inputs: inputs.len(),
        outputs: outputs.len(),
    });
    // SAFETY: the pointers are live tensors for the whole call; libtorch takes the closure over
    // and hands it back to `drop_closure` exactly once.
    check(unsafe {
        foretoken_attach(
            ins.as_mut_ptr(),
            ins.len(),
            outs.as_mut_ptr(),
            outs.len(),
            run_gradient,
            drop_closure,
            Box::into_raw(closure).cast(),
        )
    })
}

extern "C" fn drop_closure(closure: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `custom_gradient`, given back once.
    drop(unsafe { Box::from_raw(closure.cast::<Closure>()) });
}

extern "C" fn run_gradient(
    closure: *mut c_void,
    gradients: *mut *mut C_tensor,
    results: *mut *mut C_tensor,
) -> bool {
    // SAFETY: libtorch passes the closure of `custom_gradient` and arrays of its two lengths;
    // each non-null gradient is a live tensor, of which we take a counted reference.
    let (closure, gradients, results) = unsafe {
        let closure = &*closure.cast::<Closure>();
        let gradients = std::slice::from_raw_parts(gradients, closure.outputs)
            .iter()
            .map(|&g| (!g.is_null()).then(|| Tensor::clone_from_ptr(g)))
            .collect::<Vec<_>>();
        (closure, gradients, std::slice::from_raw_parts_mut(results, closure.inputs))
    };
    let Ok(Ok(values)) = catch_unwind(AssertUnwindSafe(|| (closure.gradient)(&gradients))) else {
        return false;
    };
    if values.len() != results.len() {
        return false;
    }
    for (slot, value) in results.iter_mut().zip(values) {
        if let Some(mut tensor) = value {
            *slot = tensor.as_mut_ptr();
            // The C++ side moves the tensor out and deletes the handle.
            std::mem::forget(tensor);
        }
    }
    true
}

/// Runs the backward pass from `output` with `gradient` as its gradient, both of one shape.
///
/// # Errors
/// When the shapes differ, when `output` has no graph, or when a gradient on the way failed.
pub fn backward_from(output: &Tensor, gradient: &Tensor) -> Result<()> {
    // SAFETY: both are live tensors for the whole call.
    check(unsafe { foretoken_backward(output.as_ptr().cast_mut(), gradient.as_ptr().cast_mut()) })
}

/// Lets NVIDIA GPUs multiply float32 matrices in TF32, for the whole process: operands are rounded
/// to 10 bits behind the point, sums stay in float32. Other devices pay no attention to it.
///
/// # Errors
/// When libtorch refuses.
///
/// ```
/// foretoken_kernels::allow_tf32(true)?;
/// assert!(foretoken_kernels::tf32_allowed());
/// foretoken_kernels::allow_tf32(false)?;
/// assert!(!foretoken_kernels::tf32_allowed());
/// # Ok::<(), foretoken_kernels::Error>(())
/// ```
pub fn allow_tf32(allow: bool) -> Result<()> {
    // SAFETY: sets a flag of libtorch's.
    check(unsafe { foretoken_allow_tf32(allow) })
}

/// Lets libtorch take cuDNN's attention on NVIDIA GPUs, as it does of itself on the newer ones in half
/// precisions; without, it takes its own. For each number of keys cuDNN makes a new plan, which takes
/// longer than many passes, and decoding has another number at every token.
///
/// # Errors
/// When libtorch refuses.
///
/// ```
/// foretoken_kernels::allow_cudnn_attention(false)?;
/// # Ok::<(), foretoken_kernels::Error>(())
/// ```
pub fn allow_cudnn_attention(allow: bool) -> Result<()> {
    // SAFETY: sets a flag of libtorch's.
    check(unsafe { foretoken_allow_cudnn_attention(allow) })
}

/// Whether float32 matrices may be multiplied in TF32 ([`allow_tf32`]).
pub fn tf32_allowed() -> bool {
    // SAFETY: reads a flag of libtorch's.
    unsafe { foretoken_tf32_allowed() }
}

/// Whether this thread records a graph, that is, not under `no_grad`.
pub(crate) fn recording() -> bool {
    // SAFETY: reads a thread-local flag.
    unsafe { foretoken_recording() }
}

/// Runs `body(task)` for each task on libtorch's own threads, so that no second pool competes
/// with its spinning workers.
pub(crate) fn parallel(tasks: usize, body: impl Fn(usize) + Sync) {
    extern "C" fn call<F: Fn(usize)>(data: *mut c_void, task: i64) {
        // SAFETY: `data` is the `&F` below, alive until `foretoken_parallel` returns.
        unsafe { (*data.cast::<F>())(task as usize) }
    }
    fn run<F: Fn(usize) + Sync>(tasks: usize, body: &F) {
        let data = std::ptr::from_ref(body).cast_mut().cast();
        // SAFETY: `call::<F>` matches the data; bodies do not unwind (a panic in `extern "C"` aborts).
        let failed = check(unsafe { foretoken_parallel(tasks as i64, call::<F>, data) });
        // Who called it may not go on with what was not computed.
        assert!(failed.is_ok(), "libtorch ran no threads: {failed:?}");
    }
    match tasks {
        0 => {}
        1 => body(0),
        _ => run(tasks, &body),
    }
}

/// Runs `body` for each of `parts`, which are its alone, on libtorch's own threads.
pub(crate) fn for_each<P: Send>(parts: impl Iterator<Item = P>, body: impl Fn(P) + Sync) {
    let parts: Vec<_> = parts.map(|part| Mutex::new(Some(part))).collect();
    parallel(parts.len(), |task| {
        let part = parts[task].lock().ok().and_then(|mut part| part.take());
        part.into_iter().for_each(&body);
    });
}

fn check(message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null message is a C string that libtorch's side allocated for us.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        foretoken_free(message);
        text
    };
    Err(Error::Native(text.lines().next().unwrap_or_default().to_owned()))
}
