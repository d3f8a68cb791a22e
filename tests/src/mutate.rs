//! Requests that no client would send, made from those that clients do: a seeded source of random numbers, valid requests
//! of every kind ([`requests`]), and changes to them ([`Mutator`]). The fuzz targets in `tests/fuzz` and the test that sends
//! a hundred thousand of them to a daemon share this.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::exec;

/// Random numbers from a seed (splitmix64): the same seed gives the same numbers on every machine.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.number() % end as u64) as usize }
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Random bytes, at most `most`.
    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most + 1);
        (0..length).map(|_| self.number() as u8).collect()
    }
}

/// A request before it is written: its framing can be kept sound whatever is done to the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Path with parameters.
    pub path: Vec<u8>,
    /// Header fields, without `host` and `content-length`.
    pub headers: Vec<(String, Vec<u8>)>,
    /// What it carries.
    pub body: Vec<u8>,
}

impl Request {
    fn new(method: &str, path: &str, kind: &str, body: Vec<u8>) -> Self {
        let headers = if kind.is_empty() { Vec::new() } else { vec![("content-type".to_owned(), kind.into())] };
        Self { method: method.to_owned(), path: path.into(), headers, body }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Its bytes, with a `host` and the length of the body as it is.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.method.clone().into_bytes();
        bytes.push(b' ');
        bytes.extend_from_slice(&self.path);
        bytes.extend_from_slice(b" HTTP/1.1\r\nhost: agentd\r\n");
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", self.body.len()).as_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A call of `tests/data/malformed-calls.json`, which holds calls that must be refused.
#[derive(Debug, Deserialize)]
struct Malformed {
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Option<Value>,
}

/// Calls that are refused, from the table of the API's own tests.
pub fn malformed() -> Vec<Request> {
    let calls: Vec<Malformed> = serde_json::from_str(include_str!("../data/malformed-calls.json"))
        .expect("the table of malformed calls is JSON");
    calls
        .into_iter()
        .map(|call| {
            let body = match call.body {
                None => Vec::new(),
                Some(Value::String(text)) => text.into_bytes(),
                Some(other) => other.to_string().into_bytes(),
            };
            let mut request = Request::new(&call.method, &call.path, "", body);
            request.headers = call.headers.into_iter().map(|(name, value)| (name, value.into_bytes())).collect();
            request
        })
        .collect()
}

/// Requests of every kind that clients send about the pod `/fuzz` and its container `main`, and about others. Those that
/// would run something ask for more than a host has, or for a program that ends at once.
pub fn requests() -> Vec<Request> {
    const JSON: &str = "application/json";
    let get = |path: &str| Request::new("GET", path, "", Vec::new());
    let send = |method: &str, path: &str, body: &Value| Request::new(method, path, JSON, body.to_string().into_bytes());
    let large = json!({
        "id": "/large", "labels": {"a": "b"}, "environment": {"A": "1", "B": {"secret": "s"}},
        "secrets": {"s": {"source": "nowhere"}},
        "networks": [{"mode": "container", "name": "dcos"}], "volumes": [{"name": "v"}],
        "scaling": {"kind": "fixed", "instances": 1},
        "containers": [{
            "name": "main", "exec": {"command": {"argv": ["/usr/bin/true"]}},
            "resources": {"cpus": 99_999_999, "mem": 99_999_999, "disk": 99_999_999},
            "endpoints": [{"name": "web", "containerPort": 8080, "hostPort": 0, "protocol": ["tcp"]}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "healthCheck": {"exec": {"command": {"shell": "true"}}, "intervalSeconds": 60},
            "artifacts": [{"uri": "file:///nowhere", "destPath": "x"}],
        }],
    });
    let small = json!({"id": "/small", "containers": [{"name": "c", "resources": {"cpus": 1e9, "mem": 1e9},
        "exec": {"command": {"shell": "true"}}}]});
    let run = json!({"command": ["/usr/bin/true"], "environment": {"A": "b"}, "user": "0:0", "workdir": "/",
        "idleSeconds": 5, "maxSeconds": 5, "detach": true});
    let mut all = vec![
        get("/healthz"),
        get("/v1/version"),
        get("/v1/node"),
        get("/v1/openapi.json"),
        get("/v1/usage?pod=fuzz"),
        get("/v1/pods"),
        get("/v1/pods/fuzz"),
        get("/v1/pods/a%2Fb"),
        get("/v1/pods/fuzz/wait?until=running&timeout=0"),
        get("/v1/pods/fuzz/logs?container=main&tail=3&format=json&timestamps=true&since=2026-01-01T00:00:00Z"),
        get("/v1/pods/fuzz/files?container=main&path=%2Fetc%2Fhostname"),
        get("/v1/pods/fuzz/files?path=..%2F..%2Fetc%2Fshadow"),
        get("/v1/events?after=3").with("last-event-id", "2"),
        get("/v1/images"),
        get("/v1/sessions"),
        get("/v1/sessions/none"),
        get("/v1/sessions/none/wait?timeout=0"),
        get("/v1/sessions/none/recording"),
        get("/v1/sessions/none/attach?from=0").with("connection", "upgrade").with("upgrade", "agentd-exec"),
        get("/v1/pods/fuzz/port-forward?port=80").with("connection", "upgrade").with("upgrade", "agentd-forward"),
        get("/v1/sessions/none/attach")
            .with("connection", "Upgrade")
            .with("upgrade", "websocket")
            .with("sec-websocket-version", "13")
            .with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .with("sec-websocket-protocol", "exec.agentd.v1"),
        get("/state"),
        get("/state.json"),
        get("/slave(1)/state"),
        get("/containers"),
        get("/files/browse?path=/"),
        get("/files/read?path=/x&offset=0&length=10"),
        send("POST", "/v1/pods", &large).with("idempotency-key", "k-1"),
        send("POST", "/v1/pods?wait=finished&timeout=0", &small),
        send("PUT", "/v1/pods/small", &small).with("if-match", "\"1\""),
        Request::new("DELETE", "/v1/pods/none", "", Vec::new()),
        send("POST", "/v1/pods/fuzz/exec", &run),
        send("POST", "/v1/pods/none/exec", &run),
        send("POST", "/v1/sessions/none/signal", &json!({"signal": "SIGINT"})),
        send("POST", "/v1/sessions/none/resize", &json!({"rows": 24, "columns": 80})),
        Request::new("DELETE", "/v1/sessions/none", "", Vec::new()),
        Request::new("PUT", "/v1/pods/none/files?path=/tmp", "application/x-tar", vec![0; 1024]),
        send("POST", "/v1/images/import", &json!({"path": "/nowhere/image.tar", "reference": "a:b"})),
        send("POST", "/v1/images/pull", &json!({"reference": "127.0.0.1:1/none:none", "force": true})),
        Request::new("DELETE", "/v1/images/none%3Anone", "", Vec::new()),
    ];
    all.extend(mesos());
    all
}

/// Calls of the Mesos agent API, as JSON, as protobuf and as records.
fn mesos() -> Vec<Request> {
    const CALL: &str = "/api/v1";
    let id = json!({"value": "n-1", "parent": {"value": "none"}});
    let calls = [
        json!({"type": "GET_HEALTH"}),
        json!({"type": "GET_VERSION"}),
        json!({"type": "GET_FLAGS"}),
        json!({"type": "GET_METRICS", "get_metrics": {"timeout": {"nanoseconds": 1000}}}),
        json!({"type": "GET_STATE"}),
        json!({"type": "GET_CONTAINERS", "get_containers": {"show_nested": true, "show_standalone": null}}),
        json!({"type": "LIST_FILES", "list_files": {"path": "/"}}),
        json!({"type": "READ_FILE", "read_file": {"path": "/x", "offset": 0, "length": "10"}}),
        json!({"type": "WAIT_NESTED_CONTAINER", "wait_nested_container": {"container_id": id}}),
        json!({"type": "KILL_NESTED_CONTAINER", "kill_nested_container": {"container_id": id, "signal": 9}}),
        json!({"type": "REMOVE_NESTED_CONTAINER", "remove_nested_container": {"container_id": id}}),
        json!({"type": "LAUNCH_NESTED_CONTAINER", "launch_nested_container": {"container_id": id,
            "command": {"value": "true", "shell": true, "environment": {"variables": [{"name": "A", "value": "b"}]}}}}),
        json!({"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": {"container_id": id,
            "command": {"value": "/bin/true", "arguments": ["true"], "shell": false},
            "container": {"type": "MESOS", "tty_info": {"window_size": {"rows": 24, "columns": 80}}}}}),
        json!({"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output": {"container_id": id}}),
    ];
    let mut all: Vec<Request> = calls
        .iter()
        .map(|call| {
            Request::new("POST", CALL, "application/json", call.to_string().into_bytes())
                .with("accept", "application/json")
        })
        .collect();
    let records = [
        json!({"type": "ATTACH_CONTAINER_INPUT",
            "attach_container_input": {"type": "CONTAINER_ID", "container_id": id}}),
        json!({"type": "ATTACH_CONTAINER_INPUT", "attach_container_input": {"type": "PROCESS_IO",
            "process_io": {"type": "DATA", "data": {"type": "STDIN", "data": "aGVsbG8K"}}}}),
        json!({"type": "ATTACH_CONTAINER_INPUT", "attach_container_input": {"type": "PROCESS_IO",
            "process_io": {"type": "CONTROL", "control": {"type": "TTY_INFO",
                "tty_info": {"window_size": {"rows": 1, "columns": 2}}}}}}),
    ];
    let stream: Vec<u8> = records.iter().flat_map(|record| record_of(record.to_string().as_bytes())).collect();
    let input = Request::new("POST", CALL, "application/recordio", stream);
    all.push(input.with("message-content-type", "application/json"));
    // protobuf by hand: field 1 is the type as a number, a higher field holds the call, whose field 1 is the container
    let id = b"\x0a\x03n-1\x12\x06\x0a\x04none";
    let container = [&[0x0a, id.len() as u8][..], id].concat();
    for (kind, field) in
        [(1_u8, None), (2, None), (3, None), (9, None), (15, Some(7_u8)), (16, Some(8)), (19, Some(11))]
    {
        let mut bytes = vec![0x08, kind];
        if let Some(field) = field {
            bytes.extend([(field << 3) | 2, container.len() as u8]);
            bytes.extend_from_slice(&container);
        }
        let call = Request::new("POST", CALL, "application/x-protobuf", bytes);
        all.push(call.with("accept", "application/x-protobuf"));
    }
    // ATTACH_CONTAINER_INPUT, whose container is in field 2
    let id = [&[0x08, 1, 0x12, id.len() as u8][..], id].concat();
    let input = record_of(&[&[0x08, 18, (10 << 3) | 2, id.len() as u8][..], &id].concat());
    let records = Request::new("POST", CALL, "application/recordio", input);
    all.push(records.with("message-content-type", "application/x-protobuf"));
    all
}

/// A payload as one record: its length in decimal digits, a newline, and itself.
pub fn record_of(payload: &[u8]) -> Vec<u8> {
    [format!("{}\n", payload.len()).as_bytes(), payload].concat()
}

/// Bytes that a client of a session sends once it is attached.
pub fn session_frames() -> Vec<Vec<u8>> {
    let control = |message: Value| exec::frame(3, message.to_string().as_bytes());
    vec![
        exec::input_frame(b"hello\n"),
        exec::input_frame(&[b'x'; 3000]),
        exec::input_frame(b""),
        control(json!({"type": "resize", "rows": 24, "columns": 80})),
        control(json!({"type": "signal", "signal": "SIGWINCH"})),
        control(json!({"type": "close-stdin"})),
        control(json!({"type": "ping"})),
        control(json!({"type": "detach"})),
        exec::frame(1, b"a client has no output"),
        exec::frame(9, b"no such kind"),
        vec![0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    ]
}

/// Words that parsers trip over.
const AWKWARD: &[&[u8]] = &[
    b"\0",
    b"\r\n",
    b"\n",
    b"%00",
    b"%2e%2e%2f",
    b"../",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"9223372036854775808",
    b"99999999999999999999\n",
    b"\"\\ud800\"",
    b"{\"a\":",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 18446744073709551615\r\n",
    b"Host: elsewhere\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close, upgrade\r\nUpgrade: h2c, websocket, agentd-exec\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b" HTTP/1.1\r\n",
    b" HTTP/9.9\r\n",
];

/// Changes bytes and requests at random.
#[derive(Debug)]
pub struct Mutator {
    rng: Rng,
    corpus: Vec<Request>,
}

impl Mutator {
    /// With the valid and the malformed requests as what it starts from.
    pub fn new(seed: u64) -> Self {
        let mut corpus = requests();
        corpus.extend(malformed());
        Self { rng: Rng::new(seed), corpus }
    }

    /// The source of its choices.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// One of the requests that it starts from.
    pub fn request(&mut self) -> Request {
        self.rng.pick(&self.corpus).clone()
    }

    /// Changes some bytes: bits turned, bytes cut, doubled, taken from elsewhere, or awkward ones put in.
    pub fn change(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.rng.below(4) {
            let at = self.rng.below(bytes.len() + 1);
            match self.rng.below(7) {
                0 | 1 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.rng.below(8);
                    }
                }
                2 => bytes.truncate(at),
                3 => {
                    let word = *self.rng.pick(AWKWARD);
                    bytes.splice(at..at, word.iter().copied());
                }
                4 => {
                    let end = (at + self.rng.below(64)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
                5 => {
                    let other = self.request().body;
                    let from = self.rng.below(other.len() + 1);
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[from..]);
                }
                _ => {
                    let noise = self.rng.bytes(16);
                    let end = (at + noise.len()).min(bytes.len());
                    bytes.splice(at..end, noise);
                }
            }
        }
    }

    /// A request whose parts were changed, but whose framing is sound: it can be sent on a connection that goes on.
    pub fn framed(&mut self) -> Request {
        let mut request = self.request();
        for _ in 0..=self.rng.below(2) {
            match self.rng.below(8) {
                0 => {
                    let other = self.request();
                    request.method = other.method;
                }
                1 | 2 => {
                    let mut path = std::mem::take(&mut request.path);
                    self.change(&mut path);
                    // what would end the line or the path is escaped: that is for `wild`
                    request.path = path.into_iter().flat_map(escaped).collect();
                    if request.path.first() != Some(&b'/') {
                        request.path.insert(0, b'/');
                    }
                }
                3 if !request.headers.is_empty() => {
                    let at = self.rng.below(request.headers.len());
                    let mut value = std::mem::take(&mut request.headers[at].1);
                    self.change(&mut value);
                    value.retain(|byte| *byte >= b' ' && *byte != 127);
                    request.headers[at].1 = value;
                }
                4 if !request.headers.is_empty() => {
                    let again = self.rng.pick(&request.headers).clone();
                    request.headers.push(again);
                }
                5 => {
                    let other = self.request();
                    request.headers = other.headers;
                }
                _ => self.change(&mut request.body),
            }
        }
        request
    }

    /// Bytes of a request that were changed anywhere, its framing included.
    pub fn wild(&mut self) -> Vec<u8> {
        if self.rng.below(20) == 0 {
            return self.rng.bytes(300);
        }
        let mut bytes = self.framed().bytes();
        self.change(&mut bytes);
        bytes
    }

    /// Bytes for an attached session: frames, some of them changed.
    pub fn frames(&mut self) -> Vec<u8> {
        let all = session_frames();
        let mut bytes = Vec::new();
        for _ in 0..=self.rng.below(6) {
            let mut frame = self.rng.pick(&all).clone();
            if self.rng.below(3) == 0 {
                self.change(&mut frame);
            }
            bytes.extend(frame);
        }
        bytes
    }
}

/// A byte of a path as it may stand in a request's first line.
fn escaped(byte: u8) -> Vec<u8> {
    match byte {
        b'!'..=b'~' if !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | b'#') => {
            vec![byte]
        }
        other => format!("%{other:02X}").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_requests_and_the_framing_stays_sound() {
        let make = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..500).map(|_| (mutator.framed(), mutator.wild(), mutator.frames())).collect::<Vec<_>>()
        };
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
        for (request, _, _) in make(9) {
            let bytes = request.bytes();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let first = text.lines().next().unwrap_or_default();
            assert!(first.ends_with(" HTTP/1.1") && first.split(' ').count() == 3, "{first:?}");
        }
    }

    #[test]
    fn what_is_changed_is_known() {
        assert!(requests().len() > 50 && malformed().len() > 50);
        assert_eq!(record_of(b"abc"), b"3\nabc");
    }
}
