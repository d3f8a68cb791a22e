//! The part of the configuration about delivery to an OpenTelemetry collector, as plain data with its defaults.

use std::path::PathBuf;
use std::time::Duration;

use agentd_metrics::push::{Header, Settings, TlsFiles};

/// Delivery of metrics and traces to an OpenTelemetry collector by OTLP over HTTP. Off without an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Otlp {
    /// Address of the collector; absent means that nothing is delivered and no trace is made.
    pub endpoint: Option<String>,
    /// Headers of each request, `name=value`.
    pub headers: Vec<String>,
    /// Headers whose values are in files, `name=path`.
    pub header_files: Vec<String>,
    /// CAs of the collector's certificate, PEM; absent means those that the host trusts.
    pub tls_ca: Option<PathBuf>,
    /// Certificate shown to the collector, PEM.
    pub tls_certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub tls_key: Option<PathBuf>,
    /// How bodies are compressed.
    pub compression: Compression,
    /// Time between two deliveries of metrics, seconds.
    pub interval_seconds: u64,
    /// Longest time of one attempt, seconds.
    pub timeout_seconds: u64,
    /// Most requests that wait, of each signal.
    pub queue_requests: u64,
    /// Most bytes that wait, of each signal, MiB.
    pub queue_mib: u64,
    /// Whether metrics are delivered.
    pub metrics: bool,
    /// Whether traces are.
    pub traces: bool,
    /// Share of traces that are made, 0 to 1, where the caller has not decided.
    pub trace_ratio: f64,
}

/// How bodies are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// By gzip.
    Gzip,
    /// Not at all.
    None,
}

impl Compression {
    /// Word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::None => "none",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        [Self::Gzip, Self::None].into_iter().find(|value| value.word() == word)
    }
}

impl Default for Otlp {
    fn default() -> Self {
        Self {
            endpoint: None,
            headers: Vec::new(),
            header_files: Vec::new(),
            tls_ca: None,
            tls_certificate: None,
            tls_key: None,
            compression: Compression::Gzip,
            interval_seconds: 30,
            timeout_seconds: 10,
            queue_requests: 64,
            queue_mib: 16,
            metrics: true,
            traces: true,
            trace_ratio: 1.0,
        }
    }
}

impl Otlp {
    /// What delivery is told; none where it is off.
    pub fn settings(&self) -> Option<Settings> {
        let mut settings = Settings::new(self.endpoint.as_deref()?.parse().ok()?);
        let of = |texts: &[String], file| texts.iter().filter_map(move |text| Header::parse(text, file)).collect();
        let (texts, files): (Vec<_>, Vec<_>) = (of(&self.headers, false), of(&self.header_files, true));
        settings.headers = [texts, files].concat();
        settings.tls =
            TlsFiles { ca: self.tls_ca.clone(), identity: self.tls_certificate.clone().zip(self.tls_key.clone()) };
        settings.gzip = self.compression == Compression::Gzip;
        settings.timeout = Duration::from_secs(self.timeout_seconds);
        settings.limits.requests = self.queue_requests as usize;
        settings.limits.bytes = (self.queue_mib as usize) << 20;
        Some(settings)
    }

    /// Adds what no key can be checked for alone.
    pub(super) fn check(&self, fail: &mut impl FnMut(&str, String)) {
        if self.tls_certificate.is_some() != self.tls_key.is_some() {
            let (given, missing) = if self.tls_key.is_some() {
                ("otlp.tls_key", "otlp.tls_certificate")
            } else {
                ("otlp.tls_certificate", "otlp.tls_key")
            };
            fail(given, format!("needs {missing}; set both, or neither"));
        }
        let plain =
            self.endpoint.as_deref().is_some_and(|endpoint| !endpoint.to_ascii_lowercase().starts_with("https:"));
        let files = [
            ("otlp.tls_ca", &self.tls_ca),
            ("otlp.tls_certificate", &self.tls_certificate),
            ("otlp.tls_key", &self.tls_key),
        ];
        if let (true, Some((field, _))) = (plain, files.iter().find(|(_, file)| file.is_some())) {
            fail(
                field,
                "found beside an otlp.endpoint without TLS; set an endpoint of https://, or remove it".to_owned(),
            );
        }
    }
}
