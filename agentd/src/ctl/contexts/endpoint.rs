//! Where a daemon listens.

use std::path::PathBuf;

use hyper::Uri;

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP with TLS.
    Tls {
        /// Name or address, an IPv6 address without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// Plain TCP.
    Plain {
        /// Name or address, an IPv6 address without brackets.
        host: String,
        /// Port.
        port: u16,
        /// Whether it is this host's own.
        loopback: bool,
    },
}

impl Endpoint {
    /// Reads `unix:///path`, `https://host:port` or `http://host:port`.
    pub fn parse(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected unix:///path, https://host:port or http://127.0.0.1:port";
        if let Some(path) = text.strip_prefix("unix://") {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(format!("found {text:?}, expected an absolute path: unix:///run/agentd/agentd.sock"));
            }
            return Ok(Self::Unix(path.into()));
        }
        let refuse = || format!("found {text:?}, {EXPECTED}");
        let uri: Uri = text.parse().map_err(|_| refuse())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(refuse()) };
        if uri.path_and_query().is_some_and(|rest| rest != "/") || text.contains('#') {
            return Err(format!("found {text:?} with a path, {EXPECTED}"));
        }
        if authority.as_str().contains('@') {
            return Err(format!("found a user in {text:?}, {EXPECTED}; the certificate says who calls"));
        }
        let port = authority.port_u16().filter(|port| *port > 0);
        let port = port.ok_or_else(|| format!("found {text:?} without a port, {EXPECTED}"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(refuse());
        }
        match scheme {
            "https" => Ok(Self::Tls { host, port }),
            "http" => {
                let address = host.parse::<std::net::IpAddr>();
                let loopback = address.map_or(host == "localhost", |address| address.is_loopback());
                Ok(Self::Plain { host, port, loopback })
            }
            _ => Err(refuse()),
        }
    }

    /// What stands in the `Host` field.
    pub fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "agentd".to_owned(),
            Self::Tls { host, port } | Self::Plain { host, port, .. } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            Self::Tls { host, port } | Self::Plain { host, port, .. } => format!("{host}:{port}"),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tls { .. } => write!(f, "https://{}", self.authority()),
            Self::Plain { .. } => write!(f, "http://{}", self.authority()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written() {
        let socket = Endpoint::parse("unix:///run/a.sock").unwrap();
        assert_eq!((socket.to_string(), socket.authority()), ("/run/a.sock".into(), "agentd".into()));
        for text in ["https://far:8443", "https://[::1]:1", "http://127.0.0.2:80", "http://localhost:80"] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Endpoint::parse("https://far:8443/").unwrap().to_string(), "https://far:8443");
        assert!(matches!(Endpoint::parse("http://127.9.0.2:80"), Ok(Endpoint::Plain { loopback: true, .. })));
        assert!(matches!(Endpoint::parse("http://10.0.0.2:80"), Ok(Endpoint::Plain { loopback: false, .. })));
        let bad = ["", "far:1", "https://far", "https://far:0", "https://u@far:1", "https://far:1/v1", "https://:1"];
        for text in
            bad.into_iter().chain(["unix://rel", "unix:/x", "tcp://far:1", "https://far:99999", "https://far:1?x"])
        {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }
}
