//! `demo`: builds the daemon, runs pods with it in a folder of its own, and holds that nothing is left behind.
//!
//! Each command is printed as typed. The run fails at the first command that does not do what it should.

mod leftovers;
mod steps;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use agentd_testbox::layout::{self, Config};

use crate::daemon::{Daemon, Scratch};
use crate::{elevate, installed};
use leftovers::Leftovers;
use steps::Ctl;

/// Names of the one image that the pod's two containers run.
const NAMES: &[&str] = &["demo/web:latest", "demo/cache:latest"];
const POD: &str = "/app";
const WAIT: Duration = Duration::from_secs(20);

/// Writes the demo's image as an OCI layout folder.
pub fn write_image(root: &Path, dir: &Path) -> Result<(), String> {
    let program = agentd_testbox::program::build(root)?;
    layout::write(dir, "latest", &program, &Config::command(&["/bin/true"]))
        .map_err(|error| format!("the image in {} cannot be written: {error}", dir.display()))
}

/// Runs the demo.
pub fn run(root: &Path) -> Result<ExitCode, String> {
    if let Some(end) = elevate::require(root, &["demo".to_owned()]) {
        return end;
    }
    crate::build(root, &["build", "--package", "agentd"])?;
    let scratch = Scratch::new(&std::env::temp_dir(), "demo")?;
    let image = scratch.path().join("image");
    write_image(root, &image)?;
    let home = scratch.path().join("home");
    std::fs::create_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;

    let before = Leftovers::now("");
    println!("\n$ agentd run --dev {} &", home.display());
    let mut daemon = Daemon::start(&root.join("target/debug/agentd"), &home, &[])?;
    println!("pid {}, instance {}, socket {}", daemon.pid(), daemon.instance, daemon.socket.display());
    let ctl = Ctl::new(root, &daemon.socket);
    let shown = tour(&ctl, &image, scratch.path())
        .map_err(|error| format!("{error}\nlog of agentd:\n{}", daemon.log_text()))?;

    println!("\n$ kill -TERM {}", daemon.pid());
    let status = daemon.stop()?;
    println!("agentd ended with {status}");
    if !status.success() {
        return Err(format!("agentd ended with {status}; its log:\n{}", daemon.log_text()));
    }
    let left = leftovers::wait_for_none(&daemon.instance, &before, Duration::from_secs(10));
    if !left.is_empty() {
        return Err(format!("this was left behind on the host:\n  {}", left.join("\n  ")));
    }
    println!("nothing of {} is left: no cgroup, no link, no mount, no nftables table", daemon.instance);
    if !shown {
        return Ok(ExitCode::FAILURE);
    }
    println!("\nThe demo is done.");
    Ok(ExitCode::SUCCESS)
}

/// The commands, in order. `false`: a part could not be shown on this host.
fn tour(ctl: &Ctl, image: &Path, scratch: &Path) -> Result<bool, String> {
    let image = image.display().to_string();
    for name in NAMES {
        ctl.run(&["image", "import", &image, "--reference", name])?;
    }
    ctl.run(&["image", "ls"])?;
    ctl.run(&["node"])?;

    ctl.run(&["pod", "run", "examples/hello.json", "--wait", "finished", "--timeout", "30"])?;
    let said = ctl.run(&["logs", "/hello"])?;
    expect(&said, "Hello, I am /hello")?;
    ctl.run(&["pod", "rm", "/hello"])?;

    // a pod without a name to import: its image is the folder itself
    ctl.run_pod("an image straight from the layout folder", &steps::from_layout(&image))?;
    let said = ctl.run(&["logs", "/layout"])?;
    expect(&said, "printed by a program of the image")?;
    ctl.run(&["pod", "rm", "/layout"])?;

    if !installed("nft") {
        println!(
            "\nexamples/web-and-cache.json has a network of its own, for which agentd drives nft, and nft is missing."
        );
        println!("What agentd says to it:");
        // it is refused, with the reason and the cure
        let _ = ctl.run(&["pod", "run", "examples/web-and-cache.json", "--timeout", "10"]);
        let _ = ctl.run(&["pod", "rm", POD, "--ignore-missing"]);
        println!("\nInstall it (apt-get install nftables) and run the demo again.");
        return Ok(false);
    }
    ctl.run(&["pod", "run", "examples/web-and-cache.json", "--timeout", "60"])?;
    ctl.run(&["pod", "ls"])?;
    ctl.run(&["node"])?;
    let port = ctl.host_port(POD, "web")?;
    println!("\n$ curl http://127.0.0.1:{port}/");
    let page = steps::get(port, WAIT)?;
    print!("{page}");
    expect(&page, "from the cache over localhost: hello from")?;
    expect(&page, "from the shared volume: a greeting that")?;
    let said = ctl.run(&["logs", POD, "web"])?;
    expect(&said, "GET / HTTP/1.1")?;
    ctl.run(&["pod", "inspect", POD])?;
    inside(ctl, scratch)?;
    ctl.run(&["pod", "rm", POD])?;
    ctl.run(&["pod", "ls"])?;
    Ok(true)
}

/// What people do in a running container: a command with its exit code, files in and out, a port, what it uses.
fn inside(ctl: &Ctl, scratch: &Path) -> Result<(), String> {
    let said = ctl.run(&["exec", POD, "-c", "cache", "--", "/bin/echo", "printed by a program beside the cache"])?;
    expect(&said, "printed by a program beside the cache")?;
    ctl.run_to(&["exec", POD, "-c", "cache", "--", "/bin/exit", "3"], 3)?;

    let folder = format!("{POD}:/mnt/mesos/sandbox");
    ctl.run(&["cp", "-c", "web", "examples/hello.json", &folder])?;
    let said = ctl.run(&["exec", POD, "-c", "web", "--", "/bin/cat", "/mnt/mesos/sandbox/hello.json"])?;
    expect(&said, "process $$ of my own namespace")?;
    let back = scratch.join("hello-again.json");
    ctl.run(&["cp", "-c", "web", &format!("{folder}/hello.json"), &back.display().to_string()])?;
    let copied = std::fs::read_to_string(&back).map_err(|error| format!("{}: {error}", back.display()))?;
    if copied != said {
        return Err(format!("{} is not what was copied in", back.display()));
    }

    let page = ctl.forwarded(POD, 8080, |port| steps::get(port, WAIT))?;
    print!("{page}");
    expect(&page, "from the cache over localhost: hello from")?;
    ctl.run(&["top", "--once"])?;
    let said = ctl.run(&["session", "ls"])?;
    expect(&said, "exited 3")
}

fn expect(text: &str, wanted: &str) -> Result<(), String> {
    if text.contains(wanted) {
        return Ok(());
    }
    Err(format!("the demo failed: expected '{wanted}' in what stands above"))
}
