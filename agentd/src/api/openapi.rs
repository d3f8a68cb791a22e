//! The OpenAPI 3.1 document of the local API: made of the table of [`super::operations`] and of the schemas in
//! `openapi/schemas.json`, which tests hold against the types that are read and written.

use std::sync::LazyLock;

use bytes::Bytes;
use hyper::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::answer::{Body, whole};
use super::operations::{Content, Form, Holds, OPERATIONS, Operation, Parameter, Reply};

/// The schemas of all bodies, by name.
static SCHEMAS: LazyLock<Value> =
    // a test reads it, so that what is built in is JSON
    LazyLock::new(|| serde_json::from_str(include_str!("openapi/schemas.json")).unwrap_or_default());

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(build().to_string()));

/// What each group of calls is about.
const TAGS: [(&str, &str); 6] = [
    ("pods", "Running, watching and ending pods."),
    ("sessions", "Programs that are run inside containers for people and programs outside: docs/exec.md."),
    ("files", "Files of containers, and connections into their networks: docs/files.md."),
    ("images", "The image store."),
    ("node", "This host and its daemon."),
    (
        "mesos",
        "The Mesos v1 agent API is served, too: `/api/v1`, `/state`, `/containers`, `/files/browse`, `/files/read`, also \
         below `/slave(1)`. docs/mesos-agent-api.md is its page; it is not described here.",
    ),
];

/// Headers of every answer, or of those that say so.
const HEADERS: [(&str, &str); 6] = [
    ("X-Request-Id", "Names the request in the daemon's log: the client's own name for it, or a new one."),
    ("Location", "Path of what was created."),
    ("ETag", "Entity tag of the pod: the version of its specification, `;`, and what changes with its instances."),
    ("Link", "With rel=\"next\": the next page of the list."),
    ("Idempotency-Replayed", "`true` where the answer was given before to the same idempotency key."),
    ("Events-Lost", "First and last id of events after the one asked for that can no longer be told: `18-4096`."),
];

/// `GET /v1/openapi.json`
pub fn document() -> Response<Body> {
    whole(StatusCode::OK, "application/json", DOCUMENT.clone())
}

/// A schema by its name; null where there is none.
pub fn schema(name: &str) -> &'static Value {
    &SCHEMAS[name]
}

/// The schemas that a schema is made of: itself, what it refers to, what its entries are where it is a list, and each of
/// several that it may be.
fn parts(schema: &'static Value) -> Vec<&'static Value> {
    let mut parts = Vec::new();
    let mut open = vec![schema];
    while let Some(schema) = open.pop() {
        if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
            open.push(&SCHEMAS[name]);
        }
        if schema["items"].is_object() {
            open.push(&schema["items"]);
        }
        for several in ["oneOf", "anyOf", "allOf"] {
            open.extend(schema[several].as_array().into_iter().flatten());
        }
        parts.push(schema);
    }
    parts
}

/// The names of the fields of a schema's values.
pub fn fields(schema: &'static Value) -> Vec<&'static str> {
    let names = |part: &'static Value| part["properties"].as_object().into_iter().flat_map(|object| object.keys());
    parts(schema).into_iter().flat_map(names).map(String::as_str).collect()
}

/// The schemas of one field of a schema's values; none where they cannot have it.
pub fn field(schema: &'static Value, name: &str) -> Vec<&'static Value> {
    let of = |part: &'static Value| match part["properties"].get(name) {
        Some(field) => Some(field),
        // a map: any name may be there
        None => Some(&part["additionalProperties"]).filter(|any| any.is_object()),
    };
    parts(schema).into_iter().filter_map(of).collect()
}

/// The document.
fn build() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method.to_ascii_lowercase()] = describe(operation);
    }
    let headers: Map<String, Value> = HEADERS
        .iter()
        .map(|(name, what)| ((*name).to_owned(), json!({"description": what, "schema": {"type": "string"}})))
        .collect();
    let tags: Vec<Value> = TAGS.iter().map(|(name, what)| json!({"name": name, "description": what})).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "agentd",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Pods on one host: the local API of agentd.",
            "description": "Served on a Unix socket, and over TCP where that is configured. docs/api.md is the page for \
                            those who call it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The daemon that serves this document."}],
        "tags": tags,
        "paths": paths,
        "components": {"schemas": &*SCHEMAS, "headers": headers},
    })
}

fn describe(operation: &Operation) -> Value {
    let mut parameters: Vec<Value> = in_path(operation.path).map(|(name, what)| {
        json!({"name": name, "in": "path", "required": true, "description": what, "schema": {"type": "string"}})
    }).into_iter().collect();
    parameters.extend(operation.parameters.iter().map(in_query));
    parameters.extend(operation.headers.iter().map(
        |header| json!({"name": header.name, "in": "header", "description": header.what, "schema": {"type": "string"}}),
    ));
    let mut responses: Map<String, Value> =
        operation.answers.iter().map(|reply| (reply.status.to_string(), response(operation, reply))).collect();
    for status in operation.refusals {
        responses.insert(status.to_string(), problem(refused(*status)));
    }
    responses.insert("default".to_owned(), problem("The call is refused, or failed."));
    let mut described = json!({
        "operationId": id(operation),
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": parameters,
        "responses": responses,
    });
    if !operation.verb.is_empty() {
        described["x-agentd-verb"] = operation.verb.into();
    }
    if let Some(request) = &operation.request {
        described["requestBody"] = json!({"required": true, "content": content(std::slice::from_ref(request))});
    }
    described
}

/// A name for an operation that no other has, such as `getPodsIdWait`.
fn id(operation: &Operation) -> String {
    if operation.path == "/metrics" {
        // by its path it would have the name of `/v1/metrics`
        return "getExposition".to_owned();
    }
    let words =
        operation.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty() && *word != "v1");
    let capital = |word: &str| {
        let (first, rest) = word.split_at(1);
        first.to_ascii_uppercase() + rest
    };
    operation.method.to_ascii_lowercase() + &words.map(capital).collect::<String>()
}

/// The segment in braces, and what it is.
fn in_path(path: &str) -> Option<(&str, &'static str)> {
    let name = path.split_once('{')?.1.split_once('}')?.0;
    let what = match name {
        "id" => "Id of the pod without its leading slash, percent-encoded as one segment: app%2Fweb.",
        "reference" => "Reference of the image, percent-encoded as one segment.",
        _ => "Id of the session.",
    };
    Some((name, what))
}

fn in_query(parameter: &Parameter) -> Value {
    let one = match parameter.form {
        Form::Text => json!({"type": "string", "minLength": 1}),
        Form::Flag => json!({"type": "boolean"}),
        Form::Whole => json!({"type": "integer", "minimum": 0}),
        Form::Seconds => json!({"type": "number", "minimum": 0, "maximum": 86_400}),
        Form::Time => json!({"type": "string", "format": "date-time"}),
        Form::Words(words) => json!({"type": "string", "enum": words}),
    };
    let schema = if parameter.repeated { json!({"type": "array", "items": one}) } else { one };
    let mut described = json!({"name": parameter.name, "in": "query", "description": parameter.what, "schema": schema});
    if parameter.repeated {
        described["style"] = "form".into();
        described["explode"] = true.into();
    }
    described
}

fn content(contents: &[Content]) -> Value {
    let refer = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let one = |content: &Content| {
        let schema = match content.holds {
            Holds::One(name) => refer(name),
            Holds::List(name) => json!({"type": "array", "items": refer(name)}),
            Holds::Bytes => json!({}),
        };
        (content.media.to_owned(), json!({"schema": schema}))
    };
    Value::Object(contents.iter().map(one).collect())
}

fn response(operation: &Operation, reply: &Reply) -> Value {
    let takes = |name: &str| operation.parameters.iter().any(|parameter| parameter.name == name);
    let mut names = vec!["X-Request-Id"];
    if reply.status == 201 {
        names.extend(["Location", "Idempotency-Replayed"]);
    }
    if operation.path.starts_with("/v1/pods") && reply.content.iter().any(|c| c.holds == Holds::One("PodStatus")) {
        names.push("ETag");
    }
    if takes("limit") {
        names.push("Link");
    }
    if operation.path == "/v1/events" {
        names.push("Events-Lost");
    }
    let headers: Map<String, Value> = names
        .into_iter()
        .map(|name| (name.to_owned(), json!({"$ref": format!("#/components/headers/{name}")})))
        .collect();
    let mut described = json!({"description": reply.what, "headers": headers});
    if !reply.content.is_empty() {
        described["content"] = content(reply.content);
    }
    described
}

fn problem(what: &str) -> Value {
    json!({
        "description": what,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    })
}

/// What a status of a refusal means.
fn refused(status: u16) -> &'static str {
    match status {
        404 => "It is not there.",
        409 => "It contradicts what there is, or the host has not enough left.",
        412 => "`If-Match` does not hold: somebody else has changed the pod.",
        413 => "The body is too large.",
        415 => "The body has another type, or is compressed.",
        426 => "The call needs an upgrade of the connection.",
        502 => "Nothing answers at the port.",
        507 => "The container has no room for it.",
        422 => "The idempotency key was used for another request.",
        _ => "The call is refused.",
    }
}

#[cfg(test)]
mod tests;
