//! `agentctl logs`.

use std::collections::HashSet;

use agentd_api::status::PodStatus;
use hyper::Method;

use super::arguments::Logs;
use super::client::{Client, read};
use super::colour;
use super::failure::Result;
use super::output::{self, Output};
use super::pods::path_of;
use crate::api::route::encode;

/// `agentctl logs`
pub async fn logs(client: &Client, output: &mut Output, wanted: &Logs) -> Result<()> {
    let path = path(wanted, output.json())?;
    let labels = if output.colours() { labels(client, wanted).await? } else { HashSet::new() };
    // lines are taken apart only where something is done to them
    let by_line = output.json() || !labels.is_empty();
    let copy = async {
        let mut stream = client.stream(Method::GET, &path, &[], None).await?;
        while !by_line && let Some(bytes) = stream.bytes().await? {
            output.raw(&bytes)?;
        }
        while by_line && let Some(line) = stream.line().await? {
            if output.json() {
                output.body(&[line.as_slice(), b"\n"].concat())?;
            } else {
                output.raw(&[paint(&line, &labels).as_slice(), b"\n"].concat())?;
            }
        }
        Ok(())
    };
    if wanted.follow { output::follow(copy).await } else { copy.await }
}

/// What may stand before lines: the daemon tells several logs apart by container, instance, or both. Nothing stands before
/// the lines of one.
async fn labels(client: &Client, wanted: &Logs) -> Result<HashSet<String>> {
    let pod: PodStatus = read(&client.call(Method::GET, &path_of(&wanted.pod)?, None).await?)?;
    let mut labels = HashSet::new();
    let mut logs = 0;
    for instance in pod.instances.iter().filter(|instance| wanted.instance.as_ref().is_none_or(|id| *id == instance.id))
    {
        for container in instance.containers.iter().map(|container| &container.name) {
            if wanted.container.as_ref().is_none_or(|name| name == container) {
                labels.extend([container.clone(), instance.id.clone(), format!("{}/{container}", instance.id)]);
                logs += 1;
            }
        }
    }
    Ok(if logs > 1 { labels } else { HashSet::new() })
}

/// A line with what tells its log apart in the colour of that log.
fn paint(line: &[u8], labels: &HashSet<String>) -> Vec<u8> {
    let at = line.windows(3).position(|three| three == b" | ");
    let label = at.and_then(|at| std::str::from_utf8(&line[..at]).ok()).filter(|label| labels.contains(*label));
    match label {
        Some(label) => {
            let painted = colour::of_name(label).paint(&format!("{label} |"));
            [painted.as_bytes(), &line[label.len() + 2..]].concat()
        }
        None => line.to_vec(),
    }
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
    fn only_what_tells_logs_apart_is_painted() {
        let labels = HashSet::from(["web".to_owned()]);
        let painted = paint(b"web | a | b", &labels);
        assert_eq!(painted, format!("{} a | b", colour::of_name("web").paint("web |")).as_bytes());
        for line in [&b"other | x"[..], b"web |x", b"", b"\xff | x"] {
            assert_eq!(paint(line, &labels), line);
        }
    }

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
