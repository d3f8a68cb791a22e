//! How containers end: waiting for it, bringing it about, and forgetting.

use std::sync::Arc;
use std::time::Duration;

use agentd_api::mesos::v1::TaskState as State;
use agentd_api::mesos::v1::agent::{Response, response};
use agentd_api::session::SessionExit;
use agentd_api::status::{ContainerStatus, ExitStatus, InstancePhase, PodStatus, TaskState};

use super::fault::Fault;
use super::picture;
use crate::api::Pods;
use crate::api::handle::Api;
use crate::session::Session;

/// How often a pod is looked at that somebody waits for.
const LOOK: Duration = Duration::from_millis(100);

/// What is told of a container that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    status: Option<i32>,
    state: State,
    reason: Option<i32>,
    message: Option<String>,
}

impl End {
    /// As the answer to a wait.
    pub fn answer(self, nested: bool) -> Response {
        let Self { status: exit_status, state, reason, message } = self;
        let (state, limitation) = (Some(state as i32), None);
        if nested {
            let end = response::WaitNestedContainer { exit_status, state, reason, limitation, message };
            let kind = Some(response::Type::WaitNestedContainer as i32);
            Response { r#type: kind, wait_nested_container: Some(end), ..Response::default() }
        } else {
            let end = response::WaitContainer { exit_status, state, reason, limitation, message };
            let kind = Some(response::Type::WaitContainer as i32);
            Response { r#type: kind, wait_container: Some(end), ..Response::default() }
        }
    }
}

/// The end as `wait(2)` tells it.
fn raw(exit: ExitStatus) -> Option<i32> {
    match exit {
        ExitStatus::Code(code) => Some((code & 0xff) << 8),
        ExitStatus::Signal(signal) => Some(signal & 0x7f),
        ExitStatus::Unknown => None,
    }
}

/// How a nested container ended.
pub(super) fn of_session(exit: &SessionExit) -> End {
    let state = match exit.exit {
        ExitStatus::Code(0) => State::TaskFinished,
        ExitStatus::Unknown => State::TaskLost,
        // there is word of why only where it was ended from outside
        ExitStatus::Signal(_) if exit.message.is_some() => State::TaskKilled,
        _ => State::TaskFailed,
    };
    End { status: raw(exit.exit), state, reason: None, message: exit.message.clone() }
}

/// Waits until the present run of a pod's container has ended.
pub(super) async fn container<P: Pods>(
    api: &Arc<Api<P>>,
    pod: &str,
    instance: &str,
    container: &str,
) -> Result<End, Fault> {
    let find = |status: &PodStatus| -> Option<ContainerStatus> {
        let instance = status.instances.iter().find(|i| i.id == instance)?;
        instance.containers.iter().find(|c| c.name == container).cloned()
    };
    let gone = || Fault::not_found(format!("the container {instance}.{container} was removed"));
    let first = find(&api.pods.get(pod)?).ok_or_else(gone)?;
    let mut now = first.clone();
    // a container that runs again has another number of starts, and tells how the last one ended
    while !now.state.is_terminal() && now.attempt == first.attempt {
        tokio::time::sleep(LOOK).await;
        now = find(&api.pods.get(pod)?).ok_or_else(gone)?;
    }
    let ran_again = !now.state.is_terminal();
    let state = match now.exit {
        Some(exit) if ran_again => {
            if exit.success() {
                TaskState::TaskFinished
            } else {
                TaskState::TaskFailed
            }
        }
        _ if ran_again => TaskState::TaskLost,
        _ => now.state,
    };
    Ok(End {
        status: now.exit.and_then(raw),
        state: picture::state(state),
        reason: now.reason.and_then(picture::reason).map(|reason| reason as i32),
        message: now.message,
    })
}

/// Waits until every container of an instance has ended for good.
pub(super) async fn instance<P: Pods>(api: &Arc<Api<P>>, pod: &str, instance: &str) -> Result<End, Fault> {
    loop {
        let status = api.pods.get(pod)?;
        let found = status.instances.iter().find(|i| i.id == instance);
        let found = found.ok_or_else(|| Fault::not_found(format!("the container {instance} was removed")))?;
        let state = match found.phase {
            InstancePhase::Finished => Some(State::TaskFinished),
            InstancePhase::Failed => Some(State::TaskFailed),
            _ => None,
        };
        if let Some(state) = state {
            let status = (state == State::TaskFinished).then_some(0);
            return Ok(End { status, state, reason: None, message: found.message.clone() });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Sends a signal to a nested container; SIGKILL ends everything that it runs.
pub(super) async fn kill(session: &Session, signal: Option<i32>) -> Result<(), Fault> {
    if session.status().exit.is_some() {
        return Err(Fault::not_found(format!("the session {} has ended already", session.id())));
    }
    match signal {
        None | Some(libc::SIGKILL) => session.kill("killed by a call of the Mesos agent API").await,
        Some(signal @ 1..=64) => session.signal(signal).await?,
        Some(other) => return Err(Fault::bad(format!("signal: found {other}, expected a number from 1 to 64"))),
    }
    Ok(())
}

/// Forgets a nested container that has ended.
pub(super) async fn remove(session: &Session) -> Result<(), Fault> {
    if session.status().exit.is_none() {
        return Err(Fault::conflict(format!(
            "the session {} has not ended yet; send KILL_NESTED_CONTAINER and WAIT_NESTED_CONTAINER first",
            session.id()
        )));
    }
    session.discard("removed").await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_wait_tells_them() {
        let end = |exit, message: Option<&str>| of_session(&SessionExit { exit, message: message.map(str::to_owned) });
        assert_eq!(
            (end(ExitStatus::Code(0), None).status, end(ExitStatus::Code(0), None).state),
            (Some(0), State::TaskFinished)
        );
        let seven = end(ExitStatus::Code(7), None);
        assert_eq!((seven.status, seven.state), (Some(7 << 8), State::TaskFailed));
        assert!(libc::WIFEXITED(7 << 8) && libc::WEXITSTATUS(7 << 8) == 7);
        let killed = end(ExitStatus::Signal(9), Some("its client disconnected"));
        assert_eq!((killed.status, killed.state), (Some(9), State::TaskKilled));
        assert!(libc::WIFSIGNALED(9) && libc::WTERMSIG(9) == 9);
        assert_eq!(end(ExitStatus::Unknown, None).status, None);
        let answer = killed.clone().answer(true);
        assert!(answer.wait_nested_container.is_some() && answer.wait_container.is_none());
        assert_eq!(killed.answer(false).wait_container.unwrap().message.as_deref(), Some("its client disconnected"));
    }
}
