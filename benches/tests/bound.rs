//! The least time of a step: what it is made of.

use anyhow::Result;
use foretoken_benches::{Bound, Linear, Stack, StepWork};
use tch::Kind;

#[test]
fn a_step_of_twice_the_work_takes_twice_as_long_at_the_same_rates() -> Result<()> {
    let linears = vec![Linear { outputs: 64, inputs: 32, count: 2.0 }];
    let stacks = vec![Stack { matrices: 2, rows: 16, columns: 32 }];
    let work = StepWork { tokens: 64.0, linears, stacks, model_flops: 2e6, update_bytes: 1e6 };
    let bound = Bound::measure(&work, 10_000, Kind::Float, Kind::Float)?;
    assert_eq!((bound.flops, bound.update_bytes), (2e6, 1e6));
    assert!(bound.flops_per_second > 1e6 && bound.bytes_per_second > 1e6);
    assert!(bound.orthogonalise_seconds > 0.0);
    let twice =
        Bound { flops: 2.0 * bound.flops, update_bytes: 2e6, orthogonalise_seconds: 0.0, ..bound };
    let once = Bound { orthogonalise_seconds: 0.0, ..bound };
    let seconds = |bound: Bound| bound.product_seconds() + bound.traffic_seconds();
    assert!((seconds(twice) / seconds(once) - 2.0).abs() < 1e-9);
    assert_eq!(bound.to_json()["seconds"].as_f64(), Some(seconds(bound)));
    Ok(())
}
