//! Names of functions as people write them: those of Rust and C++ demangled. Names come from a container's files, so what
//! is made of them is bounded.

use std::fmt::{self, Write};

/// Longest name that is made, in bytes; what is longer is cut.
const LONGEST: usize = 512;
/// How deep a name of C++ may nest.
const DEEPEST: u32 = 64;

/// Text that stops to grow.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            if self.0.len() + letter.len_utf8() > LONGEST {
                return Err(fmt::Error);
            }
            self.0.push(letter);
        }
        Ok(())
    }
}

/// A name for people.
pub fn demangle(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        let mut out = Bounded(String::new());
        // without the hash at the end; what does not fit is cut
        let _ = write!(out, "{rust:#}");
        return clean(out.0);
    }
    if name.starts_with("_Z") || name.starts_with("__Z") {
        let parsing = cpp_demangle::ParseOptions::default().recursion_limit(DEEPEST);
        if let Ok(symbol) = cpp_demangle::Symbol::new_with_options(name, &parsing) {
            let mut out = Bounded(String::new());
            let writing = cpp_demangle::DemangleOptions::new().recursion_limit(DEEPEST).no_params();
            let whole = symbol.structured_demangle(&mut out, &writing).is_ok();
            if whole || out.0.len() > LONGEST / 2 {
                return clean(out.0);
            }
        }
    }
    let mut out = Bounded(String::new());
    let _ = out.write_str(name);
    clean(out.0)
}

fn clean(name: String) -> String {
    if name.is_empty() {
        return "[unknown]".to_owned();
    }
    if name.chars().any(char::is_control) { name.chars().flat_map(char::escape_debug).collect() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rust_and_of_cpp_are_read() {
        assert_eq!(demangle("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE"), "core::fmt::Write::write_fmt");
        assert_eq!(demangle("_RNvC6_123foo3bar"), "123foo::bar");
        assert_eq!(demangle("_ZNSt6vectorIiSaIiEE9push_backERKi"), "std::vector<int, std::allocator<int> >::push_back");
        assert_eq!(demangle("main"), "main");
        assert_eq!(demangle("a\nb\u{1b}[m"), "a\\nb\\u{1b}[m");
        assert_eq!(demangle(""), "[unknown]");
    }

    #[test]
    fn hostile_names_are_cut() {
        assert_eq!(demangle(&"x".repeat(100_000)).len(), LONGEST);
        for hostile in
            [format!("_Z{}v", "P".repeat(1000)), format!("_ZN{}E", "1a".repeat(400)), format!("_R{}", "I".repeat(1000))]
        {
            assert!(demangle(&hostile).len() <= LONGEST, "{hostile}");
        }
        // a name that doubles with each back reference
        let mut doubling = "_Z1fI1aI1bS0_S0_E".to_owned();
        for number in 1..30 {
            write!(doubling, "1cIS{number}_S{number}_E").unwrap();
        }
        assert!(demangle(&doubling).len() <= LONGEST);
    }
}
