//! What can go wrong between processes, each in one line.

use crate::Failure;

/// An error of this layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused an operation on a tensor.
    #[error("libtorch: {}", .0.to_string().lines().next().unwrap_or_default())]
    Torch(#[from] tch::TchError),
    /// Some variables that tell a process its place are set, and others are missing.
    #[error("`{missing}` is not set, but `{set}` is: set {all}, as the launcher does, or none")]
    MissingVariable {
        /// The variable that is missing.
        missing: &'static str,
        /// One that is set.
        set: &'static str,
        /// All that belong together.
        all: &'static str,
    },
    /// A variable has a value that can't be.
    #[error("`{name}` is `{value}`: expected {expected}")]
    BadVariable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        expected: String,
    },
    /// Rank 0 can't serve the store because something else listens there.
    #[error(
        "port {port} is in use on this machine: choose another MASTER_PORT, or end what uses it"
    )]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// The store doesn't answer.
    #[error("{server} does not answer at {address} within {seconds} s: {message}")]
    Unreachable {
        /// Who should serve it.
        server: String,
        /// Where it should be, as `host:port`.
        address: String,
        /// The time given, in seconds.
        seconds: u64,
        /// What was tried, or what the network said.
        message: String,
    },
    /// GPUs of several processes, without NCCL.
    #[error(
        "GPUs of several processes need NCCL, which this program is built without: build it with \
         `--features nccl` (docs/training.md says how), or train on the CPU"
    )]
    NoNccl,
    /// NCCL can't take this rank's GPU.
    #[error("rank {rank} cannot connect its GPU {gpu} with the others: {message}")]
    ConnectGpu {
        /// This rank.
        rank: usize,
        /// The GPU, from 0.
        gpu: usize,
        /// What NCCL said.
        message: String,
    },
    /// The store answered, but Gloo can't connect the ranks with each other.
    #[error(
        "rank {rank} cannot connect with the others: {message} (GLOO_SOCKET_IFNAME names the \
         network interface that the ranks share)"
    )]
    Connect {
        /// This rank.
        rank: usize,
        /// What Gloo said.
        message: String,
    },
    /// A rank, or the way to it, failed: this one or another.
    #[error(transparent)]
    Rank(#[from] Failure),
    /// A collective failed, and no other rank is known to be the reason.
    #[error("{collective} failed on rank {rank}: {message}")]
    Collective {
        /// The collective.
        collective: &'static str,
        /// This rank.
        rank: usize,
        /// What libtorch said.
        message: String,
    },
    /// A tensor that can't be sent as it is.
    #[error("{collective}: the tensor {problem}")]
    Tensor {
        /// The collective.
        collective: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A place or a count that isn't in the group.
    #[error("{what} is {found}: expected {expected}")]
    Argument {
        /// The argument.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// The system gave no thread for the heartbeat.
    #[error("cannot start the thread that watches the other ranks: {0}")]
    Thread(std::io::Error),
}

/// A result of this layer.
pub type Result<T> = std::result::Result<T, Error>;
