//! `agentctl node`.

use agentd_api::message::{NodeInfo, NodeResources};
use hyper::Method;

use super::client::{Client, read};
use super::failure::{Result, clean};
use super::output::Output;
use super::table::{Columns, number};

/// `agentctl node`
pub async fn node(client: &Client, output: &mut Output) -> Result<()> {
    let body = client.call(Method::GET, "/v1/node", None).await?;
    if output.json() {
        return output.body(&body);
    }
    let node: NodeInfo = read(&body)?;
    if output.names() {
        return output.name(&node.instance);
    }
    let facts = [
        ("Host", node.hostname.as_str()),
        ("Daemon name", node.instance.as_str()),
        ("agentd", node.version.as_str()),
        ("Kernel", node.kernel.as_str()),
        ("Cgroups", node.cgroups.as_str()),
        ("Boot id", node.boot_id.as_str()),
        ("Pod instances", &node.instances.to_string()),
    ];
    for (name, value) in facts {
        output.line(&format!("{name:<14} {}", clean(value)))?;
    }
    output.line("")?;
    let mut columns = Columns::new(&["RESOURCE", "TOTAL", "RESERVED", "USED", "FREE"]);
    let mut row = |name: &str, amount: fn(&NodeResources) -> f64| {
        let amounts = [&node.total, &node.reserved, &node.used, &node.free].map(|resources| number(amount(resources)));
        columns.row([name.to_owned()].into_iter().chain(amounts));
    };
    row("cpus", |resources| resources.cpus);
    row("memory MiB", |resources| resources.mem);
    row("disk MiB", |resources| resources.disk);
    row("gpus", |resources| resources.gpus);
    columns.right(&[1, 2, 3, 4]);
    output.table(columns)
}
