//! Profiles in the form of pprof: `profile.proto` of github.com/google/pprof, whose field numbers stand here, in gzip.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;

use prost::Message;

use super::gathered::{File, Frame, Gathered, Kind};

/// A profile.
#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    /// What the values of a sample are.
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    /// Stacks.
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    /// Files.
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    /// Places in code.
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    /// Functions.
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// Texts, the first one empty.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    /// When it begins, ns since 1970.
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    /// Its length, ns.
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    /// What lies between two samples.
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    /// How much of it.
    #[prost(int64, tag = "12")]
    pub period: i64,
    /// Number of the text that names the value which is shown unless another is asked for.
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
}

/// Kind and unit of a value, as numbers of texts.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ValueType {
    /// Kind.
    #[prost(int64, tag = "1")]
    pub kind: i64,
    /// Unit.
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// A stack with its values.
#[derive(Clone, PartialEq, Message)]
pub struct Sample {
    /// Ids of places, innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    /// One for each `sample_type`.
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    /// What else is known of it.
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

/// A word about a sample, as numbers of texts.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Label {
    /// Its name.
    #[prost(int64, tag = "1")]
    pub key: i64,
    /// Its value.
    #[prost(int64, tag = "2")]
    pub text: i64,
}

/// A file that code comes from.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Mapping {
    /// Its id, from 1 on.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// First address. Addresses here are those of the file.
    #[prost(uint64, tag = "2")]
    pub memory_start: u64,
    /// Address behind the last one.
    #[prost(uint64, tag = "3")]
    pub memory_limit: u64,
    /// Place in the file.
    #[prost(uint64, tag = "4")]
    pub file_offset: u64,
    /// Number of the text with its path.
    #[prost(int64, tag = "5")]
    pub filename: i64,
    /// The same of its build id.
    #[prost(int64, tag = "6")]
    pub build_id: i64,
    /// Whether functions have their names already.
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
}

/// A place in code.
#[derive(Clone, PartialEq, Message)]
pub struct Location {
    /// Its id, from 1 on.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its file; 0: none.
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    /// Where its function begins, as the file counts addresses.
    #[prost(uint64, tag = "3")]
    pub address: u64,
    /// Its function.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

/// A function at a place.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Line {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
}

/// A function.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Function {
    /// Its id, from 1 on.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Number of the text with its name.
    #[prost(int64, tag = "2")]
    pub name: i64,
    /// The same as the linker knows it.
    #[prost(int64, tag = "3")]
    pub system_name: i64,
}

/// Of what time a profile is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// When it begins, ns since 1970.
    pub begin: i64,
    /// Its length, ns.
    pub length: i64,
}

/// The profile in gzip.
pub fn encode(gathered: &Gathered, span: Span) -> std::io::Result<Vec<u8>> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&profile(gathered, span).encode_to_vec())?;
    gzip.finish()
}

#[derive(Default)]
struct Builder {
    profile: Profile,
    texts: HashMap<String, i64>,
    files: HashMap<Arc<File>, u64>,
    functions: HashMap<(Arc<str>, Arc<File>), u64>,
    locations: HashMap<Frame, u64>,
}

impl Builder {
    fn text(&mut self, text: &str) -> i64 {
        if let Some(number) = self.texts.get(text) {
            return *number;
        }
        let number = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.to_owned());
        self.texts.insert(text.to_owned(), number);
        number
    }

    fn file(&mut self, file: &Arc<File>) -> u64 {
        if file.kind == Kind::Anonymous {
            return 0;
        }
        if let Some(id) = self.files.get(file) {
            return *id;
        }
        let id = self.profile.mapping.len() as u64 + 1;
        let (filename, build_id) = (self.text(&file.name), self.text(&file.build_id));
        self.profile.mapping.push(Mapping {
            id,
            memory_start: 0,
            memory_limit: u64::MAX,
            file_offset: 0,
            filename,
            build_id,
            has_functions: true,
        });
        self.files.insert(Arc::clone(file), id);
        id
    }

    fn location(&mut self, frame: &Frame) -> u64 {
        if let Some(id) = self.locations.get(frame) {
            return *id;
        }
        let key = (Arc::clone(&frame.name), Arc::clone(&frame.file));
        let function = if let Some(id) = self.functions.get(&key) {
            *id
        } else {
            let id = self.profile.function.len() as u64 + 1;
            let name = self.text(&frame.name);
            self.profile.function.push(Function { id, name, system_name: name });
            self.functions.insert(key, id);
            id
        };
        let id = self.profile.location.len() as u64 + 1;
        let mapping_id = self.file(&frame.file);
        let line = vec![Line { function_id: function }];
        self.profile.location.push(Location { id, mapping_id, address: frame.address, line });
        self.locations.insert(frame.clone(), id);
        id
    }
}

/// The profile as a message. A command's name is the label `comm` of its samples, not a function.
fn profile(gathered: &Gathered, span: Span) -> Profile {
    let mut builder = Builder::default();
    builder.text("");
    let mut kind = |kind, unit| ValueType { kind: builder.text(kind), unit: builder.text(unit) };
    let (samples, cpu) = (kind("samples", "count"), kind("cpu", "nanoseconds"));
    builder.profile.sample_type = vec![samples, cpu];
    builder.profile.period_type = Some(cpu);
    builder.profile.default_sample_type = cpu.kind;
    let comm = builder.text("comm");
    for (stack, weight) in gathered.iter() {
        let mut sample = Sample { value: vec![signed(weight.samples), signed(weight.nanos)], ..Sample::default() };
        for frame in stack {
            if frame.file.kind == Kind::Command {
                let text = builder.text(&frame.name);
                sample.label.push(Label { key: comm, text });
            } else {
                sample.location_id.push(builder.location(frame));
            }
        }
        sample.location_id.reverse();
        builder.profile.sample.push(sample);
    }
    let total = gathered.total();
    builder.profile.period = signed(total.nanos / total.samples.max(1));
    (builder.profile.time_nanos, builder.profile.duration_nanos) = (span.begin, span.length);
    builder.profile
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::gathered::tests::sample;
    use super::*;
    use std::io::Read as _;

    #[test]
    fn every_number_leads_somewhere_and_values_are_kept() {
        let span = Span { begin: 5, length: 7 };
        let bytes = encode(&sample(), span).unwrap();
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
        let profile = Profile::decode(&plain[..]).unwrap();
        let text = |number: i64| profile.string_table[usize::try_from(number).unwrap()].as_str();
        assert_eq!((text(0), profile.time_nanos, profile.duration_nanos), ("", 5, 7));
        let types: Vec<_> = profile.sample_type.iter().map(|one| (text(one.kind), text(one.unit))).collect();
        assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!(profile.period, 1_000_000_000 / 49);
        let name = |id: u64| {
            let location = profile.location.iter().find(|one| one.id == id).unwrap();
            let mapping = profile.mapping.iter().find(|one| one.id == location.mapping_id).unwrap();
            let function = profile.function.iter().find(|one| one.id == location.line[0].function_id).unwrap();
            (text(function.name), text(mapping.filename), location.address)
        };
        let mut found: Vec<_> = profile
            .sample
            .iter()
            .map(|one| (one.value[0], one.location_id.iter().map(|id| name(*id)).collect::<Vec<_>>()))
            .collect();
        found.sort();
        let main = ("main", "/bin/app", 0x1000);
        let hot_a = ("hot_a", "/bin/app", 0x2000);
        assert_eq!(found[0], (5, vec![("vfs_read", "[kernel]", 0), hot_a, main]));
        assert_eq!(found[2], (75, vec![hot_a, main]));
        assert!(profile.sample.iter().all(|one| text(one.label[0].key) == "comm" && text(one.label[0].text) == "app"));
        assert_eq!((profile.location.len(), profile.function.len(), profile.mapping.len()), (4, 4, 2));
    }
}
