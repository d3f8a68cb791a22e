//! Huge pages: the files of the `hugetlb` controller, which a container has only if it asked for a size.

use std::ffi::CString;
use std::sync::Arc;

use super::files::{Buffer, Directory, number, pairs};

/// Huge pages of one size that a container uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugePages {
    /// Size of a page in the controller's word, e.g. `2MB`.
    pub size: Arc<str>,
    /// Used, bytes.
    pub usage: u64,
    /// Times that the limit was reached.
    pub limit_hits: Option<u64>,
}

/// The sizes of this host's huge pages with the names of their files.
#[derive(Debug, Default)]
pub(super) struct Sizes(Vec<Size>);

#[derive(Debug)]
struct Size {
    word: Arc<str>,
    v2: [CString; 2],
    v1: [CString; 2],
}

impl Sizes {
    /// Reads `/sys/kernel/mm/hugepages`.
    pub(super) fn discover() -> Self {
        let folders = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let mut words: Vec<String> = folders.filter_map(|entry| word(entry.file_name().to_str()?)).collect();
        words.sort();
        Self(words.iter().filter_map(|word| Size::new(word)).collect())
    }

    /// Reads the directory of a container.
    pub(super) fn read(&self, buffer: &mut Buffer, directory: &Directory, v2: bool) -> Vec<HugePages> {
        let mut pages = Vec::new();
        for size in &self.0 {
            let [usage, hits] = if v2 { &size.v2 } else { &size.v1 };
            // All sizes are there or none.
            let Some(usage) = buffer.read(directory, usage).and_then(number) else { break };
            let limit_hits = buffer.read(directory, hits).and_then(|text| {
                if v2 { pairs(text).find(|(key, _)| *key == "max").map(|(_, hits)| hits) } else { number(text) }
            });
            pages.push(HugePages { size: Arc::clone(&size.word), usage, limit_hits });
        }
        pages
    }
}

impl Size {
    fn new(word: &str) -> Option<Self> {
        let name = |end: &str| CString::new(format!("hugetlb.{word}.{end}")).ok();
        Some(Self {
            word: word.into(),
            v2: [name("current")?, name("events")?],
            v1: [name("usage_in_bytes")?, name("failcnt")?],
        })
    }
}

/// The controller's word for a folder such as `hugepages-2048kB`: `2MB`.
fn word(folder: &str) -> Option<String> {
    let kib: u64 = folder.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kib {
        0..1024 => format!("{kib}KB"),
        1024..1_048_576 => format!("{}MB", kib / 1024),
        _ => format!("{}GB", kib / 1_048_576),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_named_as_the_controller_names_them() {
        let words = ["hugepages-64kB", "hugepages-2048kB", "hugepages-1048576kB", "hugepages-x", "demote"].map(word);
        assert_eq!(words, [Some("64KB".into()), Some("2MB".into()), Some("1GB".into()), None, None]);
    }

    #[test]
    fn both_kinds_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let sizes = Sizes(vec![Size::new("2MB").unwrap()]);
        let mut buffer = Buffer::default();
        assert_eq!(sizes.read(&mut buffer, &directory, true), []);
        write("hugetlb.2MB.current", "4194304\n");
        write("hugetlb.2MB.events", "max 3\n");
        write("hugetlb.2MB.usage_in_bytes", "2097152\n");
        let pages = |usage, limit_hits| [HugePages { size: "2MB".into(), usage, limit_hits }];
        assert_eq!(sizes.read(&mut buffer, &directory, true), pages(4_194_304, Some(3)));
        assert_eq!(sizes.read(&mut buffer, &directory, false), pages(2_097_152, None));
        write("hugetlb.2MB.current", "max\n");
        assert_eq!(sizes.read(&mut buffer, &directory, true), []);
    }
}
