//! Stretches of a split: prompts and held-out windows.

use anyhow::Context;
use foretoken_data::TokenShard;
use foretoken_eval::seeded_starts;

/// `count` stretches of `length` tokens at seeded places that spread over a shard.
pub(crate) fn stretches(
    shard: &TokenShard,
    count: usize,
    length: usize,
    seed: u64,
) -> anyhow::Result<Vec<Vec<u32>>> {
    let starts = seeded_starts(shard.len(), count, length, seed)
        .with_context(|| format!("the {} split is too short", shard.split().name()))?;
    starts.into_iter().map(|start| Ok(shard.tokens(start..start + length)?)).collect()
}
