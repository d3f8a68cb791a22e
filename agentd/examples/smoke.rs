//! scratch
use std::sync::Arc;
use std::time::Instant;
use agentd::{config, host::Host, node::{Node, Until}, recovery};
#[tokio::main]
async fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let file = std::env::args().nth(2).unwrap();
    let mut flags = config::Flags::default();
    flags.dev = Some(dir.into());
    let loaded = config::load(&flags, std::iter::empty()).unwrap();
    agentd_logging::init("debug", agentd_logging::Format::Text).unwrap();
    let layout = agentd::layout::Layout::of(&loaded.config);
    layout.create().unwrap();
    let host = Host::start(loaded.config).unwrap();
    let node = Node::new(Arc::clone(&host));
    println!("{:?}", recovery::run(&node).await);
    host.pool.open();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let spec = agentd_api::parse::pod(&std::fs::read(file).unwrap()).unwrap();
    for n in 0..3 {
        let mut spec = spec.clone(); spec.id = format!("{}{n}", spec.id);
        let id = spec.id.clone();
        let t = Instant::now();
        let r = node.run(spec).await;
        println!("run {:?} {}", t.elapsed(), r.is_ok());
        if let Err(e) = r { println!("{e}"); continue; }
        let s = tokio::time::timeout(std::time::Duration::from_secs(10), node.wait(&id, Until::Finished)).await;
        println!("{:?} {}", t.elapsed(), serde_json::to_string_pretty(&s.map(|s| s.map(|s| s.instances).map_err(|e| e.to_string())).map_err(|e| e.to_string())).unwrap());
        for i in node.get(&id).unwrap().instances { println!("{:?}", std::fs::read_to_string(host.layout.logs().join(&i.id).join("a.log"))); }
        println!("{:?}", node.remove(&id).await);
        println!("removed {:?}", t.elapsed());
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    host.pool.close().await;
}
