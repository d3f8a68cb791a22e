//! Import of a large image: an archive of about 200 MB in five gzip layers, different in each round, so that nothing of
//! an earlier round can be used again.
//!
//! A layer is two gzip members: the bulk, packed once, and a small end that differs. Its digest is known without hashing
//! the bulk again.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::harness::{Contestant, Measured, Turns, milliseconds, take_turns};
use super::ours;
use super::peers::Containerd;
use crate::daemon::Daemon;

const LAYERS: usize = 5;
const FILES: usize = 400;
const FILE_BYTES: usize = 100_000;
const BLOCK: usize = 512;

/// The part of a layer that is the same in each round.
struct Bulk {
    packed: Vec<u8>,
    hash: Sha256,
}

/// Pseudo-random numbers (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Bytes that gzip makes two or three times smaller, as programs and texts are: words of a small vocabulary.
fn contents(random: &mut Random, vocabulary: &[[u8; 12]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FILE_BYTES + 12);
    while bytes.len() < FILE_BYTES {
        let number = random.next();
        bytes.extend_from_slice(&vocabulary[number as usize % vocabulary.len()]);
        bytes.extend_from_slice(&number.to_le_bytes()[4..5]);
    }
    bytes.truncate(FILE_BYTES);
    bytes
}

fn header(path: &str, size: usize) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(path)?;
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

/// An entry without the archive's end.
fn entry(path: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut entry = header(path, bytes.len())?.as_bytes().to_vec();
    entry.extend_from_slice(bytes);
    entry.resize(entry.len().next_multiple_of(BLOCK), 0);
    Ok(entry)
}

fn bulk(layer: usize) -> io::Result<Bulk> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 + layer as u64);
    let mut vocabulary = vec![[0_u8; 12]; 2048];
    for word in &mut vocabulary {
        word[..8].copy_from_slice(&random.next().to_le_bytes());
        word[8..].copy_from_slice(&random.next().to_le_bytes()[..4]);
    }
    let mut hash = Sha256::new();
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    for file in 0..FILES {
        let entry = entry(&format!("data/layer{layer}/file{file:04}"), &contents(&mut random, &vocabulary))?;
        hash.update(&entry);
        packed.write_all(&entry)?;
    }
    Ok(Bulk { packed: packed.finish()?, hash })
}

/// Writes a docker archive that no other round has.
fn archive(path: &Path, reference: &str, bulks: &[Bulk]) -> io::Result<()> {
    let mut archive = tar::Builder::new(BufWriter::new(File::create(path)?));
    let (mut names, mut ids) = (Vec::new(), Vec::new());
    for (index, bulk) in bulks.iter().enumerate() {
        let mut end = entry(&format!("data/layer{index}/mark"), reference.as_bytes())?;
        end.resize(end.len() + 2 * BLOCK, 0);
        let mut hash = bulk.hash.clone();
        hash.update(&end);
        let id = format!("{:x}", hash.finalize());
        let mut packed = GzEncoder::new(bulk.packed.clone(), Compression::default());
        packed.write_all(&end)?;
        let packed = packed.finish()?;
        let name = format!("{id}/layer.tar");
        archive.append(&header(&name, packed.len())?, packed.as_slice())?;
        names.push(name);
        ids.push(format!("sha256:{id}"));
    }
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": ids},
    })
    .to_string();
    let config_name = format!("{:x}.json", Sha256::digest(config.as_bytes()));
    archive.append(&header(&config_name, config.len())?, config.as_bytes())?;
    let manifest = json!([{"Config": config_name, "RepoTags": [reference], "Layers": names}]).to_string();
    archive.append(&header("manifest.json", manifest.len())?, manifest.as_bytes())?;
    archive.into_inner()?.flush()
}

/// Measures imports; the removal of the image is not part of it.
pub fn measure(
    daemon: &Daemon,
    containerd: Option<&Containerd>,
    scratch: &Path,
    rounds: usize,
) -> Result<Measured, String> {
    let bulks = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..LAYERS).map(|layer| scope.spawn(move || bulk(layer))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a worker panicked".to_owned())?.map_err(|error| error.to_string()))
            .collect::<Result<Vec<_>, String>>()
    })?;
    let packed: usize = bulks.iter().map(|bulk| bulk.packed.len()).sum();
    println!("  {LAYERS} layers, {} MB, packed {} MB", LAYERS * FILES * FILE_BYTES / 1_000_000, packed / 1_000_000);
    let path = scratch.join("large.tar");
    let make = |name: &str, round: usize| -> Result<String, String> {
        let reference = format!("localhost/bench/{name}{round}:latest");
        archive(&path, &reference, &bulks).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(reference)
    };
    let mut client = daemon.client();
    let (mut ours_round, mut theirs_round) = (0, 0);
    let mut contestants = vec![Contestant::new("agentd import", || {
        ours_round += 1;
        let reference = make("ours", ours_round)?;
        let start = Instant::now();
        ours::import(&mut client, &path, &reference)?;
        let taken = milliseconds(start);
        let segment = crate::http::segment(&reference);
        client.expect("DELETE", &format!("/v1/images/{segment}"), b"", &[200, 204])?;
        Ok(vec![("", taken)])
    })];
    if let Some(containerd) = containerd {
        contestants.push(Contestant::new("ctr images import", || {
            theirs_round += 1;
            let reference = make("theirs", theirs_round)?;
            let start = Instant::now();
            containerd.import(&path)?;
            let taken = milliseconds(start);
            containerd.remove_image(&reference)?;
            Ok(vec![("", taken)])
        }));
    }
    let measured = take_turns(contestants, &Turns { warm_up: 1, rounds, ..Turns::default() }, "agentd");
    // the scratch folder is removed with everything in it
    let _ = fs::remove_file(&path);
    measured
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn both_members_of_a_layer_are_one_archive_with_the_digest_it_is_named_by() {
        let scratch = crate::daemon::Scratch::new(&std::env::temp_dir(), "unpack-test").unwrap();
        let path = scratch.path().join("image.tar");
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        let mut hash = Sha256::new();
        let bytes = entry("data/layer0/file", &[7; 700]).unwrap();
        hash.update(&bytes);
        packed.write_all(&bytes).unwrap();
        archive(&path, "bench/one:latest", &[Bulk { packed: packed.finish().unwrap(), hash }]).unwrap();
        let mut outer = tar::Archive::new(File::open(&path).unwrap());
        let mut layer = outer.entries().unwrap().next().unwrap().unwrap();
        let named = layer.path().unwrap().display().to_string();
        let mut compressed = Vec::new();
        layer.read_to_end(&mut compressed).unwrap();
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(compressed.as_slice()).read_to_end(&mut plain).unwrap();
        assert_eq!(named, format!("{:x}/layer.tar", Sha256::digest(&plain)));
        let mut inner = tar::Archive::new(plain.as_slice());
        let paths: Vec<_> =
            inner.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(paths, ["data/layer0/file", "data/layer0/mark"]);
    }
}
