//! The few fields of TensorBoard's messages that are written, as protocol buffers.
//!
//! Numbers of fields are those of `event.proto` and `summary.proto` in
//! `tensorboard/compat/proto`.

/// What an event says.
#[derive(Debug, Clone, Copy)]
pub(super) enum What<'a> {
    /// How the events of this file are to be read; the first of every file.
    Version(&'a str),
    /// A training begins, or begins again, at the event's step: what came from there on in earlier
    /// files doesn't count.
    Start,
    /// Figures by their tags.
    Scalars(&'a [(String, f64)]),
}

/// `SessionLog.SessionStatus.START`
const START: u64 = 1;

/// An `Event` at `wall_time` (seconds since 1970) about `step`.
pub(super) fn event(wall_time: f64, step: u64, what: What<'_>) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, wall_time);
    event.integer(2, step);
    match what {
        What::Version(version) => event.bytes(3, version.as_bytes()),
        What::Scalars(scalars) => event.bytes(5, &summary(scalars)),
        What::Start => {
            let mut session_log = Message::default();
            session_log.integer(1, START);
            event.bytes(7, &session_log.0);
        }
    }
    event.0
}

/// A `Summary` of scalars: a `Value` each.
fn summary(scalars: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, scalar) in scalars {
        let mut value = Message::default();
        value.bytes(1, tag.as_bytes());
        value.float(2, *scalar as f32);
        summary.bytes(1, &value.0);
    }
    summary.0
}

/// A message in the making. Each field is a key, its number and how it is written, and a value.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    const VARINT: u64 = 0;
    const EIGHT_BYTES: u64 = 1;
    const LENGTH_FIRST: u64 = 2;
    const FOUR_BYTES: u64 = 5;

    fn integer(&mut self, field: u64, value: u64) {
        self.key(field, Self::VARINT);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, Self::EIGHT_BYTES);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, Self::FOUR_BYTES);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, Self::LENGTH_FIRST);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn key(&mut self, field: u64, how: u64) {
        self.varint(field << 3 | how);
    }

    /// Seven bits a byte, lowest first; the eighth says that more follow.
    fn varint(&mut self, mut value: u64) {
        while value >= 1 << 7 {
            self.0.push(value as u8 | 1 << 7);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}
