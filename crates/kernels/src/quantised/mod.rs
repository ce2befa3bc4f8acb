//! Number formats of weights in blocks with shared scales, as GGUF files hold them.
//!
//! A [`BlockFormat`] turns the bytes of whole blocks into float32, by the format's definition: each
//! operation is rounded once, as plain float32 arithmetic rounds it, so that the numbers are those
//! that any other exact reader gets.

use crate::native::for_each;

mod k_blocks;
mod plain;
mod small_blocks;

#[cfg(test)]
mod tests;

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)] // the formats' own names
pub enum BlockFormat {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a float32.
    BF16,
    /// 32 signed bytes under one scale.
    Q8_0,
    /// 32 numbers of 4 bits, −8 to 7, under one scale.
    Q4_0,
    /// 32 numbers of 4 bits under a scale and a minimum.
    Q4_1,
    /// 32 numbers of 5 bits, −16 to 15, under one scale.
    Q5_0,
    /// 32 numbers of 5 bits under a scale and a minimum.
    Q5_1,
    /// 256 numbers of 4 bits; each 32 have a scale and a minimum of 6 bits.
    Q4_K,
    /// 256 numbers of 5 bits; each 32 have a scale and a minimum of 6 bits.
    Q5_K,
    /// 256 numbers of 6 bits, −32 to 31; each 16 have a scale of 8 bits.
    Q6_K,
}

/// Numbers that a thread reads at a time.
const PART: usize = 1 << 14;

impl BlockFormat {
    /// All formats.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Numbers of a block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Bytes of `len` numbers; `None` where they are no whole blocks or too many to count.
    pub fn bytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Writes the numbers of the blocks in `bytes` to `out`, on libtorch's threads.
    ///
    /// # Panics
    /// Where `bytes` are not the blocks of exactly `out.len()` numbers.
    pub fn dequantise(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            self.bytes(out.len()),
            Some(bytes.len()),
            "no whole blocks, or of another number"
        );
        let part = PART.next_multiple_of(self.block_len());
        let bytes = bytes.chunks(part / self.block_len() * self.block_bytes());
        for_each(bytes.zip(out.chunks_mut(part)), |(bytes, out)| self.dequantise_part(bytes, out));
    }

    fn dequantise_part(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => plain::float32(bytes, out),
            Self::F16 => plain::float16(bytes, out),
            Self::BF16 => plain::bfloat16(bytes, out),
            Self::Q8_0 => small_blocks::q8_0(bytes, out),
            Self::Q4_0 => small_blocks::q4_0(bytes, out),
            Self::Q4_1 => small_blocks::q4_1(bytes, out),
            Self::Q5_0 => small_blocks::q5_0(bytes, out),
            Self::Q5_1 => small_blocks::q5_1(bytes, out),
            Self::Q4_K => k_blocks::q4_k(bytes, out),
            Self::Q5_K => k_blocks::q5_k(bytes, out),
            Self::Q6_K => k_blocks::q6_k(bytes, out),
        }
    }
}

impl std::fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// The float16 at the start of a block's part.
#[inline]
fn half(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}
