//! The API's ways in: TLS files of the TCP listeners and how long their certificate lasts, and the access list.

use super::Check;
use crate::access::gate;
use crate::access::tls::{self, Tls};
use crate::config::Config;

/// A certificate that ends so soon should be renewed by now, days.
const SOON: i64 = 14;

const RENEW: &str = "agentctl cert issue server --renew, with --folder and --host as before";

pub(super) fn checks(config: &Config) -> Vec<Check> {
    vec![tls(config), acl(config)]
}

fn tls(config: &Config) -> Check {
    const NAME: &str = "api/tls";
    let api = &config.api;
    let listen = api.listen.join(", ");
    let (Some(certificate), Some(key), Some(client_ca)) = (&api.tls_certificate, &api.tls_key, &api.tls_client_ca)
    else {
        return match (api.listen.is_empty(), api.insecure) {
            (true, _) => Check::ok(NAME, "not served over TCP"),
            (false, _) => Check::warn(
                NAME,
                format!("plain text on {listen}"),
                "telling the processes of this host apart that connect there",
                "set api.tls_certificate, api.tls_key and api.tls_client_ca instead of api.insecure",
            ),
        };
    };
    let files = tls::Files { certificate: certificate.clone(), key: key.clone(), client_ca: client_ca.clone() };
    if let Err(error) = Tls::open(files) {
        return Check::fail(NAME, error, "a start of the daemon", "put the files right, or leave the three keys out");
    }
    let (names, end) = match tls::describe(certificate) {
        Ok(described) => described,
        Err(error) => return Check::fail(NAME, error, "a start of the daemon", RENEW),
    };
    let names = names.join(", ");
    let day = jiff::Timestamp::from_second(end).map(|end| end.to_string()).unwrap_or_default();
    match (end - jiff::Timestamp::now().as_second()).div_euclid(86_400) {
        ..0 => Check::fail(NAME, format!("the certificate has ended, {day}"), "calls over TCP", RENEW),
        left @ 0..SOON => {
            let found = format!("the certificate ends in {left} days, {day}");
            Check::warn(NAME, found, "calls over TCP from then on", RENEW)
        }
        left => Check::ok(NAME, format!("the certificate of {names} lasts {left} days, until {day}")),
    }
}

fn acl(config: &Config) -> Check {
    const NAME: &str = "api/acl";
    let file = config.api.acl.display();
    match gate::read(&config.api.acl) {
        Ok(_) if config.api.acl.exists() => Check::ok(NAME, format!("{file} is in order")),
        Ok(_) => Check::ok(NAME, format!("there is no {file}: the Unix socket may do everything, TCP nothing")),
        Err(error) => Check::fail(NAME, error, "a start of the daemon", "put the access list right"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn files_that_keep_the_daemon_from_starting_are_told() {
        let mut config = Config::defaults("agentd", None);
        config.api.acl = "/nonexistent/acl.toml".into();
        assert!(checks(&config).iter().all(|check| check.status == Status::Ok));
        let missing = Some("/nonexistent/file".into());
        (config.api.tls_certificate, config.api.tls_key, config.api.tls_client_ca) =
            (missing.clone(), missing.clone(), missing);
        config.api.acl = "/proc/self/cmdline".into();
        let found = checks(&config);
        assert!(found.iter().all(|check| check.status == Status::Fail), "{found:?}");
        assert!(found[0].found.contains("api.tls_certificate"), "{found:?}");
    }
}
