//! What the API needs of the daemon. [`Node`] is what it is given; tests give it something smaller.

use std::future::Future;

use agentd_api::message::NodeInfo;
use agentd_api::pod::PodSpec;
use agentd_api::status::PodStatus;
use agentd_images::Store;
use agentd_logging::Capture;

use crate::events::Events;
use crate::node::{Node, NodeError, Until};

/// The pods of a host and the services around them.
pub trait Pods: Send + Sync + 'static {
    /// Runs a new pod.
    fn run(&self, spec: PodSpec) -> impl Future<Output = Result<PodStatus, NodeError>> + Send;
    /// Changes a pod in place.
    fn update(&self, spec: PodSpec) -> impl Future<Output = Result<PodStatus, NodeError>> + Send;
    /// Ends a pod and removes everything of it.
    fn remove(&self, id: &str) -> impl Future<Output = Result<(), NodeError>> + Send;
    /// Waits until a pod is as asked.
    fn wait(&self, id: &str, until: Until) -> impl Future<Output = Result<PodStatus, NodeError>> + Send;
    /// All pods.
    fn list(&self) -> Vec<PodStatus>;
    /// One pod.
    fn get(&self, id: &str) -> Result<PodStatus, NodeError>;
    /// The node as a whole.
    fn info(&self) -> NodeInfo;
    /// Events.
    fn events(&self) -> &Events;
    /// Images.
    fn images(&self) -> &Store;
    /// Container logs.
    fn capture(&self) -> &Capture;
}

impl Pods for Node {
    fn run(&self, spec: PodSpec) -> impl Future<Output = Result<PodStatus, NodeError>> + Send {
        Self::run(self, spec)
    }

    fn update(&self, spec: PodSpec) -> impl Future<Output = Result<PodStatus, NodeError>> + Send {
        Self::update(self, spec)
    }

    fn remove(&self, id: &str) -> impl Future<Output = Result<(), NodeError>> + Send {
        Self::remove(self, id)
    }

    fn wait(&self, id: &str, until: Until) -> impl Future<Output = Result<PodStatus, NodeError>> + Send {
        Self::wait(self, id, until)
    }

    fn list(&self) -> Vec<PodStatus> {
        Self::list(self)
    }

    fn get(&self, id: &str) -> Result<PodStatus, NodeError> {
        Self::get(self, id)
    }

    fn info(&self) -> NodeInfo {
        Self::info(self)
    }

    fn events(&self) -> &Events {
        &self.host.events
    }

    fn images(&self) -> &Store {
        &self.host.images
    }

    fn capture(&self) -> &Capture {
        &self.host.capture
    }
}
