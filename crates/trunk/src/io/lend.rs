//! Tensors as they lie in a file, and their numbers as bytes.

use crate::Result;
use tch::{Device, Kind, Tensor};

/// Lends `bytes`, the numbers of a tensor in order, as that tensor, without a copy where they are
/// aligned. `None` where they are not the bytes of such a tensor.
#[allow(unsafe_code)]
pub(crate) fn lend<R>(
    bytes: &[u8],
    shape: &[i64],
    kind: Kind,
    use_it: impl FnOnce(&Tensor) -> Result<R>,
) -> Option<Result<R>> {
    if Some(bytes.len()) != byte_size(shape, kind) {
        return None;
    }
    let aligned = bytes.as_ptr().addr().is_multiple_of(kind.elt_size_in_bytes());
    let tensor = if bytes.is_empty() || !aligned {
        Tensor::f_from_data_size(bytes, shape, kind)
    } else {
        // SAFETY: the bytes are exactly the tensor's and outlive it, as `use_it` gets a reference;
        // nobody writes to a shared slice, and `use_it` only reads.
        unsafe { Tensor::f_from_blob(bytes.as_ptr(), shape, &strides(shape), kind, Device::Cpu) }
    };
    Some(tensor.map_err(crate::Error::from).and_then(|tensor| use_it(&tensor)))
}

/// Bytes of a tensor; `None` where they are too many to count.
pub(crate) fn byte_size(shape: &[i64], kind: Kind) -> Option<usize> {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))?;
    count.checked_mul(kind.elt_size_in_bytes())
}

/// Strides of numbers that lie in order. The shape is one that [`byte_size`] has a value for.
pub(crate) fn strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// A tensor's numbers in order, as this machine has them in memory.
///
/// # Errors
/// When libtorch fails, for lack of memory for one.
pub fn tensor_bytes(tensor: &Tensor) -> std::result::Result<Vec<u8>, tch::TchError> {
    let tensor = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}
