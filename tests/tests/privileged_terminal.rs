//! A person's terminal: a real PTY on which `agentctl exec -it` runs bash, vim and top in a container, driven by keys and
//! read through a terminal emulator.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agentd_api::session::{SessionState, SessionStatus};
use agentd_tests::attached::{self, agentctl_at, digest};
use agentd_tests::relay::Relay;
use agentd_tests::terminal::Terminal;
use agentd_tests::{Client, Daemon, privileged, skip, until};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(30);

/// How long `agentctl` may take to give a lost connection up: it tries for half a minute to have another.
const LOST: Duration = Duration::from_mins(1);

/// What leaves a session (the default keys).
const DETACH: &[u8] = b"\x10\x11";

/// A program of this host, which containers without an image see in `/usr`; none where it is not installed.
fn program(name: &str) -> Option<PathBuf> {
    let path = ["/usr/bin", "/usr/local/bin"].map(|folder| Path::new(folder).join(name));
    // links may lead through folders that containers do not see
    path.iter().find_map(|path| fs::canonicalize(path).ok()).filter(|path| path.starts_with("/usr"))
}

fn start() -> (Daemon, Client) {
    let daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&attached::pod("/t"));
    (daemon, client)
}

fn exec(socket: &Path, words: &[&str]) -> Command {
    let mut command = agentctl_at(socket);
    command.args(["exec", "-it", "--env", "PS1=$ ", "--env", "LC_ALL=C.UTF-8", "/t", "--"]).args(words);
    command
}

/// A shell in the container on a terminal of 24 by 80, at its first prompt.
fn bash(socket: &Path) -> Terminal {
    let terminal = Terminal::start(exec(socket, &["bash", "--norc", "--noprofile"]), 24, 80);
    terminal.wait_for("$ ");
    terminal
}

/// The only session that runs.
fn running(client: &Client) -> SessionStatus {
    until("one session runs", PATIENCE, || {
        let all: Vec<SessionStatus> = client.get("/v1/sessions").read();
        let mut running: Vec<_> = all.into_iter().filter(|session| session.state == SessionState::Running).collect();
        if running.len() == 1 { running.pop() } else { None }
    })
}

#[test]
fn bash_is_used_as_at_any_terminal() {
    privileged!();
    let (daemon, client) = start();
    let mut terminal = bash(&daemon.socket());
    assert!(terminal.attributes().is_raw() && !terminal.initial.is_raw());
    assert!(running(&client).tty);

    assert_eq!(terminal.line("stty size; tty").split_whitespace().collect::<Vec<_>>(), ["24", "80", "/dev/pts/0"]);
    terminal.resize(50, 132);
    terminal.wait_until("the new size arrives", |terminal| terminal.line("stty size").trim() == "50 132");
    assert_eq!(terminal.line("echo $COLUMNS $LINES").trim(), "132 50");
    terminal.resize(24, 80);
    terminal.wait_until("the old size is back", |terminal| terminal.line("stty size").trim() == "24 80");

    // Ctrl-C ends what is in front, Ctrl-Z stops it, and it goes on in front or behind
    terminal.forget();
    terminal.keys("echo sleeping; sleep 1000\n");
    terminal.wait_for("sleeping\n");
    terminal.keys("\x03");
    terminal.wait_for("^C");
    terminal.wait_until("the prompt is back", |terminal| terminal.transcript().ends_with("$ "));
    assert_eq!(terminal.line("echo $?").trim(), "130");
    terminal.forget();
    terminal.keys("sh -c 'read line; echo \"had <$line>\"'\n");
    terminal.wait_for("$line>\"'\n");
    // typed when the reader is in front and reads, or else the shell itself takes the keys
    let reader_reads = || {
        let stat = |pid: &str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let shell = stat(&running(&client).pid?.to_string())?;
        // process group and foreground process group
        let (own, in_front) = (&shell[2], &shell[5]);
        (own != in_front && stat(in_front)?[0] == "S").then_some(())
    };
    until("the reader is in front", PATIENCE, reader_reads);
    terminal.keys("\x1a");
    terminal.wait_for("Stopped");
    terminal.wait_until("the prompt is back", |terminal| terminal.transcript().ends_with("$ "));
    assert!(terminal.line("jobs").contains("Stopped"));
    terminal.forget();
    terminal.keys("fg\n");
    terminal.wait_for("read line");
    until("the reader is in front again", PATIENCE, reader_reads);
    terminal.keys("back again\n");
    terminal.wait_for("had <back again>");
    terminal.wait_until("the prompt is back", |terminal| terminal.transcript().ends_with("$ "));

    // typed and printed beyond ASCII
    assert_eq!(terminal.line("printf '%s' 'grüße €𝄞' | wc -c").trim(), "15");
    assert_eq!(terminal.line("printf '\\xe2\\x82\\xac\\n'").trim(), "€");
    terminal.forget();
    terminal.keys("echo grüße, 世界\n");
    terminal.wait_for("\ngrüße, 世界");
    assert!(terminal.screen().contains("grüße, 世界"), "{}", terminal.screen());

    // Ctrl-D at a prompt ends the shell with the last code, and the terminal is as it was
    terminal.line("sh -c 'exit 41'");
    terminal.forget();
    terminal.keys("(exit 42)\n");
    // typed at the prompt: while a command runs, Ctrl-D is that command's end of input
    terminal.wait_until("the prompt is back", |terminal| terminal.transcript().ends_with("$ "));
    terminal.keys("\x04");
    assert_eq!(terminal.wait_exit().code(), Some(42));
    assert_eq!(terminal.attributes(), terminal.initial);
}

#[test]
fn vim_edits_a_file() {
    privileged!();
    let Some(vim) = program("vim") else { skip!("vim is not installed (apt-get install vim)") };
    let (daemon, client) = start();
    let mut command = exec(&daemon.socket(), &[]);
    command.arg(vim).args(["-u", "NONE", "-i", "NONE", "-n", "note"]);
    let mut terminal = Terminal::start(command, 30, 100);
    terminal.wait_until("vim has the whole screen", Terminal::is_full_screen);
    terminal.wait_until("vim shows an empty file", |terminal| terminal.screen().contains("\n~"));
    terminal.keys("ithe first line\rgrüße\x1byypA, once more\x1b");
    terminal.wait_until("the text is shown", |terminal| terminal.screen().contains("grüße, once more"));
    // as many rows as the terminal has, also when it gets another size
    terminal.resize(40, 120);
    terminal.wait_until("vim fills the new size", |terminal| {
        terminal.screen().lines().filter(|line| *line == "~").count() == 40 - 3 - 1
    });
    terminal.keys(":wq\r");
    assert_eq!(terminal.wait_exit().code(), Some(0));
    assert!(!terminal.is_full_screen());
    assert_eq!(terminal.attributes(), terminal.initial);
    let answer = client.get("/v1/sessions");
    assert!(answer.ok(), "{}", answer.text);
    let written = agentd_tests::exec::run(&daemon.socket(), "/t", &["cat", "note"]);
    assert_eq!(written.text(), "the first line\ngrüße\ngrüße, once more\n");
}

#[test]
fn top_shows_the_processes_of_the_container() {
    privileged!();
    let Some(top) = program("top") else { skip!("top is not installed (apt-get install procps)") };
    let (daemon, _) = start();
    let mut command = exec(&daemon.socket(), &[]);
    command.arg(top).args(["-d", "0.5"]);
    let mut terminal = Terminal::start(command, 24, 80);
    terminal.wait_until("top shows its rows", |terminal| {
        let screen = terminal.screen();
        let rows = screen.lines().filter(|line| line.ends_with(" top") || line.ends_with(" sleep")).count();
        screen.contains("PID") && screen.contains("load average") && rows == 2
    });
    // it goes on by itself, and obeys single keys
    terminal.keys("i");
    terminal
        .wait_until("idle rows are hidden", |terminal| terminal.screen().lines().all(|line| !line.ends_with(" sleep")));
    terminal.keys("q");
    assert_eq!(terminal.wait_exit().code(), Some(0));
}

#[test]
fn ten_megabytes_are_pasted_exactly() {
    privileged!();
    let (daemon, _) = start();
    let mut terminal = bash(&daemon.socket());
    // text as a person has it: lines of printable characters, some of them of several bytes
    let mut text = String::new();
    for (number, byte) in attached::noise(5, 200_000).into_iter().enumerate() {
        writeln!(text, "{number:07} the quick brown fox jümps over {byte:03} lazy dogs").unwrap();
    }
    let text = &text.as_bytes()[..10_000_000];
    terminal.line("stty -icanon -echo");
    terminal.forget();
    terminal.keys(format!("echo re\"\"ady; head -c {} > pasted; echo do\"\"ne; sha256sum < pasted\n", text.len()));
    terminal.wait_for("ready");
    terminal.keys(text);
    terminal.wait_until("the digest is shown", |terminal| terminal.transcript().contains(&digest(text)));
    terminal.line("stty sane");
    terminal.keys("exit\n");
    assert_eq!(terminal.wait_exit().code(), Some(0));
}

#[test]
fn a_session_is_left_by_keys_and_attached_to_again() {
    privileged!();
    let (daemon, client) = start();
    let mut terminal = bash(&daemon.socket());
    terminal.line("word=kept");
    terminal.forget();
    terminal.keys("echo printed $((40 + 2))\n");
    terminal.wait_for("printed 42");
    let session = running(&client);
    terminal.keys(DETACH);
    let left = terminal.wait_exit();
    assert!(left.success(), "{left}: {}", terminal.transcript());
    assert_eq!(terminal.attributes(), terminal.initial);
    until("nobody is attached", PATIENCE, || (attached::status(&client, &session.id).clients == 0).then_some(()));

    let mut command = agentctl_at(&daemon.socket());
    command.args(["attach", &session.id]);
    let mut again = Terminal::start(command, 40, 90);
    // what was there last is shown
    again.wait_for("printed 42");
    assert_eq!(again.line("echo $word").trim(), "kept");
    again.wait_until("the size of the new terminal arrives", |terminal| terminal.line("stty size").trim() == "40 90");
    // half of the keys is passed on
    again.keys(b"\x10");
    again.keys(b"\x15exit 9\n");
    assert_eq!(again.wait_exit().code(), Some(9));
}

#[test]
fn the_terminal_is_restored_when_the_connection_is_lost() {
    privileged!();
    let (daemon, client) = start();

    // the connection breaks and another can be had: the session goes on where it was
    let relay = Relay::start(&daemon.dir().join("relay.sock"), &daemon.socket());
    let mut terminal = bash(relay.path());
    terminal.line("word=kept");
    relay.cut();
    terminal.wait_until("the shell answers again", |terminal| {
        terminal.forget();
        terminal.keys("\x15echo still $word\n");
        agentd_tests::eventually(Duration::from_secs(3), || terminal.transcript().contains("\nstill kept"))
    });
    assert!(terminal.attributes().is_raw());
    // it breaks for good
    drop(relay);
    let ended = terminal.wait_exit_within(LOST);
    assert!(!ended.success(), "{ended}");
    assert_eq!(terminal.attributes(), terminal.initial);
    assert!(terminal.transcript().contains("agentctl"), "{}", terminal.transcript());
    assert_eq!(running(&client).clients, 0);
}

#[test]
fn the_terminal_is_restored_when_the_client_is_ended() {
    privileged!();
    let (daemon, client) = start();
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut terminal = bash(&daemon.socket());
        let id = running(&client).id;
        terminal.signal(signal);
        let ended = terminal.wait_exit();
        assert!(!ended.success(), "{signal:?}: {ended}");
        assert_eq!(terminal.attributes(), terminal.initial, "{signal:?}");
        let path = format!("/v1/sessions/{id}");
        assert!(client.delete(&path).ok());
        // one that had ended by then is forgotten at once
        let over = || {
            let answer = client.get(&path);
            answer.status == 404 || answer.json["state"] == "exited"
        };
        assert!(agentd_tests::eventually(Duration::from_secs(10), over), "{signal:?}: the session goes on");
    }
}

#[test]
fn the_terminal_is_restored_when_the_server_is_killed_and_does_not_come_back() {
    privileged!();
    let (mut daemon, _) = start();
    let mut terminal = bash(&daemon.socket());
    assert!(terminal.attributes().is_raw());
    daemon.kill9();
    fs::remove_file(daemon.socket()).unwrap();
    let ended = terminal.wait_exit_within(LOST);
    assert!(!ended.success(), "{ended}");
    assert_eq!(terminal.attributes(), terminal.initial);
}

#[test]
fn a_terminal_survives_a_restart_of_the_server() {
    privileged!();
    let (mut daemon, client) = start();
    let mut terminal = bash(&daemon.socket());
    terminal.line("word=kept");
    let pid = running(&client).pid;
    daemon.kill9();
    daemon.restart();
    terminal.wait_until("the shell answers again", |terminal| {
        terminal.forget();
        terminal.keys("\x15echo still $word\n");
        agentd_tests::eventually(Duration::from_secs(3), || terminal.transcript().contains("\nstill kept"))
    });
    assert_eq!(running(&client).pid, pid);
    terminal.resize(31, 77);
    terminal.wait_until("the new size arrives", |terminal| terminal.line("stty size").trim() == "31 77");
    terminal.keys("exit 6\n");
    assert_eq!(terminal.wait_exit().code(), Some(6));
}
