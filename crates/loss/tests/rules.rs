//! The heads' weights against their published formulas, and the curricula step by step.

use foretoken_loss::{Curriculum, Error, HeadWeights};
use proptest::prelude::*;

#[test]
fn weights_are_those_of_the_formulas() {
    // DeepSeek-V3 with λ = 0.3 and three further tokens: a tenth for each.
    let [first, rest @ ..] = &HeadWeights::Lambda(0.3).for_heads(4)[..] else { panic!() };
    assert_eq!(*first, 1.0);
    assert_eq!(rest.len(), 3);
    assert!(rest.iter().all(|weight| (weight - 0.1).abs() < 1e-15));
    assert_eq!(HeadWeights::Lambda(0.3).for_heads(1), [1.0]);
    let geometric = HeadWeights::Geometric(0.8).for_heads(4);
    for (weight, expected) in geometric.iter().zip([1.0, 0.8, 0.64, 0.512]) {
        assert!((weight - expected).abs() < 1e-15);
    }
    assert_eq!(HeadWeights::default().for_heads(2), [1.0, 1.0]);
    assert!(HeadWeights::Lambda(1.0).for_heads(0).is_empty());
}

#[test]
fn rules_that_teach_some_head_nothing_are_refused() {
    for bad in [0.0, -0.5, f64::NAN, f64::INFINITY] {
        for rule in [HeadWeights::Geometric(bad), HeadWeights::Lambda(bad)] {
            assert!(matches!(rule.check(), Err(Error::Setting { .. })), "{rule:?}");
        }
    }
    for rule in [HeadWeights::Uniform, HeadWeights::Geometric(2.0), HeadWeights::Lambda(0.1)] {
        assert!(rule.check().is_ok());
    }
}

proptest! {
    #[test]
    fn a_curriculum_covers_all_steps_in_equal_stretches_and_ends_right(
        heads in 1usize..9, more in 0u64..500,
    ) {
        let steps = heads as u64 + more;
        for curriculum in [Curriculum::None, Curriculum::Forward, Curriculum::Reverse] {
            let active: Vec<usize> =
                (0..steps).map(|step| curriculum.active_heads(heads, step, steps)).collect();
            let (first, last) = match curriculum {
                Curriculum::None => (heads, heads),
                Curriculum::Forward => (1, heads),
                Curriculum::Reverse => (heads, 1),
            };
            prop_assert_eq!(active[0], first);
            prop_assert_eq!(active[active.len() - 1], last);
            prop_assert_eq!(curriculum.active_heads(heads, steps, steps), last);
            prop_assert_eq!(curriculum.active_heads(heads, u64::MAX, steps), last);
            for pair in active.windows(2) {
                let by_one = match curriculum {
                    Curriculum::None => pair[1] == pair[0],
                    Curriculum::Forward => pair[1] == pair[0] || pair[1] == pair[0] + 1,
                    Curriculum::Reverse => pair[1] == pair[0] || pair[1] + 1 == pair[0],
                };
                prop_assert!(by_one, "{:?}: {:?}", curriculum, active);
            }
            if curriculum != Curriculum::None {
                // Every number of heads has its stretch, none longer than another by over a step.
                for count in 1..=heads {
                    let length = active.iter().filter(|active| **active == count).count() as u64;
                    let even = steps / heads as u64;
                    prop_assert!(length == even || length == even + 1, "{count}: {length}");
                }
            }
        }
    }

    #[test]
    fn any_numbers_give_heads_that_exist(
        heads in 0usize..9, step: u64, steps: u64, short in 0u64..4,
    ) {
        for curriculum in [Curriculum::None, Curriculum::Forward, Curriculum::Reverse] {
            for steps in [steps, short] {
                let active = curriculum.active_heads(heads, step, steps);
                prop_assert!(active <= heads && (active > 0 || heads == 0));
            }
        }
    }
}
