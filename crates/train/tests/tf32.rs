//! A flag of the whole process: its test is alone in one.

mod common;

use common::Place;

#[test]
fn the_recipe_says_whether_tf32_is_allowed() {
    let place = Place::new();
    for allowed in [true, false] {
        let (out, set) = (format!("tf32-{allowed}"), format!("train.tf32={allowed}"));
        place.train(&out, &["train.steps=2", "optimizer.warmup=1", &set]).unwrap();
        assert_eq!(foretoken_kernels::tf32_allowed(), allowed);
    }
}
