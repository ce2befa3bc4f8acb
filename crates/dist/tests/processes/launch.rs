//! Starts ranks as processes of this very program, and listens to them.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a rank does, for [`crate::roles::run`].
pub(crate) const ROLE: &str = "FORETOKEN_DIST_TEST_ROLE";
/// The time to come, in milliseconds.
pub(crate) const JOIN: &str = "FORETOKEN_DIST_TEST_JOIN";

/// No test takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct Launch {
    pub(crate) role: &'static str,
    pub(crate) size: usize,
    pub(crate) port: u16,
    pub(crate) join: Duration,
}

impl Default for Launch {
    fn default() -> Self {
        Self { role: "", size: 1, port: 0, join: Duration::from_secs(30) }
    }
}

impl Launch {
    pub(crate) fn all(&self) -> Vec<Member> {
        (0..self.size).map(|rank| self.rank(rank)).collect()
    }

    pub(crate) fn rank(&self, rank: usize) -> Member {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "member", "--nocapture", "--test-threads=1"])
            .env(ROLE, self.role)
            .env(JOIN, self.join.as_millis().to_string())
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", self.size.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", self.port.to_string())
            .env("OMP_NUM_THREADS", "1")
            .env_remove("TORCHELASTIC_USE_AGENT_STORE")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                assert!(!line.contains("[Gloo]"), "stdout belongs to results: {line}");
                if let Some((_, said)) = line.split_once("@ ") {
                    let _ = send.send(said.to_owned());
                }
            }
        });
        let mut errors = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Member { child, lines, said: Vec::new(), stderr: Some(stderr), port: self.port }
    }
}

/// A rank that runs. It is killed when the test gives it up.
pub(crate) struct Member {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    stderr: Option<JoinHandle<String>>,
    port: u16,
}

impl Member {
    /// Waits for a line.
    pub(crate) fn expect(&mut self, wanted: &str) {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| {
                panic!("waited for {wanted}, got {:?}", self.said);
            });
            self.said.push(line);
            if self.said.last().is_some_and(|line| line == wanted) {
                return;
            }
        }
    }

    /// Waits for its end, which is one without a crash and without noise on stderr, and returns its
    /// lines.
    pub(crate) fn finish(mut self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end: {:?}", self.said);
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut said = std::mem::take(&mut self.said);
        said.extend(self.lines.iter());
        let stderr = self.stderr.take().unwrap().join().unwrap();
        assert!(status.success() && stderr.is_empty(), "{status}: {said:?}\n{stderr}");
        said
    }

    /// Waits until something listens at the port.
    pub(crate) fn wait_for_server(&self) {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "nothing listens");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&mut self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
