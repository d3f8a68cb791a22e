//! `agentctl logs`.

use hyper::Method;

use super::arguments::Logs;
use super::client::Client;
use super::failure::Result;
use super::output::{self, Output};
use super::pods::path_of;
use crate::api::route::encode;

/// `agentctl logs`
pub async fn logs(client: &Client, output: &mut Output, wanted: &Logs) -> Result<()> {
    let path = path(wanted, output.json())?;
    let copy = async {
        let mut stream = client.stream(Method::GET, &path, &[], None).await?;
        while let Some(bytes) = stream.bytes().await? {
            output.raw(&bytes)?;
        }
        Ok(())
    };
    if wanted.follow { output::follow(copy).await } else { copy.await }
}

fn path(wanted: &Logs, json: bool) -> Result<String> {
    let mut path = format!("{}/logs?follow={}", path_of(&wanted.pod)?, wanted.follow);
    let values = [
        ("container", wanted.container.clone()),
        ("instance", wanted.instance.clone()),
        ("tail", wanted.tail.map(|lines| lines.to_string())),
        ("since", wanted.since.clone()),
        ("stream", wanted.stream.clone()),
        ("timestamps", wanted.timestamps.then(|| "true".to_owned())),
        ("format", json.then(|| "json".to_owned())),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            path = format!("{path}&{name}={}", encode(&value));
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_in_the_path() {
        let wanted = Logs {
            pod: "/app/web".into(),
            container: Some("a&b".into()),
            follow: true,
            tail: Some(10),
            instance: None,
            timestamps: true,
            since: Some("2026-01-31T12:00:00+01:00".into()),
            stream: None,
        };
        let expected = "/v1/pods/app%2Fweb/logs?follow=true&container=a%26b&tail=10\
                        &since=2026-01-31T12%3A00%3A00%2B01%3A00&timestamps=true";
        assert_eq!(path(&wanted, false).unwrap(), expected);
        assert_eq!(path_of("/").unwrap_err().code(), 2);
    }
}
