//! The access list: who may do what with which pods. Pure: what it says follows from its text alone.
//!
//! Without a file, the Unix socket may do everything and TCP nothing. Root on the Unix socket may always do everything: it
//! could change the file anyway, and shall not lock itself out.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ceiling::Ceiling;
use super::{Caller, Source};

/// Largest access list, bytes.
pub const LARGEST: u64 = 1 << 20;

/// What one may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// See pods, their state, events and use of resources.
    View,
    /// Read what containers print.
    Logs,
    /// Run programs in containers, copy files in and out, reach their ports.
    Exec,
    /// Start, change and remove pods.
    Run,
    /// All of these, images, and what belongs to others.
    Admin,
}

impl Verb {
    /// Its word in the list.
    pub fn word(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Logs => "logs",
            Self::Exec => "exec",
            Self::Run => "run",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Labels of a pod.
pub type Labels = BTreeMap<String, String>;

/// What a right is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// A pod with these labels.
    Pod(&'a Labels),
    /// The host or all pods: rules that are limited to labels do not count.
    Host,
    /// Any pod at all: a rule for some labels is enough.
    Any,
}

/// The access list.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Whether everybody on the Unix socket may do everything.
    unix_everything: bool,
    rules: Vec<Rule>,
    ceilings: Vec<Bound>,
    /// The file, for messages.
    file: PathBuf,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    principals: Vec<String>,
    verbs: Vec<Verb>,
    labels: Labels,
}

#[derive(Debug, Clone, PartialEq)]
struct Bound {
    principals: Vec<String>,
    ceiling: Ceiling,
}

/// The file as it is read.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    unix: Unix,
    #[serde(default)]
    rule: Vec<RuleEntry>,
    #[serde(default)]
    ceiling: Vec<CeilingEntry>,
}

#[derive(Debug, Deserialize, Default, PartialEq, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Unix {
    #[default]
    Everything,
    Rules,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleEntry {
    principals: Vec<String>,
    verbs: Vec<Verb>,
    #[serde(default)]
    labels: Labels,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CeilingEntry {
    principals: Vec<String>,
    #[serde(default)]
    everything: bool,
    #[serde(default)]
    host_paths: Vec<PathBuf>,
    #[serde(default)]
    host_network: bool,
    #[serde(default)]
    capabilities: Vec<String>,
    #[serde(default)]
    own_seccomp: bool,
    #[serde(default)]
    image_less: bool,
    #[serde(default)]
    host_root: bool,
    #[serde(default)]
    secrets: Vec<String>,
}

impl Policy {
    /// What holds where there is no file.
    pub fn without_file(file: &Path) -> Self {
        Self { unix_everything: true, rules: Vec::new(), ceilings: Vec::new(), file: file.to_owned() }
    }

    /// Reads a list; every problem that was found, one line each with its place.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<String>> {
        let document: Document = toml::from_str(text).map_err(|error| {
            let place = error.span().map(|span| {
                let before = &text[..span.start.min(text.len())];
                format!(":{}", before.matches('\n').count() + 1)
            });
            let message = error.message().replace('\n', "; ");
            vec![format!("{}{}: {message}", file.display(), place.unwrap_or_default())]
        })?;
        let mut faults = Vec::new();
        let mut rules = Vec::new();
        let mut ceilings = Vec::new();
        for (at, entry) in document.rule.into_iter().enumerate() {
            check_principals(&entry.principals, &format!("rule[{at}].principals"), &mut faults);
            if entry.verbs.is_empty() {
                let expected = "expected some of view, logs, exec, run, admin";
                faults.push(format!("rule[{at}].verbs: is empty; {expected}, or remove the rule"));
            }
            rules.push(Rule { principals: entry.principals, verbs: entry.verbs, labels: entry.labels });
        }
        for (at, entry) in document.ceiling.into_iter().enumerate() {
            check_principals(&entry.principals, &format!("ceiling[{at}].principals"), &mut faults);
            for (n, path) in entry.host_paths.iter().enumerate() {
                let up = path.components().any(|part| part == std::path::Component::ParentDir);
                if !path.is_absolute() || up {
                    let found = path.display();
                    faults.push(format!(
                        "ceiling[{at}].host_paths[{n}]: found {found}; expected an absolute path without '..'"
                    ));
                }
            }
            let mut capabilities = Vec::new();
            for (n, name) in entry.capabilities.iter().enumerate() {
                match agentd_isolators::capabilities::bit(&super::ceiling::capability(name)) {
                    Some(_) => capabilities.push(super::ceiling::capability(name)),
                    None => faults.push(format!(
                        "ceiling[{at}].capabilities[{n}]: found {name:?}; expected a capability of Linux, e.g. \"NET_RAW\""
                    )),
                }
            }
            let ceiling = Ceiling {
                everything: entry.everything,
                host_paths: entry.host_paths,
                host_network: entry.host_network,
                capabilities,
                own_seccomp: entry.own_seccomp,
                image_less: entry.image_less,
                host_root: entry.host_root,
                secrets: entry.secrets,
            };
            ceilings.push(Bound { principals: entry.principals, ceiling });
        }
        if faults.is_empty() {
            let unix_everything = document.unix == Unix::Everything;
            Ok(Self { unix_everything, rules, ceilings, file: file.to_owned() })
        } else {
            Err(faults.into_iter().map(|fault| format!("{}: {fault}", file.display())).collect())
        }
    }

    /// The file that says so.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Folders of the host to which somebody's pods are limited.
    pub fn folders(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = self
            .ceilings
            .iter()
            .filter(|bound| !bound.ceiling.everything)
            .flat_map(|b| b.ceiling.host_paths.clone())
            .collect();
        folders.sort();
        folders.dedup();
        folders
    }

    /// Whether a caller may do everything, without limit.
    pub fn unlimited(&self, caller: &Caller) -> bool {
        match caller.source {
            Source::Unix { uid, .. } => uid == 0 || self.unix_everything,
            Source::Tls { .. } | Source::Plain { .. } => false,
        }
    }

    /// Whether a caller may do something.
    pub fn allows(&self, caller: &Caller, verb: Verb, scope: Scope<'_>) -> bool {
        let grants = |rule: &Rule| {
            (rule.verbs.contains(&verb) || rule.verbs.contains(&Verb::Admin))
                && named(&rule.principals, caller)
                && match scope {
                    Scope::Pod(labels) => rule
                        .labels
                        .iter()
                        .all(|(name, wanted)| labels.get(name).is_some_and(|value| wanted == "*" || value == wanted)),
                    Scope::Host => rule.labels.is_empty(),
                    Scope::Any => true,
                }
        };
        self.unlimited(caller) || self.rules.iter().any(grants)
    }

    /// What a caller's pods and sessions may ask for: all its ceilings together.
    pub fn ceiling(&self, caller: &Caller) -> Ceiling {
        if self.unlimited(caller) {
            return Ceiling::unlimited();
        }
        let mut ceiling = Ceiling::default();
        for bound in self.ceilings.iter().filter(|bound| named(&bound.principals, caller)) {
            ceiling.add(&bound.ceiling);
        }
        ceiling
    }
}

/// Whether a list of principals names a caller. Plain text over TCP has no names: it must be listed as such.
fn named(principals: &[String], caller: &Caller) -> bool {
    principals.iter().any(|principal| match (&caller.source, principal.as_str()) {
        (Source::Plain { .. }, name) => name == super::ANONYMOUS,
        (_, "*") => true,
        (Source::Unix { uid, gid, .. }, name) => match name.split_once(':') {
            Some(("uid", number)) => number.parse() == Ok(*uid),
            Some(("gid", number)) => number.parse() == Ok(*gid),
            _ => false,
        },
        (Source::Tls { .. }, name) => super::is_principal(name) && name == caller.principal,
    })
}

fn check_principals(principals: &[String], field: &str, faults: &mut Vec<String>) {
    if principals.is_empty() {
        faults.push(format!("{field}: is empty; expected the names of some, or \"*\""));
    }
    for (n, name) in principals.iter().enumerate() {
        let numbered = name.split_once(':').is_some_and(|(kind, number)| {
            matches!(kind, "uid" | "gid") && number.bytes().all(|b| b.is_ascii_digit()) && number.parse::<u32>().is_ok()
        });
        if name != "*" && !numbered && !super::is_principal(name) && name != super::ANONYMOUS {
            faults.push(format!(
                "{field}[{n}]: found {name:?}; expected a certificate's common name, \"uid:<number>\", \"gid:<number>\", \
                 \"{}\" or \"*\"",
                super::ANONYMOUS
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(name: &str) -> Caller {
        Caller { principal: name.to_owned(), source: Source::Tls { address: ([192, 0, 2, 1], 5).into() } }
    }

    fn plain() -> Caller {
        Caller { principal: "anonymous".into(), source: Source::Plain { address: ([127, 0, 0, 1], 5).into() } }
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn read(text: &str) -> Policy {
        Policy::parse(Path::new("acl.toml"), text).unwrap()
    }

    const EVERY: [Verb; 5] = [Verb::View, Verb::Logs, Verb::Exec, Verb::Run, Verb::Admin];

    #[test]
    fn without_a_file_unix_may_everything_and_tcp_nothing() {
        for policy in [Policy::without_file(Path::new("/x")), read("")] {
            for verb in EVERY {
                for scope in [Scope::Any, Scope::Host, Scope::Pod(&Labels::new())] {
                    assert!(policy.allows(&Caller::unix(0, 0, None), verb, scope));
                    assert!(policy.allows(&Caller::unix(1000, 1000, None), verb, scope));
                    assert!(!policy.allows(&tls("alice"), verb, scope));
                    assert!(!policy.allows(&plain(), verb, scope));
                }
            }
            assert_eq!(policy.ceiling(&tls("alice")), Ceiling::default());
            assert!(policy.ceiling(&Caller::unix(7, 7, None)).everything);
        }
    }

    #[test]
    fn rules_grant_by_principal_verb_and_label() {
        let policy = read(
            "[[rule]]\nprincipals = [\"alice\", \"uid:7\"]\nverbs = [\"view\", \"exec\"]\nlabels = { team = \"a\" }\n\
             [[rule]]\nprincipals = [\"*\"]\nverbs = [\"view\"]\nlabels = { public = \"*\" }\n\
             [[rule]]\nprincipals = [\"root-of-all\"]\nverbs = [\"admin\"]\n",
        );
        let (a, b) = (labels(&[("team", "a"), ("x", "y")]), labels(&[("team", "b")]));
        let alice = tls("alice");
        assert!(policy.allows(&alice, Verb::Exec, Scope::Pod(&a)));
        assert!(!policy.allows(&alice, Verb::Exec, Scope::Pod(&b)));
        assert!(!policy.allows(&alice, Verb::Exec, Scope::Pod(&Labels::new())));
        assert!(!policy.allows(&alice, Verb::Run, Scope::Pod(&a)));
        assert!(!policy.allows(&alice, Verb::Logs, Scope::Any));
        assert!(policy.allows(&alice, Verb::View, Scope::Any));
        assert!(!policy.allows(&alice, Verb::View, Scope::Host));
        assert!(policy.allows(&tls("bob"), Verb::View, Scope::Pod(&labels(&[("public", "")]))));
        assert!(!policy.allows(&tls("bob"), Verb::View, Scope::Pod(&a)));
        assert!(EVERY.iter().all(|verb| policy.allows(&tls("root-of-all"), *verb, Scope::Host)));
        // a certificate cannot stand for a user of the socket, nor plain text for anybody
        assert!(!policy.allows(&tls("uid:7"), Verb::Exec, Scope::Pod(&a)));
        assert!(!policy.allows(&plain(), Verb::View, Scope::Any));
    }

    #[test]
    fn the_unix_socket_can_be_put_under_the_rules_but_not_root() {
        let policy = read(
            "unix = \"rules\"\n[[rule]]\nprincipals = [\"uid:7\", \"gid:20\"]\nverbs = [\"view\"]\n\
             [[rule]]\nprincipals = [\"anonymous\"]\nverbs = [\"logs\"]\n",
        );
        assert!(policy.allows(&Caller::unix(7, 7, None), Verb::View, Scope::Host));
        assert!(policy.allows(&Caller::unix(9, 20, None), Verb::View, Scope::Host));
        assert!(!policy.allows(&Caller::unix(9, 9, None), Verb::View, Scope::Host));
        assert!(!policy.allows(&Caller::unix(7, 7, None), Verb::Run, Scope::Host));
        assert!(policy.allows(&Caller::unix(0, 0, None), Verb::Admin, Scope::Host));
        assert!(policy.allows(&plain(), Verb::Logs, Scope::Host));
        assert!(!policy.ceiling(&Caller::unix(7, 7, None)).everything);
    }

    #[test]
    fn ceilings_of_one_principal_add_up() {
        let policy = read(
            "[[ceiling]]\nprincipals = [\"a\"]\nhost_paths = [\"/srv\"]\ncapabilities = [\"cap_net_raw\"]\n\
             [[ceiling]]\nprincipals = [\"*\"]\nhost_network = true\n",
        );
        let ceiling = policy.ceiling(&tls("a"));
        assert_eq!(ceiling.host_paths, [PathBuf::from("/srv")]);
        assert_eq!(ceiling.capabilities, ["NET_RAW"]);
        assert!(ceiling.host_network && !ceiling.host_root && !ceiling.everything);
        assert!(policy.ceiling(&tls("b")).host_paths.is_empty());
    }

    #[test]
    fn faults_name_their_place() {
        for (text, words) in [
            ("[[rule]]\nprincipals = [\"a\"]\nverbs = [\"look\"]", "acl.toml:3: unknown variant `look`"),
            ("[[rule]]\nprincipals = [\"a\"]\n", "missing field `verbs`"),
            ("[[rules]]\n", "unknown field `rules`"),
            ("unix = \"nothing\"", "acl.toml:1:"),
            ("[[rule]]\nprincipals = []\nverbs = [\"view\"]", "rule[0].principals: is empty"),
            ("[[rule]]\nprincipals = [\"uid:x\"]\nverbs = [\"view\"]", "rule[0].principals[0]: found \"uid:x\""),
            ("[[rule]]\nprincipals = [\"a\"]\nverbs = []", "rule[0].verbs: is empty"),
            ("[[ceiling]]\nprincipals = [\"a\"]\nhost_paths = [\"srv\"]", "ceiling[0].host_paths[0]: found srv"),
            ("[[ceiling]]\nprincipals = [\"a\"]\ncapabilities = [\"ROOT\"]", "ceiling[0].capabilities[0]"),
            ("[[rule", "acl.toml:1:"),
        ] {
            let faults = Policy::parse(Path::new("acl.toml"), text).unwrap_err();
            assert!(faults.iter().any(|fault| fault.contains(words)), "{text}\n{faults:?}");
        }
    }
}
