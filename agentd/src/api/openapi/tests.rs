//! The document against the code: the routes here, every type that is read or written in `types`, and values of them in
//! `samples`.

use std::collections::BTreeSet;

use hyper::Method;
use serde_json::Value;

use super::super::operations::{Holds, OPERATIONS, Operation};
use super::super::permit::verb;
use super::super::route::{Route, find};
use super::{SCHEMAS, schema};

mod samples;
mod types;
mod validator;

fn document() -> Value {
    serde_json::from_slice(&super::DOCUMENT).unwrap()
}

/// Every route; the match makes one that is added be added here.
fn routes() -> Vec<Route> {
    let id = || "/app".to_owned();
    let all = vec![
        Route::Node,
        Route::ListPods,
        Route::RunPod,
        Route::GetPod(id()),
        Route::UpdatePod(id()),
        Route::RemovePod(id()),
        Route::WaitPod(id()),
        Route::Logs(id()),
        Route::Events,
        Route::ListImages,
        Route::PullImage,
        Route::ImportImage,
        Route::RemoveImage(id()),
        Route::Version,
        Route::Health,
        Route::OpenApi,
        Route::Usage,
        Route::Exposition,
        Route::Metrics,
        Route::Observe,
        Route::Profile,
        Route::Exec(id()),
        Route::ReadFiles(id()),
        Route::WriteFiles(id()),
        Route::Forward(id()),
        Route::ListSessions,
        Route::GetSession(id()),
        Route::EndSession(id()),
        Route::Attach(id()),
        Route::WaitSession(id()),
        Route::SignalSession(id()),
        Route::ResizeSession(id()),
        Route::Recording(id()),
    ];
    for route in &all {
        match route {
            Route::Node
            | Route::ListPods
            | Route::RunPod
            | Route::GetPod(_)
            | Route::UpdatePod(_)
            | Route::RemovePod(_)
            | Route::WaitPod(_)
            | Route::Logs(_)
            | Route::Events
            | Route::ListImages
            | Route::PullImage
            | Route::ImportImage
            | Route::RemoveImage(_)
            | Route::Version
            | Route::Health
            | Route::OpenApi
            | Route::Usage
            | Route::Exposition
            | Route::Metrics
            | Route::Observe
            | Route::Profile
            | Route::Exec(_)
            | Route::ReadFiles(_)
            | Route::WriteFiles(_)
            | Route::Forward(_)
            | Route::ListSessions
            | Route::GetSession(_)
            | Route::EndSession(_)
            | Route::Attach(_)
            | Route::WaitSession(_)
            | Route::SignalSession(_)
            | Route::ResizeSession(_)
            | Route::Recording(_) => {}
            // not described here, see the tag
            Route::Mesos(_) => unreachable!(),
        }
    }
    all
}

#[test]
fn every_route_is_described_and_every_description_is_routed() {
    let document = document();
    let mut described = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let concrete = path.replace("{id}", "app").replace("{reference}", "%2Fapp").replace("{session}", "%2Fapp");
            let route = find(&method.to_ascii_uppercase().parse::<Method>().unwrap(), &concrete).unwrap();
            let of = Operation::of(&route).unwrap();
            assert_eq!((of.path, of.method.to_ascii_lowercase().as_str()), (path.as_str(), method.as_str()));
            let parameters = operation["parameters"].as_array().unwrap();
            let named = |place: &str| -> Vec<&str> {
                let those = parameters.iter().filter(|parameter| parameter["in"] == place);
                those.map(|parameter| parameter["name"].as_str().unwrap()).collect()
            };
            let taken: Vec<&str> = route.parameters().iter().map(|parameter| parameter.name).collect();
            assert_eq!(named("query"), taken, "{method} {path}");
            let braces: Vec<&str> = path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}')).collect();
            assert_eq!(named("path"), braces, "{method} {path}");
            assert_eq!(operation["requestBody"].is_object(), of.request.is_some());
            assert_eq!(of.verb, verb(&route), "{method} {path}");
            assert_eq!(operation["x-agentd-verb"].as_str().unwrap_or_default(), of.verb);
            described.push(route);
        }
    }
    for route in routes() {
        assert!(described.contains(&route), "{route:?} is not described");
    }
    assert_eq!(described.len(), routes().len());
    assert!(document["tags"].as_array().unwrap().iter().any(|tag| {
        tag["name"] == "mesos" && tag["description"].as_str().unwrap().contains("docs/mesos-agent-api.md")
    }));
}

#[test]
fn the_document_is_sound() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    let tags: BTreeSet<&str> =
        document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap()).collect();
    let mut ids = BTreeSet::new();
    for methods in document["paths"].as_object().unwrap().values() {
        for operation in methods.as_object().unwrap().values() {
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{}", operation["operationId"]);
            assert!(tags.contains(operation["tags"][0].as_str().unwrap()), "{operation}");
            assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()));
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.values().all(|response| response["description"].is_string()));
            assert!(responses.keys().any(|status| status.starts_with(['1', '2'])));
        }
    }
    let mut referred = BTreeSet::new();
    walk(&document, &mut |value| {
        if let Some(path) = value["$ref"].as_str() {
            let found = document.pointer(path.strip_prefix('#').unwrap());
            assert!(found.is_some(), "{path} leads nowhere");
            referred.insert(path.to_owned());
        }
    });
    for name in SCHEMAS.as_object().unwrap().keys() {
        assert!(referred.contains(&format!("#/components/schemas/{name}")), "nothing refers to {name}");
    }
    for operation in OPERATIONS {
        for content in operation.request.iter().chain(operation.answers.iter().flat_map(|answer| answer.content)) {
            if let Holds::One(name) | Holds::List(name) = content.holds {
                assert!(schema(name).is_object(), "{name}");
            }
        }
        for status in operation.refusals {
            assert_ne!(super::refused(*status), super::refused(400), "{status} has no line of its own");
        }
    }
}

fn walk(value: &Value, see: &mut impl FnMut(&Value)) {
    see(value);
    match value {
        Value::Object(object) => object.values().for_each(|value| walk(value, see)),
        Value::Array(items) => items.iter().for_each(|value| walk(value, see)),
        _ => {}
    }
}
