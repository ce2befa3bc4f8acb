//! Process groups: PyTorch's own c10d behind a small safe interface, without Python.
//!
//! A launcher (torchrun, `srun`, Kubernetes' `PyTorchJob`, `cargo xtask launch`) starts one program
//! several times and tells each process its place by environment variables. The processes meet in a
//! key-value store, connect with each other through Gloo, and compute together from then on. Both
//! are libtorch's, so a group behaves as PyTorch's do.
//!
//! - [`Environment`]: which rank this is, of how many, and where they meet;
//!   [`detect`](Environment::detect) reads it and returns `None` in a plain process.
//! - [`ProcessGroup`]: [`connect`](ProcessGroup::connect), then broadcast, sum, gather, wait. Sums
//!   are the same bits on every rank and in every run.
//! - [`Work`]: a collective under way, such as [`all_reduce_async`](ProcessGroup::all_reduce_async)
//!   returns.
//! - [`Buckets`]: a flat gradient that is averaged in pieces while the backward pass goes on, to all
//!   ranks or each part to its [owner](Destination::Owner).
//! - [`Limits`] and [`Failure`]: each rank has a heartbeat. One that dies, hangs or leaves ends the
//!   others within the limits, and all of them name it: "rank 3 of 4 has not been heard of for
//!   30 s".
//!
//! Tensors are in the CPU's memory; with the feature `nccl` and
//! [`connect_gpus`](ProcessGroup::connect_gpus) they may be in a GPU's. A program that several
//! processes run looks like this; here with a group of one:
//!
//! ```
//! use std::time::Duration;
//! use foretoken_dist::{Environment, ProcessGroup};
//! use tch::Tensor;
//!
//! # let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
//! let place = match Environment::detect()? {
//!     Some(place) => place,
//!     None => Environment::new(0, 1, "127.0.0.1", port),
//! };
//! let group = ProcessGroup::connect(&place, Duration::from_secs(30))?;
//! let sum = Tensor::from_slice(&[1.0, 2.0]);
//! group.all_reduce(&sum)?;
//! assert_eq!(sum.double_value(&[1]), 2.0 * group.size() as f64);
//! group.barrier()?; // before the end, so that no rank goes while another needs it
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod buckets;
mod environment;
mod error;
mod failure;
mod group;
mod limits;
mod native;
mod rendezvous;
mod slurm;
mod watch;
mod work;

pub use buckets::{Buckets, Destination};
pub use environment::{Environment, StoreHost};
pub use error::{Error, Result};
pub use failure::Failure;
pub use group::ProcessGroup;
pub use limits::Limits;
pub use slurm::first_host;
pub use work::Work;
