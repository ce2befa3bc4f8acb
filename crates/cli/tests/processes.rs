//! Several processes on loopback: what goes wrong in one of them ends all, with a line that says
//! why, and what they saved goes on.

mod common;

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Place, assert_refused, error_text, wait_until};

/// For the others to notice that one is gone, and to end.
const NOTICED: Duration = Duration::from_secs(30);

/// For a training of a few steps.
const TRAINED: Duration = Duration::from_secs(120);

/// The processes of a training, by rank; those that still run when it is dropped are ended.
struct Ranks(Vec<Child>);

impl Ranks {
    /// Starts a process for each of `sizes`, the number of processes that it is told.
    fn start(place: &Place, out: &str, sizes: &[usize], more: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut ranks = Self(Vec::new());
        for (rank, &size) in sizes.iter().enumerate() {
            let mut command = place.train(out, more);
            for (name, value) in [
                ("RANK", rank),
                ("LOCAL_RANK", rank),
                ("WORLD_SIZE", size),
                ("MASTER_PORT", usize::from(port)),
            ] {
                command.env(name, value.to_string());
            }
            command.env("MASTER_ADDR", "127.0.0.1").env_remove("TORCHELASTIC_USE_AGENT_STORE");
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            ranks.0.push(command.spawn().unwrap());
        }
        ranks
    }

    /// Ends one of them by SIGKILL; the others are left.
    fn kill(&mut self, rank: usize) {
        let mut killed = self.0.remove(rank);
        killed.kill().unwrap();
        killed.wait().unwrap();
    }

    /// How those ended that are left, which they have to do in time.
    fn end(mut self, within: Duration) -> Vec<Output> {
        let began = Instant::now();
        while self.0.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
            assert!(began.elapsed() < within, "not all have ended after {within:?}");
            thread::sleep(Duration::from_millis(20));
        }
        let ended = std::mem::take(&mut self.0);
        ended.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn when_a_process_is_killed_the_others_name_it_and_the_training_goes_on_in_two() {
    let place = Place::new();
    let recipe = [
        "--set",
        "train.batch=6",
        "--set",
        "train.sequence=32",
        "--set",
        "train.checkpoint_every=10",
    ];
    let endless = [&recipe[..], &["--set", "train.steps=1000000"]].concat();
    // Rank 0 writes the files and serves the others; rank 1 does neither.
    for victim in [1, 0] {
        let run = format!("without-{victim}");
        let mut ranks = Ranks::start(&place, &run, &[3; 3], &endless);
        wait_until(&mut ranks.0[0], || place.newest(&run) > 0);
        ranks.kill(victim);
        let named = format!("rank {victim} of 3");
        for output in ranks.end(NOTICED) {
            assert_refused(&output, 1, &[&named]);
        }
        assert!(!place.path(&run).join("model").exists());

        let steps = place.newest(&run) + 4;
        let set = format!("train.steps={steps}");
        let few = [&recipe[..], &["--set", &set, "--resume"]].concat();
        for output in Ranks::start(&place, &run, &[2; 2], &few).end(TRAINED) {
            assert!(output.status.success(), "{}", error_text(&output));
        }
        assert_eq!(place.newest(&run), steps);
        assert!(place.path(&run).join("model/model.safetensors").exists());
        let metrics = fs::read_to_string(place.path(&run).join("metrics.jsonl")).unwrap();
        assert_eq!(metrics.lines().count() as u64, steps);
    }
}

#[test]
fn processes_that_are_told_different_numbers_of_them_all_say_so() {
    let place = Place::new();
    // Either number divides the batch, which each process sees to before it meets the others.
    let divided = ["--set", "train.batch=6"];
    for output in Ranks::start(&place, "run", &[3, 2], &divided).end(NOTICED) {
        assert_refused(&output, 1, &["world sizes differ", "WORLD_SIZE"]);
    }
    assert!(!place.path("run").exists());
}

#[test]
fn a_batch_that_cannot_be_divided_is_refused_by_its_key() {
    let place = Place::new();
    let sets = ["--set", "train.batch=3", "--set", "train.sequence=32"];
    for output in Ranks::start(&place, "run", &[2; 2], &sets).end(TRAINED) {
        assert_refused(&output, 1, &["`train.batch`", "2 processes"]);
    }
    assert!(!place.path("run/model").exists());
}
