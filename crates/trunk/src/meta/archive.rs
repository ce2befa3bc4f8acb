//! A zip archive whose entries are stored as they are, which is what `torch.save` writes.
//!
//! Format: PKWARE's APPNOTE 6.3, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14
//! to 4.3.16 (end records) and 4.5.3 (zip64 field). Checksums are not compared: it would cost a
//! pass over the whole file.

use crate::bytes::{Problem, number, place, slice};
use crate::io::map;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

const LOCAL: &[u8] = b"PK\x03\x04";
const LOCAL_LEN: usize = 30;
const CENTRAL: &[u8] = b"PK\x01\x02";
const CENTRAL_LEN: usize = 46;
const END: &[u8] = b"PK\x05\x06";
const END_LEN: usize = 22;
const LONG_END: &[u8] = b"PK\x06\x06";
const LONG_END_LEN: usize = 56;
const LOCATOR: &[u8] = b"PK\x06\x07";
const LOCATOR_LEN: usize = 20;
const LONGEST_COMMENT: usize = 0xffff;
/// Stands for a number that is in the zip64 field.
const ELSEWHERE: u64 = 0xffff_ffff;
const ZIP64_FIELD: u64 = 1;
/// Encrypted, strongly encrypted, masked headers.
const ENCRYPTED: u64 = 1 | 1 << 6 | 1 << 13;

/// An archive, mapped into memory, with its directory read and checked.
pub(super) struct Archive {
    path: PathBuf,
    map: memmap2::Mmap,
    entries: BTreeMap<String, Range<usize>>,
}

impl Archive {
    /// Opens an archive and reads its directory.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let map = map(path)?;
        let entries = directory(&map)
            .map_err(|problem| Error::format(path, format!("zip archive: {problem}")))?;
        Ok(Self { path: path.to_owned(), map, entries })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Where an entry's content lies in the file.
    pub(super) fn entry(&self, name: &str) -> Option<Range<usize>> {
        self.entries.get(name).cloned()
    }

    /// Bytes of the file.
    pub(super) fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        self.map.get(range)
    }
}

fn directory(bytes: &[u8]) -> std::result::Result<BTreeMap<String, Range<usize>>, Problem> {
    if !bytes.starts_with(LOCAL) {
        return Err(
            "the file does not begin as one: it was not written by torch.save, or by that \
                    of a PyTorch before 1.6; load it there and save it anew"
                .into(),
        );
    }
    let end = find_end(bytes)?;
    let (first, limit) = (place(end.start), place(end.start.saturating_add(end.size)));
    let Some(records) = bytes.get(..limit) else {
        return Err("damaged: its directory lies outside of the file".into());
    };
    let mut entries = BTreeMap::new();
    let mut at = first;
    for _ in 0..end.entries {
        let (entry, next) = Entry::read(records, at)?;
        let content = entry.content(&bytes[..first])?;
        if entries.insert(entry.name.to_owned(), content).is_some() {
            return Err(format!("damaged: the entry {:?} is there twice", entry.name));
        }
        at = next;
    }
    if at != limit {
        return Err("damaged: its directory is longer than its entries".into());
    }
    check_apart(&entries)?;
    Ok(entries)
}

fn check_apart(entries: &BTreeMap<String, Range<usize>>) -> std::result::Result<(), Problem> {
    let mut places: Vec<(&Range<usize>, &String)> =
        entries.iter().map(|(name, content)| (content, name)).collect();
    places.sort_by_key(|(content, _)| (content.start, content.end));
    for pair in places.windows(2) {
        if pair[0].0.end > pair[1].0.start {
            return Err(format!("damaged: entries {:?} and {:?} overlap", pair[0].1, pair[1].1));
        }
    }
    Ok(())
}

/// What the end of an archive says of its directory.
#[derive(Clone, Copy, PartialEq, Eq)]
struct End {
    /// Numbers of disks; all are 0 in an archive of one file.
    disks: u64,
    entries_here: u64,
    entries: u64,
    size: u64,
    start: u64,
}

impl End {
    fn short(record: &[u8]) -> Self {
        Self {
            disks: number(&record[4..6]) | number(&record[6..8]),
            entries_here: number(&record[8..10]),
            entries: number(&record[10..12]),
            size: number(&record[12..16]),
            start: number(&record[16..20]),
        }
    }

    fn long(record: &[u8]) -> Self {
        Self {
            disks: number(&record[16..20]) | number(&record[20..24]),
            entries_here: number(&record[24..32]),
            entries: number(&record[32..40]),
            size: number(&record[40..48]),
            start: number(&record[48..56]),
        }
    }

    /// Whether a short record says the same as this one, as far as it has room to.
    fn agrees(&self, short: &Self) -> bool {
        let same = |long: u64, short: u64, full: u64| short == long || short == full;
        same(self.disks, short.disks, 0xffff)
            && same(self.entries_here, short.entries_here, 0xffff)
            && same(self.entries, short.entries, 0xffff)
            && same(self.size, short.size, ELSEWHERE)
            && same(self.start, short.start, ELSEWHERE)
    }
}

/// Finds the end records. The directory has to reach up to them and to have room for its entries.
fn find_end(bytes: &[u8]) -> std::result::Result<End, Problem> {
    let Some(short_at) = find_short_end(bytes) else {
        return Err("cut short: the directory at its end is missing; fetch the file again".into());
    };
    let short = End::short(slice(bytes, short_at, END_LEN, "the end record")?);
    let before = &bytes[..short_at];
    let locator = before.len().checked_sub(LOCATOR_LEN).map(|at| &before[at..]);
    let (end, limit) = match locator.filter(|locator| locator.starts_with(LOCATOR)) {
        None => (short, short_at),
        Some(locator) => {
            let at = place(number(&locator[8..16]));
            let record = slice(before, at, LONG_END_LEN, "the zip64 end record")?;
            let long = End::long(record);
            if !record.starts_with(LONG_END) || !long.agrees(&short) {
                return Err("damaged: its two end records disagree".into());
            }
            (long, at)
        }
    };
    if end.disks != 0 || end.entries_here != end.entries {
        return Err("archives in several parts are not supported".into());
    }
    let whole = end.start.checked_add(end.size) == Some(limit as u64);
    if !whole || end.entries > end.size / CENTRAL_LEN as u64 {
        return Err("damaged: its directory is not where its end says".into());
    }
    Ok(end)
}

/// The last place at which an end record and its comment fill the rest of the file.
fn find_short_end(bytes: &[u8]) -> Option<usize> {
    let last = bytes.len().checked_sub(END_LEN)?;
    let first = last.saturating_sub(LONGEST_COMMENT);
    (first..=last).rev().find(|&at| {
        let record = &bytes[at..at + END_LEN];
        record.starts_with(END) && place(number(&record[20..22])) == last - at
    })
}

/// An entry of the directory.
struct Entry<'b> {
    name: &'b str,
    size: u64,
    header: u64,
}

impl<'b> Entry<'b> {
    /// Reads the entry at `at`; also says where the next one is.
    fn read(bytes: &'b [u8], at: usize) -> std::result::Result<(Self, usize), Problem> {
        let record = slice(bytes, at, CENTRAL_LEN, "a directory entry")?;
        if !record.starts_with(CENTRAL) {
            return Err(format!("damaged: there is no directory entry at byte {at}"));
        }
        let len = |range: Range<usize>| place(number(&record[range]));
        let (name_len, extra_len, comment_len) = (len(28..30), len(30..32), len(32..34));
        let name_at = at + CENTRAL_LEN;
        let name = slice(bytes, name_at, name_len, "an entry's name")?;
        let name = std::str::from_utf8(name)
            .map_err(|error| format!("damaged: an entry's name is no UTF-8 text: {error}"))?;
        let extra_at = name_at + name_len;
        let extra = slice(bytes, extra_at, extra_len, "an entry's extra fields")?;
        slice(bytes, extra_at + extra_len, comment_len, "an entry's comment")?;
        if number(&record[8..10]) & ENCRYPTED != 0 {
            return Err(format!("the entry {name:?} is encrypted, which is not supported"));
        }
        check_stored(name, number(&record[10..12]))?;

        let mut long = zip64_field(extra)?;
        let mut widen = |short: u64| -> std::result::Result<u64, Problem> {
            if short != ELSEWHERE {
                return Ok(short);
            }
            let wide = slice(long, 0, 8, "a zip64 field")?;
            long = &long[8..];
            Ok(number(wide))
        };
        let size = widen(number(&record[24..28]))?;
        let stored_size = widen(number(&record[20..24]))?;
        let header = widen(number(&record[42..46]))?;
        if size != stored_size {
            return Err(format!(
                "damaged: the entry {name:?} has two sizes, {size}, {stored_size}"
            ));
        }
        Ok((Self { name, size, header }, extra_at + extra_len + comment_len))
    }

    /// Where the content lies: behind a header of its own, which has fields of its own length.
    fn content(&self, bytes: &[u8]) -> std::result::Result<Range<usize>, Problem> {
        let header = place(self.header);
        let local = slice(bytes, header, LOCAL_LEN, "an entry's header")?;
        if !local.starts_with(LOCAL) {
            return Err(format!(
                "damaged: the entry {:?} has no header where it should",
                self.name
            ));
        }
        check_stored(self.name, number(&local[8..10]))?;
        let (name_len, extra_len) = (place(number(&local[26..28])), place(number(&local[28..30])));
        let name = slice(bytes, header + LOCAL_LEN, name_len, "an entry's name")?;
        if name != self.name.as_bytes() {
            return Err(format!("damaged: the header of {:?} is that of another entry", self.name));
        }
        let start = header + LOCAL_LEN + name_len + extra_len;
        let size = place(self.size);
        slice(bytes, start, size, &format!("the entry {:?}", self.name))?;
        Ok(start..start + size)
    }
}

fn check_stored(name: &str, method: u64) -> std::result::Result<(), Problem> {
    match method {
        0 => Ok(()),
        _ => Err(format!(
            "the entry {name:?} is compressed (method {method}): torch.save compresses none, so \
             load the file with PyTorch and save it anew"
        )),
    }
}

/// The content of the zip64 field among an entry's extra fields; empty where there is none.
fn zip64_field(mut extra: &[u8]) -> std::result::Result<&[u8], Problem> {
    while extra.len() >= 4 {
        let (id, len) = (number(&extra[..2]), place(number(&extra[2..4])));
        let field = slice(extra, 4, len, "an extra field")?;
        if id == ZIP64_FIELD {
            return Ok(field);
        }
        extra = &extra[4 + len..];
    }
    Ok(&[])
}
