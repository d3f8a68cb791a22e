//! Functions of the kernel by address, from `/proc/kallsyms`. Addresses of the kernel are not told to anybody: they would
//! help an attack on it. Where the file hides them (`kernel.kptr_restrict`), its functions have no names.

use std::io::{BufRead, BufReader};
use std::sync::Arc;

use super::gathered::{File, Frame, Kind};

/// Longest file that is read, in bytes.
const MOST: u64 = 128 << 20;

/// The kernel's functions.
#[derive(Debug)]
pub struct Kernel {
    /// Address, place and length of the name.
    symbols: Vec<(u64, u32, u32)>,
    names: String,
    file: Arc<File>,
}

impl Kernel {
    /// Reads the list of the running kernel.
    pub fn read() -> Self {
        match std::fs::File::open("/proc/kallsyms") {
            Ok(file) => Self::parse(BufReader::with_capacity(64 << 10, file)),
            Err(error) => {
                tracing::warn!("/proc/kallsyms: {error}; functions of the kernel have no names in profiles");
                Self::parse(&b""[..])
            }
        }
    }

    fn parse(text: impl BufRead) -> Self {
        let mut kernel = Self {
            symbols: Vec::new(),
            names: String::new(),
            file: Arc::new(File { name: "[kernel]".to_owned(), build_id: String::new(), kind: Kind::Kernel }),
        };
        let mut text = text.take(MOST);
        let mut line = Vec::with_capacity(256);
        while text.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            if let Ok(one) = std::str::from_utf8(&line) {
                kernel.take(one);
            }
            line.clear();
        }
        // stable, so that of several names at one address the first stays
        kernel.symbols.sort_by_key(|(address, ..)| *address);
        kernel.symbols.dedup_by_key(|(address, ..)| *address);
        kernel.symbols.shrink_to_fit();
        kernel
    }

    fn take(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else { return };
        let Ok(address) = u64::from_str_radix(address, 16) else { return };
        if address == 0 || !matches!(kind, "t" | "T" | "w" | "W") {
            return;
        }
        self.symbols.push((address, self.names.len() as u32, name.len() as u32));
        self.names.push_str(name);
    }

    /// The function that holds an address.
    pub fn frame(&self, address: u64) -> Frame {
        let before = self.symbols.partition_point(|(start, ..)| *start <= address).checked_sub(1);
        let found = before.and_then(|at| self.symbols.get(at));
        let name = found.and_then(|(_, at, length)| self.names.get(*at as usize..(*at + *length) as usize));
        Frame { name: name.unwrap_or("[kernel]").into(), address: 0, file: Arc::clone(&self.file) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_before_an_address_holds_it() {
        let text = "ffffffff81000000 T _stext\nffffffff81000000 T _text\nffffffff81000100 t do_it\n\
                    ffffffff81000180 d data\nffffffff81000200 T next\t[module]\nbroken\n";
        let kernel = Kernel::parse(text.as_bytes());
        let name = |address| kernel.frame(address).name.to_string();
        assert_eq!(name(0xffff_ffff_8100_0000), "_stext");
        assert_eq!((name(0xffff_ffff_8100_01ff), name(u64::MAX)), ("do_it".to_owned(), "next".to_owned()));
        assert_eq!(name(5), "[kernel]");
    }

    #[test]
    fn hidden_addresses_give_no_names() {
        let kernel = Kernel::parse("0000000000000000 T _stext\n0000000000000000 T do_it\n".as_bytes());
        assert_eq!(&*kernel.frame(0xffff_ffff_8100_0000).name, "[kernel]");
    }
}
