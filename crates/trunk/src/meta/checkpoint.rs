//! A folder as Meta published it.

use super::params::MetaParams;
use super::weights::MetaWeights;
use crate::{Architecture, Error, Result};
use std::path::{Path, PathBuf};

const PARAMS: &str = "params.json";
const FILES: [&str; 2] = ["consolidated.pth", "consolidated.00.pth"];

/// A multi-token model of Meta's: its sizes, the number of its heads, its weights.
///
/// ```no_run
/// use foretoken_trunk::io::WeightReader;
/// use foretoken_trunk::meta::MetaCheckpoint;
///
/// let checkpoint = MetaCheckpoint::open("multi-token-prediction/7B_1T_4".as_ref())?;
/// assert_eq!((checkpoint.architecture.layers, checkpoint.heads), (32, 4));
/// let weights = WeightReader::new(Box::new(checkpoint.weights));
/// assert!(weights.has("heads.3.mlp.up_proj.weight"));
/// # Ok::<(), foretoken_trunk::Error>(())
/// ```
pub struct MetaCheckpoint {
    /// Sizes; `layers` counts trunk and heads together. Never tied, never with biases.
    pub architecture: Architecture,
    /// Tokens predicted at each position: head 0 and the extra heads.
    pub heads: usize,
    /// The tensors, complete as to their names; shapes are checked when they are read.
    pub weights: MetaWeights,
}

impl MetaCheckpoint {
    /// Whether a folder looks like one of these.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(PARAMS).is_file() && files(folder).is_ok_and(|files| !files.is_empty())
    }

    /// Opens a folder with a `params.json` and a `consolidated.pth` or `consolidated.00.pth`, and
    /// reads what they say of sizes and tensors.
    ///
    /// # Errors
    /// When a file is missing or damaged, the weights are split over several files or hold more
    /// than tensors, or a tensor is missing or has no place; the file and the tensor are named,
    /// the latter as the file calls it.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut weights = MetaWeights::open(&find(folder)?)?;
        let MetaParams { architecture, heads } = MetaParams::read(&folder.join(PARAMS), &weights)?;
        weights.set_head_width(architecture.head_width());
        let extra = heads - 1;
        weights.check_complete((architecture.layers - extra) as u32, extra as u32)?;
        Ok(Self { architecture, heads, weights })
    }
}

/// The file of weights.
fn find(folder: &Path) -> Result<PathBuf> {
    let files = files(folder).map_err(|source| Error::io(folder, source))?;
    match files.as_slice() {
        [] => Err(Error::format(folder, format!("there is no {} here", FILES.join(" or ")))),
        [file] if FILES.contains(&file.as_str()) => Ok(folder.join(file)),
        [.., last] => {
            let problem = format!(
                "the weights are split over several files ({last} is there), as for model \
                 parallelism: this is not supported, join them to one {} first",
                FILES[0]
            );
            Err(Error::format(folder, problem))
        }
    }
}

/// Names of the files of weights, in order.
fn files(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let extension = Path::new(&name).extension();
        if name.starts_with("consolidated.") && extension.is_some_and(|it| it == "pth") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
