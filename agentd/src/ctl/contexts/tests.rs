use std::io::Write;
use std::sync::{Arc, Mutex};

use clap::Parser;

use super::*;
use crate::ctl::arguments::{Arguments, Verb};

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A folder with an authority and the certificates of two clients.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    write("ca.crt", authority.self_signed(&key).unwrap().pem());
    write("ca.key", key.serialize_pem());
    let issuer = rcgen::Issuer::new(authority, key);
    for name in ["ann", "bob"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let client = rcgen::CertificateParams::new(Vec::new()).unwrap().signed_by(&key, &issuer).unwrap();
        write(&format!("{name}.crt"), client.pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
    folder
}

fn context(file: &Path, words: &[&str]) -> (u8, String, String) {
    let words = ["agentctl", "context"].iter().chain(words);
    let arguments = Arguments::try_parse_from(words).unwrap();
    let memory = Memory::default();
    let mut output = Output::into(arguments.output, Box::new(memory.clone()));
    let Verb::Context { verb } = arguments.verb else { panic!("it is of contexts") };
    let result = carry_out(&mut output, verb, arguments.context.as_deref(), file);
    let printed = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
    let told = result.as_ref().err().map(Failure::message).unwrap_or_default();
    (result.err().map_or(0, |failure| failure.code()), printed, told)
}

#[test]
fn contexts_are_added_used_shown_and_removed() {
    let folder = folder();
    let home = folder.path().to_str().unwrap();
    let file = folder.path().join("config.toml");
    let run = |words: &[&str]| context(&file, words);
    assert_eq!(run(&["ls", "-o", "json"]).1, "[]\n");
    assert_eq!(run(&["add", "near", "unix:///run/x.sock"]), (0, "near is unix:///run/x.sock\n".into(), String::new()));
    let (code, _, told) = run(&["add", "far", "https://far:8443", "--folder", home]);
    assert!(code == 2 && told.contains("several clients (ann, bob)"), "{told}");
    assert_eq!(run(&["add", "far", "https://far:8443", "--folder", home, "--principal", "ann", "--use"]).0, 0);
    let (code, _, told) = run(&["add", "far", "https://far:8443", "--folder", home, "--principal", "bob"]);
    assert!(code == 4 && told.contains("--replace"), "{told}");
    let (_, printed, _) = run(&["ls"]);
    let rows: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1][..3], ["yes", "far", "https://far:8443"]);
    assert_eq!(rows[2], ["-", "near", "unix:///run/x.sock", "-"]);
    assert_eq!(run(&["ls", "-o", "name"]).1, "far\nnear\n");
    let (_, printed, _) = run(&["show"]);
    assert!(printed.contains("valid until") && printed.contains("ann.key"), "{printed}");
    assert!(run(&["show", "--context", "near"]).1.contains("unix:///run/x.sock"));
    let (_, printed, _) = run(&["show", "far", "-o", "yaml"]);
    assert!(printed.starts_with("name: far\ncurrent: true\nendpoint: https://far:8443\nca: /"), "{printed}");
    assert_eq!(run(&["use", "--none"]).0, 0);
    assert_eq!(run(&["show"]).0, 2);
    assert_eq!((run(&["use", "nope"]).0, run(&["rm", "far", "nope"]).0), (3, 3));
    assert_eq!(run(&["rm", "far"]).1, "far removed\n");
    assert_eq!(run(&["ls", "-o", "name"]).1, "near\n");
}

#[test]
fn what_cannot_be_used_is_not_kept() {
    let folder = folder();
    let file = folder.path().join("config.toml");
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (ca, ann, key, other) = (path("ca.crt"), path("ann.crt"), path("ann.key"), path("bob.key"));
    std::fs::write(path("empty.crt"), "").unwrap();
    let empty = path("empty.crt");
    let cases: [(&[&str], &str); 7] = [
        (&["-x", "unix:///a"], "context name"),
        (&["far", "https://far:8443"], "ca: missing"),
        (&["far", "https://far:8443", "--ca", &ca, "--certificate", &ann, "--key", &other], "its own key"),
        (&["far", "https://far:8443", "--ca", &empty, "--certificate", &ann, "--key", &key], "no certificate"),
        (&["far", "https://far:8443", "--ca", &key, "--certificate", &ann, "--key", &key], "no certificate"),
        (&["far", "https://far:8443", "--ca", "/none", "--certificate", &ann, "--key", &key], "/none"),
        (&["far", "http://127.0.0.1:80"], "insecure"),
    ];
    for (words, wanted) in cases {
        let words =
            if words[0].starts_with('-') { [&["add", "--"], words].concat() } else { [&["add"], words].concat() };
        let (code, _, told) = context(&file, &words);
        assert!(code == 2 && told.contains(wanted), "{words:?}: {code} {told}");
    }
    assert!(!file.exists());
}
