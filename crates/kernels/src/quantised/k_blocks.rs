//! Formats of 256 numbers a block, with scales that are quantised themselves.

use super::half;

const LEN: usize = 256;

pub(super) fn q4_k(bytes: &[u8], out: &mut [f32]) {
    each::<144>(bytes, out, |block, out| {
        let (scale, least) = (half([block[0], block[1]]), half([block[2], block[3]]));
        let (scales, quants) = (&block[4..16], &block[16..]);
        for (i, (out, quants)) in out.chunks_exact_mut(64).zip(quants.chunks_exact(32)).enumerate()
        {
            let (low, high) = out.split_at_mut(32);
            let (first, second) = (
                Line::new(scale, least, scales, 2 * i),
                Line::new(scale, least, scales, 2 * i + 1),
            );
            for ((low, high), &byte) in low.iter_mut().zip(high).zip(quants) {
                *low = first.value(byte & 15);
                *high = second.value(byte >> 4);
            }
        }
    });
}

pub(super) fn q5_k(bytes: &[u8], out: &mut [f32]) {
    each::<176>(bytes, out, |block, out| {
        let (scale, least) = (half([block[0], block[1]]), half([block[2], block[3]]));
        let (scales, fifths, quants) = (&block[4..16], &block[16..48], &block[48..]);
        for (i, (out, quants)) in out.chunks_exact_mut(64).zip(quants.chunks_exact(32)).enumerate()
        {
            let (low, high) = out.split_at_mut(32);
            let (first, second) = (
                Line::new(scale, least, scales, 2 * i),
                Line::new(scale, least, scales, 2 * i + 1),
            );
            for (((low, high), &byte), &fifth) in low.iter_mut().zip(high).zip(quants).zip(fifths) {
                *low = first.value(byte & 15 | (fifth >> (2 * i) & 1) << 4);
                *high = second.value(byte >> 4 | (fifth >> (2 * i + 1) & 1) << 4);
            }
        }
    });
}

pub(super) fn q6_k(bytes: &[u8], out: &mut [f32]) {
    each::<210>(bytes, out, |block, out| {
        let scale = half([block[208], block[209]]);
        let scales = &block[192..208];
        for (i, out) in out.chunks_exact_mut(128).enumerate() {
            let (lows, highs) = (&block[i * 64..][..64], &block[128 + i * 32..][..32]);
            for (quarter, out) in out.chunks_exact_mut(32).enumerate() {
                let lows = &lows[quarter % 2 * 32..][..32];
                for (j, out) in out.iter_mut().enumerate() {
                    let low = lows[j] >> (quarter / 2 * 4) & 15;
                    let high = highs[j] >> (2 * quarter) & 3;
                    let number = (low | high << 4).cast_signed() - 32;
                    let scale =
                        scale * f32::from(scales[i * 8 + quarter * 2 + j / 16].cast_signed());
                    *out = scale * f32::from(number);
                }
            }
        }
    });
}

/// Scale and minimum of 32 numbers.
struct Line {
    scale: f32,
    least: f32,
}

impl Line {
    /// The `i`-th of eight: twelve bytes hold eight scales and eight minima of six bits. The first
    /// four of each lie in the lower bits of bytes 0–3 and 4–7; of the others the lower four bits
    /// share bytes 8–11, and the upper two are the upper two of bytes 0–3 and 4–7.
    #[inline]
    fn new(scale: f32, least: f32, packed: &[u8], i: usize) -> Self {
        let (s, m) = if i < 4 {
            (packed[i] & 63, packed[i + 4] & 63)
        } else {
            let shared = packed[i + 4];
            (shared & 15 | packed[i - 4] >> 6 << 4, shared >> 4 | packed[i] >> 6 << 4)
        };
        Self { scale: scale * f32::from(s), least: least * f32::from(m) }
    }

    #[inline]
    fn value(&self, number: u8) -> f32 {
        self.scale * f32::from(number) - self.least
    }
}

#[inline]
fn each<const BYTES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (outs, _) = out.as_chunks_mut::<LEN>();
    blocks.iter().zip(outs).for_each(|(bytes, out)| block(bytes, out));
}
