//! Which container a path of ids means, and the id of the session that a nested one is.

use std::sync::Arc;

use agentd_api::mesos::ContainerPath;
use agentd_api::session::{SessionKind, SessionStatus};
use agentd_api::status::{InstanceStatus, PodStatus};
use sha2::{Digest, Sha256};

use super::access;
use super::fault::Fault;
use crate::access::Caller;
use crate::access::policy::Verb;
use crate::api::Pods;
use crate::api::handle::Api;
use crate::session::Session;

/// Digits that tell sessions of one name in different containers apart.
const DIGITS: usize = 12;

/// Longest name that is a session's id as it stands: an id has 64 bytes at most.
const LONGEST: usize = 64 - DIGITS - 1;

/// A container, or a place for one.
#[derive(Debug)]
pub(super) enum Place {
    /// An instance: a container of containers.
    Instance { pod: PodStatus, instance: String },
    /// A container of a pod.
    Container { pod: PodStatus, instance: String, container: String },
    /// A nested container, which need not be there.
    Nested { pod: PodStatus, instance: String, container: String, session: String },
}

/// The pod in which a path lies, where there is one.
pub(super) fn pod_of<P: Pods>(api: &Arc<Api<P>>, path: &ContainerPath) -> Option<PodStatus> {
    let names = path.names();
    let first = names.first()?;
    api.pods.list().into_iter().find(|pod| pod.instances.iter().any(|instance| instance.id == **first))
}

/// What a path names.
pub(super) fn find<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    verb: Verb,
    path: &ContainerPath,
) -> Result<Place, Fault> {
    let names = path.names();
    let unknown = || {
        let line =
            format!("the container {path} cannot be found; GET_CONTAINERS with show_nested lists those there are");
        Fault::not_found(line)
    };
    let (first, below) = names.split_first().ok_or_else(unknown)?;
    let pod = pod_of(api, path).ok_or_else(unknown)?;
    access::authorize(api, caller, verb, Some(&pod))?;
    let found = pod.instances.iter().find(|instance| instance.id == **first).ok_or_else(unknown)?;
    let instance = found.id.clone();
    let is_container = |name: &str| found.containers.iter().any(|container| container.name == name);
    match below {
        [] => Ok(Place::Instance { instance, pod }),
        [container] if is_container(container) => {
            Ok(Place::Container { instance, container: (*container).to_owned(), pod })
        }
        [name] => {
            let container = only_container(found)?;
            let session = session_id(&instance, &container, name);
            Ok(Place::Nested { instance, session, container, pod })
        }
        [container, name] if is_container(container) => {
            let session = session_id(&instance, container, name);
            Ok(Place::Nested { instance, session, container: (*container).to_owned(), pod })
        }
        [container, _] => Err(Fault::not_found(format!(
            "the container {first}.{container} cannot be found; the instance {first} has: {}",
            list(found)
        ))),
        _ => Err(Fault::bad(format!(
            "the container {path} lies too deep: nested containers run in a pod's container, \
             {{value, parent: {{value: container, parent: {{value: instance}}}}}}"
        ))),
    }
}

/// The container that is meant where only the instance is named.
fn only_container(instance: &InstanceStatus) -> Result<String, Fault> {
    match instance.containers.as_slice() {
        [one] => Ok(one.name.clone()),
        _ => Err(Fault::bad(format!(
            "container_id.parent: the instance {} has several containers; name one of them as \
             {{value: container, parent: {{value: {}}}}}: {}",
            instance.id,
            instance.id,
            list(instance)
        ))),
    }
}

fn list(instance: &InstanceStatus) -> String {
    instance.containers.iter().map(|container| container.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The session that a nested container is.
pub(super) fn session<P: Pods>(api: &Arc<Api<P>>, path: &ContainerPath, id: &str) -> Result<Session, Fault> {
    let gone = || {
        let line = format!("the container {path} cannot be found: it was not launched, or was removed");
        Fault::not_found(line)
    };
    let session = api.pods.session(id).map_err(|_| gone())?;
    if session.status().kind == SessionKind::Nested { Ok(session) } else { Err(gone()) }
}

/// The id of the session that a nested container is. Sessions are named for the whole host, nested containers within
/// their parent.
pub(super) fn session_id(instance: &str, container: &str, name: &str) -> String {
    let name = shorten(name);
    let digits = hash(&[instance, container, &name]);
    format!("{name}-{digits}")
}

/// The path of a session that is a nested container.
pub(super) fn path_of(session: &SessionStatus) -> Option<ContainerPath> {
    let name = session.id.get(..session.id.len().checked_sub(DIGITS + 1)?)?;
    let expected = session_id(&session.instance, &session.container, name);
    (session.kind == SessionKind::Nested && expected == session.id)
        .then(|| ContainerPath::of([session.instance.as_str(), session.container.as_str(), name]))?
}

/// A name that fits; one that does already stays as it is.
fn shorten(name: &str) -> String {
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    // names are ASCII
    format!("{}-{}", &name[..LONGEST - DIGITS - 1], hash(&[name]))
}

fn hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let mut digits = format!("{:x}", hash.finalize());
    digits.truncate(DIGITS);
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_ids_are_short_tell_containers_apart_and_lead_back() {
        let uuid = "0b6d1f9c-3f0e-4a57-8b8f-1c1b5b7a9d20";
        let id = session_id("0123456789ab", "web", uuid);
        assert!(id.starts_with(uuid) && id.len() == 36 + 13, "{id}");
        assert_ne!(id, session_id("0123456789ab", "log", uuid));
        assert_ne!(session_id("a", "b-c", "d"), session_id("a-b", "c", "d"));
        let long = "x".repeat(242);
        let id = session_id("0123456789ab", "web", &long);
        assert_eq!(id.len(), 64);
        // what a list tells of a long one names the same session
        let told = &id[..64 - DIGITS - 1];
        assert_eq!(session_id("0123456789ab", "web", told), id);
        assert_ne!(session_id("0123456789ab", "web", &"x".repeat(241)), id);
    }
}
