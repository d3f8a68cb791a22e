//! What the API needs of the daemon. [`Node`] is what it is given; tests give it something smaller.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use agentd_api::message::{ContainerUsage, NodeInfo, Observation};
use agentd_api::pod::PodSpec;
use agentd_api::status::PodStatus;
use agentd_images::Store;
use agentd_logging::Capture;

use crate::events::Events;
use crate::layout::Layout;
use crate::node::{Node, NodeError, Until};
use crate::observe::gather::{Gathered, Missed};
use crate::profile::Profiles;
use crate::session::{Begin, Session};

/// The pods of a host and the services around them.
pub trait Pods: Send + Sync + 'static {
    /// Runs a new pod.
    fn run(&self, spec: PodSpec) -> impl Future<Output = Result<PodStatus, NodeError>> + Send;
    /// Changes a pod in place, if it has one of the versions that are expected.
    fn update(
        &self,
        spec: PodSpec,
        expected: Option<&[String]>,
    ) -> impl Future<Output = Result<PodStatus, NodeError>> + Send;
    /// Ends a pod and removes everything of it, if it has one of the versions that are expected.
    fn remove(&self, id: &str, expected: Option<&[String]>) -> impl Future<Output = Result<(), NodeError>> + Send;
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
    /// Begins a session in a running container.
    fn begin(&self, begin: Begin) -> impl Future<Output = Result<Session, NodeError>> + Send;
    /// All sessions, those that have ended and are still kept included.
    fn sessions(&self) -> Vec<Session>;
    /// One session.
    fn session(&self, id: &str) -> Result<Session, NodeError>;
    /// Where everything lies.
    fn layout(&self) -> &Layout;
    /// The folder with an instance's `sandbox/` and `volumes/`, also where a disk limit keeps it in a file of its own; to be
    /// reached through the descriptor. Blocking.
    fn open_data(&self, instance: &str) -> Result<OwnedFd, String>;
    /// What the containers have used; of one pod or of all. A pod that is not there is an error.
    fn usage(&self, pod: Option<&str>) -> impl Future<Output = Result<Vec<ContainerUsage>, NodeError>> + Send;
    /// Metrics of everything, gathered now or a moment ago.
    fn gather(&self) -> impl Future<Output = Result<Arc<Gathered>, Missed>> + Send;
    /// Whether `/metrics` has the names of other agents, too.
    fn compatible(&self) -> bool;
    /// How the kernel's signals are had.
    fn observation(&self) -> impl Future<Output = Result<Observation, String>> + Send;
    /// Profiles of the containers; none where there are no containers to sample.
    fn profiles(&self) -> Option<&Arc<Profiles>> {
        None
    }
}

impl Pods for Node {
    fn run(&self, spec: PodSpec) -> impl Future<Output = Result<PodStatus, NodeError>> + Send {
        Self::run(self, spec)
    }

    fn update(
        &self,
        spec: PodSpec,
        expected: Option<&[String]>,
    ) -> impl Future<Output = Result<PodStatus, NodeError>> + Send {
        Self::update(self, spec, expected)
    }

    fn remove(&self, id: &str, expected: Option<&[String]>) -> impl Future<Output = Result<(), NodeError>> + Send {
        Self::remove_if(self, id, expected)
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

    async fn begin(&self, begin: Begin) -> Result<Session, NodeError> {
        Self::begin_session(self, begin).await
    }

    fn sessions(&self) -> Vec<Session> {
        Self::sessions(self)
    }

    fn session(&self, id: &str) -> Result<Session, NodeError> {
        Self::session(self, id)
    }

    fn layout(&self) -> &Layout {
        &self.host.layout
    }

    fn open_data(&self, instance: &str) -> Result<OwnedFd, String> {
        let folder = self.host.layout.sandbox(instance);
        self.host.disk.open_pod_dir(instance, &folder).map_err(|error| error.to_string())
    }

    fn usage(&self, pod: Option<&str>) -> impl Future<Output = Result<Vec<ContainerUsage>, NodeError>> + Send {
        Self::usage(self, pod)
    }

    fn gather(&self) -> impl Future<Output = Result<Arc<Gathered>, Missed>> + Send {
        Self::gather(self)
    }

    fn compatible(&self) -> bool {
        self.host.config.metrics.compatible
    }

    async fn observation(&self) -> Result<Observation, String> {
        let host = Arc::clone(&self.host);
        let work = tokio::task::spawn_blocking(move || {
            super::metric_calls::observation(&host.watcher, &host.profiles.figures())
        });
        work.await.map_err(|error| error.to_string())
    }

    fn profiles(&self) -> Option<&Arc<Profiles>> {
        Some(&self.host.profiles)
    }
}
