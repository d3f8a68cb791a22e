//! Holds each call against the access list: which verb it needs, on which pod, and what of the host it may reach.
//!
//! [`Api::admit`] is asked before a call is carried out and knows what its path says. Calls whose body says more (a new pod, a
//! command to run) ask again with [`Api::check_run`] and [`Api::check_exec`]; calls that list leave out what the caller may not see
//! ([`Api::sees`]).

use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;
use agentd_api::session::ExecRequest;
use hyper::StatusCode;

use super::answer::Refusal;
use super::backend::Pods;
use super::handle::Api;
use super::route::Route;
use crate::access::Caller;
use crate::access::policy::{Policy, Scope, Verb};

/// What a call needs.
enum Need<'a> {
    /// Nothing: it tells nothing of pods.
    Nothing,
    /// The verb on some pods; the call leaves out the others.
    Some(Verb),
    /// The verb on the host.
    Host(Verb),
    /// The verb on a pod.
    Pod(Verb, &'a str),
    /// To act inside of a pod's containers.
    Inside(&'a str),
    /// The verb on the pod of a session.
    Session(Verb, &'a str),
    /// To act in a session: one's own, or with `admin`.
    Own(&'a str),
}

fn need(route: &Route) -> Need<'_> {
    match route {
        // the Mesos API decides by what is in the body, and asks for itself
        Route::Version | Route::Health | Route::OpenApi | Route::Mesos(_) => Need::Nothing,
        Route::Node
        | Route::ListPods
        | Route::Events
        | Route::Usage
        | Route::Metrics
        | Route::ListSessions
        | Route::ListImages => Need::Some(Verb::View),
        // it tells of all pods at once, and of the host
        Route::Exposition | Route::Observe => Need::Host(Verb::View),
        // the pod is a parameter
        Route::Profile => Need::Some(Verb::Logs),
        // its labels and what it asks for are in the body
        Route::RunPod => Need::Some(Verb::Run),
        Route::GetPod(id) | Route::WaitPod(id) => Need::Pod(Verb::View, id),
        Route::UpdatePod(id) | Route::RemovePod(id) => Need::Pod(Verb::Run, id),
        Route::Logs(id) => Need::Pod(Verb::Logs, id),
        Route::Exec(id) | Route::ReadFiles(id) | Route::WriteFiles(id) | Route::Forward(id) => Need::Inside(id),
        Route::GetSession(id) | Route::WaitSession(id) => Need::Session(Verb::View, id),
        Route::Attach(id)
        | Route::EndSession(id)
        | Route::SignalSession(id)
        | Route::ResizeSession(id)
        | Route::Recording(id) => Need::Own(id),
        Route::PullImage | Route::ImportImage | Route::RemoveImage(_) => Need::Host(Verb::Admin),
    }
}

/// The verb that a call needs, for the test that holds the API's description against it; empty where it needs none.
#[cfg(test)]
pub fn verb(route: &Route) -> &'static str {
    match need(route) {
        Need::Nothing => "",
        Need::Some(verb) | Need::Host(verb) | Need::Pod(verb, _) | Need::Session(verb, _) => verb.word(),
        Need::Inside(_) | Need::Own(_) => Verb::Exec.word(),
    }
}

/// The pod that a call is about, as its path names it.
pub fn pod_of(route: &Route) -> Option<&str> {
    match need(route) {
        Need::Pod(_, id) | Need::Inside(id) => Some(id),
        _ => None,
    }
}

impl<P: Pods> Api<P> {
    /// Refuses a call that its caller may not make, as far as its path tells.
    pub fn admit(&self, caller: &Caller, route: &Route) -> Result<(), Refusal> {
        let policy = self.access.policy();
        if policy.unlimited(caller) {
            return Ok(());
        }
        match need(route) {
            Need::Nothing => Ok(()),
            Need::Some(verb) => granted(&policy, caller, verb, Scope::Any, "any pod"),
            Need::Host(verb) => granted(&policy, caller, verb, Scope::Host, "the host"),
            Need::Pod(verb, id) => self.on_pod(&policy, caller, verb, id).map(drop),
            Need::Inside(id) => match self.on_pod(&policy, caller, Verb::Exec, id)? {
                Some(spec) => within(&policy, caller, &spec.id, policy.ceiling(caller).check_inside(&spec)),
                None => Ok(()),
            },
            Need::Session(verb, id) => self.on_session(&policy, caller, verb, id).map(drop),
            Need::Own(id) => match self.on_session(&policy, caller, Verb::Exec, id)? {
                // the list may have changed since the session was begun
                Some((owner, pod)) => {
                    let own = owner == caller.principal;
                    let verb = if own { Verb::Exec } else { Verb::Admin };
                    match self.on_pod(&policy, caller, verb, &pod)? {
                        Some(spec) => within(&policy, caller, &spec.id, policy.ceiling(caller).check_inside(&spec)),
                        None if own => Ok(()),
                        None => granted(&policy, caller, verb, Scope::Host, &format!("the session {id}")),
                    }
                }
                // a recording may outlive its session, and nobody knows any more whose it was
                None => granted(&policy, caller, Verb::Admin, Scope::Host, "the host"),
            },
        }
    }

    /// The specification of a pod on which the caller has a right; none where there is no such pod, which the call tells.
    fn on_pod(&self, policy: &Policy, caller: &Caller, verb: Verb, id: &str) -> Result<Option<PodSpec>, Refusal> {
        let Ok(status) = self.pods.get(id) else {
            granted(policy, caller, verb, Scope::Any, &format!("the pod {id}"))?;
            return Ok(None);
        };
        granted(policy, caller, verb, Scope::Pod(&status.spec.labels), &format!("the pod {id}"))?;
        Ok(Some(status.spec))
    }

    /// Who began a session, and its pod, where the caller has a right on that.
    fn on_session(
        &self,
        policy: &Policy,
        caller: &Caller,
        verb: Verb,
        id: &str,
    ) -> Result<Option<(String, String)>, Refusal> {
        let Ok(session) = self.pods.session(id) else {
            granted(policy, caller, verb, Scope::Any, &format!("the session {id}"))?;
            return Ok(None);
        };
        let status = session.status();
        if self.on_pod(policy, caller, verb, &status.pod)?.is_none() && status.principal != caller.principal {
            // nobody knows the labels of a pod that is gone any more
            granted(policy, caller, verb, Scope::Host, &format!("the session {}", status.id))?;
        }
        Ok(Some((status.principal, status.pod)))
    }

    /// Refuses a caller that may not do something with a pod or, without one, on the host.
    pub fn authorize(&self, caller: &Caller, verb: Verb, pod: Option<&PodSpec>) -> Result<(), Refusal> {
        let policy = self.access.policy();
        match pod {
            Some(pod) => granted(&policy, caller, verb, Scope::Pod(&pod.labels), &format!("the pod {}", pod.id)),
            None => granted(&policy, caller, verb, Scope::Any, "any pod"),
        }
    }

    /// Refuses a pod that the caller may not run: because of its labels, or because it is above the caller's ceiling.
    pub fn check_run(&self, caller: &Caller, pod: &PodSpec) -> Result<(), Refusal> {
        let policy = self.access.policy();
        if policy.unlimited(caller) {
            return Ok(());
        }
        let what = format!("the pod {} with its labels", pod.id);
        granted(&policy, caller, Verb::Run, Scope::Pod(&pod.labels), &what)?;
        within(&policy, caller, &pod.id, policy.ceiling(caller).check_pod(pod))
    }

    /// Refuses a command that the caller may not run in a pod.
    pub fn check_exec(&self, caller: &Caller, request: &ExecRequest, pod: &PodSpec) -> Result<(), Refusal> {
        let policy = self.access.policy();
        if policy.unlimited(caller) {
            return Ok(());
        }
        granted(&policy, caller, Verb::Exec, Scope::Pod(&pod.labels), &format!("the pod {}", pod.id))?;
        within(&policy, caller, &pod.id, policy.ceiling(caller).check_exec(request, pod))
    }

    /// Refuses files of a container that the caller may not copy out or in.
    pub fn check_files(&self, caller: &Caller, pod: &PodSpec, container: &str) -> Result<(), Refusal> {
        let policy = self.access.policy();
        if policy.unlimited(caller) {
            return Ok(());
        }
        granted(&policy, caller, Verb::Exec, Scope::Pod(&pod.labels), &format!("the pod {}", pod.id))?;
        within(&policy, caller, &pod.id, policy.ceiling(caller).check_files(pod, container))
    }

    /// Refuses a path of the host that the caller may not have read.
    pub fn check_path(&self, caller: &Caller, path: &str) -> Result<(), Refusal> {
        let policy = self.access.policy();
        let Some(above) = policy.ceiling(caller).check_path(path) else { return Ok(()) };
        let (who, file) = (&caller.principal, policy.file().display());
        let detail = format!("the path is above the ceiling of {who} in {file}: {}", above.message);
        Err(Refusal::new(StatusCode::FORBIDDEN, "above-ceiling", detail).with(vec![above]))
    }

    /// Whether a caller may see a pod, or, without one, what concerns the host. Of a pod that is gone nobody knows the labels.
    pub fn sees(&self, caller: &Caller, pod: Option<&str>) -> bool {
        let policy = self.access.policy();
        policy.unlimited(caller)
            || match pod.and_then(|id| self.pods.get(id).ok()) {
                Some(status) => policy.allows(caller, Verb::View, Scope::Pod(&status.spec.labels)),
                None => policy.allows(caller, Verb::View, Scope::Host),
            }
    }

    /// Whether a caller may see a pod whose specification is at hand.
    pub fn sees_spec(&self, caller: &Caller, pod: &PodSpec) -> bool {
        self.access.policy().allows(caller, Verb::View, Scope::Pod(&pod.labels))
    }
}

fn granted(policy: &Policy, caller: &Caller, verb: Verb, scope: Scope<'_>, what: &str) -> Result<(), Refusal> {
    if policy.allows(caller, verb, scope) {
        return Ok(());
    }
    let (who, file) = (&caller.principal, policy.file().display());
    let what: String = what.chars().take(200).collect();
    let detail = format!("{who} has no right to {verb} on {what}; add a [[rule]] that grants it to {file}");
    Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", detail))
}

fn within(policy: &Policy, caller: &Caller, pod: &str, above: Vec<Violation>) -> Result<(), Refusal> {
    if above.is_empty() {
        return Ok(());
    }
    let (who, file) = (&caller.principal, policy.file().display());
    let list = above.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let detail = format!("the pod {pod} is above the ceiling of {who} in {file}: {list}");
    Err(Refusal::new(StatusCode::FORBIDDEN, "above-ceiling", detail).with(above))
}
