//! `ebpf`: builds the programs of `ebpf/programs` and puts the objects, with a hash of their source, into `ebpf/prebuilt`.
//!
//! Whoever builds agentd needs none of this: the objects are committed. Building them takes a nightly toolchain with its
//! library's source, and bpf-linker, which uses the toolchain's own LLVM. What is missing is installed, the linker below
//! `target/tools`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

/// The objects, each a binary of `ebpf/programs`.
pub const OBJECTS: [&str; 2] = ["observe", "profile"];
/// What the objects come from, below `ebpf`.
const SOURCES: [&str; 5] =
    ["common/src", "programs/src", "programs/Cargo.toml", "programs/Cargo.lock", "programs/.cargo/config.toml"];
/// The record beside the objects.
const RECORD: &str = "SOURCE";
const LINKER: &str = "^0.10";

/// Folder of freshly built objects that everything built from here on embeds, once [`rebuild`] has made some that differ
/// from the committed ones.
pub static FRESH: OnceLock<PathBuf> = OnceLock::new();

/// Builds the programs from source, for the tests, and says aloud what came of it.
pub fn rebuild(root: &Path) {
    match build(root).and_then(|built| Ok((built.gather(root)?, built.toolchain))) {
        Ok(((_, true), toolchain)) => {
            println!("programs for the kernel: rebuilt with {toolchain}; byte for byte the committed ones");
        }
        Ok(((folder, false), toolchain)) => {
            println!(
                "programs for the kernel: rebuilt with {toolchain}; other bytes, so the tests run on the rebuilt ones"
            );
            let _ = FRESH.set(folder);
        }
        Err(why) => println!("programs for the kernel: NOT rebuilt, the committed ones are tested: {why}"),
    }
}

/// Builds the objects into `ebpf/prebuilt`.
pub fn run(root: &Path) -> Result<ExitCode, String> {
    let built = build(root)?;
    let prebuilt = root.join("ebpf/prebuilt");
    let mut record = format!("source {}\n", source_hash(root)?);
    for (name, path) in OBJECTS.iter().zip(&built.objects) {
        let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let _ = writeln!(record, "{name}.o {}", hash(&bytes));
        let to = prebuilt.join(format!("{name}.o"));
        std::fs::write(&to, &bytes).map_err(|error| format!("{}: {error}", to.display()))?;
        println!("{}: {} bytes", to.display(), bytes.len());
    }
    let _ = writeln!(record, "toolchain {}", built.toolchain);
    let to = prebuilt.join(RECORD);
    std::fs::write(&to, record).map_err(|error| format!("{}: {error}", to.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Freshly built objects.
#[derive(Debug)]
pub struct Built {
    /// In the order of [`OBJECTS`].
    pub objects: Vec<PathBuf>,
    /// Compiler and linker, for the record.
    pub toolchain: String,
}

impl Built {
    /// Puts the objects into one folder under the names that the loader's build looks for, and says whether they are
    /// byte for byte those that are committed.
    pub fn gather(&self, root: &Path) -> Result<(PathBuf, bool), String> {
        let folder = root.join("target/ebpf/fresh");
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut same = true;
        for (name, path) in OBJECTS.iter().zip(&self.objects) {
            let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let committed = std::fs::read(root.join(format!("ebpf/prebuilt/{name}.o"))).unwrap_or_default();
            same &= bytes == committed;
            let to = folder.join(format!("{name}.o"));
            // the same bytes are not written again, so that nothing is compiled anew
            if std::fs::read(&to).ok().as_ref() != Some(&bytes) {
                std::fs::write(&to, &bytes).map_err(|error| format!("{}: {error}", to.display()))?;
            }
        }
        Ok((folder, same))
    }
}

/// Builds the objects below `target/ebpf`. The error says what of the toolchain cannot be had.
pub fn build(root: &Path) -> Result<Built, String> {
    let version = toolchain()?;
    let linker = linker(root, &version)?;
    let folder = linker.parent().ok_or("the linker has no folder")?.to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&path)))
        .map_err(|error| format!("PATH: {error}"))?;
    let target = root.join("target/ebpf");
    let status = rustup_cargo()
        .args(["build", "--release", "--locked", "--bins"])
        .current_dir(root.join("ebpf/programs"))
        .env("CARGO_TARGET_DIR", &target)
        .env("PATH", path)
        .status()
        .map_err(|error| format!("cargo +nightly cannot be started: {error}"))?;
    if !status.success() {
        return Err("the programs do not compile; the errors stand above".to_owned());
    }
    let objects = OBJECTS.iter().map(|name| target.join("bpfel-unknown-none/release").join(name)).collect::<Vec<_>>();
    let first = version.lines().next().unwrap_or_default().to_owned();
    let linker = output(Command::new(&linker).arg("--version")).unwrap_or_default();
    Ok(Built { objects, toolchain: format!("{first}, {}", linker.trim()) })
}

/// Cargo of the nightly toolchain, without what the outer cargo put into the environment.
fn rustup_cargo() -> Command {
    let mut command = Command::new("cargo");
    command.arg("+nightly");
    for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER"] {
        command.env_remove(name);
    }
    command
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `rustc -vV` of the nightly toolchain, with its library's source in place.
fn toolchain() -> Result<String, String> {
    let version = || output(Command::new("rustc").args(["+nightly", "-vV"]));
    if version().is_none() {
        run_quietly(Command::new("rustup").args(["toolchain", "install", "nightly", "--profile", "minimal"]));
    }
    let found = version().ok_or("there is no nightly toolchain, and rustup cannot install one")?;
    let sysroot = output(Command::new("rustc").args(["+nightly", "--print", "sysroot"])).unwrap_or_default();
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if !source.exists() {
        run_quietly(Command::new("rustup").args(["component", "add", "rust-src", "--toolchain", "nightly"]));
    }
    if source.exists() { Ok(found) } else { Err(format!("the library's source is missing at {}", source.display())) }
}

fn run_quietly(command: &mut Command) {
    let _ = command.env_remove("RUSTUP_TOOLCHAIN").status();
}

/// bpf-linker, built against the LLVM that the toolchain brings.
fn linker(root: &Path, version: &str) -> Result<PathBuf, String> {
    let tools = root.join("target/tools");
    let own = tools.join("bin/bpf-linker");
    if own.exists() {
        return Ok(own);
    }
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: ")).unwrap_or_default();
    let major = llvm.split('.').next().unwrap_or_default();
    println!("building bpf-linker with the LLVM {major} of the nightly toolchain");
    let status = rustup_cargo()
        .args(["install", "bpf-linker", "--version", LINKER, "--no-default-features", "--locked", "--features"])
        .arg(format!("rust-llvm-{major}"))
        .arg("--root")
        .arg(&tools)
        // not in the project's folder, whose rust-toolchain.toml and target are not meant
        .current_dir(std::env::temp_dir())
        .status()
        .map_err(|error| format!("cargo +nightly cannot be started: {error}"))?;
    if status.success() && own.exists() { Ok(own) } else { Err("bpf-linker cannot be built".to_owned()) }
}

/// Hash of everything that the objects come from, names and contents.
fn source_hash(root: &Path) -> Result<String, String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join("ebpf").join(source), &mut files)?;
    }
    files.sort();
    let mut all = Sha256::new();
    for file in files {
        let bytes = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        all.update(format!("{name} {}\n", bytes.len()));
        all.update(&bytes);
    }
    Ok(hex(&all.finalize()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(failed)? {
        collect(&entry.map_err(failed)?.path(), files)?;
    }
    Ok(())
}

fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_objects_come_from_the_committed_source() {
        let root = crate::workspace();
        let record = std::fs::read_to_string(root.join("ebpf/prebuilt").join(RECORD)).unwrap();
        let entry = |name: &str| {
            let line = record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{RECORD} has no line {name}")).to_owned()
        };
        assert_eq!(
            entry("source"),
            source_hash(&root).unwrap(),
            "the source of the programs was changed after the objects were built: run `cargo xtask ebpf`"
        );
        for name in OBJECTS {
            let bytes = std::fs::read(root.join(format!("ebpf/prebuilt/{name}.o"))).unwrap();
            assert_eq!(entry(&format!("{name}.o")), hash(&bytes), "{name}.o is not what `cargo xtask ebpf` wrote");
        }
        assert!(entry("toolchain").contains("nightly"));
    }
}
