//! The Python environment of the peers, below the build folder.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// The peers' scripts and the interpreter that runs them.
pub(crate) struct Peers {
    scripts: PathBuf,
    python: PathBuf,
    /// Where `torch.compile` keeps what it compiled.
    inductor: PathBuf,
}

impl Peers {
    /// The environment, made at first use.
    pub(crate) fn ensure(workspace: &Workspace) -> Result<Self> {
        let scripts = workspace.root().join("benches/peers");
        let requirements = scripts.join("requirements.txt");
        let wanted = fs::read_to_string(&requirements)
            .with_context(|| format!("cannot read {}", requirements.display()))?;
        let environment = workspace.target().join("peers/venv");
        let inductor = workspace.target().join("peers/inductor");
        let python = environment.join("bin/python");
        let stamp = environment.join("installed.txt");
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) && python.is_file()
        {
            return Ok(Self { scripts, python, inductor });
        }
        eprintln!(
            "making a Python environment in {}: pip downloads several GB (PyTorch comes with NVIDIA's \
             libraries), and it takes 5 GB on the disk",
            environment.display()
        );
        if !process::exists("python3") {
            bail!("python3 is not installed; the peers need it, with its venv module and pip");
        }
        let mut make = Command::new("python3");
        make.args(["-m", "venv"]).arg(&environment);
        process::run(&mut make).context(
            "the environment could not be made (Debian, Ubuntu: apt-get install python3-venv)",
        )?;
        let mut install = Command::new(&python);
        install
            .args(["-m", "pip", "install", "--disable-pip-version-check", "--requirement"])
            .arg(&requirements);
        process::run(&mut install).context(
            "the peers could not be installed: check the network and the disk, then try again",
        )?;
        fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
        Ok(Self { scripts, python, inductor })
    }

    /// A command that runs one of the scripts.
    pub(crate) fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.python);
        // The peers have a libtorch of their own.
        command.arg(self.scripts.join(name)).env_remove("LD_LIBRARY_PATH").env_remove("LIBTORCH");
        command.env("TORCHINDUCTOR_CACHE_DIR", &self.inductor);
        command
    }
}
