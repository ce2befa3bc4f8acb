//! Compiles the few lines of C++ that reach what libtorch offers only there: autograd nodes and
//! its thread pool.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=cpp/native.cpp");
    let library =
        PathBuf::from(std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch"));
    let root = library.parent().map_or_else(PathBuf::new, PathBuf::from);
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").flag("-fopenmp").flag("-w");
    for folder in ["include", "include/torch/csrc/api/include"] {
        build.flag("-isystem").flag(root.join(folder).to_string_lossy().as_ref());
    }
    build.file("cpp/native.cpp").compile("foretoken_native");
    println!("cargo:rustc-link-search=native={}", library.display());
    for name in ["torch_cpu", "c10", "gomp"] {
        println!("cargo:rustc-link-lib={name}");
    }
}
