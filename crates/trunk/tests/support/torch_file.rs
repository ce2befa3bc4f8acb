//! Files as `torch.save` writes them: a zip archive of a pickle and of storages.

use tch::{Kind, Tensor};

/// An entry of an archive.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
    /// 0 for stored; nothing is ever compressed.
    pub(crate) method: u16,
}

/// A tensor as a pickle describes it.
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) class: &'static str,
    pub(crate) storage: String,
    pub(crate) numbers: i64,
    pub(crate) offset: i64,
    pub(crate) shape: Vec<i64>,
    pub(crate) strides: Vec<i64>,
}

/// What `torch.save(state_dict, path)` writes for tensors of float32, float16 and bfloat16.
pub(crate) fn file(tensors: &[(String, Tensor)]) -> Vec<u8> {
    let specs = specs(tensors);
    archive(&entries(pickle(&specs), tensors))
}

/// How the tensors are described, each with a storage of its own.
pub(crate) fn specs(tensors: &[(String, Tensor)]) -> Vec<Spec> {
    let spec = |(i, (name, tensor)): (usize, &(String, Tensor))| Spec {
        name: name.clone(),
        class: match tensor.kind() {
            Kind::Float => "FloatStorage",
            Kind::Half => "HalfStorage",
            Kind::BFloat16 => "BFloat16Storage",
            kind => panic!("no storage class for {kind:?}"),
        },
        storage: i.to_string(),
        numbers: tensor.numel() as i64,
        offset: 0,
        shape: tensor.size(),
        strides: strides(&tensor.size()),
    };
    tensors.iter().enumerate().map(spec).collect()
}

fn strides(shape: &[i64]) -> Vec<i64> {
    (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect()
}

/// The entries of a file: the pickle, the storages, and what says how they were written.
pub(crate) fn entries(pickle: Vec<u8>, tensors: &[(String, Tensor)]) -> Vec<Entry> {
    let entry = |name: &str, content: Vec<u8>| Entry {
        name: format!("consolidated/{name}"),
        content,
        method: 0,
    };
    let mut all = vec![
        entry("data.pkl", pickle),
        entry(".format_version", b"1".to_vec()),
        entry("byteorder", b"little".to_vec()),
    ];
    for (i, (_, tensor)) in tensors.iter().enumerate() {
        let tensor = tensor.contiguous();
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        all.push(entry(&format!("data/{i}"), bytes));
    }
    all.push(entry("version", b"3\n".to_vec()));
    all
}

/// Instructions of a pickle; every value that Python would keep is kept.
struct Pickler {
    bytes: Vec<u8>,
    kept: u32,
}

impl Pickler {
    fn keep(&mut self) {
        if let Ok(index) = u8::try_from(self.kept) {
            self.bytes.extend([b'q', index]);
        } else {
            self.bytes.push(b'r');
            self.bytes.extend(self.kept.to_le_bytes());
        }
        self.kept += 1;
    }

    fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
        self.keep();
    }

    fn global(&mut self, module: &str, name: &str) {
        self.bytes.extend(format!("c{module}\n{name}\n").bytes());
        self.keep();
    }

    fn int(&mut self, value: i64) {
        if let Ok(value) = u8::try_from(value) {
            self.bytes.extend([b'K', value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.bytes.push(b'M');
            self.bytes.extend(value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.bytes.push(b'J');
            self.bytes.extend(value.to_le_bytes());
        } else {
            self.bytes.extend([0x8a, 8]);
            self.bytes.extend(value.to_le_bytes());
        }
    }

    fn ints(&mut self, values: &[i64]) {
        if values.is_empty() {
            return self.bytes.push(b')');
        }
        let short = match values.len() {
            1 => 0x85,
            2 => 0x86,
            3 => 0x87,
            _ => b't',
        };
        if short == b't' {
            self.bytes.push(b'(');
        }
        for &value in values {
            self.int(value);
        }
        self.bytes.push(short);
        self.keep();
    }

    fn tensor(&mut self, spec: &Spec) {
        self.text(&spec.name);
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.bytes.extend(b"((");
        self.text("storage");
        self.global("torch", spec.class);
        self.text(&spec.storage);
        self.text("cpu");
        self.int(spec.numbers);
        self.bytes.push(b't');
        self.keep();
        self.bytes.push(b'Q');
        self.int(spec.offset);
        self.ints(&spec.shape);
        self.ints(&spec.strides);
        // No gradient; an empty OrderedDict, whose name was kept first, for the hooks.
        self.bytes.extend([0x89, b'h', 0, b')', b'R']);
        self.keep();
        self.bytes.push(b't');
        self.keep();
        self.bytes.push(b'R');
        self.keep();
    }
}

/// The pickle of a module's state dict: an `OrderedDict` with the attribute `_metadata`.
pub(crate) fn pickle(specs: &[Spec]) -> Vec<u8> {
    let mut out = Pickler { bytes: vec![0x80, 2], kept: 0 };
    out.global("collections", "OrderedDict");
    out.bytes.extend(b")R");
    out.keep();
    // Python sets the items of a dictionary in lots of a thousand.
    for lot in specs.chunks(1000) {
        out.bytes.push(b'(');
        for spec in lot {
            out.tensor(spec);
        }
        out.bytes.push(b'u');
    }
    out.bytes.push(b'}');
    out.keep();
    out.text("_metadata");
    out.bytes.extend([b'h', 0, b')', b'R']);
    out.keep();
    out.text("");
    out.bytes.push(b'}');
    out.keep();
    out.text("version");
    out.int(1);
    // The version into the layer's, the layer's into the metadata, that into the attributes.
    out.bytes.extend(b"sssb.");
    out.bytes
}

/// An archive as PyTorch's writer lays it out: storages at multiples of 64 bytes, sizes behind each
/// entry, zip64 end records in every file.
pub(crate) fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for entry in entries {
        let (header, crc) = (out.len(), crc32(&entry.content));
        let (name, size) = (entry.name.as_bytes(), entry.content.len() as u32);
        let before = header + 30 + name.len() + 4;
        let padding = before.next_multiple_of(64) - before;
        let shared = |out: &mut Vec<u8>, crc: u32, size: u32, extra: usize| {
            // Names in UTF-8, sizes behind the content; no time and no date.
            out.extend(0x0808_u16.to_le_bytes());
            out.extend(entry.method.to_le_bytes());
            out.extend([0; 4]);
            out.extend(crc.to_le_bytes());
            out.extend(size.to_le_bytes());
            out.extend(size.to_le_bytes());
            out.extend((name.len() as u16).to_le_bytes());
            out.extend((extra as u16).to_le_bytes());
        };
        out.extend(b"PK\x03\x04\0\0");
        shared(&mut out, 0, 0, 4 + padding);
        out.extend(name);
        out.extend(b"FB");
        out.extend((padding as u16).to_le_bytes());
        out.resize(out.len() + padding, b'Z');
        out.extend(&entry.content);
        out.extend(b"PK\x07\x08");
        out.extend(crc.to_le_bytes());
        out.extend(size.to_le_bytes());
        out.extend(size.to_le_bytes());

        directory.extend(b"PK\x01\x02\0\0\0\0");
        shared(&mut directory, crc, size, 0);
        directory.extend([0; 10]);
        directory.extend((header as u32).to_le_bytes());
        directory.extend(name);
    }
    let (start, len, count) = (out.len() as u64, directory.len() as u64, entries.len());
    out.extend(directory);
    out.extend(b"PK\x06\x06");
    out.extend(44_u64.to_le_bytes());
    out.extend(b"\x1e\x03\x2d\0");
    out.extend([0; 8]);
    for number in [count as u64, count as u64, len, start] {
        out.extend(number.to_le_bytes());
    }
    out.extend(b"PK\x06\x07\0\0\0\0");
    out.extend((start + len).to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((count as u16).to_le_bytes());
    out.extend((count as u16).to_le_bytes());
    out.extend((len as u32).to_le_bytes());
    out.extend((start as u32).to_le_bytes());
    out.extend([0; 2]);
    out
}

/// The checksum of zip archives.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    let rest = bytes
        .iter()
        .fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)));
    !rest
}
