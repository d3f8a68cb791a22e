//! What a collector answers: that it took everything, a part, nothing for now, or nothing at all.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderMap, RETRY_AFTER};
use prost::Message;

use super::queue::Reason;

/// Most characters of what a collector says that are shown.
const SHOWN: usize = 200;

/// An answer to a request that the collector has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Points or spans that it refused.
    pub rejected: u64,
    /// What it says about that; also where it refused none, as a warning.
    pub message: String,
}

/// `ExportMetricsServiceResponse` and `ExportTraceServiceResponse`, which have the same form.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// What was not taken.
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

/// `ExportMetricsPartialSuccess` and `ExportTracePartialSuccess`.
#[derive(Clone, PartialEq, Message)]
pub struct PartialSuccess {
    /// Points or spans that were refused.
    #[prost(int64, tag = "1")]
    pub rejected: i64,
    /// Why.
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// `google.rpc.Status`, the body of an answer that is none of success.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// Not used over HTTP.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// What is wrong.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// Reads the body of a success. One that cannot be read tells nothing, and takes nothing back.
pub fn accepted(body: &[u8]) -> Accepted {
    let partial = Response::decode(body).ok().and_then(|response| response.partial_success).unwrap_or_default();
    Accepted { rejected: u64::try_from(partial.rejected).unwrap_or(0), message: cut(&partial.error_message) }
}

/// Why a request was not taken, and in words for a person.
pub fn refusal(status: StatusCode, body: &[u8]) -> (Reason, String) {
    let reason = match status.as_u16() {
        429 => Reason::Throttled,
        502..=504 => Reason::Unavailable,
        _ => Reason::Refused,
    };
    let cure = match status.as_u16() {
        300..=399 => "; it sends elsewhere: set otlp.endpoint to the final address",
        401 | 403 => "; check otlp.header_files and otlp.tls_certificate",
        404 | 405 => "; check the path of otlp.endpoint, and that the collector takes OTLP over HTTP",
        413 => "; raise the collector's limit of a request's size",
        415 => "; it takes no protobuf or no gzip: see otlp.compression",
        _ => "",
    };
    let said = Status::decode(body).map(|status| cut(&status.message)).unwrap_or_default();
    let said = if said.is_empty() { said } else { format!(", {said:?}") };
    (reason, format!("answered HTTP {status}{said}{cure}"))
}

/// When the collector wants to be asked again, from now: seconds, or a date.
pub fn retry_after(headers: &HeaderMap, now: jiff::Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

fn cut(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_success_is_read_and_nonsense_tells_nothing() {
        assert_eq!(accepted(b""), Accepted::default());
        let partial_success = Some(PartialSuccess { rejected: 3, error_message: "x".repeat(500) });
        let found = accepted(&Response { partial_success }.encode_to_vec());
        assert_eq!((found.rejected, found.message.len()), (3, SHOWN));
        let partial_success = Some(PartialSuccess { rejected: -3, error_message: String::new() });
        assert_eq!(accepted(&Response { partial_success }.encode_to_vec()).rejected, 0);
        assert_eq!(accepted(b"{\"partialSuccess\":{}}"), Accepted::default());
        assert_eq!(accepted(&[0x0a, 0xff]), Accepted::default());
    }

    #[test]
    fn statuses_are_those_of_the_specification() {
        for (status, reason) in [
            (429, Reason::Throttled),
            (502, Reason::Unavailable),
            (503, Reason::Unavailable),
            (504, Reason::Unavailable),
            (500, Reason::Refused),
            (400, Reason::Refused),
            (408, Reason::Refused),
            (301, Reason::Refused),
        ] {
            assert_eq!(refusal(StatusCode::from_u16(status).unwrap(), b"").0, reason, "{status}");
        }
        let body = Status { code: 3, message: "no\nsuch".to_owned() }.encode_to_vec();
        let (_, message) = refusal(StatusCode::BAD_REQUEST, &body);
        assert_eq!(message, "answered HTTP 400 Bad Request, \"no\\nsuch\"");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: jiff::Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("7", Some(7)),
            ("0", Some(0)),
            ("Fri, 20 Nov 2026 12:01:00 GMT", Some(60)),
            ("Fri, 20 Nov 2026 11:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
