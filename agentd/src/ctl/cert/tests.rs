//! `agentctl cert` against a folder, and what the daemon takes of it.

use std::os::unix::fs::PermissionsExt;

use clap::Parser;

use super::*;
use crate::access::tls::{Files, Tls};
use crate::ctl::arguments::Form;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    verb: Verb,
}

fn cert(words: &[&str]) -> std::result::Result<(), u8> {
    let verb = Line::try_parse_from(std::iter::once(&"cert").chain(words)).unwrap().verb;
    let mut output = Output::into(Form::Table, Box::new(std::io::sink()));
    let result = match verb {
        Verb::Init { folder, name, days } => init(&mut output, &folder, &name, days),
        Verb::Issue { whom: Whom::Server { hosts, name, issue } } => server(&mut output, &hosts, &name, &issue),
        Verb::Issue { whom: Whom::Client { principal, issue } } => client(&mut output, &principal, &issue),
        Verb::Show { path } => show(&mut output, &path),
    };
    result.map_err(|failure| failure.code())
}

#[test]
fn an_authority_issues_certificates_that_the_daemon_takes() {
    let folder = tempfile::Builder::new().prefix("agentd-test-cert-").tempdir().unwrap();
    let pki = folder.path().join("pki");
    let at = pki.to_str().unwrap();
    assert_eq!(cert(&["issue", "client", "--folder", at, "--principal", "a"]), Err(crate::ctl::failure::NOT_FOUND));
    cert(&["init", "--folder", at]).unwrap();
    assert_eq!(cert(&["init", "--folder", at]), Err(crate::ctl::failure::CONFLICT));
    cert(&["issue", "server", "--folder", at, "--host", "node.example", "--host", "::1"]).unwrap();
    cert(&["issue", "client", "--folder", at, "--principal", "alice", "--days", "3"]).unwrap();
    let again = ["issue", "client", "--folder", at, "--principal", "alice"];
    assert_eq!(cert(&again), Err(crate::ctl::failure::CONFLICT));
    let before = std::fs::read(pki.join("alice.crt")).unwrap();
    cert(&[&again[..], &["--renew"]].concat()).unwrap();
    assert_ne!(std::fs::read(pki.join("alice.crt")).unwrap(), before);
    let away = folder.path().join("away");
    cert(&["issue", "client", "--folder", at, "--principal", "bob", "--to", away.to_str().unwrap()]).unwrap();
    let mut names: Vec<String> =
        std::fs::read_dir(&away).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["bob.crt", "bob.key", "ca.crt"]);
    for key in ["ca.key", "server.key", "alice.key"] {
        assert_eq!(pki.join(key).metadata().unwrap().permissions().mode() & 0o777, 0o600, "{key}");
    }
    let shown = describe(&pki.join("server.crt")).unwrap();
    assert!(shown.kind == "server" && (89..=90).contains(&shown.days_left), "{shown:?}");
    assert_eq!(shown.hosts, ["node.example", "::1"]);
    assert_eq!(describe(&pki.join("ca.crt")).unwrap().kind, "authority");
    cert(&["show", at]).unwrap();
    let files =
        Files { certificate: pki.join("server.crt"), key: pki.join("server.key"), client_ca: pki.join("ca.crt") };
    Tls::open(files.clone()).unwrap();
    let error = Tls::open(Files { key: pki.join("alice.key"), ..files.clone() }).unwrap_err();
    assert!(error.starts_with("api.tls_certificate"), "{error}");
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Tls::open(files).unwrap_err().contains("chmod it to 0600"));
}

#[test]
fn names_that_mislead_are_refused() {
    let folder = tempfile::Builder::new().prefix("agentd-test-cert-").tempdir().unwrap();
    let at = folder.path().to_str().unwrap();
    cert(&["init", "--folder", at]).unwrap();
    for name in ["uid:0", "*", "anonymous", "../x", "ca", "", ".x", "a\nb"] {
        let result = cert(&["issue", "client", "--folder", at, "--principal", name]);
        assert_eq!(result, Err(crate::ctl::failure::BAD_INPUT), "{name:?}");
    }
    for host in ["a b", "", "https://x", "-x"] {
        let result = cert(&["issue", "server", "--folder", at, &format!("--host={host}")]);
        assert_eq!(result, Err(crate::ctl::failure::BAD_INPUT), "{host:?}");
    }
}
