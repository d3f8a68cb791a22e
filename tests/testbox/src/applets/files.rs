//! Files: read, list, open, write.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};

use super::usage;
use crate::errno;

/// Copies files, or standard input, to standard output.
pub fn cat(arguments: &[String]) -> u8 {
    let mut out = io::stdout().lock();
    if arguments.is_empty() {
        return u8::from(io::copy(&mut io::stdin().lock(), &mut out).is_err());
    }
    let mut code = 0;
    for path in arguments {
        if let Err(error) = File::open(path).and_then(|mut file| io::copy(&mut file, &mut out)) {
            eprintln!("cat: {path}: {}", errno::name(&error));
            code = 1;
        }
    }
    code
}

/// Names in a folder, sorted.
pub fn ls(arguments: &[String]) -> u8 {
    let dir = arguments.first().map_or(".", String::as_str);
    match fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
        Ok(entries) => {
            let mut names: Vec<_> =
                entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            for name in names {
                println!("{name}");
            }
            0
        }
        Err(error) => {
            eprintln!("ls: {dir}: {}", errno::name(&error));
            1
        }
    }
}

/// Opens a file for reading or writing, without creating it.
pub fn open(arguments: &[String]) -> u8 {
    let [path, mode] = arguments else {
        return usage("open PATH r|w");
    };
    match mode.as_str() {
        "r" => errno::report(File::open(path)),
        "w" => errno::report(OpenOptions::new().write(true).open(path)),
        _ => usage("open PATH r|w"),
    }
}

/// Adds a line to a file.
pub fn append(arguments: &[String]) -> u8 {
    let Some((path, words)) = arguments.split_first() else {
        return usage("append FILE TEXT…");
    };
    let file = fs::File::options().create(true).append(true).open(path);
    errno::report(file.and_then(|mut file| file.write_all((words.join(" ") + "\n").as_bytes())))
}

/// Writes a file.
pub fn write(arguments: &[String]) -> u8 {
    let Some((path, words)) = arguments.split_first() else {
        return usage("write FILE TEXT…");
    };
    errno::report(fs::write(path, words.join(" ") + "\n"))
}
