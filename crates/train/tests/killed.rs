//! A training that is killed at any moment, also while it saves, loses nothing.

mod common;

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use foretoken_train::{TrainOptions, train};

use common::Place;

const OUT: &str = "FORETOKEN_TEST_KILLED_OUT";
const TEXT: &str = "FORETOKEN_TEST_KILLED_TEXT";

/// Kills while the training goes on.
const KILLS: usize = 20;

/// Saves often, so that many of the kills come in the middle of one.
const SETS: [&str; 3] = ["train.steps=1200", "train.checkpoint_every=3", "train.validate=1"];

/// The training that is killed: a test that does nothing unless it is told where to.
#[test]
fn child() {
    let (Some(out), Some(text)) = (env::var_os(OUT), env::var_os(TEXT)) else { return };
    let place = Place::new();
    let mut config = place.config(&SETS);
    config.data.path = Some(PathBuf::from(text));
    let options = TrainOptions { resume: true, ..TrainOptions::default() };
    train(&config, &PathBuf::from(out), &options).unwrap();
}

#[test]
fn a_training_that_is_killed_twenty_times_comes_to_the_same_bits() {
    let place = Place::new();
    place.train("whole", &SETS).unwrap();
    let out = place.path("killed");
    let start = || {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--test-threads=1"])
            .env(OUT, &out)
            .env(TEXT, place.path("text.txt"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap()
    };
    let (mut kills, mut state) = (0, 0x9E37_79B9_7F4A_7C15_u64);
    while kills < KILLS {
        let mut child = start();
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(Duration::from_millis(60 + (state >> 33) % 400));
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the training ended ({status}) after {kills} kills: give it more steps");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(start().wait().unwrap().success());
    assert_eq!(place.weights("whole/model"), place.weights("killed/model"));
    assert_eq!(place.losses("whole"), place.losses("killed"));
    let left: Vec<String> = place.names("killed/checkpoints");
    assert!(left.iter().all(|name| name.starts_with("step-")), "{left:?}");
}
