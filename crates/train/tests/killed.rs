//! A training that is killed at any moment, also while it saves, loses nothing.

mod common;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use foretoken_train::{TrainOptions, train};
use sha2::{Digest, Sha256};

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
    let newest = || newest_checkpoint(&place);
    let (mut kept, mut in_saves, mut with_progress) = (0, 0, 0);
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for kill in 0..KILLS {
        let mut child = start();
        // Half of the kills may hit the start; the others wait until it has got farther.
        let began = Instant::now();
        while kill % 2 == 1 && newest() <= kept {
            assert!(began.elapsed() < Duration::from_secs(60), "no checkpoint was written");
            assert!(child.try_wait().unwrap().is_none(), "it ended after {kill} kills");
            thread::sleep(Duration::from_millis(2));
        }
        // And some for a save, whose folder begins with a dot.
        let saving = || place.names("killed/checkpoints").iter().any(|name| name.starts_with('.'));
        while kill % 4 == 3 && !saving() {
            assert!(began.elapsed() < Duration::from_secs(60), "nothing was saved");
            thread::sleep(Duration::from_micros(200));
        }
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let most = [400_000, 40_000, 400_000, 1_000][kill % 4];
        thread::sleep(Duration::from_micros((state >> 33) % most));
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the training ended ({status}) after {kill} kills: give it more steps");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let found = newest();
        assert!(found >= kept, "checkpoint {kept} is lost, the newest is {found}");
        with_progress += usize::from(found > kept);
        kept = found;
        let names = if kept > 0 { place.names("killed/checkpoints") } else { Vec::new() };
        in_saves += usize::from(names.iter().any(|name| name.starts_with('.')));
        let there = names.iter().filter(|name| name.starts_with("step-")).count() as u64;
        assert!(there >= 3.min(kept / 3), "older ones are lost: {names:?}");
        // Each that is there is whole.
        for name in names.iter().filter(|name| name.starts_with("step-")) {
            verify(&place.path("killed/checkpoints").join(name));
        }
    }
    assert!(with_progress >= KILLS / 2, "{with_progress} kills came after a checkpoint");
    assert!(in_saves > 0, "no kill came in the middle of a save");
    assert!(start().wait().unwrap().success());
    assert_eq!(place.weights("whole/model"), place.weights("killed/model"));
    assert_eq!(place.losses("whole"), place.losses("killed"));
    // The last three, and the best where it is not one of them.
    let left: Vec<String> = place.names("killed/checkpoints");
    assert!(left.iter().all(|name| name.starts_with("step-")), "{left:?}");
    assert!((3..=4).contains(&left.len()) && newest() == 1200, "{left:?}");
}

/// The step of the newest checkpoint, 0 where there is none.
fn newest_checkpoint(place: &Place) -> u64 {
    let Ok(entries) = fs::read_dir(place.path("killed/checkpoints")) else { return 0 };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max().unwrap_or(0)
}

/// Compares a checkpoint's files with its checksums.
fn verify(folder: &Path) {
    let list = fs::read_to_string(folder.join("checksums.sha256")).unwrap();
    let mut files = 0;
    for line in list.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        let bytes = fs::read(folder.join(name)).unwrap();
        assert_eq!(format!("{:x}", Sha256::digest(bytes)), sum, "{name}");
        files += 1;
    }
    assert!(files >= 5, "{list}");
}
