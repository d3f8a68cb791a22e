//! `agentctl context`: names for daemons on other hosts, and what it takes to reach them.
//!
//! [`store`] is the file, [`endpoint`] an address in it, [`validity`] the dates of a certificate.

pub mod endpoint;
pub mod store;
pub mod validity;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::failure::{Failure, Result};
use super::output::Output;
use super::table::Columns;
use super::transport::{self, Transport};
use store::{Context, Contexts};

/// What to do with contexts.
#[derive(Debug, Subcommand)]
pub enum ContextVerb {
    /// List contexts.
    Ls,
    /// Use a context where the command line and the environment name none.
    Use {
        /// Its name.
        #[arg(required_unless_present = "none")]
        name: Option<String>,
        /// Use none: the daemon on this host.
        #[arg(long, conflicts_with = "name")]
        none: bool,
    },
    /// Name a daemon, and what it takes to reach it.
    Add(Box<Add>),
    /// Remove contexts. Their certificates stay.
    Rm {
        /// Their names.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Show a context, by default the one that is used now.
    Show {
        /// Its name.
        name: Option<String>,
    },
}

/// A new context.
#[derive(Debug, Args)]
pub struct Add {
    /// Its name.
    pub name: String,
    /// `https://host:port`, `unix:///path`, or `http://127.0.0.1:port` with --insecure.
    pub endpoint: String,
    /// Folder with `ca.crt`, and `<name>.crt` and `<name>.key` of a client, as `agentctl cert` writes it.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["ca", "certificate", "key"])]
    pub folder: Option<PathBuf>,
    /// Which client of the folder; needed where it holds several.
    #[arg(long, value_name = "NAME", requires = "folder")]
    pub principal: Option<String>,
    /// Certificate of the authority that the daemon's certificate is from.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Certificate to show to the daemon.
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// Private key of that certificate.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Plain HTTP, to a loopback address only.
    #[arg(long)]
    pub insecure: bool,
    /// Use it from now on.
    #[arg(long = "use")]
    pub use_now: bool,
    /// Replace the context that has this name.
    #[arg(long)]
    pub replace: bool,
}

/// A context as JSON.
#[derive(Debug, Serialize)]
struct Told<'a> {
    name: &'a str,
    current: bool,
    #[serde(flatten)]
    context: &'a Context,
}

/// The way to the daemon of a context.
pub fn named(name: &str) -> Result<Transport> {
    let file = store::path()?;
    let contexts = Contexts::load(&file)?;
    Transport::context(name, contexts.get(name, &file)?)
}

/// The way to the daemon of the current context; none where there is no current one.
pub fn current() -> Result<Option<Transport>> {
    // without a home there is no current context
    let Ok(file) = store::path() else { return Ok(None) };
    let contexts = Contexts::load(&file)?;
    let Some(name) = &contexts.current else { return Ok(None) };
    Transport::context(name, contexts.get(name, &file)?).map(Some)
}

/// `agentctl context`. `named` is the context that the command line or the environment names.
pub fn run(output: &mut Output, verb: ContextVerb, named: Option<&str>) -> Result<()> {
    let file = store::path()?;
    carry_out(output, verb, named, &file)
}

fn carry_out(output: &mut Output, verb: ContextVerb, named: Option<&str>, file: &Path) -> Result<()> {
    let mut contexts = Contexts::load(file)?;
    match verb {
        ContextVerb::Ls => list(output, &contexts),
        ContextVerb::Use { name, none: _ } => {
            if let Some(name) = &name {
                contexts.get(name, file)?;
            }
            contexts.current = name;
            contexts.save(file)?;
            match &contexts.current {
                _ if output.json() || output.names() => Ok(()),
                Some(name) => output.line(&format!("{name} is used from now on")),
                None => output.line("the daemon on this host is used from now on"),
            }
        }
        ContextVerb::Add(wanted) => add(output, *wanted, contexts, file),
        ContextVerb::Rm { names } => {
            for name in &names {
                contexts.get(name, file)?;
            }
            for name in &names {
                contexts.contexts.remove(name);
                if contexts.current.as_ref() == Some(name) {
                    contexts.current = None;
                }
            }
            contexts.save(file)?;
            names.iter().try_for_each(|name| match () {
                () if output.names() => output.name(name),
                () if output.json() => Ok(()),
                () => output.line(&format!("{name} removed")),
            })
        }
        ContextVerb::Show { name } => {
            let Some(name) = name.as_deref().or(named).or(contexts.current.as_deref()) else {
                return Err(Failure::bad_input(
                    "no context is used: the daemon on this host is; name one of agentctl context ls",
                ));
            };
            show(output, &contexts, name, file)
        }
    }
}

fn list(output: &mut Output, contexts: &Contexts) -> Result<()> {
    let is_current = |name: &str| contexts.current.as_deref() == Some(name);
    if output.names() {
        return contexts.contexts.keys().try_for_each(|name| output.name(name));
    }
    if output.json() {
        let told = contexts.contexts.iter().map(|(name, context)| Told { name, current: is_current(name), context });
        return output.body(&json(&told.collect::<Vec<_>>())?);
    }
    let mut columns = Columns::new(&["CURRENT", "NAME", "ENDPOINT", "CERTIFICATE"]);
    for (name, context) in &contexts.contexts {
        let certificate = context.certificate.as_deref().unwrap_or(Path::new("")).display().to_string();
        let current = if is_current(name) { "yes" } else { "" };
        columns.row([current, name, &context.endpoint, &certificate]);
    }
    output.table(columns)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Failure::failed(format!("the answer cannot be written: {error}")))
}

fn show(output: &mut Output, contexts: &Contexts, name: &str, file: &Path) -> Result<()> {
    let context = contexts.get(name, file)?;
    let current = contexts.current.as_deref() == Some(name);
    if output.names() {
        return output.name(name);
    }
    if output.json() {
        return output.body(&json(&Told { name, current, context })?);
    }
    output.line(&format!("Name         {name}"))?;
    output.line(&format!("Current      {}", if current { "yes" } else { "no" }))?;
    output.line(&format!("Endpoint     {}", super::failure::clean(&context.endpoint)))?;
    let files = [("Authority", &context.ca), ("Certificate", &context.certificate)];
    for (title, file) in files {
        let Some(file) = file else { continue };
        let until =
            transport::certificates("certificate", file).ok().and_then(|chain| validity::of_der(chain.first()?));
        let until = until.map_or_else(String::new, |dates| format!(", valid until {}", dates.until));
        output.line(&format!("{title:<12} {}{until}", file.display()))?;
    }
    if let Some(key) = &context.key {
        output.line(&format!("Key          {}", key.display()))?;
    }
    if context.insecure {
        output.line("Insecure     yes: plain HTTP on loopback")?;
    }
    Ok(())
}

fn add(output: &mut Output, wanted: Add, mut contexts: Contexts, file: &Path) -> Result<()> {
    store::check_name(&wanted.name)?;
    if contexts.contexts.contains_key(&wanted.name) && !wanted.replace {
        let message = format!("there is a context {} already; --replace replaces it", wanted.name);
        return Err(Failure::new(super::failure::CONFLICT, message));
    }
    let mut context = Context { endpoint: wanted.endpoint, insecure: wanted.insecure, ..Context::default() };
    if let Some(folder) = &wanted.folder {
        let (certificate, key) = client_of(folder, wanted.principal.as_deref())?;
        (context.ca, context.certificate, context.key) = (Some(folder.join("ca.crt")), Some(certificate), Some(key));
    } else {
        (context.ca, context.certificate, context.key) = (wanted.ca, wanted.certificate, wanted.key);
    }
    for file in [&mut context.ca, &mut context.certificate, &mut context.key].into_iter().flatten() {
        *file =
            std::path::absolute(&*file).map_err(|error| Failure::bad_input(format!("{}: {error}", file.display())))?;
    }
    // what cannot be used is refused now, not at the first call
    Transport::context(&wanted.name, &context)?;
    if wanted.use_now {
        contexts.current = Some(wanted.name.clone());
    }
    let endpoint = context.endpoint.clone();
    contexts.contexts.insert(wanted.name.clone(), context);
    contexts.save(file)?;
    match () {
        () if output.names() => output.name(&wanted.name),
        () if output.json() => Ok(()),
        () => output.line(&format!("{} is {endpoint}", wanted.name)),
    }
}

/// Certificate and key of a client in a folder: those of the principal, else the only ones.
fn client_of(folder: &Path, principal: Option<&str>) -> Result<(PathBuf, PathBuf)> {
    let refuse = |what: String| Failure::bad_input(format!("{}: {what}", folder.display()));
    let pair = |name: &str| (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
    if let Some(principal) = principal {
        if principal.contains('/') || principal.is_empty() {
            return Err(refuse(format!("found the principal {principal:?}, expected the name of a file without .crt")));
        }
        return Ok(pair(principal));
    }
    let entries = std::fs::read_dir(folder)
        .map_err(|error| refuse(format!("{error}; expected a folder with ca.crt, <name>.crt and <name>.key")))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".crt").map(str::to_owned))
        .filter(|name| name != "ca" && pair(name).1.is_file())
        .collect();
    names.sort_unstable();
    match names.as_slice() {
        [name] => Ok(pair(name)),
        [] => Err(refuse("found no <name>.crt with its <name>.key; agentctl cert issue makes them".to_owned())),
        _ => Err(refuse(format!("found several clients ({}); name one with --principal", names.join(", ")))),
    }
}

#[cfg(test)]
mod tests;
