//! Ids, pod specification, resource algebra and API messages of agentd. The leaf of the workspace: no I/O, no clock.
//!
//! - [`pod`]: the pod specification as agentd holds it after validation (Marathon 1.4 pod JSON plus agentd's own keys).
//! - [`parse`]: JSON to [`pod::PodSpec`]; every violation at once, by field path.
//! - [`resources`]: amounts and their algebra.
//! - [`status`]: what a pod, its instances and containers are doing; task states and reasons in Mesos's words.
//! - [`message`]: bodies of the local API that are not pods: node, images, events, requests.
//! - [`files`]: copies of files, and connections into pods' networks.
//! - [`session`]: exec sessions and the frames of an attached connection.
//! - [`mesos`]: messages of the Mesos v1 agent API.
//! - [`problem`]: `application/problem+json` and [`problem::Violation`].

pub mod files;
pub mod mesos;
pub mod message;
pub mod parse;
pub mod pod;
pub mod problem;
pub mod resources;
pub mod session;
pub mod status;
