//! What a run was made on.

use std::process::Command;

use tch::Device;

use crate::results::Machine;

/// The processor, its threads and, if one is used, the GPU.
pub(crate) fn machine(device: Device) -> Machine {
    Machine {
        cpu: cpu(),
        threads: tch::get_num_threads().max(1) as usize,
        gpu: device.is_cuda().then(gpu),
    }
}

fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(|| "a CPU".to_owned(), |(_, name)| name.trim().to_owned())
}

fn gpu() -> String {
    let output =
        Command::new("nvidia-smi").args(["--query-gpu=name", "--format=csv,noheader"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok()
        .and_then(|text| text.lines().next().map(|name| name.trim().to_owned()))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "a CUDA GPU".to_owned())
}

/// `cpu` or `cuda`, as the report and the command line call it.
pub(crate) fn device_name(device: Device) -> &'static str {
    if device.is_cuda() { "cuda" } else { "cpu" }
}
