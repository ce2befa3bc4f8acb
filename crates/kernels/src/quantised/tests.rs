//! Each format against its definition, number by number, in integers and float64.

use super::BlockFormat;
use proptest::prelude::*;

/// The two terms that number `i` of a block is the sum of, as the format defines them; exact, as
/// products of small integers and float16 numbers fit in float64.
fn defined(format: BlockFormat, block: &[u8], i: usize) -> [f64; 2] {
    let float16 = |at: usize| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f64();
    let nibble = |from: usize| i64::from(block[from + i % 16] >> (i / 16 * 4) & 15);
    let bit = |from: usize| i64::from(block[from + i / 8] >> (i % 8) & 1) << 4;
    match format {
        BlockFormat::F32 => {
            [f64::from(f32::from_le_bytes([block[0], block[1], block[2], block[3]])), 0.0]
        }
        BlockFormat::F16 => [float16(0), 0.0],
        BlockFormat::BF16 => [half::bf16::from_le_bytes([block[0], block[1]]).to_f64(), 0.0],
        BlockFormat::Q8_0 => [float16(0) * f64::from(block[2 + i].cast_signed()), 0.0],
        BlockFormat::Q4_0 => [float16(0) * (nibble(2) - 8) as f64, 0.0],
        BlockFormat::Q4_1 => [float16(0) * nibble(4) as f64, float16(2)],
        BlockFormat::Q5_0 => [float16(0) * ((nibble(6) | bit(2)) - 16) as f64, 0.0],
        BlockFormat::Q5_1 => [float16(0) * (nibble(8) | bit(4)) as f64, float16(2)],
        BlockFormat::Q4_K => {
            let (scale, least) = six_bits(&block[4..16], i / 32);
            let number = block[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            [float16(0) * scale * f64::from(number), -float16(2) * least]
        }
        BlockFormat::Q5_K => {
            let (scale, least) = six_bits(&block[4..16], i / 32);
            let low = block[48 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            let high = block[16 + i % 32] >> (i / 32) & 1;
            [float16(0) * scale * f64::from(low + 16 * high), -float16(2) * least]
        }
        BlockFormat::Q6_K => {
            let (half, quarter, j) = (i / 128, i / 32 % 4, i % 32);
            let low = block[half * 64 + quarter % 2 * 32 + j] >> (quarter / 2 * 4) & 15;
            let high = block[128 + half * 32 + j] >> (2 * quarter) & 3;
            let number = i64::from(low) + 16 * i64::from(high) - 32;
            [float16(208) * f64::from(block[192 + i / 16].cast_signed()) * number as f64, 0.0]
        }
    }
}

/// Scale and minimum `i` of twelve bytes, read as one number of 96 bits.
fn six_bits(packed: &[u8], i: usize) -> (f64, f64) {
    let bits = |from: usize, count: usize| {
        (0..count)
            .map(|b| u32::from(packed[(from + b) / 8] >> ((from + b) % 8) & 1) << b)
            .sum::<u32>()
    };
    let (scale, least) = if i < 4 {
        (bits(i * 8, 6), bits(32 + i * 8, 6))
    } else {
        let low = 64 + (i - 4) * 8;
        (
            bits(low, 4) + 16 * bits((i - 4) * 8 + 6, 2),
            bits(low + 4, 4) + 16 * bits(32 + (i - 4) * 8 + 6, 2),
        )
    };
    (f64::from(scale), f64::from(least))
}

proptest! {
    #[test]
    fn blocks_hold_what_their_format_defines(
        format in prop::sample::select(BlockFormat::ALL.to_vec()),
        bytes in prop::collection::vec(any::<u8>(), 2 * 210),
    ) {
        let bytes = &bytes[..2 * format.block_bytes()];
        let mut out = vec![0.0f32; 2 * format.block_len()];
        format.dequantise(bytes, &mut out);
        for (i, &number) in out.iter().enumerate() {
            let block = &bytes[i / format.block_len() * format.block_bytes()..];
            let [first, second] = defined(format, block, i % format.block_len());
            let (exact, size) = (first + second, first.abs() + second.abs());
            if exact.is_finite() {
                // Each term and their sum are rounded at most three times.
                let error = (f64::from(number) - exact).abs();
                prop_assert!(error <= size * 3.0 * f64::from(f32::EPSILON), "{format} {i}: {number} {exact}");
            } else {
                prop_assert!(!number.is_finite());
            }
        }
    }
}

#[test]
fn only_whole_blocks_have_a_size() {
    assert_eq!(BlockFormat::Q4_1.bytes(64), Some(40));
    assert_eq!(BlockFormat::Q4_1.bytes(65), None);
    assert_eq!(BlockFormat::F32.bytes(usize::MAX), None);
    assert_eq!(BlockFormat::F16.bytes(3), Some(6));
}
