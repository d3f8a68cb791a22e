//! A call, taken out of the message that carries it.

use super::v1::agent::call::{Type, attach_container_input};
use super::v1::agent::{self, process_io};
use super::v1::{CommandInfo, ContainerId, ContainerInfo, TtyInfo};
use super::{ContainerPath, Format, MAX_CALL, schema};
use crate::problem::Violation;

/// What a client asks of an agent.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// `GET_HEALTH`
    Health,
    /// `GET_FLAGS`
    Flags,
    /// `GET_VERSION`
    Version,
    /// `GET_METRICS`
    Metrics,
    /// `GET_LOGGING_LEVEL`
    LoggingLevel,
    /// `LIST_FILES`
    ListFiles {
        /// Virtual path.
        path: String,
    },
    /// `READ_FILE`
    ReadFile {
        /// Virtual path.
        path: String,
        /// First byte.
        offset: u64,
        /// Most bytes.
        length: Option<u64>,
    },
    /// `GET_STATE`
    State,
    /// `GET_CONTAINERS`
    Containers {
        /// Whether those below an instance's are told, too.
        nested: bool,
    },
    /// `GET_FRAMEWORKS`
    Frameworks,
    /// `GET_EXECUTORS`
    Executors,
    /// `GET_TASKS`
    Tasks,
    /// `GET_AGENT`
    Agent,
    /// `GET_OPERATIONS`
    Operations,
    /// `GET_RESOURCE_PROVIDERS`
    ResourceProviders,
    /// `LAUNCH_NESTED_CONTAINER`, `LAUNCH_CONTAINER` and, with `session`, `LAUNCH_NESTED_CONTAINER_SESSION`
    Launch {
        /// Its name in the message, for faults in what lies below.
        field: &'static str,
        /// The new container.
        container: ContainerPath,
        /// What it runs.
        command: Box<CommandInfo>,
        /// What it runs in.
        info: Option<Box<ContainerInfo>>,
        /// Whether it lives as long as the connection.
        session: bool,
    },
    /// `ATTACH_CONTAINER_INPUT`
    AttachInput(Input),
    /// `ATTACH_CONTAINER_OUTPUT`
    AttachOutput {
        /// The container.
        container: ContainerPath,
    },
    /// `WAIT_NESTED_CONTAINER` and `WAIT_CONTAINER`
    Wait {
        /// The container.
        container: ContainerPath,
        /// Whether the answer is that of `WAIT_NESTED_CONTAINER`.
        nested: bool,
    },
    /// `KILL_NESTED_CONTAINER` and `KILL_CONTAINER`
    Kill {
        /// The container.
        container: ContainerPath,
        /// The signal; SIGKILL where absent.
        signal: Option<i32>,
    },
    /// `REMOVE_NESTED_CONTAINER` and `REMOVE_CONTAINER`
    Remove {
        /// The container.
        container: ContainerPath,
    },
    /// A call of the protocol that agentd does not have, by name.
    Unsupported(&'static str),
}

/// One record of the input for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Whose input it is; the first record.
    Container(ContainerPath),
    /// Bytes for standard input; none close it, where there is no terminal.
    Stdin(Vec<u8>),
    /// The terminal has another size.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// A sign of life.
    Heartbeat,
}

impl Call {
    /// The verb of the access list that a caller needs for it: `view`, `logs`, `exec` or `admin`.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Health
            | Self::Flags
            | Self::Version
            | Self::Metrics
            | Self::LoggingLevel
            | Self::State
            | Self::Containers { .. }
            | Self::Frameworks
            | Self::Executors
            | Self::Tasks
            | Self::Agent
            | Self::Operations
            | Self::ResourceProviders
            | Self::Wait { .. } => "view",
            Self::ListFiles { .. } | Self::ReadFile { .. } => "logs",
            Self::Launch { .. }
            | Self::AttachInput(_)
            | Self::AttachOutput { .. }
            | Self::Kill { .. }
            | Self::Remove { .. } => "exec",
            Self::Unsupported(_) => "admin",
        }
    }
}

/// Reads a call that was sent as JSON.
pub fn decode_json(bytes: &[u8]) -> Result<Call, Violation> {
    decode(Format::Json, bytes)
}

/// Reads a call that was sent as protobuf.
pub fn decode_protobuf(bytes: &[u8]) -> Result<Call, Violation> {
    decode(Format::Protobuf, bytes)
}

/// Reads a call. A fault names the field.
pub fn decode(format: Format, bytes: &[u8]) -> Result<Call, Violation> {
    if bytes.len() > MAX_CALL {
        return Err(Violation::new("", format!("found a call of {} bytes, expected at most {MAX_CALL}", bytes.len())));
    }
    let call = schema::read(format, bytes)?;
    let number = call.r#type.ok_or_else(|| missing("type"))?;
    let kind = Type::try_from(number)
        .map_err(|_| Violation::new("type", format!("found {number}, expected the number of a call")))?;
    of(kind, call)
}

fn missing(field: &'static str) -> Violation {
    Violation::new(field, "missing")
}

fn of(kind: Type, call: agent::Call) -> Result<Call, Violation> {
    let id = |id: &ContainerId, field: &str| ContainerPath::read(id, &format!("{field}.container_id"));
    Ok(match kind {
        Type::GetHealth => Call::Health,
        Type::GetFlags => Call::Flags,
        Type::GetVersion => Call::Version,
        Type::GetMetrics => Call::Metrics,
        Type::GetLoggingLevel => Call::LoggingLevel,
        Type::GetState => Call::State,
        Type::GetFrameworks => Call::Frameworks,
        Type::GetExecutors => Call::Executors,
        Type::GetTasks => Call::Tasks,
        Type::GetAgent => Call::Agent,
        Type::GetOperations => Call::Operations,
        Type::GetResourceProviders => Call::ResourceProviders,
        Type::GetContainers => {
            Call::Containers { nested: call.get_containers.is_some_and(|get| get.show_nested.unwrap_or_default()) }
        }
        Type::ListFiles => Call::ListFiles { path: call.list_files.ok_or_else(|| missing("list_files"))?.path },
        Type::ReadFile => {
            let read = call.read_file.ok_or_else(|| missing("read_file"))?;
            Call::ReadFile { path: read.path, offset: read.offset, length: read.length }
        }
        Type::LaunchNestedContainer => {
            let field = "launch_nested_container";
            let launch = call.launch_nested_container.ok_or_else(|| missing(field))?;
            self::launch(field, &launch.container_id, launch.command, launch.container, false)?
        }
        Type::LaunchContainer => {
            let field = "launch_container";
            let launch = call.launch_container.ok_or_else(|| missing(field))?;
            for (part, count) in [("resources", launch.resources.len()), ("limits", launch.limits.len())] {
                if count > 0 {
                    let message = "found some, expected none: a nested container has those of its parent";
                    return Err(Violation::new(format!("{field}.{part}"), message));
                }
            }
            self::launch(field, &launch.container_id, launch.command, launch.container, false)?
        }
        Type::LaunchNestedContainerSession => {
            let field = "launch_nested_container_session";
            let launch = call.launch_nested_container_session.ok_or_else(|| missing(field))?;
            self::launch(field, &launch.container_id, launch.command, launch.container, true)?
        }
        Type::AttachContainerInput => {
            let attach = call.attach_container_input.ok_or_else(|| missing("attach_container_input"))?;
            Call::AttachInput(input(attach)?)
        }
        Type::AttachContainerOutput => {
            let field = "attach_container_output";
            let attach = call.attach_container_output.ok_or_else(|| missing(field))?;
            Call::AttachOutput { container: id(&attach.container_id, field)? }
        }
        Type::WaitNestedContainer => {
            let field = "wait_nested_container";
            let wait = call.wait_nested_container.ok_or_else(|| missing(field))?;
            Call::Wait { container: id(&wait.container_id, field)?, nested: true }
        }
        Type::WaitContainer => {
            let wait = call.wait_container.ok_or_else(|| missing("wait_container"))?;
            Call::Wait { container: id(&wait.container_id, "wait_container")?, nested: false }
        }
        Type::KillNestedContainer => {
            let field = "kill_nested_container";
            let kill = call.kill_nested_container.ok_or_else(|| missing(field))?;
            Call::Kill { container: id(&kill.container_id, field)?, signal: kill.signal }
        }
        Type::KillContainer => {
            let kill = call.kill_container.ok_or_else(|| missing("kill_container"))?;
            Call::Kill { container: id(&kill.container_id, "kill_container")?, signal: kill.signal }
        }
        Type::RemoveNestedContainer => {
            let field = "remove_nested_container";
            let remove = call.remove_nested_container.ok_or_else(|| missing(field))?;
            Call::Remove { container: id(&remove.container_id, field)? }
        }
        Type::RemoveContainer => {
            let remove = call.remove_container.ok_or_else(|| missing("remove_container"))?;
            Call::Remove { container: id(&remove.container_id, "remove_container")? }
        }
        Type::Unknown
        | Type::SetLoggingLevel
        | Type::AddResourceProviderConfig
        | Type::UpdateResourceProviderConfig
        | Type::RemoveResourceProviderConfig
        | Type::PruneImages
        | Type::MarkResourceProviderGone => Call::Unsupported(kind.as_str_name()),
    })
}

fn launch(
    field: &'static str,
    id: &ContainerId,
    command: Option<CommandInfo>,
    info: Option<ContainerInfo>,
    session: bool,
) -> Result<Call, Violation> {
    let container = ContainerPath::read(id, &format!("{field}.container_id"))?;
    if id.parent.is_none() {
        let message = "missing; expected the container that the new one is to run in, e.g. that of a task in GET_STATE";
        return Err(Violation::new(format!("{field}.container_id.parent"), message));
    }
    let command = command.ok_or_else(|| Violation::new(format!("{field}.command"), "missing"))?;
    Ok(Call::Launch { field, container, command: Box::new(command), info: info.map(Box::new), session })
}

fn input(attach: agent::call::AttachContainerInput) -> Result<Input, Violation> {
    let lacks = |field: &str| Violation::new(format!("attach_container_input.{field}"), "missing");
    let odd = |field: &str, number: i32| {
        Violation::new(format!("attach_container_input.{field}"), format!("found {number}, expected a known type"))
    };
    let number = attach.r#type.ok_or_else(|| lacks("type"))?;
    match attach_container_input::Type::try_from(number) {
        Ok(attach_container_input::Type::ContainerId) => {
            let id = attach.container_id.ok_or_else(|| lacks("container_id"))?;
            ContainerPath::read(&id, "attach_container_input.container_id").map(Input::Container)
        }
        Ok(attach_container_input::Type::ProcessIo) => {
            let io = attach.process_io.ok_or_else(|| lacks("process_io"))?;
            let number = io.r#type.ok_or_else(|| lacks("process_io.type"))?;
            match process_io::Type::try_from(number) {
                Ok(process_io::Type::Data) => {
                    let data = io.data.ok_or_else(|| lacks("process_io.data"))?;
                    if data.r#type != Some(process_io::data::Type::Stdin as i32) {
                        let message = "found another type of data, expected STDIN";
                        return Err(Violation::new("attach_container_input.process_io.data.type", message));
                    }
                    Ok(Input::Stdin(data.data.unwrap_or_default()))
                }
                Ok(process_io::Type::Control) => control(io.control.ok_or_else(|| lacks("process_io.control"))?),
                _ => Err(odd("process_io.type", number)),
            }
        }
        _ => Err(odd("type", number)),
    }
}

fn control(control: process_io::Control) -> Result<Input, Violation> {
    let path = |field: &str| format!("attach_container_input.process_io.control.{field}");
    let lacks = |field: &str| Violation::new(path(field), "missing");
    let number = control.r#type.ok_or_else(|| lacks("type"))?;
    match process_io::control::Type::try_from(number) {
        Ok(process_io::control::Type::Heartbeat) => Ok(Input::Heartbeat),
        Ok(process_io::control::Type::TtyInfo) => {
            let info = control.tty_info.ok_or_else(|| lacks("tty_info"))?;
            let size = window(&info, &path("tty_info"))?.ok_or_else(|| lacks("tty_info.window_size"))?;
            Ok(Input::Resize { rows: size.0, columns: size.1 })
        }
        _ => Err(Violation::new(path("type"), format!("found {number}, expected TTY_INFO or HEARTBEAT"))),
    }
}

/// Rows and columns of a terminal, where they are told.
pub fn window(info: &TtyInfo, path: &str) -> Result<Option<(u16, u16)>, Violation> {
    let Some(size) = &info.window_size else { return Ok(None) };
    let read = |name: &str, number: u32| {
        u16::try_from(number).map_err(|_| {
            Violation::new(
                format!("{path}.window_size.{name}"),
                format!("found {number}, expected at most {}", u16::MAX),
            )
        })
    };
    Ok(Some((read("rows", size.rows)?, read("columns", size.columns)?)))
}
