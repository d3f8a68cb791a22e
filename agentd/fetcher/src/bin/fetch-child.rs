//! The fetching child alone, as the tests start it; the daemon starts itself instead.

fn main() -> std::process::ExitCode {
    if std::env::args().nth(1).as_deref() == Some("confinement-report") {
        return agentd_fetcher::confinement_report();
    }
    agentd_fetcher::child_main()
}
