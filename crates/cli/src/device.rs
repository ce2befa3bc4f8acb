//! Devices and threads by name.

use tch::Device;

use crate::arguments::DeviceName;
use crate::cuda;
use crate::failure::usage;

/// The device of that name.
pub(crate) fn device(name: DeviceName) -> anyhow::Result<Device> {
    match name {
        DeviceName::Cpu => Ok(Device::Cpu),
        DeviceName::Cuda => {
            cuda::load()?;
            Ok(Device::Cuda(0))
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
