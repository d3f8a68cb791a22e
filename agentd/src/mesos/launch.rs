//! From the command and the surroundings of a nested container to what a session runs.

use agentd_api::mesos::v1::{CommandInfo, ContainerInfo, capability_info, container_info, environment};
use agentd_api::mesos::window;
use agentd_api::problem::Violation;
use agentd_api::session::ExecRequest;

/// What is run. `field` is where the launch lies in the call. What agentd does not do for nested containers is refused
/// by name, not left out.
pub(super) fn request(
    field: &str,
    command: &CommandInfo,
    info: Option<&ContainerInfo>,
    session: bool,
) -> Result<ExecRequest, Violation> {
    let fault = |path: &str, message: &str| Violation::new(format!("{field}.{path}"), message);
    let mut request = ExecRequest { command: words(field, command)?, ..ExecRequest::default() };
    if !command.uris.is_empty() {
        return Err(fault("command.uris", "found some, expected none: nothing is fetched for a nested container"));
    }
    let variables =
        command.environment.as_ref().map(|environment| environment.variables.as_slice()).unwrap_or_default();
    for (n, variable) in variables.iter().enumerate() {
        if variable.r#type() == environment::variable::Type::Secret || variable.secret.is_some() {
            let path = format!("command.environment.variables[{n}].secret");
            return Err(fault(&path, "found a secret, expected a value: put secrets into the pod"));
        }
        let value = variable.value.clone().unwrap_or_default();
        request.environment.insert(variable.name.clone(), value);
    }
    request.user.clone_from(&command.user);
    if let Some(info) = info {
        surroundings(field, info, &mut request)?;
    }
    // only a session has a client that can give it input from its first moment on
    request.stdin = session || request.tty;
    request.detach = !session;
    match request.faults().into_iter().next() {
        Some(inner) => Err(Violation::new(format!("{field}.command"), inner.to_string())),
        None => Ok(request),
    }
}

/// Program and arguments.
fn words(field: &str, command: &CommandInfo) -> Result<Vec<String>, Violation> {
    let value = command.value.clone().filter(|value| !value.is_empty());
    let value = value.ok_or_else(|| {
        let expected = if command.shell() { "a line for the shell" } else { "the program" };
        Violation::new(format!("{field}.command.value"), format!("missing; expected {expected}"))
    })?;
    if command.shell() {
        return Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), value]);
    }
    // the first argument is what the program is to see as its own name, most often the program itself
    let rest = command.arguments.iter().skip(1).cloned();
    Ok(std::iter::once(value).chain(rest).collect())
}

fn surroundings(field: &str, info: &ContainerInfo, request: &mut ExecRequest) -> Result<(), Violation> {
    let refuse = |path: &str, why: &str| {
        Err(Violation::new(format!("{field}.container.{path}"), format!("found one, expected none: {why}")))
    };
    let shared = "a nested container has its parent's";
    if info.r#type() == container_info::Type::Docker || info.docker.is_some() {
        let message = "found DOCKER, expected MESOS: nested containers run beside their parent's processes";
        return Err(Violation::new(format!("{field}.container.type"), message));
    }
    if info.mesos.as_ref().is_some_and(|mesos| mesos.image.is_some()) {
        return refuse("mesos.image", "for a shell from another image see `agentctl exec --image`");
    }
    if !info.volumes.is_empty() {
        return refuse("volumes", shared);
    }
    if !info.network_infos.is_empty() {
        return refuse("network_infos", shared);
    }
    if info.hostname.is_some() {
        return refuse("hostname", shared);
    }
    if info.rlimit_info.as_ref().is_some_and(|limits| !limits.rlimits.is_empty()) {
        return refuse("rlimit_info", shared);
    }
    if let Some(linux) = &info.linux_info {
        if linux.bounding_capabilities.is_some() {
            return refuse("linux_info.bounding_capabilities", "name what is to be added in effective_capabilities");
        }
        if linux.seccomp.is_some() {
            return refuse("linux_info.seccomp", shared);
        }
        if linux.share_pid_namespace == Some(false) {
            let path = format!("{field}.container.linux_info.share_pid_namespace");
            return Err(Violation::new(
                path,
                "found false, expected true: a nested container sees its parent's processes",
            ));
        }
        let sets =
            [("effective_capabilities", &linux.effective_capabilities), ("capability_info", &linux.capability_info)];
        for (name, set) in sets {
            let numbers = set.as_ref().map(|set| set.capabilities.as_slice()).unwrap_or_default();
            for (n, number) in numbers.iter().enumerate() {
                let known = capability_info::Capability::try_from(*number).ok();
                let known = known.filter(|capability| *capability != capability_info::Capability::Unknown);
                let known = known.ok_or_else(|| {
                    let path = format!("{field}.container.linux_info.{name}.capabilities[{n}]");
                    Violation::new(path, format!("found {number}, expected the number of a capability"))
                })?;
                request.capabilities.push(format!("CAP_{}", known.as_str_name()));
            }
        }
    }
    if let Some(tty) = &info.tty_info {
        request.tty = true;
        if let Some((rows, columns)) = window(tty, &format!("{field}.container.tty_info"))? {
            (request.rows, request.columns) = (Some(rows), Some(columns));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use agentd_api::mesos::{Call, decode_json};

    use super::*;

    fn read(command: &str, container: &str) -> Result<ExecRequest, String> {
        let text = format!(
            r#"{{"type":"LAUNCH_NESTED_CONTAINER_SESSION","launch_nested_container_session":{{
                "container_id":{{"value":"a","parent":{{"value":"b"}}}},"command":{command},"container":{container}}}}}"#
        );
        let Call::Launch { field, command, info, session, .. } =
            decode_json(text.as_bytes()).map_err(|fault| fault.to_string())?
        else {
            panic!("a launch")
        };
        request(field, &command, info.as_deref(), session).map_err(|fault| fault.to_string())
    }

    #[test]
    fn a_line_is_for_the_shell_and_arguments_are_for_the_program() {
        let shell =
            read(r#"{"value":"echo $A","environment":{"variables":[{"name":"A","value":"b"}]}}"#, "null").unwrap();
        assert_eq!(shell.command, ["/bin/sh", "-c", "echo $A"]);
        assert_eq!(shell.environment["A"], "b");
        assert_eq!((shell.stdin, shell.tty, shell.detach), (true, false, false));
        let words = read(r#"{"value":"cat","shell":false,"arguments":["cat","-u"],"user":"nobody"}"#, "null").unwrap();
        assert_eq!((words.command, words.user.as_deref()), (vec!["cat".to_owned(), "-u".to_owned()], Some("nobody")));
        assert_eq!(read(r#"{"value":"cat","shell":false}"#, "null").unwrap().command, ["cat"]);
    }

    #[test]
    fn terminals_have_a_size_and_capabilities_a_name() {
        let container = r#"{"type":"MESOS","tty_info":{"window_size":{"rows":24,"columns":80}},
            "linux_info":{"effective_capabilities":{"capabilities":["SYS_PTRACE"]}}}"#;
        let request = read(r#"{"value":"sh"}"#, container).unwrap();
        assert_eq!((request.tty, request.rows, request.columns), (true, Some(24), Some(80)));
        assert_eq!(request.capabilities, ["CAP_SYS_PTRACE"]);
        assert!(read(r#"{"value":"sh"}"#, r#"{"type":"MESOS","tty_info":{}}"#).unwrap().tty);
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (command, container, path) in [
            ("{}", "null", "command.value"),
            (r#"{"value":"a\u0000b"}"#, "null", "command"),
            (r#"{"value":"a","uris":[{"value":"x"}]}"#, "null", "command.uris"),
            (r#"{"value":"a","environment":{"variables":[{"name":"1"}]}}"#, "null", "command"),
            (
                r#"{"value":"a","environment":{"variables":[{"name":"A","type":"SECRET"}]}}"#,
                "null",
                "command.environment.variables[0].secret",
            ),
            (r#"{"value":"a"}"#, r#"{"type":"DOCKER"}"#, "container.type"),
            (
                r#"{"value":"a"}"#,
                r#"{"type":"MESOS","mesos":{"image":{"type":"DOCKER","docker":{"name":"x"}}}}"#,
                "container.mesos.image",
            ),
            (
                r#"{"value":"a"}"#,
                r#"{"type":"MESOS","volumes":[{"mode":"RW","container_path":"/x"}]}"#,
                "container.volumes",
            ),
            (
                r#"{"value":"a"}"#,
                r#"{"type":"MESOS","tty_info":{"window_size":{"rows":1,"columns":70000}}}"#,
                "container.tty_info.window_size.columns",
            ),
        ] {
            let fault = read(command, container).unwrap_err();
            let expected = format!("launch_nested_container_session.{path}: ");
            assert!(fault.starts_with(&expected), "{fault} for {path}");
        }
    }
}
