//! Where to deliver, and how.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{self, HeaderName};
use hyper::http::uri::{Authority, Scheme};

use super::queue::Limits;

/// All that a [`super::Pusher`] is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The collector.
    pub endpoint: Endpoint,
    /// Headers of each request beside those that delivery needs.
    pub headers: Vec<Header>,
    /// Files of TLS.
    pub tls: TlsFiles,
    /// Whether bodies are compressed.
    pub gzip: bool,
    /// Longest time of one attempt, connecting included.
    pub timeout: Duration,
    /// Longest time for what is left when delivery is to end.
    pub flush: Duration,
    /// Bounds and pauses, of each signal.
    pub limits: Limits,
}

impl Settings {
    /// The defaults for a collector.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            headers: Vec::new(),
            tls: TlsFiles::default(),
            gzip: true,
            timeout: Duration::from_secs(10),
            flush: Duration::from_secs(3),
            limits: Limits::default(),
        }
    }
}

/// Files of TLS, PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// CAs that the collector's certificate must come from; none: those that the host trusts.
    pub ca: Option<PathBuf>,
    /// Own certificate, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Name.
    pub name: HeaderName,
    /// Value.
    pub value: HeaderValue,
}

/// The value of a header. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub enum HeaderValue {
    /// This one.
    Text(String),
    /// The content of a file without white space around it, read for each request. Others must not be able to read it.
    File(PathBuf),
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Headers that delivery sets itself.
const RESERVED: [HeaderName; 8] = [
    header::HOST,
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::EXPECT,
    header::UPGRADE,
];

impl Header {
    /// Reads `name=value`, where the value is the header's or, with `file`, the absolute path of a file with it.
    pub fn parse(text: &str, file: bool) -> Option<Self> {
        let (name, value) = text.split_once('=')?;
        let name = HeaderName::from_str(name.trim()).ok().filter(|name| !RESERVED.contains(name))?;
        let value = value.trim();
        let value = if file {
            HeaderValue::File(Some(PathBuf::from(value)).filter(|path| path.is_absolute())?)
        } else {
            header::HeaderValue::from_str(value).ok()?;
            HeaderValue::Text(value.to_owned())
        };
        Some(Self { name, value })
    }
}

/// A collector's address: `http` or `https`, host, port, and the path that `/v1/metrics` is added to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    tls: bool,
    authority: Authority,
    path: String,
}

impl Endpoint {
    /// Whether it is reached by TLS.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// Host and, where it is given, port, as in the header `host`.
    pub fn authority(&self) -> &str {
        self.authority.as_str()
    }

    /// Name or address of the host, without brackets.
    pub fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    /// Port; 80 or 443 where none is given.
    pub fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.tls { 443 } else { 80 })
    }

    /// The path that a signal is posted to.
    pub fn path(&self, signal: super::Signal) -> String {
        format!("{}/v1/{}", self.path, signal.word())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority, self.path)
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            "expected http://HOST:PORT or https://HOST:PORT, with a path before /v1/metrics where there is one";
        let fail = |what: &str| format!("{what}; {expected}");
        let parts = text.parse::<Uri>().map_err(|error| fail(&error.to_string()))?.into_parts();
        let tls = match &parts.scheme {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(fail("found another scheme, or none")),
        };
        let authority = parts.authority.ok_or_else(|| fail("found no host"))?;
        if authority.as_str().contains('@') {
            return Err(fail("found a user or password, which belong in a header from a file (otlp.header_files)"));
        }
        if authority.host().is_empty() || authority.as_str().ends_with(':') {
            return Err(fail("found no host, or no port after the colon"));
        }
        if authority.as_str() != authority.host() && authority.port_u16().is_none_or(|port| port == 0) {
            return Err(fail("found a port that is none"));
        }
        let path = parts.path_and_query;
        if text.contains('#') || path.as_ref().is_some_and(|path| path.query().is_some()) {
            return Err(fail("found a query or fragment"));
        }
        let path = path.as_ref().map_or("", |path| path.path()).trim_end_matches('/').to_owned();
        if path.ends_with("/v1/metrics") || path.ends_with("/v1/traces") {
            return Err(fail("found the path of one signal, which is added for each; leave it out"));
        }
        Ok(Self { tls, authority, path })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Signal;
    use super::*;

    #[test]
    fn endpoints_are_read_and_shown() {
        for (text, shown, host, port, path) in [
            ("http://localhost:4318", "http://localhost:4318", "localhost", 4318, "/v1/metrics"),
            ("https://o.example/", "https://o.example", "o.example", 443, "/v1/metrics"),
            ("http://[::1]/otlp/", "http://[::1]/otlp", "::1", 80, "/otlp/v1/metrics"),
            ("HTTPS://a.example:1/x/y", "https://a.example:1/x/y", "a.example", 1, "/x/y/v1/metrics"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), shown);
            assert_eq!((endpoint.host(), endpoint.port(), endpoint.tls()), (host, port, shown.starts_with("https")));
            assert_eq!(endpoint.path(Signal::Metrics), path);
        }
        assert_eq!("http://a/b".parse::<Endpoint>().unwrap().path(Signal::Traces), "/b/v1/traces");
    }

    #[test]
    fn other_endpoints_are_refused() {
        for (text, words) in [
            ("", "expected http"),
            ("localhost:4318", "scheme"),
            ("/v1", "scheme"),
            ("grpc://a:1", "scheme"),
            ("http://u:p@a", "user or password"),
            ("http://:4318", "expected http"),
            ("http://a:", "expected http"),
            ("http://a:0", "port"),
            ("http://a:70000", "expected http"),
            ("http://a/?x=1", "query"),
            ("http://a/v1/metrics", "one signal"),
            ("http://a b", "expected http"),
        ] {
            let error = text.parse::<Endpoint>().expect_err(text);
            assert!(error.contains(words) && error.contains("expected http"), "{text}: {error}");
        }
    }

    #[test]
    fn headers_are_read_and_their_values_not_shown() {
        let header = Header::parse("X-Tenant = blue=1", false).unwrap();
        assert_eq!((header.name.as_str(), &header.value), ("x-tenant", &HeaderValue::Text("blue=1".to_owned())));
        assert!(!format!("{header:?}").contains("blue"));
        let header = Header::parse("authorization=/etc/token", true).unwrap();
        assert_eq!(header.value, HeaderValue::File("/etc/token".into()));
        for (text, file) in [
            ("x", false),
            ("=v", false),
            ("a b=v", false),
            ("host=v", false),
            ("Content-Type=v", false),
            ("x=a\nb", false),
            ("x=relative", true),
            ("x=", true),
        ] {
            assert_eq!(Header::parse(text, file), None, "{text}");
        }
    }
}
