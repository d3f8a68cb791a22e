//! From when until when a certificate is valid.

use jiff::Timestamp;

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First instant.
    pub from: Timestamp,
    /// Last instant.
    pub until: Timestamp,
}

/// Reads the dates of a certificate in DER; none where it is no certificate.
pub fn of_der(der: &[u8]) -> Option<Validity> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let validity = certificate.validity();
    let time = |seconds| Timestamp::from_second(seconds).ok();
    Some(Validity { from: time(validity.not_before.timestamp())?, until: time(validity.not_after.timestamp())? })
}
