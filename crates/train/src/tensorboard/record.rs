//! `TFRecord`: how a file keeps messages apart and finds damaged ones.

/// One message as a record: its length (8 bytes, little-endian), the checksum of these bytes, the
/// message, its checksum.
///
/// From the comment at `TFRecord`'s writer, `tensorflow/core/lib/io/record_writer.h`.
pub(super) fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(message.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_checksum(&length).to_le_bytes());
    record.extend_from_slice(message);
    record.extend_from_slice(&masked_checksum(message).to_le_bytes());
    record
}

/// CRC-32C, turned right by 15 bits, plus a constant: a checksum of data that has checksums in it
/// is a poor one otherwise (`tensorflow/core/lib/hash/crc32c.h`).
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
