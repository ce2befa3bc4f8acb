//! Compiles the C++ that reaches libtorch's c10d. The headers of Gloo, which the wheel leaves out,
//! are declared in `cpp/gloo` as far as c10d's own headers name them. With the feature `nccl` it needs
//! CUDA's headers and links libtorch's CUDA part.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=FORETOKEN_CUDA_INCLUDE");
    let library =
        PathBuf::from(std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch"));
    let root = library.parent().map_or_else(PathBuf::new, PathBuf::from);
    let nccl = std::env::var_os("CARGO_FEATURE_NCCL").is_some();
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").flag("-w").define("USE_C10D_GLOO", None).include("cpp");
    let torch = ["include", "include/torch/csrc/api/include"].map(|folder| root.join(folder));
    let cuda = if nccl { cuda_headers(&root) } else { Vec::new() };
    for folder in torch.iter().chain(&cuda) {
        build.flag("-isystem").flag(folder.to_string_lossy().as_ref());
    }
    if nccl {
        build.define("USE_C10D_NCCL", None).define("USE_CUDA", None);
    }
    build.file("cpp/c10d.cpp").compile("foretoken_c10d");
    println!("cargo:rustc-link-search=native={}", library.display());
    let cuda_part = if nccl { &["torch_cuda", "c10_cuda"][..] } else { &[] };
    for name in ["torch_cpu", "c10"].iter().chain(cuda_part) {
        println!("cargo:rustc-link-lib={name}");
    }
}

/// The folders of CUDA's and NCCL's headers: those of `FORETOKEN_CUDA_INCLUDE`, between colons, or
/// where set-up unpacks them.
fn cuda_headers(root: &Path) -> Vec<PathBuf> {
    let folders = match std::env::var_os("FORETOKEN_CUDA_INCLUDE") {
        Some(folders) => std::env::split_paths(&folders).collect(),
        None => vec![root.join("include/cuda"), root.join("include/cuda/cccl")],
    };
    for header in ["nccl.h", "cuda_runtime_api.h", "crt/host_defines.h", "nv/target"] {
        assert!(
            folders.iter().any(|folder| folder.join(header).is_file()),
            "the feature nccl needs {header}, which is not in {folders:?}: run `cargo xtask setup \
             --cuda`, or name the folders in FORETOKEN_CUDA_INCLUDE"
        );
    }
    folders
}
