//! The walk against a slow, independent account of speculative decoding.

use foretoken_eval::walk;
use proptest::prelude::*;

/// Plays speculative decoding literally: an output that grows token by token, a queue of drafts
/// that the next pass checks against what plain decoding would write (here: the text).
fn play(text: &[u32], drafts: &[Vec<u32>], heads_used: usize) -> (u64, Vec<u64>) {
    let positions = drafts[0].len();
    let mut output = vec![text[0]];
    let mut accepted_up_to = vec![0; heads_used];
    let mut passes = 0;
    while output.len() - 1 < positions {
        let last = output.len() - 1;
        passes += 1;
        // The pass writes one token that is right by definition, and proposes a continuation.
        output.push(text[last + 1]);
        accepted_up_to[0] += 1;
        let proposal: Vec<u32> = drafts[1..heads_used].iter().map(|d| d[last]).collect();
        let mut all_right = true;
        for (index, draft) in proposal.into_iter().enumerate() {
            all_right &= draft == text[last + 2 + index];
            if all_right {
                output.push(draft);
                accepted_up_to[index + 1] += 1;
            }
        }
    }
    assert_eq!(output[..], text[..output.len()], "decoding may never leave the text");
    (passes, accepted_up_to)
}

/// A text over few symbols and drafts that are often right, so that every length of accepted run
/// occurs.
fn cases() -> impl Strategy<Value = (Vec<u32>, Vec<Vec<u32>>)> {
    (1usize..6, 1usize..60).prop_flat_map(|(heads, positions)| {
        let text = prop::collection::vec(0u32..3, positions + heads);
        let drafts = prop::collection::vec(prop::collection::vec(0u32..3, positions), heads);
        (text, drafts)
    })
}

proptest! {
    #[test]
    fn the_walk_equals_decoding_played_out_token_by_token((text, drafts) in cases()) {
        for heads_used in 1..=drafts.len() {
            let walk = walk(&text, &drafts, heads_used).unwrap();
            let (passes, accepted) = play(&text, &drafts, heads_used);
            prop_assert_eq!(walk.passes(), passes);
            prop_assert_eq!(walk.tokens(), accepted.iter().sum::<u64>());
            let shares: Vec<f64> = accepted.iter().map(|&a| a as f64 / passes as f64).collect();
            prop_assert_eq!(walk.acceptance(), shares);
        }
    }

    #[test]
    fn tokens_a_forward_stay_between_one_and_the_heads_used((text, drafts) in cases()) {
        for heads_used in 1..=drafts.len() {
            let walk = walk(&text, &drafts, heads_used).unwrap();
            prop_assert!((1.0..=heads_used as f64).contains(&walk.tokens_per_forward()));
            let acceptance = walk.acceptance();
            prop_assert!(acceptance.windows(2).all(|pair| pair[0] >= pair[1]));
            prop_assert!((walk.tokens_per_forward() - acceptance.iter().sum::<f64>()).abs() < 1e-9);
        }
    }

    #[test]
    fn every_token_up_to_the_last_position_is_stepped_over_once((text, drafts) in cases()) {
        for heads_used in 1..=drafts.len() {
            let walk = walk(&text, &drafts, heads_used).unwrap();
            let positions = drafts[0].len() as u64;
            prop_assert!((positions..positions + heads_used as u64).contains(&walk.tokens()));
        }
    }
}
