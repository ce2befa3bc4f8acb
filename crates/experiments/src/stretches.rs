//! Prompts cut from the test split.

use anyhow::Context;
use foretoken_data::TokenShard;
use foretoken_eval::seeded_starts;

/// `count` stretches of `length` tokens at seeded places that spread over a shard.
pub(crate) fn prompts(
    shard: &TokenShard,
    count: usize,
    length: usize,
    seed: u64,
) -> anyhow::Result<Vec<Vec<u32>>> {
    let starts = seeded_starts(shard.len(), count, length, seed)
        .context("the test split is too short for a prompt")?;
    starts.into_iter().map(|start| Ok(shard.tokens(start..start + length)?)).collect()
}
