//! What tells one next-token model from another.

use crate::files::named;
use crate::{MultiTokenModel, Result};
use foretoken_trunk::io::tensor_bytes;
use foretoken_trunk::{Error as TrunkError, Parameter};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::thread::{Builder, JoinHandle};
use tch::{Kind, Tensor};

impl MultiTokenModel {
    /// SHA-256 over the stock part's tensors in their fixed order: names, shapes and numbers in
    /// float32. The same for a GGUF file and for the folder that it was imported to.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn stock_sha256(&self) -> Result<String> {
        let mut hash = Sha256::new();
        add(&mut hash, named(&self.stock_parameters())?)?;
        Ok(format!("{:x}", hash.finalize()))
    }
}

/// [`MultiTokenModel::stock_sha256`] of tensors that come one after the other, in its order. It is
/// computed on a thread of its own, while something else is done with them.
#[derive(Debug, Default)]
pub(crate) struct Fingerprint {
    running: Option<JoinHandle<Result<Sha256>>>,
}

impl Fingerprint {
    /// Adds the next tensors, which came from `path`.
    pub(crate) fn add(&mut self, parameters: &[Parameter], path: &Path) -> Result<()> {
        let tensors = named(parameters)?;
        let mut hash = self.so_far()?;
        let added = Builder::new().spawn(move || add(&mut hash, tensors).map(|()| hash));
        self.running = Some(added.map_err(|source| TrunkError::io(path, source))?);
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<String> {
        Ok(format!("{:x}", self.so_far()?.finalize()))
    }

    fn so_far(&mut self) -> Result<Sha256> {
        match self.running.take().map(JoinHandle::join) {
            None => Ok(Sha256::new()),
            Some(Ok(hash)) => hash,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Fingerprint {
    /// A process must not end while one of its threads is in libtorch.
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            drop(running.join());
        }
    }
}

/// Numbers that become bytes at a time.
const PART: i64 = 1 << 18;

fn add(hash: &mut Sha256, tensors: Vec<(String, Tensor)>) -> Result<()> {
    for (name, tensor) in tensors {
        hash.update(format!("{name} {:?}\n", tensor.size()));
        let numbers = tensor.numel() as i64;
        let flat = tensor.f_reshape([-1])?;
        for start in (0..numbers).step_by(PART as usize) {
            let part = flat.f_narrow(0, start, PART.min(numbers - start))?;
            hash.update(tensor_bytes(&part.f_to_kind(Kind::Float)?)?);
        }
    }
    Ok(())
}
