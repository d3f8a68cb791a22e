//! `agentctl version`.

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::client::{Client, read};
use super::failure::{Failure, Result, clean};
use super::output::Output;

/// What `GET /v1/version` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Version of agentd.
    pub version: String,
    /// Version of the API.
    pub api: String,
}

/// What is shown as JSON.
#[derive(Debug, Serialize)]
struct Versions<'a> {
    client: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<&'a Version>,
}

/// `agentctl version`. The daemon that cannot be asked is told after the version of agentctl.
pub async fn version(client: &Client, output: &mut Output, only_client: bool) -> Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let server = if only_client { Ok(None) } else { ask(client).await.map(Some) };
    let known = server.as_ref().ok().and_then(Option::as_ref);
    if output.names() {
        output.name(own)?;
    } else if output.json() {
        let versions = Versions { client: own, server: known };
        let body = serde_json::to_vec(&versions).map_err(|error| Failure::failed(error.to_string()))?;
        output.body(&body)?;
    } else {
        output.line(&format!("agentctl  {own}"))?;
        if let Some(server) = known {
            output.line(&format!("agentd    {} (api {})", clean(&server.version), clean(&server.api)))?;
        }
    }
    server.map(drop)
}

async fn ask(client: &Client) -> Result<Version> {
    read(&client.call(Method::GET, "/v1/version", None).await?)
}
