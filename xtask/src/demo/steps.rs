//! The demo's commands: `agentctl` as a person types it, and a GET at the published port.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// `agentctl` of this tree, for one daemon.
#[derive(Debug)]
pub struct Ctl {
    root: PathBuf,
    program: PathBuf,
    socket: PathBuf,
}

impl Ctl {
    pub fn new(root: &Path, socket: &Path) -> Self {
        Self { root: root.to_owned(), program: root.join("target/debug/agentctl"), socket: socket.to_owned() }
    }

    /// Runs one command, prints it and its output, and returns what it wrote to standard output.
    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        println!("\n$ agentctl --socket {} {}", self.socket.display(), words.join(" "));
        self.quietly(words).inspect(|text| print!("{text}"))
    }

    /// Runs one command that ends with this exit code, as the program does that it runs.
    pub fn run_to(&self, words: &[&str], code: i32) -> Result<(), String> {
        println!("\n$ agentctl --socket {} {}; echo \"exit code $?\"", self.socket.display(), words.join(" "));
        let status = self.command(words).stdin(Stdio::null()).status().map_err(|error| self.not_started(&error))?;
        match status.code() {
            Some(found) => println!("exit code {found}"),
            None => println!("{status}"),
        }
        if status.code() == Some(code) {
            return Ok(());
        }
        Err(format!("agentctl {} ended with {status}, expected the exit code {code}", words.join(" ")))
    }

    /// Forwards a free port of this host to a port of a pod as long as `work` takes, which is given the port.
    pub fn forwarded(
        &self,
        pod: &str,
        remote: u16,
        work: impl FnOnce(u16) -> Result<String, String>,
    ) -> Result<String, String> {
        let words = ["port-forward", pod, &format!(":{remote}")];
        println!("\n$ agentctl --socket {} {} &", self.socket.display(), words.join(" "));
        let mut child = self
            .command(&words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| self.not_started(&error))?;
        let mut line = String::new();
        // kept open: agentctl ends when nobody reads what it says
        let mut said = child.stdout.take().map(BufReader::new);
        let read = said.as_mut().map(|said| said.read_line(&mut line));
        print!("{line}");
        let result = match line.split_once(" -> ").and_then(|(here, _)| here.rsplit_once(':')?.1.parse().ok()) {
            Some(port) => {
                println!("$ curl http://127.0.0.1:{port}/");
                work(port)
            }
            None => Err(format!("agentctl {} does not tell its port: {read:?}, '{line}'", words.join(" "))),
        };
        // it listens until it is ended; nothing is under way any more
        let ended = child.kill().and_then(|()| child.wait());
        let page = result?;
        ended.map_err(|error| format!("agentctl {} cannot be ended: {error}", words.join(" ")))?;
        Ok(page)
    }

    /// Runs a pod that is not in a file: it is given on standard input.
    pub fn run_pod(&self, what: &str, pod: &Value) -> Result<(), String> {
        println!("\n# {what}");
        println!(
            "$ agentctl --socket {} pod run - --wait finished --timeout 30 <<'END'\n{pod}\nEND",
            self.socket.display()
        );
        let mut child = self
            .command(&["pod", "run", "-", "--wait", "finished", "--timeout", "30"])
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|error| self.not_started(&error))?;
        if let Some(mut input) = child.stdin.take() {
            // when it ended before it read its input, its exit code says more
            let _ = input.write_all(pod.to_string().as_bytes());
        }
        let status = child.wait().map_err(|error| format!("agentctl cannot be awaited: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("agentctl pod run ended with {status}")) }
    }

    /// The host port of an endpoint of a pod.
    pub fn host_port(&self, pod: &str, endpoint: &str) -> Result<u16, String> {
        let text = self.quietly(&["pod", "inspect", pod, "--output", "json"])?;
        let status: Value =
            serde_json::from_str(&text).map_err(|error| format!("pod inspect gave no JSON: {error}"))?;
        status["instances"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|instance| instance["containers"].as_array().into_iter().flatten())
            .flat_map(|container| container["endpoints"].as_array().into_iter().flatten())
            .find(|one| one["name"] == endpoint)
            .and_then(|one| u16::try_from(one["hostPort"].as_u64()?).ok())
            .ok_or_else(|| format!("{pod} has no host port for its endpoint {endpoint}: {text}"))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--socket").arg(&self.socket).args(words).current_dir(&self.root);
        command
    }

    fn quietly(&self, words: &[&str]) -> Result<String, String> {
        let output = self
            .command(words)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| self.not_started(&error))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        print!("{text}");
        Err(format!("agentctl {} ended with {}", words.join(" "), output.status))
    }

    fn not_started(&self, error: &std::io::Error) -> String {
        format!("{} cannot be started: {error}", self.program.display())
    }
}

/// A pod whose image is an OCI layout folder.
pub fn from_layout(folder: &str) -> Value {
    json!({
        "id": "/layout",
        "containers": [{
            "name": "one",
            "image": {"kind": "OCI", "id": format!("{folder}:latest")},
            "exec": {"command": {"argv": ["/bin/echo", "printed by a program of the image"]}},
            "resources": {"cpus": 0.1, "mem": 32},
        }],
        "agentd": {"restart": "never", "isolatedNetwork": true},
    })
}

/// `GET /` at a port of this host, tried again until it is answered with 200.
pub fn get(port: u16, patience: Duration) -> Result<String, String> {
    let end = Instant::now() + patience;
    loop {
        let problem = match get_once(port) {
            Ok((head, body)) if head.contains(" 200 ") => return Ok(body),
            Ok((head, body)) => format!("{} {}", head.lines().next().unwrap_or_default(), body.trim_end()),
            Err(error) => error.to_string(),
        };
        if Instant::now() > end {
            return Err(format!(
                "http://127.0.0.1:{port}/ was not answered with 200 in {} s: {problem}",
                patience.as_secs()
            ));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn get_once(port: u16) -> std::io::Result<(String, String)> {
    let timeout = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Ok((head.to_owned(), body.to_owned()))
}
