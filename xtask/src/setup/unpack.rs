//! Which files of the wheels go where, and how they get there.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

use crate::process;

/// The libraries of the torch wheel that a CPU build needs.
const CPU_LIBRARIES: [&str; 3] = ["libtorch_cpu.so", "libc10.so", "libgomp.so.1"];

/// What is taken from a wheel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Selection {
    /// `torch/include/**` and the CPU libraries, as `include/` and `lib/`.
    TorchCpu,
    /// `torch/include/**` and every library, as `include/` and `lib/`.
    TorchCuda,
    /// Every shared library of NVIDIA's, as `lib/`, and every header, as `include/cuda/`.
    Nvidia,
    /// The one shared library of this name, as `lib/`.
    Library(&'static str),
    /// Every `.py` file at its own path.
    PythonFiles,
    /// The one file of this name, wherever it is.
    File(&'static str),
}

impl Selection {
    /// Where a file of the wheel goes below the destination, or nothing if it is not taken.
    fn place(self, name: &Path) -> Option<PathBuf> {
        let file_name = name.file_name()?.to_str()?;
        let library = |wanted: bool| wanted.then(|| Path::new("lib").join(file_name));
        match self {
            Self::TorchCpu | Self::TorchCuda => {
                if let Ok(rest) = name.strip_prefix("torch/include") {
                    return Some(Path::new("include").join(rest));
                }
                let in_lib = name.parent() == Some(Path::new("torch/lib"));
                let all = matches!(self, Self::TorchCuda) && is_library(file_name);
                library(in_lib && (all || CPU_LIBRARIES.contains(&file_name)))
            }
            Self::Nvidia => {
                let mut folders = name.components();
                let header = folders.any(|folder| folder.as_os_str() == "include");
                match header {
                    true => Some(Path::new("include/cuda").join(folders.as_path())),
                    false => library(is_library(file_name)),
                }
            }
            Self::Library(wanted) => library(file_name == wanted),
            Self::PythonFiles => name
                .extension()
                .is_some_and(|extension| extension == "py")
                .then(|| name.to_path_buf()),
            Self::File(wanted) => (file_name == wanted).then(|| PathBuf::from(file_name)),
        }
    }
}

fn is_library(file_name: &str) -> bool {
    Path::new(file_name).extension().is_some_and(|extension| extension == "so")
        || file_name.contains(".so.")
}

/// Writes the selected files of `wheel` below `destination` and returns their number.
pub(crate) fn unpack(wheel: &Path, selection: Selection, destination: &Path) -> Result<usize> {
    let file = File::open(wheel).with_context(|| format!("cannot read {}", wheel.display()))?;
    let mut archive = ZipArchive::new(io::BufReader::new(file))
        .with_context(|| format!("{} is not a wheel", wheel.display()))?;
    let mut count = 0;
    for index in 0..archive.len() {
        let mut entry = archive
            .by_index(index)
            .with_context(|| format!("cannot read entry {index} of {}", wheel.display()))?;
        let Some(name) = entry.enclosed_name().filter(|_| entry.is_file()) else { continue };
        let Some(place) = selection.place(&name) else { continue };
        let path = destination.join(place);
        write(&mut entry, &path).map_err(|error| match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                anyhow::anyhow!("the disk is full: cannot unpack {}", path.display())
            }
            _ => anyhow::Error::new(error).context(format!(
                "cannot unpack {} to {}",
                name.display(),
                path.display()
            )),
        })?;
        count += 1;
    }
    if count == 0 {
        bail!("{} holds none of the files that set-up takes from it", wheel.display());
    }
    Ok(count)
}

fn write(entry: &mut impl io::Read, path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    io::copy(entry, &mut File::create(path)?).map(|_| ())
}

/// Makes the empty `libtorch.so` that `-ltorch` asks for; the code is in `libtorch_cpu.so`.
pub(crate) fn empty_libtorch(library_folder: &Path) -> Result<()> {
    let Some(compiler) = c_compiler() else {
        bail!(
            "no C compiler: set-up and the build need `cc` and `c++` (Debian, Ubuntu: apt-get install g++)"
        );
    };
    let output = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-x", "c", "/dev/null", "-Wl,-soname,libtorch.so", "-o"])
        .arg(library_folder.join("libtorch.so"))
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {compiler}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{compiler} could not make an empty shared library: {}",
            text.lines().next().unwrap_or("it printed nothing")
        );
    }
    Ok(())
}

fn c_compiler() -> Option<String> {
    let own = std::env::var("CC").ok().filter(|name| !name.trim().is_empty());
    own.into_iter()
        .chain(["cc".to_owned(), "gcc".to_owned(), "clang".to_owned()])
        .find(|name| process::exists(name))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;

    use super::*;

    fn place(selection: Selection, name: &str) -> Option<PathBuf> {
        selection.place(Path::new(name))
    }

    #[test]
    fn a_cpu_build_takes_headers_and_three_libraries() {
        let cpu = Selection::TorchCpu;
        assert_eq!(place(cpu, "torch/include/c10/a.h"), Some(PathBuf::from("include/c10/a.h")));
        assert_eq!(place(cpu, "torch/lib/libc10.so"), Some(PathBuf::from("lib/libc10.so")));
        assert_eq!(place(cpu, "torch/lib/libtorch_cuda.so"), None);
        assert_eq!(place(cpu, "torch/lib/libtorch.so"), None);
        assert_eq!(place(cpu, "torch/nn/functional.py"), None);
        assert_eq!(
            place(Selection::TorchCuda, "torch/lib/libtorch_cuda.so"),
            Some(PathBuf::from("lib/libtorch_cuda.so"))
        );
    }

    #[test]
    fn one_library_is_taken_from_among_many() {
        let wanted = Selection::Library("libcupti.so.13");
        let folder = "nvidia/cu13/lib";
        assert_eq!(
            place(wanted, &format!("{folder}/libcupti.so.13")),
            Some(PathBuf::from("lib/libcupti.so.13"))
        );
        let other = format!("{folder}/libnvperf_host.so");
        assert_eq!(place(wanted, &other), None);
        assert!(place(Selection::Nvidia, &other).is_some());
    }

    #[test]
    fn nvidias_headers_lie_below_one_folder() {
        let place = |name| place(Selection::Nvidia, name);
        for (name, place_of) in [
            ("nvidia/cu13/include/crt/host_defines.h", "include/cuda/crt/host_defines.h"),
            ("nvidia/nccl/include/nccl.h", "include/cuda/nccl.h"),
            ("nvidia/cu13/include/cccl/nv/target", "include/cuda/cccl/nv/target"),
            ("nvidia/nccl/lib/libnccl.so.2", "lib/libnccl.so.2"),
        ] {
            assert_eq!(place(name), Some(PathBuf::from(place_of)));
        }
        assert_eq!(place("nvidia/nccl/__init__.py"), None);
    }

    #[test]
    fn one_file_is_taken_without_its_folder() {
        let wanted = Selection::File("a.gguf");
        assert_eq!(place(wanted, "package/data/a.gguf"), Some(PathBuf::from("a.gguf")));
        assert_eq!(place(wanted, "package/b.gguf"), None);
    }

    #[test]
    fn python_files_keep_their_paths_and_others_stay_out() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let wheel = folder.path().join("a-1-py3-none-any.whl");
        let mut writer = zip::ZipWriter::new(File::create(&wheel)?);
        for name in ["a/__init__.py", "a/b/c.py", "a/data.json", "../out.py"] {
            writer.start_file(name, SimpleFileOptions::default())?;
            writer.write_all(name.as_bytes())?;
        }
        writer.finish()?;
        let destination = folder.path().join("out");
        assert_eq!(unpack(&wheel, Selection::PythonFiles, &destination)?, 2);
        assert_eq!(fs::read_to_string(destination.join("a/b/c.py"))?, "a/b/c.py");
        assert!(!destination.join("a/data.json").exists());
        assert!(!folder.path().join("out.py").exists());
        Ok(())
    }

    #[test]
    fn a_wheel_without_what_is_wanted_is_an_error() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let wheel = folder.path().join("a-1-py3-none-any.whl");
        let mut writer = zip::ZipWriter::new(File::create(&wheel)?);
        writer.start_file("readme.txt", SimpleFileOptions::default())?;
        writer.finish()?;
        assert!(unpack(&wheel, Selection::TorchCpu, folder.path()).is_err());
        Ok(())
    }
}
