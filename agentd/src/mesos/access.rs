//! Where callers of this API are told no, by the verbs of the access list.

use std::sync::Arc;

use agentd_api::session::ExecRequest;
use agentd_api::status::PodStatus;

use super::fault::Fault;
use crate::access::Caller;
use crate::access::policy::Verb;
use crate::api::Pods;
use crate::api::handle::Api;
use crate::session::Session;

/// The verb of that name.
pub(super) fn verb(word: &str) -> Verb {
    // a word that is not known asks for the most
    [Verb::View, Verb::Logs, Verb::Exec, Verb::Run].into_iter().find(|verb| verb.word() == word).unwrap_or(Verb::Admin)
}

/// Refuses a caller that may not do what the verb says, with a pod or, without one, with any.
pub(super) fn authorize<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    verb: Verb,
    pod: Option<&PodStatus>,
) -> Result<(), Fault> {
    Ok(api.authorize(caller, verb, pod.map(|pod| &pod.spec))?)
}

/// The pods with which the caller may do what the verb says.
pub(super) fn visible<P: Pods>(api: &Arc<Api<P>>, caller: &Caller, verb: Verb) -> Vec<PodStatus> {
    let mut pods = api.pods.list();
    pods.retain(|pod| authorize(api, caller, verb, Some(pod)).is_ok());
    pods
}

/// Refuses a command that the caller may not run in a pod.
pub(super) fn launch<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    request: &ExecRequest,
    pod: &PodStatus,
) -> Result<(), Fault> {
    Ok(api.check_exec(caller, request, &pod.spec)?)
}

/// Refuses files of a container's sandbox that the caller may not read.
pub(super) fn files<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    pod: &PodStatus,
    container: &str,
) -> Result<(), Fault> {
    Ok(api.check_files(caller, &pod.spec, container)?)
}

/// Refuses a caller that may not act in a session: it is another's, and the caller is not set over the pod.
pub(super) fn own<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    session: &Session,
    pod: &PodStatus,
) -> Result<(), Fault> {
    if session.status().principal == caller.principal {
        return Ok(());
    }
    authorize(api, caller, Verb::Admin, Some(pod))
}
