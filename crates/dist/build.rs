//! Compiles the C++ that reaches libtorch's c10d. The headers of Gloo, which the wheel leaves out,
//! are declared in `cpp/gloo` as far as c10d's own headers name them.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    let library =
        PathBuf::from(std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch"));
    let root = library.parent().map_or_else(PathBuf::new, PathBuf::from);
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").flag("-w").define("USE_C10D_GLOO", None).include("cpp");
    for folder in ["include", "include/torch/csrc/api/include"] {
        build.flag("-isystem").flag(root.join(folder).to_string_lossy().as_ref());
    }
    build.file("cpp/c10d.cpp").compile("foretoken_c10d");
    println!("cargo:rustc-link-search=native={}", library.display());
    for name in ["torch_cpu", "c10"] {
        println!("cargo:rustc-link-lib={name}");
    }
}
