//! Devices and threads by name.

use anyhow::bail;
use tch::Device;

use crate::arguments::DeviceName;
use crate::cuda;
use crate::failure::usage;

/// The device of that name; of several GPUs the first.
pub(crate) fn device(name: DeviceName) -> anyhow::Result<Device> {
    device_of(name, 0)
}

/// As [`device`], for the process of that place among those on this machine: each takes a GPU of its
/// own, or the one that its launcher shows it.
pub(crate) fn device_of(name: DeviceName, local_rank: usize) -> anyhow::Result<Device> {
    match name {
        DeviceName::Cpu => Ok(Device::Cpu),
        DeviceName::Cuda => {
            cuda::load()?;
            // A launcher that shows each process a GPU of its own says so by this variable.
            let own = std::env::var_os("CUDA_VISIBLE_DEVICES").is_some();
            match usize::try_from(tch::Cuda::device_count()).unwrap_or_default() {
                1 if own => Ok(Device::Cuda(0)),
                gpus if local_rank < gpus => Ok(Device::Cuda(local_rank)),
                gpus => bail!(
                    "--device cuda: process {local_rank} of this machine has no GPU, there are \
                     {gpus}: start as many processes as GPUs"
                ),
            }
        }
    }
}

/// Sets the threads of libtorch, and with them those of decoding.
pub(crate) fn set_threads(threads: Option<usize>) -> anyhow::Result<()> {
    match threads {
        None => Ok(()),
        Some(threads) if (1..=1024).contains(&threads) => {
            tch::set_num_threads(threads as i32);
            Ok(())
        }
        Some(threads) => usage(format!("--threads {threads}: give 1 to 1024")),
    }
}
