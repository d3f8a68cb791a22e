//! The table itself, with the pieces that several calls have in common.

use super::super::route::Route;
use super::{Content, Form, Header, Holds, Make, Operation, Parameter, Reply};

const fn parameter(name: &'static str, form: Form, what: &'static str) -> Parameter {
    Parameter { name, form, repeated: false, what }
}

const fn repeated(name: &'static str, what: &'static str) -> Parameter {
    Parameter { name, form: Form::Text, repeated: true, what }
}

const fn json(schema: &'static str) -> Content {
    Content { media: "application/json", holds: Holds::One(schema) }
}

const fn list(schema: &'static str) -> Content {
    Content { media: "application/json", holds: Holds::List(schema) }
}

const fn lines(schema: &'static str) -> Content {
    Content { media: "application/x-ndjson", holds: Holds::One(schema) }
}

const fn bytes(media: &'static str) -> Content {
    Content { media, holds: Holds::Bytes }
}

const fn reply(status: u16, what: &'static str, content: &'static [Content]) -> Reply {
    Reply { status, what, content }
}

const FIELDS: Parameter = parameter(
    "fields",
    Form::Text,
    "Only these fields, comma-separated, with dots into what they hold: id,instances.phase.",
);
const LIMIT: Parameter = parameter(
    "limit",
    Form::Whole,
    "Most entries in the answer, 1 to 1000; a Link header with rel=\"next\" leads to those that follow.",
);
const AFTER: Parameter = parameter("after", Form::Text, "Only entries that come after this one; the link has it.");
const TIMEOUT: Parameter = parameter("timeout", Form::Seconds, "Longest wait, 0 to 86400; no end by default.");
const CONTAINER: Parameter =
    parameter("container", Form::Text, "Name of the container; not needed where there is one.");
const INSTANCE: Parameter = parameter("instance", Form::Text, "Id of the instance; not needed where there is one.");
const UNTIL: Form = Form::Words(&["running", "finished"]);

const KEY: Header = Header {
    name: "Idempotency-Key",
    what: "Makes a repeated call safe: for 24 hours the same key and request are answered with the first answer.",
};
const IF_MATCH: Header =
    Header { name: "If-Match", what: "Only if the pod's specification still has this entity tag; else 412." };
const IF_NONE_MATCH: Header =
    Header { name: "If-None-Match", what: "Answers 304 without a body if the pod still has this entity tag." };
const LAST_EVENT_ID: Header =
    Header { name: "Last-Event-ID", what: "Id of the last event that a follower saw; counts before `after`." };
const EXEC_UPGRADE: Header =
    Header { name: "Upgrade", what: "`agentd-exec`: the session is attached over the upgraded connection at once." };
const UPGRADE: Header = Header {
    name: "Upgrade",
    what: "`agentd-exec` for frames over the upgraded connection, or `websocket` with subprotocol exec.agentd.v1.",
};

const POD: &[Reply] = &[reply(200, "The pod.", &[json("PodStatus")])];
const EMPTY: &[Reply] = &[reply(204, "Done.", &[])];
const PROGRESS: &[Reply] = &[reply(200, "Progress, one value a line.", &[lines("Progress")])];
const SESSION: &[Parameter] = &[
    parameter("from", Form::Text, "Output from where: `kept`, `now`, or an offset; all that is kept by default."),
    parameter("input", Form::Flag, "Whether this client gives the input."),
    parameter("take-over", Form::Flag, "Takes the input from a client that has it."),
];

/// What every operation is like unless it says otherwise.
const PLAIN: Operation = Operation {
    method: "GET",
    path: "",
    tag: "",
    verb: "view",
    mutates: false,
    summary: "",
    parameters: &[],
    headers: &[],
    request: None,
    answers: &[],
    refusals: &[],
    make: Make::Plain(|| Route::Health),
};

/// Every call. Within a path the methods stand in the order in which `Allow` tells them; paths without braces stand before
/// those that would match them, too.
pub static OPERATIONS: &[Operation] = &[
    Operation {
        path: "/v1/pods",
        tag: "pods",
        summary: "All pods, by id",
        parameters: &[
            repeated("label", "Only pods with this label: `key`, `key=value` or `key!=value`; each one must hold."),
            parameter(
                "phase",
                Form::Words(&["starting", "running", "degraded", "backoff", "stopping", "finished", "failed"]),
                "Only pods with an instance in this phase.",
            ),
            parameter("id", Form::Text, "Only pods whose id begins so, or matches, where it has a `*` or a `?`."),
            FIELDS,
            LIMIT,
            AFTER,
        ],
        answers: &[reply(200, "The pods.", &[list("PodStatus")])],
        make: Make::Plain(|| Route::ListPods),
        ..PLAIN
    },
    Operation {
        method: "POST",
        path: "/v1/pods",
        tag: "pods",
        verb: "run",
        mutates: true,
        summary: "Runs a new pod",
        parameters: &[
            parameter("wait", UNTIL, "Answers when the pod is so; by default as soon as it is accepted."),
            TIMEOUT,
        ],
        headers: &[KEY],
        request: Some(json("Pod")),
        answers: &[reply(201, "The pod; `Location` is its path.", &[json("PodStatus")])],
        refusals: &[409, 413, 415, 422],
        make: Make::Plain(|| Route::RunPod),
    },
    Operation {
        path: "/v1/pods/{id}",
        tag: "pods",
        summary: "One pod",
        parameters: &[FIELDS],
        headers: &[IF_NONE_MATCH],
        answers: &[reply(200, "The pod.", &[json("PodStatus")]), reply(304, "It is as the client has it.", &[])],
        refusals: &[404],
        make: Make::Pod(Route::GetPod),
        ..PLAIN
    },
    Operation {
        method: "PUT",
        path: "/v1/pods/{id}",
        tag: "pods",
        verb: "run",
        mutates: true,
        summary: "Changes a pod in place; the body is the whole pod",
        headers: &[IF_MATCH],
        request: Some(json("Pod")),
        answers: POD,
        refusals: &[404, 409, 412, 413, 415],
        make: Make::Pod(Route::UpdatePod),
        ..PLAIN
    },
    Operation {
        method: "DELETE",
        path: "/v1/pods/{id}",
        tag: "pods",
        verb: "run",
        mutates: true,
        summary: "Ends a pod; answers when nothing of it is left",
        headers: &[IF_MATCH],
        answers: EMPTY,
        refusals: &[404, 412],
        make: Make::Pod(Route::RemovePod),
        ..PLAIN
    },
    Operation {
        path: "/v1/pods/{id}/wait",
        tag: "pods",
        summary: "Waits for a pod",
        parameters: &[parameter("until", UNTIL, "Until when; `running` by default."), TIMEOUT],
        answers: POD,
        refusals: &[404],
        make: Make::Pod(Route::WaitPod),
        ..PLAIN
    },
    Operation {
        path: "/v1/pods/{id}/logs",
        tag: "pods",
        verb: "logs",
        summary: "What its containers print",
        parameters: &[
            parameter("container", Form::Text, "Only this container; all by default."),
            parameter("instance", Form::Text, "Only this instance; all by default."),
            parameter("tail", Form::Whole, "Only the last lines of each log, at most 1000000."),
            parameter("follow", Form::Flag, "Goes on with what is printed from now on."),
            parameter("since", Form::Time, "Only what was printed at or after this time."),
            parameter("stream", Form::Words(&["stdout", "stderr"]), "Only this stream; both by default."),
            parameter("timestamps", Form::Flag, "The time before each line."),
            parameter("format", Form::Words(&["text", "json"]), "`text` by default."),
        ],
        answers: &[reply(200, "The lines.", &[bytes("text/plain"), lines("LogLine")])],
        refusals: &[404],
        make: Make::Pod(Route::Logs),
        ..PLAIN
    },
    Operation {
        method: "POST",
        path: "/v1/pods/{id}/exec",
        tag: "sessions",
        verb: "exec",
        mutates: true,
        summary: "Runs a program in a running container; see docs/exec.md",
        headers: &[EXEC_UPGRADE, KEY],
        request: Some(json("ExecRequest")),
        answers: &[
            reply(101, "The connection carries the session's frames from here on.", &[]),
            reply(201, "Without an upgrade: the session; `Location` is its path.", &[json("SessionStatus")]),
        ],
        refusals: &[404, 409, 413, 415, 422],
        make: Make::Pod(Route::Exec),
        ..PLAIN
    },
    Operation {
        path: "/v1/pods/{id}/files",
        tag: "files",
        verb: "exec",
        summary: "A file or a folder of a container, as a tar stream; see docs/files.md",
        parameters: &[
            CONTAINER,
            INSTANCE,
            parameter("path", Form::Text, "Absolute path in the container."),
            parameter("stat", Form::Flag, "Tells what lies there, without its content."),
        ],
        answers: &[reply(
            200,
            "The tar stream; with `stat`, what lies there.",
            &[bytes("application/x-tar"), json("FileStat")],
        )],
        refusals: &[404, 409],
        make: Make::Pod(Route::ReadFiles),
        ..PLAIN
    },
    Operation {
        method: "PUT",
        path: "/v1/pods/{id}/files",
        tag: "files",
        verb: "exec",
        mutates: true,
        summary: "Unpacks a tar stream in a folder of a container; see docs/files.md",
        parameters: &[CONTAINER, INSTANCE, parameter("path", Form::Text, "Absolute path of the folder.")],
        request: Some(bytes("application/x-tar")),
        answers: &[reply(200, "What was written.", &[json("FilesWritten")])],
        refusals: &[404, 409, 415, 507],
        make: Make::Pod(Route::WriteFiles),
        ..PLAIN
    },
    Operation {
        path: "/v1/pods/{id}/port-forward",
        tag: "files",
        verb: "exec",
        mutates: true,
        summary: "Connects to a port in a pod's network; see docs/files.md",
        parameters: &[INSTANCE, parameter("port", Form::Whole, "The port, 1 to 65535.")],
        headers: &[Header { name: "Upgrade", what: "`agentd-tcp`." }],
        answers: &[reply(101, "The connection carries the bytes of the port's from here on.", &[])],
        refusals: &[404, 409, 426, 502],
        make: Make::Pod(Route::Forward),
        ..PLAIN
    },
    Operation {
        path: "/v1/sessions",
        tag: "sessions",
        summary: "All sessions, those included that have ended a short while ago",
        parameters: &[
            parameter("pod", Form::Text, "Only sessions in this pod."),
            parameter("instance", Form::Text, "Only sessions in this instance."),
            parameter("container", Form::Text, "Only sessions in containers of this name."),
            parameter("state", Form::Words(&["starting", "running", "exited"]), "Only sessions in this state."),
            parameter("kind", Form::Words(&["exec", "debug", "nested"]), "Only sessions of this kind."),
            FIELDS,
            LIMIT,
            AFTER,
        ],
        answers: &[reply(200, "The sessions.", &[list("SessionStatus")])],
        make: Make::Plain(|| Route::ListSessions),
        ..PLAIN
    },
    Operation {
        path: "/v1/sessions/{session}",
        tag: "sessions",
        summary: "One session",
        answers: &[reply(200, "The session.", &[json("SessionStatus")])],
        refusals: &[404],
        make: Make::One(Route::GetSession),
        ..PLAIN
    },
    Operation {
        method: "DELETE",
        path: "/v1/sessions/{session}",
        tag: "sessions",
        verb: "exec",
        mutates: true,
        summary: "Kills everything that a session runs",
        answers: EMPTY,
        refusals: &[404],
        make: Make::One(Route::EndSession),
        ..PLAIN
    },
    Operation {
        path: "/v1/sessions/{session}/attach",
        tag: "sessions",
        verb: "exec",
        mutates: true,
        summary: "Attaches to a session; see docs/exec.md",
        parameters: SESSION,
        headers: &[UPGRADE],
        answers: &[reply(101, "The connection carries the session's frames from here on.", &[])],
        refusals: &[404, 409, 426],
        make: Make::One(Route::Attach),
        ..PLAIN
    },
    Operation {
        path: "/v1/sessions/{session}/wait",
        tag: "sessions",
        summary: "Waits until a session's program has ended",
        parameters: &[TIMEOUT],
        answers: &[reply(200, "The session, which has ended.", &[json("SessionStatus")])],
        refusals: &[404],
        make: Make::One(Route::WaitSession),
        ..PLAIN
    },
    Operation {
        method: "POST",
        path: "/v1/sessions/{session}/signal",
        tag: "sessions",
        verb: "exec",
        mutates: true,
        summary: "Sends a signal to a session's program",
        request: Some(json("SignalRequest")),
        answers: EMPTY,
        refusals: &[404, 409, 413, 415],
        make: Make::One(Route::SignalSession),
        ..PLAIN
    },
    Operation {
        method: "POST",
        path: "/v1/sessions/{session}/resize",
        tag: "sessions",
        verb: "exec",
        mutates: true,
        summary: "Sets the size of a session's terminal",
        request: Some(json("ResizeRequest")),
        answers: EMPTY,
        refusals: &[404, 409, 413, 415],
        make: Make::One(Route::ResizeSession),
        ..PLAIN
    },
    Operation {
        path: "/v1/sessions/{session}/recording",
        tag: "sessions",
        verb: "exec",
        summary: "The recording of a session, in asciicast v2",
        answers: &[reply(200, "The recording.", &[bytes("application/x-asciicast")])],
        refusals: &[404],
        make: Make::One(Route::Recording),
        ..PLAIN
    },
    Operation {
        path: "/v1/events",
        tag: "node",
        summary: "What has happened, once or as it happens",
        parameters: &[
            parameter("after", Form::Whole, "Only events after this id."),
            parameter("follow", Form::Flag, "Answers with server-sent events that go on."),
            repeated("kind", "Only events of this kind; given several times, of any of them."),
            parameter("pod", Form::Text, "Only events of this pod."),
            parameter("instance", Form::Text, "Only events of this instance."),
            parameter("container", Form::Text, "Only events of containers of this name."),
            FIELDS,
            LIMIT,
        ],
        headers: &[LAST_EVENT_ID],
        answers: &[reply(200, "The events.", &[list("Event"), bytes("text/event-stream")])],
        make: Make::Plain(|| Route::Events),
        ..PLAIN
    },
    Operation {
        path: "/v1/usage",
        tag: "node",
        summary: "What the running containers have used",
        parameters: &[parameter("pod", Form::Text, "Only containers of this pod."), FIELDS, LIMIT, AFTER],
        answers: &[reply(200, "One entry for each container.", &[list("ContainerUsage")])],
        refusals: &[404],
        make: Make::Plain(|| Route::Usage),
        ..PLAIN
    },
    Operation {
        path: "/v1/profile",
        tag: "node",
        verb: "logs",
        summary: "Which functions a pod's containers spend their time in; see docs/profiling.md",
        parameters: &[
            parameter("pod", Form::Text, "Id of the pod."),
            INSTANCE,
            CONTAINER,
            parameter(
                "seconds",
                Form::Whole,
                "Samples for so long, 1 to 600, and answers then; asks for the verb exec.",
            ),
            parameter("hz", Form::Whole, "With `seconds`: samples a second on each CPU, 19 to 99; 49 by default."),
            parameter("minutes", Form::Whole, "Without `seconds`: of the last minutes, 1 to 15; 15 by default."),
            parameter("format", Form::Words(&["folded", "pprof", "svg"]), "`folded` by default."),
        ],
        answers: &[reply(
            200,
            "The profile: folded text, profile.proto in gzip, or a flame graph.",
            &[bytes("text/plain"), bytes("application/octet-stream"), bytes("image/svg+xml")],
        )],
        refusals: &[404, 409],
        make: Make::Plain(|| Route::Profile),
        ..PLAIN
    },
    Operation {
        path: "/v1/metrics",
        tag: "node",
        summary: "What is measured of containers, pods, the host and the daemon",
        parameters: &[
            parameter("pod", Form::Text, "Only this pod and its containers."),
            parameter("instance", Form::Text, "Only this instance and its containers."),
            parameter("container", Form::Text, "Only containers of this name."),
            parameter(
                "format",
                Form::Words(&["json", "prometheus", "openmetrics"]),
                "Form of the answer; JSON by default.",
            ),
        ],
        answers: &[reply(
            200,
            "One entry for each thing that is measured.",
            &[json("Measurements"), bytes("text/plain"), bytes("application/openmetrics-text")],
        )],
        refusals: &[404],
        make: Make::Plain(|| Route::Metrics),
        ..PLAIN
    },
    Operation {
        path: "/metrics",
        tag: "node",
        summary: "All metrics, for scrapers",
        answers: &[reply(
            200,
            "All metrics, in the format that `Accept` asks for.",
            &[bytes("text/plain"), bytes("application/openmetrics-text")],
        )],
        make: Make::Plain(|| Route::Exposition),
        ..PLAIN
    },
    Operation {
        path: "/v1/observe",
        tag: "node",
        summary: "How the kernel's signals are had, and what the programs in it take",
        answers: &[reply(200, "Signals, programs and maps.", &[json("Observation")])],
        make: Make::Plain(|| Route::Observe),
        ..PLAIN
    },
    Operation {
        path: "/v1/images",
        tag: "images",
        summary: "Images in the store, by reference",
        parameters: &[
            parameter("reference", Form::Text, "Only references that begin so, or match, where it has a `*` or a `?`."),
            parameter("in-use", Form::Flag, "Only images that an instance uses, or that none uses."),
            FIELDS,
            LIMIT,
            AFTER,
        ],
        answers: &[reply(200, "The images.", &[list("ImageInfo")])],
        make: Make::Plain(|| Route::ListImages),
        ..PLAIN
    },
    Operation {
        method: "POST",
        path: "/v1/images/pull",
        tag: "images",
        verb: "admin",
        mutates: true,
        summary: "Pulls an image",
        headers: &[KEY],
        request: Some(json("PullRequest")),
        answers: PROGRESS,
        refusals: &[413, 415, 422],
        make: Make::Plain(|| Route::PullImage),
        ..PLAIN
    },
    Operation {
        method: "POST",
        path: "/v1/images/import",
        tag: "images",
        verb: "admin",
        mutates: true,
        summary: "Imports an OCI layout folder or an archive of this host",
        headers: &[KEY],
        request: Some(json("ImportRequest")),
        answers: PROGRESS,
        refusals: &[413, 415, 422],
        make: Make::Plain(|| Route::ImportImage),
        ..PLAIN
    },
    Operation {
        method: "DELETE",
        path: "/v1/images/{reference}",
        tag: "images",
        verb: "admin",
        mutates: true,
        summary: "Removes an image that no instance uses",
        answers: EMPTY,
        refusals: &[404, 409],
        make: Make::One(Route::RemoveImage),
        ..PLAIN
    },
    Operation {
        path: "/v1/node",
        tag: "node",
        summary: "This host: what it has, reserves, uses, and has left",
        answers: &[reply(200, "The host.", &[json("NodeInfo")])],
        make: Make::Plain(|| Route::Node),
        ..PLAIN
    },
    Operation {
        path: "/v1/version",
        tag: "node",
        verb: "",
        summary: "Version of the daemon and of the API",
        answers: &[reply(200, "The versions.", &[json("Version")])],
        make: Make::Plain(|| Route::Version),
        ..PLAIN
    },
    Operation {
        path: "/v1/openapi.json",
        tag: "node",
        verb: "",
        summary: "This API as an OpenAPI 3.1 document",
        answers: &[reply(200, "The document.", &[bytes("application/json")])],
        make: Make::Plain(|| Route::OpenApi),
        ..PLAIN
    },
    Operation {
        path: "/healthz",
        tag: "node",
        verb: "",
        summary: "Whether requests are served",
        answers: &[reply(200, "`ok`.", &[bytes("text/plain")])],
        make: Make::Plain(|| Route::Health),
        ..PLAIN
    },
];
