//! The seccomp isolator: which system calls a container may make.
//!
//! A pod chooses the built-in profile (the default), none, or a file of the node's seccomp folder. Filters are compiled
//! when they are first needed and kept by profile and capabilities, so that starting a container costs a look-up and,
//! for a file, reading it.
//!
//! - [`rules`]: what a policy says. [`syscalls`]: the numbers of the calls.
//! - [`builtin`]: the built-in profile. [`profile`]: profiles from files.
//! - [`compile`]: from a policy to the kernel's filter.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use agentd_api::pod::{PodSpec, SeccompChoice};
use agentd_api::problem::Violation;
use sha2::{Digest, Sha256};

use crate::capabilities::HostCapabilities;
use crate::{ContainerContext, Isolator, IsolatorError, Launch};

pub mod builtin;
pub mod compile;
pub mod profile;
pub mod rules;
pub mod syscalls;

const NAME: &str = "seccomp";

/// Largest profile file that is read, in bytes.
const LARGEST_FILE: u64 = 1 << 20;
/// Most filters kept; more can only come from files that change.
const MOST_KEPT: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// SHA-256 of the profile's file; none for the built-in profile.
    file: Option<[u8; 32]>,
    capabilities: u64,
}

/// Filters as `plan.seccomp` takes them.
type Filters = Arc<Vec<Vec<u8>>>;

/// Chooses, compiles and keeps the filters.
#[derive(Debug)]
pub struct Seccomp {
    folder: PathBuf,
    host: HostCapabilities,
    kernel: (u32, u32),
    /// Why no filter can be used on this host at all.
    unusable: Option<String>,
    kept: Mutex<HashMap<Key, Filters>>,
}

impl Seccomp {
    /// The isolator with profiles from `folder` (`<config>/seccomp`). Compiles the built-in profile for the default
    /// capabilities right away.
    pub fn new(folder: impl Into<PathBuf>, host: HostCapabilities) -> Self {
        let isolator = Self {
            folder: folder.into(),
            host,
            kernel: kernel_version(),
            unusable: unusable(),
            kept: Mutex::new(HashMap::new()),
        };
        if isolator.unusable.is_none() {
            // an error here comes back, with a container to name, when the profile is used
            let _ = isolator.filters(&SeccompChoice::Default, crate::capabilities::default_mask() & host.grantable);
        }
        isolator
    }

    /// The filters for a choice and a set of capabilities; empty for `unconfined`.
    pub fn filters(&self, choice: &SeccompChoice, capabilities: u64) -> Result<Filters, IsolatorError> {
        let name = match choice {
            SeccompChoice::Unconfined => return Ok(Filters::default()),
            SeccompChoice::Default => None,
            SeccompChoice::Profile(name) => Some(name),
        };
        if let Some(reason) = &self.unusable {
            return Err(IsolatorError::new(NAME, reason));
        }
        let arch = rules::Arch::native().ok_or_else(|| IsolatorError::new(NAME, NO_TABLE))?;
        let (key, file) = match name {
            None => (Key { file: None, capabilities: capabilities & builtin::relevant_capabilities() }, None),
            Some(name) => {
                let file = self.read(name)?;
                (Key { file: Some(Sha256::digest(&file.1).into()), capabilities }, Some(file))
            }
        };
        if let Some(filters) = self.kept().get(&key) {
            return Ok(Arc::clone(filters));
        }
        let policy = match &file {
            None => builtin::policy(arch, capabilities),
            Some((path, text)) => {
                let at = profile::Circumstances { arch, capabilities, kernel: self.kernel };
                let read = profile::parse(text, at)
                    .map_err(|e| IsolatorError::new(NAME, format!("profile {}: {e}", path.display())))?;
                tracing::info!(
                    profile = %path.display(),
                    unknown = read.unknown.join(" "),
                    notes = read.notes.join("; "),
                    "compiled a seccomp profile; unknown calls have no effect"
                );
                read.policy
            }
        };
        let code = compile::compile(&policy).map_err(|e| {
            let source = file.as_ref().map_or_else(|| "built-in".to_owned(), |(path, _)| path.display().to_string());
            IsolatorError::new(NAME, format!("profile {source}: {e}"))
        })?;
        let filters = Arc::new(vec![compile::bytes(&code)]);
        let mut kept = self.kept();
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        kept.insert(key, Arc::clone(&filters));
        Ok(filters)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Filters>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, name: &str) -> Result<(PathBuf, Vec<u8>), IsolatorError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(IsolatorError::new(
                NAME,
                format!("profile {name:?}: expected the name of a file, of letters, digits, '-', '_' and '.'"),
            ));
        }
        // both ways of naming the file are in use: with its extension and without
        let named = Path::new(name).extension().is_some_and(|extension| extension == "json");
        let file = if named { name.to_owned() } else { format!("{name}.json") };
        let path = self.folder.join(file);
        read_file(&path).map(|text| (path, text))
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, IsolatorError> {
    use std::io::Read;
    let shown = path.display();
    let file = std::fs::File::open(path).map_err(|e| {
        IsolatorError::io(NAME, format!("profile {shown} cannot be read: put the profile there or choose another"), e)
    })?;
    let mut text = Vec::new();
    file.take(LARGEST_FILE + 1)
        .read_to_end(&mut text)
        .map_err(|e| IsolatorError::io(NAME, format!("profile {shown} cannot be read"), e))?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(IsolatorError::new(NAME, format!("profile {shown} is larger than {LARGEST_FILE} bytes")));
    }
    Ok(text)
}

const NO_TABLE: &str = "no table of system calls for this processor (there are x86_64 and aarch64): \
                        set agentd.seccomp to \"unconfined\"";

/// Why this host cannot use filters, if it cannot.
fn unusable() -> Option<String> {
    const GET_ACTION_AVAIL: libc::c_long = 2;
    if rules::Arch::native().is_none() {
        return Some(NO_TABLE.to_owned());
    }
    for action in [libc::SECCOMP_RET_ERRNO, libc::SECCOMP_RET_KILL_PROCESS] {
        // SAFETY: the call reads four bytes at the address of a local variable and changes nothing.
        let answer = unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &raw const action) };
        if answer != 0 {
            let error = std::io::Error::last_os_error();
            return Some(format!(
                "this host's kernel has no seccomp filters ({error}): use a kernel with CONFIG_SECCOMP_FILTER, or set \
                 agentd.seccomp to \"unconfined\""
            ));
        }
    }
    None
}

/// The running kernel's version, 0.0 where it cannot be told (entries with `minKernel` are then left out).
fn kernel_version() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

impl Isolator for Seccomp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        for (index, container) in pod.containers.iter().enumerate() {
            let capabilities = self.host.of(pod, container);
            if let Err(error) = self.filters(&container.agentd.seccomp, capabilities) {
                let field = match container.agentd.seccomp {
                    SeccompChoice::Profile(_) => "seccomp.profile",
                    _ => "seccomp",
                };
                violations.push(Violation::new(format!("containers[{index}].agentd.{field}"), error.message));
            }
        }
    }

    fn prepare(&self, context: &ContainerContext<'_>, launch: &mut Launch) -> Result<(), IsolatorError> {
        let capabilities = self.host.of(context.pod, context.container);
        let filters = self.filters(&context.container.agentd.seccomp, capabilities)?;
        launch.plan.seccomp.clone_from(&filters);
        Ok(())
    }
}

/// A pod with one container, for tests of the isolators.
#[cfg(test)]
pub(crate) fn sample_pod() -> PodSpec {
    serde_json::from_value(serde_json::json!({
        "id": "/test",
        "containers": [{"name": "one", "resources": {"cpus": 0.1, "mem": 32.0, "disk": 0.0, "gpus": 0}}],
    }))
    .expect("a valid pod")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn isolator(folder: &Path) -> Seccomp {
        Seccomp::new(folder, HostCapabilities { grantable: u64::MAX >> 23, known: u64::MAX >> 23 })
    }

    #[test]
    fn filters_are_compiled_once_for_each_profile_and_set() {
        let folder = tempfile::tempdir().expect("folder");
        let seccomp = isolator(folder.path());
        let first = seccomp.filters(&SeccompChoice::Default, 0).expect("filters");
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].len() % 8, 0);
        let again = seccomp.filters(&SeccompChoice::Default, 1).expect("filters");
        assert!(Arc::ptr_eq(&first, &again), "CAP_CHOWN does not matter to the profile");
        let admin = seccomp.filters(&SeccompChoice::Default, 1 << 21).expect("filters");
        assert_ne!(first, admin);
        assert!(seccomp.filters(&SeccompChoice::Unconfined, 0).expect("filters").is_empty());
    }

    #[test]
    fn a_profile_is_read_anew_when_its_file_changes() {
        let folder = tempfile::tempdir().expect("folder");
        let seccomp = isolator(folder.path());
        let choice = SeccompChoice::Profile("own".to_owned());
        let write = |text: &str| std::fs::write(folder.path().join("own.json"), text).expect("written");
        write(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#);
        let first = seccomp.filters(&choice, 0).expect("filters");
        assert!(Arc::ptr_eq(&first, &seccomp.filters(&choice, 0).expect("filters")));
        write(r#"{"defaultAction": "SCMP_ACT_KILL"}"#);
        assert_ne!(first, seccomp.filters(&choice, 0).expect("filters"));
    }

    #[test]
    fn a_missing_or_malformed_profile_is_a_violation_that_names_file_and_field() {
        let folder = tempfile::tempdir().expect("folder");
        let seccomp = isolator(folder.path());
        let mut pod = sample_pod();
        let mut check = |name: &str| {
            pod.containers[0].agentd.seccomp = SeccompChoice::Profile(name.to_owned());
            let mut found = Vec::new();
            seccomp.check(&pod, &mut found);
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            assert_eq!(found[0].path, "containers[0].agentd.seccomp.profile");
            found.remove(0).message
        };
        assert!(check("absent").contains("/absent.json cannot"));
        assert!(check("absent.json").contains("/absent.json cannot"));
        assert!(check("../etc/passwd").contains("expected the name of a file"));
        assert!(check(".hidden").contains("expected the name of a file"));
        std::fs::write(folder.path().join("bad.json"), r#"{"defaultAction": 3}"#).expect("written");
        let message = check("bad");
        assert!(message.contains("bad.json") && message.contains("defaultAction"), "{message}");
    }
}
