//! CUDA for a binary that is linked against libtorch's CPU part alone.
//!
//! libtorch's CUDA part registers itself when it is loaded. It has to be there before anything asks
//! for CUDA, because libtorch remembers the first answer.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use foretoken_kernels::{allow_cudnn_attention, allow_tf32};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

const CUDA_PART: &str = "libtorch_cuda.so";
/// The version that both parts have to be of.
const VERSION: &str = "2.11.0";

/// Loads libtorch's CUDA part, from `FORETOKEN_TORCH_LIB`, `LIBTORCH`, or the `torch` that
/// `python3` has, unless it is linked; then, for the whole process, float32 is multiplied as such
/// until a recipe asks for TF32, and attention is libtorch's own.
pub(crate) fn load() -> anyhow::Result<()> {
    if cfg!(feature = "nccl") {
        ensure!(
            tch::Cuda::is_available(),
            "--device cuda: libtorch finds no GPU; see what nvidia-smi says"
        );
    } else {
        load_part()?;
    }
    // Whatever the environment says.
    allow_tf32(false)?;
    Ok(allow_cudnn_attention(false)?)
}

fn load_part() -> anyhow::Result<()> {
    let Some(folder) = places().into_iter().find(|folder| folder.join(CUDA_PART).is_file()) else {
        bail!(
            "--device cuda: {CUDA_PART} of libtorch {VERSION} was not found; point \
             FORETOKEN_TORCH_LIB at its folder (`torch/lib` of an installed PyTorch {VERSION}), \
             fetch it by `cargo xtask setup --cuda`, or leave the option out"
        );
    };
    check_version(&folder)?;
    let path = folder.join(CUDA_PART);
    // The library names what it needs by its own rpath; it stays loaded as long as we run.
    std::mem::forget(open(&path)?);
    ensure!(
        tch::Cuda::is_available(),
        "--device cuda: {} was loaded, but it finds no GPU; see what nvidia-smi says",
        path.display()
    );
    Ok(())
}

#[allow(unsafe_code)]
fn open(path: &Path) -> anyhow::Result<Library> {
    // SAFETY: running the library's initialisers is what this is for; it is libtorch's own, of the
    // version that this program is linked against.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
        .with_context(|| format!("--device cuda: cannot load {}", path.display()))
}

fn places() -> Vec<PathBuf> {
    let own = std::env::var_os("FORETOKEN_TORCH_LIB").map(PathBuf::from);
    let libtorch = std::env::var_os("LIBTORCH").map(|root| Path::new(&root).join("lib"));
    own.into_iter().chain(libtorch).chain(linked()).chain(python()).collect()
}

/// The folder of the CPU part, which is loaded already.
fn linked() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().find_map(|line| {
        let path = &line[line.find('/')?..];
        path.ends_with("/libtorch_cpu.so").then_some(path)
    })?;
    Path::new(path).parent().map(Path::to_path_buf)
}

/// Where `python3` has its `torch`, without importing it.
fn python() -> Option<PathBuf> {
    const FIND: &str =
        "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";
    let output = Command::new("python3")
        .args(["-c", FIND])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let root = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| Path::new(root.trim()).join("lib"))
}

/// Refuses a library of another version, as far as what lies beside it says: `version.py` of a
/// PyTorch, `build-version` of a libtorch.
fn check_version(folder: &Path) -> anyhow::Result<()> {
    let root = folder.parent().unwrap_or(folder);
    let found = ["version.py", "build-version"]
        .iter()
        .find_map(|name| std::fs::read_to_string(root.join(name)).ok());
    match found {
        Some(text) if !text.contains(VERSION) => bail!(
            "--device cuda: {} is of another version than {VERSION}, the one that this program is \
             linked against",
            folder.join(CUDA_PART).display()
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_refused_and_the_own_one_taken() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("lib");
        std::fs::create_dir(&lib).unwrap();
        assert!(check_version(&lib).is_ok());
        for (version, fits) in [("__version__ = '2.11.0+cu130'", true), ("2.10.1", false)] {
            std::fs::write(root.path().join("version.py"), version).unwrap();
            assert_eq!(check_version(&lib).is_ok(), fits);
        }
    }

    #[test]
    fn the_cpu_part_is_found_where_it_was_loaded_from() {
        assert!(linked().unwrap().join("libtorch_cpu.so").is_file());
    }

    #[test]
    fn something_that_is_no_library_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CUDA_PART);
        std::fs::write(&path, "no library").unwrap();
        assert!(open(&path).unwrap_err().to_string().contains(CUDA_PART));
    }
}
