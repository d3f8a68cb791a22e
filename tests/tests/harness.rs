//! The harness itself: a pod runs, its log is read, and dropping the daemon leaves nothing.

use agentd_tests::{Daemon, host, pods, privileged};

#[test]
fn a_pod_runs_and_nothing_is_left() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let before = daemon.snapshot();
    let (status, log) = client.run_to_end(&pods::shell("/hello/there", "echo hello; echo from $0"));
    assert_eq!(log, "hello\nfrom /bin/sh\n");
    assert!(status.instances[0].containers[0].exit.is_some_and(agentd_api::status::ExitStatus::success), "{status:?}");
    before.assert_same_after(|| client_runs_another(&client));
    let (instance, dir) = (daemon.instance().to_owned(), daemon.dir().to_path_buf());
    drop(daemon);
    assert!(host::cgroup_trees().iter().all(|tree| !tree.join(&instance).exists()));
    assert!(!dir.exists());
}

fn client_runs_another(client: &agentd_tests::Client) {
    client.run_pod(&pods::sleeper("/sleeper"));
    client.rm("/sleeper");
}

#[test]
fn pods_outlive_a_daemon_that_is_killed() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&pods::sleeper("/sleeper"));
    let pid = client.container("/sleeper", "main").pid;
    daemon.kill9();
    daemon.restart();
    assert_eq!(client.container("/sleeper", "main").pid, pid);
    client.rm("/sleeper");
    assert!(daemon.terminate().success());
    daemon.snapshot().assert_nothing_left();
}
