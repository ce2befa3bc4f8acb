//! Ctrl-C: the first one asks to save and stop, the second one ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// Exit code of a program that was ended by an interrupt, as shells have it.
const INTERRUPTED: i32 = 130;

#[allow(unsafe_code)]
// SAFETY: the C library's function of this name and type; it touches no memory of ours.
unsafe extern "C" {
    /// Ends the process at once. `std::process::exit` would tear down libtorch's globals while its
    /// threads still compute with them.
    safe fn _exit(code: std::ffi::c_int) -> !;
}

/// A flag that Ctrl-C (or a request to terminate) sets.
pub(crate) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            _exit(INTERRUPTED);
        }
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(stop)
}
