//! What a request over TCP is checked for before anything else: that the client's certificate has not ended meanwhile, that
//! `Host` names this daemon (a web page whose name was rebound to the daemon's address sends its own), and that no browser
//! calls on behalf of a page that was not allowed to.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{HOST, HeaderValue, ORIGIN};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;

use super::answer::Refusal;
use crate::access::gate::Access;

/// How a connection came in.
#[derive(Debug, Clone)]
pub enum Door {
    /// Over the Unix socket.
    Unix,
    /// Over TCP.
    Tcp {
        /// The daemon's address of the connection.
        local: SocketAddr,
        /// Names of the daemon's certificate.
        names: Arc<[String]>,
        /// When the client's certificate ends, seconds since 1970.
        expires: Option<i64>,
    },
}

impl Door {
    /// Refuses what must not come in this way. Gives the origin that the answer is for, where a page may read it.
    pub fn check(&self, access: &Access, parts: &Parts) -> Result<Option<HeaderValue>, Refusal> {
        let mut hosts = parts.headers.get_all(HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(bad("found the header host more than once, expected it once".to_owned()));
        }
        let Self::Tcp { local, names, expires } = self else { return Ok(None) };
        if expires.is_some_and(|end| end < jiff::Timestamp::now().as_second()) {
            let detail = "the client's certificate has ended since the connection was made; connect with a new one";
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "certificate-ended", detail));
        }
        let named = host.map(|value| value.to_str().ok().and_then(|text| text.parse::<Authority>().ok()));
        let authority = match (named, parts.uri.authority()) {
            (Some(Some(host)), None) => host,
            (Some(Some(host)), Some(target)) if host.as_str().eq_ignore_ascii_case(target.as_str()) => host,
            (Some(Some(host)), Some(target)) => {
                return Err(bad(format!("found the header host {host} and the target {target}, expected the same")));
            }
            (Some(None), _) => {
                return Err(bad("the header host is no host with an optional port".to_owned()));
            }
            (None, _) => return Err(bad("the header host is missing, expected it once".to_owned())),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if !known(&host, *local, names, &access.allowed_hosts) {
            let detail = format!(
                "found the host {host}, which is no name of this daemon; use a name of its certificate or its address, or \
                 add the name to api.allowed_hosts"
            );
            return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "wrong-host", detail));
        }
        let Some(origin) = parts.headers.get(ORIGIN) else { return Ok(None) };
        let single = parts.headers.get_all(ORIGIN).iter().count() == 1;
        if single && access.allowed_origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()) {
            return Ok(Some(origin.clone()));
        }
        let found: String = String::from_utf8_lossy(origin.as_bytes()).chars().take(100).collect();
        let detail = format!("the web page {found:?} may not call; add it to api.allowed_origins");
        Err(Refusal::new(StatusCode::FORBIDDEN, "origin-refused", detail))
    }
}

fn bad(detail: String) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "bad-request", detail)
}

/// Whether a name, without port and in small letters, is one of the daemon's.
fn known(host: &str, local: SocketAddr, names: &[String], allowed: &[String]) -> bool {
    let address = host.parse::<std::net::IpAddr>().ok();
    if let Some(address) = address {
        let own = address.to_canonical() == local.ip().to_canonical();
        return own || names.iter().chain(allowed).any(|name| name.parse() == Ok(address));
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let matches = |name: &String| match name.strip_prefix("*.") {
        Some(domain) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == domain),
        None => name == host,
    };
    (host == "localhost" && local.ip().is_loopback()) || names.iter().any(matches) || allowed.iter().any(|n| n == host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &[(&str, &str)], uri: &str, change: impl FnOnce(&mut Access, &mut Door)) -> (u16, bool) {
        let mut request = hyper::Request::builder().uri(uri);
        for (name, value) in head {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut access = Access::unrestricted();
        let names = vec!["node.example".to_owned(), "*.pods.example".to_owned(), "192.0.2.7".to_owned()];
        let mut door = Door::Tcp { local: ([127, 0, 0, 1], 8443).into(), names: names.into(), expires: None };
        change(&mut access, &mut door);
        match door.check(&access, &parts) {
            Ok(origin) => (200, origin.is_some()),
            Err(refusal) => (refusal.into_response().status().as_u16(), false),
        }
    }

    #[test]
    fn only_names_of_the_daemon_pass() {
        for (host, status) in [
            ("127.0.0.1:8443", 200),
            ("127.0.0.1", 200),
            ("localhost:1", 200),
            ("Node.Example", 200),
            ("node.example.", 200),
            ("a.pods.example", 200),
            ("192.0.2.7:8443", 200),
            ("a.b.pods.example", 421),
            ("pods.example", 421),
            ("127.0.0.2", 421),
            ("evil.example:8443", 421),
            ("other.example", 421),
            ("", 400),
            ("a b", 400),
        ] {
            assert_eq!(check(&[("host", host)], "/", |_, _| ()).0, status, "{host}");
        }
        let other = |access: &mut Access, _: &mut Door| access.allowed_hosts = vec!["other.example".into()];
        assert_eq!(check(&[("host", "other.example")], "/", other).0, 200);
        assert_eq!(check(&[], "/", |_, _| ()).0, 400);
        assert_eq!(check(&[("host", "localhost"), ("host", "localhost")], "/", |_, _| ()).0, 400);
        assert_eq!(check(&[("host", "localhost")], "http://evil.example/", |_, _| ()).0, 400);
        let six = |_: &mut Access, door: &mut Door| {
            *door = Door::Tcp { local: "[::1]:8443".parse().unwrap(), names: Vec::new().into(), expires: None };
        };
        assert_eq!(check(&[("host", "[::1]:8443")], "/", six).0, 200);
        let unix = |_: &mut Access, door: &mut Door| *door = Door::Unix;
        assert_eq!(check(&[("host", "whatever"), ("origin", "null")], "/", unix).0, 200);
    }

    #[test]
    fn web_pages_pass_only_where_they_are_listed() {
        let host = ("host", "localhost");
        let allow = |access: &mut Access, _: &mut Door| access.allowed_origins = vec!["https://console.example".into()];
        assert_eq!(check(&[host, ("origin", "https://console.example")], "/", allow), (200, true));
        for origin in ["null", "http://console.example", "https://evil.example", "https://console.example.evil"] {
            assert_eq!(check(&[host, ("origin", origin)], "/", allow).0, 403, "{origin}");
        }
        assert_eq!(check(&[host, ("origin", "https://console.example")], "/", |_, _| ()).0, 403);
    }

    #[test]
    fn an_ended_certificate_is_refused_on_an_open_connection() {
        let end = |expires: i64| {
            move |_: &mut Access, door: &mut Door| {
                *door =
                    Door::Tcp { local: ([127, 0, 0, 1], 1).into(), names: Vec::new().into(), expires: Some(expires) };
            }
        };
        assert_eq!(check(&[("host", "localhost")], "/", end(1)).0, 401);
        assert_eq!(check(&[("host", "localhost")], "/", end(i64::MAX)).0, 200);
    }
}
