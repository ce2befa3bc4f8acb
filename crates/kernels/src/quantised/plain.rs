//! Formats without blocks.

pub(super) fn float32(bytes: &[u8], out: &mut [f32]) {
    let (numbers, _) = bytes.as_chunks::<4>();
    for (out, &number) in out.iter_mut().zip(numbers) {
        *out = f32::from_le_bytes(number);
    }
}

pub(super) fn float16(bytes: &[u8], out: &mut [f32]) {
    let (numbers, _) = bytes.as_chunks::<2>();
    for (out, &number) in out.iter_mut().zip(numbers) {
        *out = super::half(number);
    }
}

pub(super) fn bfloat16(bytes: &[u8], out: &mut [f32]) {
    let (numbers, _) = bytes.as_chunks::<2>();
    for (out, &number) in out.iter_mut().zip(numbers) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(number)) << 16);
    }
}
