//! Event files read back by a reader that shares nothing with the writer.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

/// CRC-32C a bit at a time, from its polynomial.
fn crc32c_of(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    !crc
}

/// As `tensorflow/core/lib/hash/crc32c.h` undoes the mask.
fn unmasked(masked: u32) -> u32 {
    masked.wrapping_sub(0xa282_ead8).rotate_left(15)
}

/// Splits a file into its messages, every checksum checked.
fn messages(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(unmasked(word(&bytes[8..12])), crc32c_of(&bytes[..8]));
        let message = &bytes[12..12 + length];
        assert_eq!(unmasked(word(&bytes[12 + length..16 + length])), crc32c_of(message));
        all.push(message.to_vec());
        bytes = &bytes[16 + length..];
    }
    all
}

/// A field's value as the wire has it.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Integer(u64),
    Double(f64),
    Float(f32),
    Bytes(Vec<u8>),
}

/// The fields of a message by number.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Value)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => Value::Integer(varint(&mut bytes)),
            1 => Value::Double(f64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut bytes) as usize;
                Value::Bytes(take(&mut bytes, length).to_vec())
            }
            5 => Value::Float(f32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())),
            other => panic!("wire type {other}"),
        };
        all.push((key >> 3, value));
    }
    all
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a number of more than 64 bits");
}

fn take<'b>(bytes: &mut &'b [u8], count: usize) -> &'b [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn bytes_of(fields: &[(u64, Value)], number: u64) -> Option<Vec<u8>> {
    fields.iter().find_map(|(at, value)| match value {
        Value::Bytes(bytes) if *at == number => Some(bytes.clone()),
        _ => None,
    })
}

/// An event as this test needs it.
#[derive(Debug, PartialEq)]
struct Read {
    step: u64,
    version: Option<String>,
    starts: bool,
    scalars: Vec<(String, f32)>,
}

fn read(path: &Path) -> Vec<Read> {
    let events = messages(&fs::read(path).unwrap());
    let read = |event: &Vec<u8>| {
        let event = fields(event);
        let time = event.iter().find(|(number, _)| *number == 1).unwrap();
        assert!(matches!(time.1, Value::Double(seconds) if seconds > 1.7e9 && seconds < 1e10));
        let step = event.iter().find_map(|(number, value)| match value {
            Value::Integer(step) if *number == 2 => Some(*step),
            _ => None,
        });
        let session = bytes_of(&event, 7).map(|session| fields(&session));
        let values = bytes_of(&event, 5).map(|summary| fields(&summary)).unwrap_or_default();
        Read {
            step: step.unwrap(),
            version: bytes_of(&event, 3).map(|version| String::from_utf8(version).unwrap()),
            starts: session.is_some_and(|fields| fields == [(1, Value::Integer(1))]),
            scalars: values.iter().map(scalar).collect(),
        }
    };
    events.iter().map(read).collect()
}

fn scalar(field: &(u64, Value)) -> (String, f32) {
    let (1, Value::Bytes(value)) = field else { panic!("{field:?} is no value of a summary") };
    let value = fields(value);
    let tag = String::from_utf8(bytes_of(&value, 1).unwrap()).unwrap();
    match value[1] {
        (2, Value::Float(number)) => (tag, number),
        ref other => panic!("{other:?} is no simple value"),
    }
}

fn line(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        tokens: 64 * step,
        epoch: 2,
        losses: vec![2.5, 3.25],
        learning_rate: 1e-3,
        grad_norm: f64::NAN,
        updated: false,
        seconds: 0.5,
        tokens_per_second: 128.0,
    }
}

const USAGE: Usage = Usage { memory_bytes: Some(1 << 20), utilisation: Some(0.25) };

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn both_checksums_are_the_published_one() {
    // The check value of CRC-32/ISCSI in the catalogue of parametrised CRC algorithms.
    assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(crc32c_of(b"123456789"), 0xE306_9283);
    // RFC 3720, B.4: 32 bytes of zeros.
    assert_eq!(crc32c_of(&[0; 32]), 0x8A91_36AA);
}

#[test]
fn a_file_opens_with_version_and_start_and_has_every_figure_of_a_step() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tensorboard");
    let mut file = EventFile::create(&folder, 0, 1).unwrap();
    file.push(&line(1), &USAGE).unwrap();
    file.flush().unwrap();
    let events = read(&files(&folder)[0]);
    assert_eq!(events.len(), 3);
    assert_eq!(events[0].version.as_deref(), Some("brain.Event:2"));
    assert!(events[1].starts && events[1].step == 1);
    assert_eq!(events[2].step, 1);
    let tags: Vec<&str> = events[2].scalars.iter().map(|(tag, _)| tag.as_str()).collect();
    let all = [
        "loss/head-1",
        "loss/head-2",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "epoch",
        "memory",
        "utilisation",
    ];
    assert_eq!(tags, all);
    let numbers: Vec<f32> = events[2].scalars.iter().map(|(_, number)| *number).collect();
    assert_eq!(numbers[..3], [2.5, 3.25, 1e-3]);
    assert!(numbers[3].is_nan());
    assert_eq!(numbers[4..], [128.0, 2.0, 1_048_576.0, 0.25]);
}

#[test]
fn a_run_that_goes_on_begins_a_file_that_sorts_later_and_starts_at_its_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = EventFile::create(dir.path(), 0, 2).unwrap();
    for step in 1..=5 {
        first.push(&line(step), &USAGE).unwrap();
    }
    drop(first);
    let mut second = EventFile::create(dir.path(), 3, 2).unwrap();
    let unknown = Usage { memory_bytes: None, utilisation: None };
    second.push(&line(4), &unknown).unwrap();
    drop(second);
    let files = files(dir.path());
    assert_eq!(files.len(), 2);
    let seconds = files.iter().map(|file| {
        let name = file.file_name().unwrap();
        assert!(name.to_str().unwrap().ends_with(&format!(".{}.0", std::process::id())));
        seconds_in(name).unwrap()
    });
    assert!(seconds.is_sorted_by(|earlier, later| earlier < later));
    assert_eq!(read(&files[0]).len(), 7);
    let events = read(&files[1]);
    assert!(events[1].starts);
    assert_eq!((events[1].step, events[2].step), (4, 4));
    assert_eq!(events[2].scalars[0].0, "loss/head-2");
    assert!(events[2].scalars.iter().all(|(tag, _)| tag != "memory" && tag != "utilisation"));
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let taken = dir.path().join("tensorboard");
    fs::write(&taken, "a file").unwrap();
    let error = EventFile::create(&taken, 0, 1).unwrap_err().to_string();
    assert!(error.contains("tensorboard"), "{error}");
}

proptest! {
    #[test]
    fn any_scalars_come_back_as_they_were(
        step in any::<u64>(),
        scalars in prop::collection::vec((".{0,200}", any::<f64>()), 0..40),
    ) {
        let bytes = record(&event(now(), step, What::Scalars(&scalars)));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        fs::write(&path, bytes).unwrap();
        let event = &read(&path)[0];
        prop_assert_eq!(event.step, step);
        prop_assert_eq!(event.scalars.len(), scalars.len());
        for ((tag, number), (back, read)) in scalars.iter().zip(&event.scalars) {
            prop_assert_eq!(tag, back);
            prop_assert_eq!((*number as f32).to_bits(), read.to_bits());
        }
    }
}
