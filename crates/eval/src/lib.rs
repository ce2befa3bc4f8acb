//! What a multi-token model is worth on text that it has not seen.
//!
//! # Overview
//!
//! Three questions, one module each, and small helpers:
//!
//! - [`head_losses`]: how well does each head predict? Mean nats a token over seeded windows of a
//!   shard, so that models with different numbers of heads are scored on the same windows.
//! - [`held_out`]: how many tokens would a forward pass be worth, if the text in front of us were
//!   the output? One teacher-forced pass gives every head's drafts; [`walk`] then steps over the
//!   text as speculative decoding would, for every number of heads used. The answer is a
//!   [`HeldOut`], which holds a [`Walk`] for k = 1 … n.
//! - [`compare`]: are two generations the same? If not, a [`Comparison`] says where they part and
//!   whether that was a near tie of the two best logits.
//! - [`seeded_starts`]: places for windows and prompts, spread over a text.
//! - [`distinct_ngrams`] and [`distinct_8grams`]: how much of a generated text is loops?
//!
//! The walk is pure: it knows tokens and drafts, no model.
//!
//! # Example
//!
//! The text counts 0, 1, 2, …; the second head has learnt to count, the third has not.
//!
//! ```
//! use foretoken_eval::walk;
//!
//! let text: Vec<u32> = (0..12).collect();
//! let positions = 0..9u32;
//! let drafts: [Vec<u32>; 3] = [
//!     positions.clone().map(|p| p + 1).collect(), // head 1: verified text, never a draft
//!     positions.clone().map(|p| p + 2).collect(), // head 2: always right
//!     positions.map(|_| 99).collect(),            // head 3: always wrong
//! ];
//! let with_two = walk(&text, &drafts, 2)?;
//! assert_eq!(with_two.tokens_per_forward(), 2.0);
//! let with_three = walk(&text, &drafts, 3)?;
//! assert_eq!(with_three.acceptance(), [1.0, 1.0, 0.0]);
//! # Ok::<(), foretoken_eval::Error>(())
//! ```

mod compare;
mod diversity;
mod error;
mod held_out;
mod losses;
mod starts;
mod walk;

pub use compare::{Comparison, NEAR_TIE, compare};
pub use diversity::{distinct_8grams, distinct_ngrams};
pub use error::{Error, Result};
pub use held_out::{HeldOut, HeldOutOptions, held_out, held_out_texts};
pub use losses::{LossOptions, head_losses};
pub use starts::seeded_starts;
pub use walk::{Walk, walk};
