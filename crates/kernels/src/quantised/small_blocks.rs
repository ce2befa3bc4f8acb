//! Formats of 32 numbers a block.
//!
//! Four-bit parts hold number j in the lower and number j + 16 in the upper half of byte j; a fifth
//! bit is bit j of a 32-bit word.

use super::half;

const LEN: usize = 32;

pub(super) fn q8_0(bytes: &[u8], out: &mut [f32]) {
    each::<34>(bytes, out, |block, out| {
        let scale = half([block[0], block[1]]);
        for (out, &byte) in out.iter_mut().zip(&block[2..]) {
            *out = f32::from(byte.cast_signed()) * scale;
        }
    });
}

pub(super) fn q4_0(bytes: &[u8], out: &mut [f32]) {
    each::<18>(bytes, out, |block, out| {
        let scale = half([block[0], block[1]]);
        let (low, high) = out.split_at_mut(LEN / 2);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
            *low = f32::from((byte & 15).cast_signed() - 8) * scale;
            *high = f32::from((byte >> 4).cast_signed() - 8) * scale;
        }
    });
}

pub(super) fn q4_1(bytes: &[u8], out: &mut [f32]) {
    each::<20>(bytes, out, |block, out| {
        let (scale, least) = (half([block[0], block[1]]), half([block[2], block[3]]));
        let (low, high) = out.split_at_mut(LEN / 2);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[4..]) {
            *low = f32::from(byte & 15) * scale + least;
            *high = f32::from(byte >> 4) * scale + least;
        }
    });
}

pub(super) fn q5_0(bytes: &[u8], out: &mut [f32]) {
    each::<22>(bytes, out, |block, out| {
        let scale = half([block[0], block[1]]);
        let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
        five_bits(fifth, &block[6..], out, |number| (f32::from(number) - 16.0) * scale);
    });
}

pub(super) fn q5_1(bytes: &[u8], out: &mut [f32]) {
    each::<24>(bytes, out, |block, out| {
        let (scale, least) = (half([block[0], block[1]]), half([block[2], block[3]]));
        let fifth = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
        five_bits(fifth, &block[8..], out, |number| f32::from(number) * scale + least);
    });
}

#[inline]
fn five_bits(fifth: u32, bytes: &[u8], out: &mut [f32; LEN], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(LEN / 2);
    for (j, ((low, high), &byte)) in low.iter_mut().zip(high).zip(bytes).enumerate() {
        let bit = |at: usize| ((fifth >> at & 1) as u8) << 4;
        *low = value(byte & 15 | bit(j));
        *high = value(byte >> 4 | bit(j + LEN / 2));
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
