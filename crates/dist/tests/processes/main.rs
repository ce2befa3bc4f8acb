//! Groups of several processes on one machine: this program starts itself, once a rank.

mod launch;
mod roles;

use std::net::TcpListener;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use launch::{Launch, Member, free_port};

/// Each test has several processes; they take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a rank runs when a test of this file started it; nothing otherwise.
#[test]
fn member() {
    roles::run();
}

fn launch(role: &'static str, size: usize) -> Launch {
    Launch { role, size, port: free_port(), ..Launch::default() }
}

/// The last line of each, which is its error where it has one.
fn ends(members: Vec<Member>) -> Vec<String> {
    members.into_iter().map(|member| member.finish().pop().unwrap_or_default()).collect()
}

fn collectives(size: usize) {
    let _turn = turn();
    let lines: Vec<_> = launch("collectives", size).all().into_iter().map(Member::finish).collect();
    assert!(lines[0].last().is_some_and(|line| line == "done"), "{lines:?}");
    let sums = lines[0].iter().filter(|line| line.starts_with("sum ")).count();
    assert_eq!(sums, roles::SUMS, "{lines:?}");
    for other in &lines[1..] {
        assert_eq!(other, &lines[0], "the sums are the same bits on all ranks");
    }
}

#[test]
fn two_processes_compute_together() {
    collectives(2);
}

#[test]
fn four_processes_compute_together() {
    collectives(4);
}

#[test]
fn a_group_of_one_needs_no_other() {
    collectives(1);
}

#[test]
fn buckets_average_to_all_and_to_owners() {
    let _turn = turn();
    for size in [2, 3] {
        for end in ends(launch("buckets", size).all()) {
            assert_eq!(end, "done");
        }
    }
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let _turn = turn();
    let since = Instant::now();
    let launch = Launch { join: Duration::from_secs(4), ..launch("collectives", 4) };
    for end in ends([0, 1, 3].map(|rank| launch.rank(rank)).into()) {
        assert_eq!(end, "error: rank 2 of 4 did not come within 4 s; ranks 0, 1 and 3 did");
    }
    assert!(since.elapsed() < Duration::from_secs(12), "{:?}", since.elapsed());
}

#[test]
fn a_first_rank_that_never_comes_is_named() {
    let _turn = turn();
    let launch = Launch { join: Duration::from_secs(2), ..launch("collectives", 2) };
    let end = launch.rank(1).finish().pop().unwrap();
    let place = format!(
        "error: rank 0 of 2, which serves the others, does not answer at 127.0.0.1:{} within 2 s: ",
        launch.port
    );
    assert!(end.starts_with(&place), "{end}");
}

/// Ends `victim` by `signal` while `size` ranks sum for ever; returns what the others say.
fn lose(victim: usize, size: usize, signal: &str) -> Vec<String> {
    let mut members = launch("sum for ever", size).all();
    for member in &mut members {
        member.expect("ready");
    }
    let since = Instant::now();
    let mut lost = members.remove(victim);
    lost.signal(signal);
    let ends = ends(members);
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    lost.kill();
    ends
}

#[test]
fn a_killed_rank_is_named_by_all_others() {
    let _turn = turn();
    let said = lose(2, 4, "KILL");
    let start = "error: rank 2 of 4 has not been heard of for ";
    assert!(said[0].starts_with(start), "{said:?}");
    assert!(said.iter().all(|end| *end == said[0]), "{said:?}");
}

#[test]
fn a_stopped_rank_is_named_after_its_silence() {
    let _turn = turn();
    let said = lose(1, 3, "STOP");
    let start = "error: rank 1 of 3 has not been heard of for 2";
    assert!(said[0].starts_with(start), "{said:?}");
    assert!(said.iter().all(|end| *end == said[0]), "{said:?}");
}

#[test]
fn the_rank_that_serves_the_others_is_named_too() {
    let _turn = turn();
    for end in lose(0, 3, "KILL") {
        let said = "error: rank 0 of 3, which serves the others, cannot be reached any more at ";
        assert!(end.starts_with(said), "{end}");
    }
    for end in lose(0, 3, "STOP") {
        assert!(end.starts_with("error: rank 0 of 3 has not been heard of for 2"), "{end}");
    }
}

#[test]
fn a_rank_that_lives_but_does_not_join_is_named() {
    let _turn = turn();
    let late = "error: rank 1 of 3 did not join all_reduce within 3";
    for end in ends(launch("dawdle", 3).all()) {
        assert!(end.starts_with(late), "{end}");
    }
}

#[test]
fn a_rank_that_fails_tells_the_others_why() {
    let _turn = turn();
    for end in ends(launch("fail", 3).all()) {
        assert_eq!(end, "error: rank 1 of 3 failed: the disk is full");
    }
}

#[test]
fn a_rank_that_leaves_early_is_named() {
    let _turn = turn();
    for (rank, end) in ends(launch("leave", 3).all()).into_iter().enumerate() {
        match rank {
            1 => assert_eq!(end, "done"),
            _ => assert_eq!(
                end,
                "error: rank 1 of 3 left while the others waited for it in all_reduce"
            ),
        }
    }
}

#[test]
fn a_port_in_use_is_named() {
    let _turn = turn();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let launch = Launch { port, join: Duration::from_secs(2), ..launch("collectives", 2) };
    let said = ends(launch.all());
    let expected = format!("error: port {port} is in use on this machine: ");
    assert!(said[0].starts_with(&expected), "{said:?}");
    assert!(
        said[1].starts_with("error: rank 0 of 2, which serves the others, does not"),
        "{said:?}"
    );
}

#[test]
fn world_sizes_that_differ_are_an_error_on_both_sides() {
    let _turn = turn();
    let three = launch("collectives", 3);
    let first = three.rank(0);
    first.wait_for_server();
    let other = Launch { size: 2, ..three }.rank(1);
    for end in ends(vec![first, other]) {
        let said = "error: world sizes differ: rank 1 was told 2, another rank 3; ";
        assert!(end.starts_with(said), "{end}");
    }
}

#[test]
fn one_rank_twice_is_an_error() {
    let _turn = turn();
    let launch = launch("collectives", 3);
    for end in ends([0, 1, 1].map(|rank| launch.rank(rank)).into()) {
        assert!(end.starts_with("error: two processes say that they are rank 1 of 3; "), "{end}");
    }
}
