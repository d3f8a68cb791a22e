//! `agentctl cert`: a small authority for the API over TCP, in a folder of files. Needs no daemon.
//!
//! The folder holds `ca.crt` and `ca.key`, and `<name>.crt` and `<name>.key` for each certificate. Keys have mode 0600. Nothing is
//! overwritten unless that is asked for; then the new files take the place of the old ones by rename.

#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use serde::Serialize;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use super::client::Client;
use super::failure::{Failure, Result};
use super::output::Output;
use super::table::Columns;
use crate::access::audit::chain::digest;

/// A certificate is valid from so long before it is made, for clocks that are a little late.
const LATE_CLOCKS: Duration = Duration::from_mins(5);

/// Its command line.
#[derive(Debug, Args)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    verb: Verb,
}

/// What to do with certificates.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Make an authority.
    Init {
        /// Folder for its files; made where it is not there.
        #[arg(long, value_name = "FOLDER", default_value = "/etc/agentd/pki")]
        folder: PathBuf,
        /// Its name.
        #[arg(long, default_value = "agentd")]
        name: String,
        /// How long it is valid, days.
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Make a certificate of the authority.
    Issue {
        /// For whom.
        #[command(subcommand)]
        whom: Whom,
    },
    /// Show certificates: whose they are, and until when they are valid.
    Show {
        /// A file, or a folder with several.
        #[arg(default_value = "/etc/agentd/pki")]
        path: PathBuf,
    },
}

/// For whom a certificate is.
#[derive(Debug, Subcommand)]
enum Whom {
    /// For a daemon.
    Server {
        /// Names and addresses under which clients reach it.
        #[arg(long = "host", required = true, value_name = "NAME|ADDRESS")]
        hosts: Vec<String>,
        /// Name of its files.
        #[arg(long, default_value = "server")]
        name: String,
        #[command(flatten)]
        issue: Issue,
    },
    /// For a client.
    Client {
        /// Name in the access list and in the audit log; also that of its files.
        #[arg(long, value_name = "NAME")]
        principal: String,
        #[command(flatten)]
        issue: Issue,
    },
}

#[derive(Debug, Args)]
struct Issue {
    /// Folder of the authority.
    #[arg(long, value_name = "FOLDER", default_value = "/etc/agentd/pki")]
    folder: PathBuf,
    /// How long it is valid, days.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Write its files and a copy of ca.crt into this folder instead, to be handed over.
    #[arg(long, value_name = "FOLDER")]
    to: Option<PathBuf>,
    /// Replace a certificate of this name, with a new key.
    #[arg(long)]
    renew: bool,
}

/// Carries it out.
#[expect(clippy::unused_async, reason = "all verbs are awaited alike")]
pub async fn run(_client: &Client, output: &mut Output, arguments: Arguments) -> Result<()> {
    match arguments.verb {
        Verb::Init { folder, name, days } => init(output, &folder, &name, days),
        Verb::Issue { whom } => match whom {
            Whom::Server { hosts, name, issue } => server(output, &hosts, &name, &issue),
            Whom::Client { principal, issue } => client(output, &principal, &issue),
        },
        Verb::Show { path } => show(output, &path),
    }
}

fn init(output: &mut Output, folder: &Path, name: &str, days: u32) -> Result<()> {
    if !crate::access::is_principal(name) {
        return Err(Failure::bad_input(format!("--name: found {name:?}, expected letters, digits, spaces or ._@-/+=")));
    }
    make_folder(folder)?;
    let key = KeyPair::generate().map_err(made)?;
    let mut params = params(name, days);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key).map_err(made)?;
    write_pair(folder, "ca", &certificate.pem(), &key.serialize_pem(), false)?;
    let shown = folder.display();
    output.line(&format!(
        "Made the authority {name}: {shown}/ca.crt and {shown}/ca.key. Who has ca.key can make certificates for everybody: \
         keep it on this host, or offline.\n\n\
         Next, a certificate for the daemon, with each name and address under which clients reach it:\n  \
         agentctl cert issue server --folder {shown} --host NAME --host ADDRESS\n\
         and one for each client:\n  \
         agentctl cert issue client --folder {shown} --principal NAME"
    ))
}

fn server(output: &mut Output, hosts: &[String], name: &str, issue: &Issue) -> Result<()> {
    for host in hosts {
        let sound = host.parse::<IpAddr>().is_ok()
            || ((1..=253).contains(&host.len())
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
                && !host.starts_with(['-', '.']));
        if !sound {
            return Err(Failure::bad_input(format!("--host: found {host:?}, expected a host name or an IP address")));
        }
    }
    let mut params = params(&hosts[0], issue.days);
    params.subject_alt_names = CertificateParams::new(hosts.to_vec()).map_err(made)?.subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let folder = write(params, name, issue)?;
    let (shown, first) = (folder.display(), &hosts[0]);
    output.line(&format!(
        "Made {shown}/{name}.crt and {shown}/{name}.key, valid for {} days for {}.\n\n\
         In agentd.toml of the daemon, with the address that it is to listen on:\n  \
         [api]\n  \
         listen = [\"0.0.0.0:8443\"]\n  \
         tls_certificate = \"{shown}/{name}.crt\"\n  \
         tls_key = \"{shown}/{name}.key\"\n  \
         tls_client_ca = \"{shown}/ca.crt\"\n\n\
         Clients then reach it at https://{first}:8443. A daemon that runs already takes a renewed certificate by itself.",
        issue.days,
        hosts.join(", ")
    ))
}

fn client(output: &mut Output, principal: &str, issue: &Issue) -> Result<()> {
    if !crate::access::is_principal(principal) || principal.contains('/') || principal.starts_with('.') {
        return Err(Failure::bad_input(format!(
            "--principal: found {principal:?}, expected 1 to 64 letters, digits, spaces or ._@-+=, no dot first"
        )));
    }
    let mut params = params(principal, issue.days);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let folder = write(params, principal, issue)?;
    let shown = folder.display();
    output.line(&format!(
        "Made {shown}/{principal}.crt and {shown}/{principal}.key, valid for {} days.\n\n\
         On the client's machine, with ca.crt and these two in a folder of its own:\n  \
         agentctl context add NAME https://HOST:8443 --folder FOLDER --principal {principal}\n\n\
         It may do nothing yet. In the daemon's access list, /etc/agentd/acl.toml:\n  \
         [[rule]]\n  \
         principals = [\"{principal}\"]\n  \
         verbs = [\"view\", \"logs\"]",
        issue.days
    ))
}

/// Signs and writes a certificate; gives the folder in which it is.
fn write(mut params: CertificateParams, name: &str, issue: &Issue) -> Result<PathBuf> {
    let plain = |byte: u8| byte.is_ascii() && !byte.is_ascii_control() && byte != b'/';
    if name.is_empty() || name == "ca" || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(Failure::bad_input(format!("found the name {name:?}, expected one for files, other than ca")));
    }
    let authority = read(&issue.folder.join("ca.crt"))?;
    let key = KeyPair::from_pem(&read(&issue.folder.join("ca.key"))?)
        .map_err(|error| Failure::failed(format!("{}: {error}", issue.folder.join("ca.key").display())))?;
    let fail = |error: rcgen::Error| Failure::failed(format!("{}: {error}", issue.folder.join("ca.crt").display()));
    let signer = Issuer::from_ca_cert_pem(&authority, key).map_err(fail)?;
    let folder = issue.to.as_ref().unwrap_or(&issue.folder);
    if issue.to.is_some() {
        make_folder(folder)?;
    }
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let own = KeyPair::generate().map_err(made)?;
    let certificate = params.signed_by(&own, &signer).map_err(made)?;
    write_pair(folder, name, &certificate.pem(), &own.serialize_pem(), issue.renew)?;
    if issue.to.is_some() {
        put(&folder.join("ca.crt"), &authority, 0o644, true)?;
    }
    Ok(folder.clone())
}

fn params(name: &str, days: u32) -> CertificateParams {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(LATE_CLOCKS);
    params.not_after = epoch + now + Duration::from_secs(u64::from(days) * 86_400);
    params.distinguished_name = subject;
    params
}

#[expect(clippy::needless_pass_by_value, reason = "given to map_err")]
fn made(error: rcgen::Error) -> Failure {
    Failure::failed(format!("the certificate cannot be made: {error}"))
}

fn make_folder(folder: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| Failure::failed(format!("cannot make the folder {}: {error}", folder.display())))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::new(
            super::failure::NOT_FOUND,
            format!("{} is not there; make an authority with `agentctl cert init`", path.display()),
        ),
        _ => Failure::failed(format!("{}: {error}", path.display())),
    })
}

fn write_pair(folder: &Path, name: &str, certificate: &str, key: &str, replace: bool) -> Result<()> {
    let (certificate_file, key_file) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
    for file in [&certificate_file, &key_file] {
        if !replace && file.symlink_metadata().is_ok() {
            let cure = if name == "ca" { "choose another --folder, or remove it" } else { "renew it with --renew" };
            let message = format!("{} is there already and is not overwritten; {cure}", file.display());
            return Err(Failure::new(super::failure::CONFLICT, message));
        }
    }
    // a key without a certificate is of no use to anybody, the other way round the pair looks whole
    put(&key_file, key, 0o600, replace)?;
    put(&certificate_file, certificate, 0o644, replace)
}

/// Writes a file under another name, and gives it its own once it is whole.
fn put(path: &Path, text: &str, mode: u32, replace: bool) -> Result<()> {
    let fail = |error: io::Error| Failure::failed(format!("{}: {error}", path.display()));
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(new);
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).and_then(|mut file: File| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if replace {
            std::fs::rename(&new, path)
        } else {
            // unlike a rename, a link does not take the place of what is there
            std::fs::hard_link(&new, path)
        }
    });
    let _ = std::fs::remove_file(&new);
    written.map_err(fail)
}

/// What `cert show` tells of a certificate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    file: String,
    name: String,
    kind: &'static str,
    hosts: Vec<String>,
    issuer: String,
    not_before: String,
    not_after: String,
    days_left: i64,
    fingerprint: String,
}

fn show(output: &mut Output, path: &Path) -> Result<()> {
    let mut files = Vec::new();
    if path.is_dir() {
        let entries =
            std::fs::read_dir(path).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
        files.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
        files.retain(|file| file.extension().is_some_and(|extension| extension == "crt"));
        files.sort();
    } else {
        files.push(path.to_owned());
    }
    let shown = files.iter().map(|file| describe(file)).collect::<Result<Vec<Shown>>>()?;
    if output.json() {
        let text = serde_json::to_vec(&shown).map_err(|error| Failure::failed(error.to_string()))?;
        return output.body(&text);
    }
    if output.names() {
        return shown.iter().try_for_each(|one| output.name(&one.name));
    }
    let mut columns = Columns::new(&["FILE", "NAME", "KIND", "HOSTS", "ISSUER", "UNTIL", "DAYS LEFT"]);
    columns.right(&[6]);
    for one in &shown {
        let days = one.days_left.to_string();
        let hosts = one.hosts.join(",");
        columns.row([one.file.as_str(), &one.name, one.kind, &hosts, &one.issuer, &one.not_after, &days]);
    }
    output.table(columns)
}

fn describe(file: &Path) -> Result<Shown> {
    let fail = |why: String| Failure::failed(format!("{}: {why}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| fail(error.to_string()))?;
    let (_, pem) = parse_x509_pem(&bytes).map_err(|_| fail("is no certificate in PEM".to_owned()))?;
    let certificate = pem.parse_x509().map_err(|error| fail(format!("is no certificate: {error}")))?;
    let common = |name: &x509_parser::x509::X509Name<'_>| {
        name.iter_common_name().find_map(|name| name.as_str().ok()).unwrap_or_default().to_owned()
    };
    let hosts = match certificate.subject_alternative_name() {
        Ok(Some(found)) => found.value.general_names.iter().filter_map(host).collect(),
        _ => Vec::new(),
    };
    let usage = certificate.extended_key_usage().ok().flatten();
    let kind = match usage {
        _ if certificate.is_ca() => "authority",
        Some(usage) if usage.value.server_auth => "server",
        Some(usage) if usage.value.client_auth => "client",
        _ => "other",
    };
    let time = |seconds: i64| jiff::Timestamp::from_second(seconds).map(|at| at.to_string()).unwrap_or_default();
    let end = certificate.validity().not_after.timestamp();
    Ok(Shown {
        file: file.display().to_string(),
        name: common(certificate.subject()),
        kind,
        hosts,
        issuer: common(certificate.issuer()),
        not_before: time(certificate.validity().not_before.timestamp()),
        not_after: time(end),
        days_left: (end - jiff::Timestamp::now().as_second()).div_euclid(86_400),
        fingerprint: digest(&pem.contents),
    })
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let six = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            four.or(six).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}
