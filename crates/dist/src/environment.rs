//! The place of a process among others, as its launcher tells it.

use std::time::Duration;

use crate::{Error, Result, first_host};

const PLAIN: &str = "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT";
const SLURM: &str = "SLURM_PROCID, SLURM_NTASKS, SLURM_JOB_NODELIST and SLURM_JOB_ID";

/// SLURM jobs listen on a port in 10,000 … 29,999, below those that systems give out themselves.
const SLURM_PORTS: (u64, u64) = (10_000, 20_000);

/// Which process serves the store through which the ranks find each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreHost {
    /// Rank 0 listens at the master's address. The default.
    #[default]
    RankZero,
    /// The launcher already listens there: torchrun with `TORCHELASTIC_USE_AGENT_STORE=True`.
    Launcher,
}

/// Who this process is, how many there are, and where they meet.
///
/// ```
/// use foretoken_dist::Environment;
///
/// let place = Environment::new(1, 2, "127.0.0.1", 29_500);
/// assert_eq!((place.rank, place.size, place.address()), (1, 2, "127.0.0.1:29500".to_owned()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// This process, from 0.
    pub rank: usize,
    /// The number of processes.
    pub size: usize,
    /// This process among those on its machine, from 0: which GPU it takes.
    pub local_rank: usize,
    /// The machine of rank 0.
    pub host: String,
    /// A port that is free there.
    pub port: u16,
    /// Who listens at that port.
    pub store: StoreHost,
    /// How often the launcher has started the job anew, so that what an earlier attempt left in the
    /// launcher's store isn't taken for the present.
    pub attempt: u32,
}

impl Environment {
    /// Rank `rank` of `size` processes, the first of which serves at `host`:`port`.
    pub fn new(rank: usize, size: usize, host: &str, port: u16) -> Self {
        let (local_rank, store, attempt) = (rank, StoreHost::RankZero, 0);
        Self { rank, size, local_rank, host: host.to_owned(), port, store, attempt }
    }

    /// What the process's environment variables say; `None` in a process that no launcher started.
    ///
    /// Known are, in this order:
    ///
    /// - `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`, and `LOCAL_RANK` (0 when missing):
    ///   torchrun, Kubernetes' `PyTorchJob`, `cargo xtask launch`, or a shell. torchrun's
    ///   `TORCHELASTIC_USE_AGENT_STORE` and `TORCHELASTIC_RESTART_COUNT` count as well.
    /// - `SLURM_PROCID`, `SLURM_NTASKS`, `SLURM_LOCALID`: tasks of `srun`. The first host of
    ///   `SLURM_STEP_NODELIST` or `SLURM_JOB_NODELIST` is the master, and the port follows from
    ///   `SLURM_JOB_ID` and `SLURM_STEP_ID`, unless `MASTER_ADDR` and `MASTER_PORT` say otherwise.
    ///   A single task is a plain process.
    ///
    /// # Errors
    /// When only a part of such a set is there, naming what is missing, or when a value can't be.
    pub fn detect() -> Result<Option<Self>> {
        Self::from_variables(|name| {
            std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
        })
    }

    /// [`detect`](Self::detect) with variables from `look_up` instead of the process.
    ///
    /// ```
    /// use foretoken_dist::Environment;
    ///
    /// let set = [("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "node1")];
    /// let look_up = |name: &str| {
    ///     set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    /// };
    /// let error = Environment::from_variables(look_up).unwrap_err();
    /// assert!(error.to_string().starts_with("`MASTER_PORT` is not set, but `RANK` is"));
    /// ```
    ///
    /// # Errors
    /// As for [`detect`](Self::detect).
    pub fn from_variables(look_up: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let variables = Variables(&look_up);
        if let Some(set) = variables.first_of(&["RANK", "WORLD_SIZE"]) {
            return variables.plain(set).map(Some);
        }
        if let Some(set) = variables.first_of(&["SLURM_PROCID", "SLURM_NTASKS"]) {
            return variables.slurm(set);
        }
        match variables.first_of(&["MASTER_ADDR", "MASTER_PORT"]) {
            Some(set) => Err(Error::MissingVariable { missing: "RANK", set, all: PLAIN }),
            None => Ok(None),
        }
    }

    /// Where the ranks meet, as `host:port`.
    pub fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Whether the master's address leads to this machine only.
    pub(crate) fn is_loopback(&self) -> bool {
        let ip = self.host.parse::<std::net::IpAddr>();
        self.host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether this process serves the store.
    pub(crate) fn serves(&self) -> bool {
        self.rank == 0 && self.store == StoreHost::RankZero
    }

    /// The rank that serves the store, if one does.
    pub(crate) fn server(&self) -> Option<usize> {
        (self.store == StoreHost::RankZero).then_some(0)
    }

    /// Checks what a caller may have put together by hand.
    pub(crate) fn check(&self) -> Result<()> {
        if self.size == 0 || i32::try_from(self.size).is_err() {
            return Err(argument("size", self.size, "at least 1 process".to_owned()));
        }
        if self.rank >= self.size {
            return Err(argument("rank", self.rank, format!("less than the size, {}", self.size)));
        }
        Ok(())
    }
}

/// An argument error.
pub(crate) fn argument(what: &'static str, found: usize, expected: String) -> Error {
    Error::Argument { what, found: found.to_string(), expected }
}

/// A time in whole seconds, as error messages have it.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().max(1)
}

struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn first_of(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().find(|name| self.get(name).is_some()).copied()
    }

    /// torchrun's variables, of which `set` is there.
    fn plain(&self, set: &'static str) -> Result<Environment> {
        let required =
            |missing| self.get(missing).ok_or(Error::MissingVariable { missing, set, all: PLAIN });
        let size = number("WORLD_SIZE", &required("WORLD_SIZE")?, 1..1 << 31)?;
        let rank = number("RANK", &required("RANK")?, 0..size)?;
        let host = host_name(required("MASTER_ADDR")?)?;
        let port = number("MASTER_PORT", &required("MASTER_PORT")?, 1..1 << 16)? as u16;
        let agent = self.get("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True");
        Ok(Environment {
            rank: rank as usize,
            size: size as usize,
            local_rank: self.optional("LOCAL_RANK", 1 << 31)? as usize,
            host,
            port,
            store: if agent { StoreHost::Launcher } else { StoreHost::RankZero },
            attempt: self.optional("TORCHELASTIC_RESTART_COUNT", 1 << 31)? as u32,
        })
    }

    /// SLURM's variables, of which `set` is there.
    fn slurm(&self, set: &'static str) -> Result<Option<Environment>> {
        let required =
            |missing| self.get(missing).ok_or(Error::MissingVariable { missing, set, all: SLURM });
        let size = number("SLURM_NTASKS", &required("SLURM_NTASKS")?, 1..1 << 31)?;
        let rank = number("SLURM_PROCID", &required("SLURM_PROCID")?, 0..size)?;
        if size == 1 {
            return Ok(None);
        }
        let host = match (self.get("MASTER_ADDR"), self.get("SLURM_STEP_NODELIST")) {
            (Some(host), _) => host_name(host)?,
            (None, Some(list)) => first("SLURM_STEP_NODELIST", &list)?,
            (None, None) => first("SLURM_JOB_NODELIST", &required("SLURM_JOB_NODELIST")?)?,
        };
        let port = match self.get("MASTER_PORT") {
            Some(port) => number("MASTER_PORT", &port, 1..1 << 16)?,
            None => self.slurm_port(&required("SLURM_JOB_ID")?)?,
        };
        let mut place = Environment::new(rank as usize, size as usize, &host, port as u16);
        place.local_rank = self.optional("SLURM_LOCALID", 1 << 31)? as usize;
        Ok(Some(place))
    }

    /// A port that steps of other jobs hardly share.
    fn slurm_port(&self, job: &str) -> Result<u64> {
        let job = number("SLURM_JOB_ID", job, 0..1 << 62)?;
        let step = self.optional("SLURM_STEP_ID", 1 << 62)?;
        Ok(SLURM_PORTS.0 + (job + step) % SLURM_PORTS.1)
    }

    /// A number that is 0 when it is missing.
    fn optional(&self, name: &'static str, end: u64) -> Result<u64> {
        self.get(name).map_or(Ok(0), |value| number(name, &value, 0..end))
    }
}

fn number(name: &'static str, value: &str, range: std::ops::Range<u64>) -> Result<u64> {
    value.trim().parse::<u64>().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        bad(name, value, format!("a whole number from {} to {}", range.start, range.end - 1))
    })
}

fn host_name(name: String) -> Result<String> {
    match name.is_empty() || name.contains(char::is_whitespace) {
        true => Err(bad("MASTER_ADDR", &name, "a host's name or address".to_owned())),
        false => Ok(name),
    }
}

fn first(name: &'static str, list: &str) -> Result<String> {
    first_host(list).ok_or_else(|| bad(name, list, "hosts such as node[01-04]".to_owned()))
}

fn bad(name: &'static str, value: &str, expected: String) -> Error {
    Error::BadVariable { name, value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<Option<Environment>> {
        Environment::from_variables(|name| {
            set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn message(set: &[(&str, &str)]) -> String {
        read(set).unwrap_err().to_string()
    }

    const TORCHRUN: [(&str, &str); 7] = [
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node7"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ("TORCHELASTIC_RESTART_COUNT", "2"),
    ];

    const SRUN: [(&str, &str); 5] = [
        ("SLURM_PROCID", "3"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_JOB_NODELIST", "gpu[017-018],cpu1"),
        ("SLURM_JOB_ID", "1234567"),
    ];

    fn without<'a>(set: &[(&'a str, &'a str)], name: &str) -> Vec<(&'a str, &'a str)> {
        set.iter().copied().filter(|(key, _)| *key != name).collect()
    }

    #[test]
    fn a_plain_process_has_no_place() {
        assert_eq!(read(&[("PATH", "/bin"), ("SLURM_JOB_ID", "7")]).unwrap(), None);
    }

    #[test]
    fn torchrun_is_read_whole() {
        let expected = Environment {
            rank: 5,
            size: 8,
            local_rank: 1,
            host: "node7".to_owned(),
            port: 29_500,
            store: StoreHost::Launcher,
            attempt: 2,
        };
        assert_eq!(read(&TORCHRUN).unwrap(), Some(expected));
    }

    #[test]
    fn pytorchjob_sets_no_local_rank_and_serves_from_rank_zero() {
        let place = read(&TORCHRUN[..5]).unwrap().unwrap();
        assert_eq!(place.store, StoreHost::RankZero);
        assert_eq!(read(&without(&TORCHRUN, "LOCAL_RANK")).unwrap().unwrap().local_rank, 0);
    }

    #[test]
    fn srun_gives_the_first_host_and_a_port_of_the_job() {
        let place = read(&SRUN).unwrap().unwrap();
        assert_eq!((place.rank, place.size, place.local_rank), (3, 4, 1));
        assert_eq!(place.address(), "gpu017:24567");
        let given = [&SRUN[..], &[("MASTER_ADDR", "ib0"), ("MASTER_PORT", "4000")]].concat();
        assert_eq!(read(&given).unwrap().unwrap().address(), "ib0:4000");
        let step = [&SRUN[..], &[("SLURM_STEP_NODELIST", "cpu1"), ("SLURM_STEP_ID", "2")]].concat();
        assert_eq!(read(&step).unwrap().unwrap().address(), "cpu1:24569");
    }

    #[test]
    fn a_single_task_is_a_plain_process() {
        assert_eq!(read(&[("SLURM_NTASKS", "1"), ("SLURM_PROCID", "0")]).unwrap(), None);
    }

    #[test]
    fn a_missing_variable_is_named() {
        for name in ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"] {
            let said = message(&without(&TORCHRUN, name));
            assert!(said.starts_with(&format!("`{name}` is not set, but `")), "{said}");
        }
        for name in ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_NODELIST", "SLURM_JOB_ID"] {
            let said = message(&without(&SRUN, name));
            assert!(said.starts_with(&format!("`{name}` is not set, but `")), "{said}");
        }
        assert!(message(&[("MASTER_PORT", "1")]).starts_with("`RANK` is not set"));
    }

    #[test]
    fn a_value_that_cannot_be_is_named_with_what_would_do() {
        let with = |name: &'static str, value: &'static str| {
            let mut set = without(&TORCHRUN, name);
            set.push((name, value));
            message(&set)
        };
        assert_eq!(with("RANK", "8"), "`RANK` is `8`: expected a whole number from 0 to 7");
        for (name, value) in [
            ("RANK", "-1"),
            ("WORLD_SIZE", "0"),
            ("WORLD_SIZE", "two"),
            ("LOCAL_RANK", ""),
            ("MASTER_ADDR", ""),
            ("MASTER_PORT", "0"),
            ("MASTER_PORT", "65536"),
            ("TORCHELASTIC_RESTART_COUNT", "x"),
        ] {
            assert!(with(name, value).starts_with(&format!("`{name}` is `{value}`: ")));
        }
        let mut set = without(&SRUN, "SLURM_JOB_NODELIST");
        set.push(("SLURM_JOB_NODELIST", "node["));
        assert!(message(&set).contains("expected hosts such as node[01-04]"));
    }

    #[test]
    fn loopback_addresses_are_known() {
        let loopback = |host: &str| Environment::new(0, 1, host, 1).is_loopback();
        assert!(loopback("localhost") && loopback("127.0.0.1") && loopback("::1"));
        assert!(!loopback("node1") && !loopback("10.0.0.1"));
        assert_eq!(Environment::new(0, 1, "::1", 7).address(), "[::1]:7");
    }
}
