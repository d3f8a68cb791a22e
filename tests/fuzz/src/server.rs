//! The API's server in this process, over a Unix socket, before a host that has no pods.

use std::cell::OnceCell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentd::access::gate::Access;
use agentd::api::{Limits, Listeners, Pods, serve};
use agentd::events::Events;
use agentd::layout::Layout;
use agentd::node::{NodeError, Until};
use agentd::session::{Begin, Session};
use agentd_api::message::{ContainerUsage, NodeInfo, NodeResources};
use agentd_api::pod::PodSpec;
use agentd_api::status::PodStatus;
use agentd_images::Store;
use agentd_logging::Capture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// How long an answer is looked at: one that streams has no end.
const GLANCE: Duration = Duration::from_millis(50);

/// Most bytes of an answer that are looked at.
const MOST: usize = 256 << 10;

/// Gives the bytes to the server as a connection that is closed after them. What it answers is HTTP.
pub fn api_server(bytes: &[u8]) {
    thread_local! {
        static SERVER: OnceCell<Server> = const { OnceCell::new() };
    }
    SERVER.with(|server| server.get_or_init(Server::start).take(bytes));
}

struct Server {
    runtime: Runtime,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let socket = folder.path().join("socket");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
        let nowhere = runtime.block_on(async { Arc::new(Nowhere::new(folder.path())) });
        let access = Arc::new(Access::unrestricted());
        runtime.block_on(async {
            let unix = UnixListener::bind(&socket).expect("a socket can be made");
            let listeners = Listeners { unix, tcp: Vec::new(), tls: None };
            let limits = Limits { unwanted: GLANCE, ..Limits::default() };
            tokio::spawn(serve(nowhere, access, listeners, CancellationToken::new(), limits));
        });
        Self { runtime, socket, _folder: folder }
    }

    fn take(&self, bytes: &[u8]) {
        self.runtime.block_on(async {
            let mut stream = UnixStream::connect(&self.socket).await.expect("the server listens");
            let mut answer = Vec::new();
            let exchange = async {
                // it may refuse a request before it has read the whole of it
                let _ = stream.write_all(bytes).await;
                let _ = stream.shutdown().await;
                let mut buffer = vec![0; 16 << 10];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    answer.extend_from_slice(&buffer[..count]);
                    if answer.len() > MOST {
                        break;
                    }
                }
            };
            let _ = tokio::time::timeout(GLANCE, exchange).await;
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answer));
            let failed = answer.starts_with(b"HTTP/1.1 500") || answer.starts_with(b"HTTP/1.0 500");
            assert!(!failed, "{}", String::from_utf8_lossy(&answer));
        });
    }
}

/// A host without pods, which refuses every new one.
struct Nowhere {
    events: Events,
    images: Store,
    capture: Capture,
    layout: Layout,
}

impl Nowhere {
    fn new(folder: &std::path::Path) -> Self {
        let images = Store::open(&folder.join("images"), agentd_images::Settings::default());
        let capture = Capture::start(folder.join("logs"), agentd_logging::Settings::default());
        Self {
            events: Events::default(),
            images: images.expect("a store can be made"),
            capture: capture.expect("logs can be captured"),
            layout: Layout { run: folder.join("run"), state: folder.join("state") },
        }
    }
}

fn nothing<T>(id: &str) -> Result<T, NodeError> {
    Err(NodeError::NotFound(id.to_owned()))
}

impl Pods for Nowhere {
    async fn run(&self, spec: PodSpec) -> Result<PodStatus, NodeError> {
        Err(NodeError::Conflict(format!("{} is not taken: this host only listens", spec.id)))
    }

    async fn update(&self, spec: PodSpec, _: Option<&[String]>) -> Result<PodStatus, NodeError> {
        nothing(&spec.id)
    }

    async fn remove(&self, id: &str, _: Option<&[String]>) -> Result<(), NodeError> {
        nothing(id)
    }

    async fn wait(&self, id: &str, _: Until) -> Result<PodStatus, NodeError> {
        nothing(id)
    }

    fn list(&self) -> Vec<PodStatus> {
        Vec::new()
    }

    fn get(&self, id: &str) -> Result<PodStatus, NodeError> {
        nothing(id)
    }

    fn info(&self) -> NodeInfo {
        let amounts = NodeResources::default();
        NodeInfo {
            instance: "fuzz".to_owned(),
            hostname: "fuzz".to_owned(),
            version: "0".to_owned(),
            kernel: "0".to_owned(),
            boot_id: "0".to_owned(),
            cgroups: "v2".to_owned(),
            total: amounts,
            reserved: amounts,
            used: amounts,
            free: amounts,
            instances: 0,
        }
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn images(&self) -> &Store {
        &self.images
    }

    fn capture(&self) -> &Capture {
        &self.capture
    }

    async fn begin(&self, begin: Begin) -> Result<Session, NodeError> {
        nothing(&begin.pod)
    }

    fn sessions(&self) -> Vec<Session> {
        Vec::new()
    }

    fn session(&self, id: &str) -> Result<Session, NodeError> {
        nothing(id)
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn open_data(&self, instance: &str) -> Result<OwnedFd, String> {
        let folder = File::open(self.layout.sandbox(instance));
        folder.map(Into::into).map_err(|error| error.to_string())
    }

    async fn usage(&self, pod: Option<&str>) -> Result<Vec<ContainerUsage>, NodeError> {
        pod.map_or_else(|| Ok(Vec::new()), nothing)
    }
}
