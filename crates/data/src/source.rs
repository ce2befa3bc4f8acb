//! Where a corpus comes from, and the list of its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Result};

/// Top-level packages that a torch installation has beside `torch`, and that belong to the corpus.
const BESIDE_TORCH: [&str; 2] = ["functorch", "torchgen"];

/// Where a corpus comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorpusSource {
    /// The `.py` files under a folder, with the filters for source code: see
    /// [`DropReason`](crate::DropReason). A package folder such as an installed `torch` gives
    /// the same corpus as the folder that holds it.
    PythonCode {
        /// The folder, or one `.py` file.
        root: PathBuf,
    },
    /// All text of one's own: a text file, a `.jsonl` file with a record a line, or a folder of
    /// both. Hidden files and files that are no UTF-8 text are left out of a folder.
    ///
    /// A record's text is its `text`, else its `content`, else `prompt` and `completion` (or
    /// `response`), else `instruction`, `input` and `output`.
    Path(PathBuf),
}

/// A file of a corpus.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    /// Its path inside the corpus, with `/`: what it is sorted and split by.
    pub(crate) key: String,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

impl CorpusSource {
    /// The corpus that a config's `corpus` key names. `root` overrides where it lies; without it
    /// [`python_code_root`] looks.
    ///
    /// # Errors
    /// For an unknown name, and where the corpus is not on this machine.
    pub fn named(name: &str, root: Option<&Path>) -> Result<Self> {
        match name {
            "python-code" => Ok(Self::PythonCode { root: python_code_root(root)? }),
            _ => Err(Error::UnknownCorpus { name: name.to_owned() }),
        }
    }

    /// `python-code` or `text`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PythonCode { .. } => "python-code",
            Self::Path(_) => "text",
        }
    }

    /// The path as given.
    pub fn path(&self) -> &Path {
        match self {
            Self::PythonCode { root } => root,
            Self::Path(path) => path,
        }
    }

    /// All files of the corpus in the order of their keys, whatever order the file system lists
    /// them in. `out` is the shard folder, which is never part of a corpus.
    pub(crate) fn files(&self, out: &Path) -> Result<Vec<SourceFile>> {
        let root = self.path();
        let metadata = fs::metadata(root).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::MissingPath { path: root.to_path_buf() },
            _ => Error::io("read", root)(source),
        })?;
        let mut walk = Walk {
            python: matches!(self, Self::PythonCode { .. }),
            out: fs::canonicalize(out).ok(),
            ancestors: Vec::new(),
            files: Vec::new(),
        };
        if metadata.is_file() {
            walk.files.push(SourceFile {
                key: file_name(root),
                path: root.to_path_buf(),
                bytes: metadata.len(),
            });
        } else if walk.python && root.join("__init__.py").is_file() {
            let root = fs::canonicalize(root).map_err(Error::io("read", root))?;
            let package = file_name(&root);
            walk.folder(&root, &format!("{package}/"))?;
            let beside = BESIDE_TORCH.iter().filter(|_| package == "torch");
            for name in beside {
                let sibling = root.with_file_name(name);
                if sibling.join("__init__.py").is_file() {
                    walk.folder(&sibling, &format!("{name}/"))?;
                }
            }
        } else {
            walk.folder(root, "")?;
        }
        let mut files = walk.files;
        if files.is_empty() {
            let kind = if walk.python { ".py files" } else { "files" };
            return Err(Error::EmptyCorpus {
                path: root.to_path_buf(),
                found: format!("there are no {kind} in it"),
            });
        }
        files.sort_by(|a, b| (&a.key, &a.path).cmp(&(&b.key, &b.path)));
        Ok(files)
    }
}

struct Walk {
    python: bool,
    out: Option<PathBuf>,
    /// The folders on the way to here, to stop at links that lead back.
    ancestors: Vec<PathBuf>,
    files: Vec<SourceFile>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        let real = fs::canonicalize(folder).map_err(Error::io("read", folder))?;
        if self.ancestors.contains(&real) || self.out.as_ref() == Some(&real) {
            return Ok(());
        }
        self.ancestors.push(real);
        for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
            let path = entry.map_err(Error::io("read", folder))?.path();
            let name = file_name(&path);
            if name.starts_with('.') {
                continue;
            }
            // Of links to nowhere, sockets and the like there is nothing to read.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if metadata.is_dir() {
                self.folder(&path, &format!("{prefix}{name}/"))?;
            } else if metadata.is_file()
                && (!self.python || path.extension().is_some_and(|end| end == "py"))
            {
                self.files.push(SourceFile {
                    key: format!("{prefix}{name}"),
                    path,
                    bytes: metadata.len(),
                });
            }
        }
        self.ancestors.pop();
        Ok(())
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The folder with the `.py` files of the `python-code` corpus.
///
/// It is the first of: `explicit`; the environment's `FORETOKEN_CORPUS`; `.libtorch/corpus/python-code`
/// in the current folder or one above it, or above the running program; `corpus/python-code` in
/// the environment's `LIBTORCH`; the `torch` package of this machine's `python3`.
///
/// # Errors
/// When `explicit` or `FORETOKEN_CORPUS` does not exist, or none of them is there.
pub fn python_code_root(explicit: Option<&Path>) -> Result<PathBuf> {
    let named = explicit
        .map(Path::to_path_buf)
        .or_else(|| std::env::var_os("FORETOKEN_CORPUS").map(PathBuf::from));
    if let Some(path) = named {
        return if path.exists() { Ok(path) } else { Err(Error::MissingPath { path }) };
    }
    let starts = [std::env::current_dir(), std::env::current_exe()];
    let in_repository = starts.iter().flatten().flat_map(|start| start.ancestors());
    let libtorch = std::env::var_os("LIBTORCH").map(PathBuf::from);
    in_repository
        .map(|folder| folder.join(".libtorch/corpus/python-code"))
        .chain(libtorch.map(|folder| folder.join("corpus/python-code")))
        .find(|folder| folder.is_dir())
        .or_else(installed_torch)
        .ok_or(Error::NoPythonCode)
}

/// Where `python3` would import `torch` from, without importing it.
fn installed_torch() -> Option<PathBuf> {
    const FIND: &str = "import importlib.util; \
        spec = importlib.util.find_spec('torch'); \
        print(spec.submodule_search_locations[0] if spec else '')";
    let output = Command::new("python3").args(["-c", FIND]).output().ok()?;
    let folder = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    folder.join("__init__.py").is_file().then_some(folder)
}
