//! PAX records: `<length> <key>=<value>\n`, where the value may hold any byte.

use super::fault::Fault;

/// What the records before one entry say of it.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, i64)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse_name: Option<Vec<u8>>,
    pub sparse_real: Option<u64>,
    pub sparse_major: Option<u64>,
    pub sparse_map: Vec<(u64, u64)>,
}

/// Reads the records of one extension header.
pub(super) fn parse(mut bytes: &[u8]) -> Result<Pax, Fault> {
    let mut pax = Pax::default();
    let mut offset = None;
    while bytes.first().is_some_and(|byte| *byte != 0) {
        let (key, value, rest) = record(bytes).ok_or_else(|| Fault::Damaged("a malformed PAX record".into()))?;
        bytes = rest;
        let text = std::str::from_utf8(value).unwrap_or_default();
        let number = || {
            text.parse::<u64>()
                .map_err(|_| Fault::Damaged(format!("PAX record {} is no number: {text:?}", super::fault::shown(key))))
        };
        match key {
            b"path" => pax.path = Some(value.to_vec()),
            b"linkpath" => pax.link = Some(value.to_vec()),
            b"size" => pax.size = Some(number()?),
            b"uid" => pax.uid = Some(number()?),
            b"gid" => pax.gid = Some(number()?),
            b"mtime" => pax.mtime = time(text),
            b"GNU.sparse.name" => pax.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => pax.sparse_real = Some(number()?),
            b"GNU.sparse.major" => pax.sparse_major = Some(number()?),
            b"GNU.sparse.offset" => offset = Some(number()?),
            b"GNU.sparse.numbytes" => {
                let start = offset.take().ok_or_else(|| Fault::Damaged("a sparse length without an offset".into()))?;
                pax.sparse_map.push((start, number()?));
            }
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = text.split(',').map(|part| part.parse().ok()).collect();
                let numbers = numbers.filter(|numbers| numbers.len().is_multiple_of(2));
                let numbers = numbers.ok_or_else(|| Fault::Damaged("a malformed sparse map".into()))?;
                pax.sparse_map = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    pax.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(pax)
}

/// Splits off the first record: key, value, rest.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(21).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let body = bytes.get(space + 1..length)?;
    let body = body.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &bytes[length..]))
}

/// Seconds since the epoch with an optional fraction. An unreadable time is no reason to refuse an image.
fn time(text: &str) -> Option<(i64, i64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: i64 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos))
    } else {
        Some((seconds, nanos))
    }
}

/// The map of sparse format 1.0 when `text` holds all of it: the number of pieces, then offset and length of each.
pub(super) fn whole_map(text: &[u8]) -> Result<Option<Vec<(u64, u64)>>, Fault> {
    let damaged = || Fault::Damaged("a malformed sparse map".into());
    let mut numbers = Vec::new();
    let mut expected = None;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if expected.is_some_and(|expected| numbers.len() == expected) {
            break;
        }
        let Some(line) = line.strip_suffix(b"\n") else { return Ok(None) };
        let number: u64 = std::str::from_utf8(line).ok().and_then(|line| line.parse().ok()).ok_or_else(damaged)?;
        if expected.is_none() {
            let count = usize::try_from(number).ok().filter(|count| *count <= 1 << 18).ok_or_else(damaged)?;
            expected = Some(count * 2);
        } else {
            numbers.push(number);
        }
    }
    if expected == Some(numbers.len()) {
        Ok(Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()))
    } else {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_newlines() {
        let pax = parse(b"31 SCHILY.xattr.security.x=a\nb\n12 path=a b\n").unwrap();
        assert_eq!(pax.xattrs, [(b"security.x".to_vec(), b"a\nb".to_vec())]);
        assert_eq!(pax.path.as_deref(), Some(&b"a b"[..]));
    }

    #[test]
    fn malformed_records_are_damage() {
        for bad in [&b"5 a=bc\n"[..], b"x a=b\n", b"999 a=b\n", b"6 abc\n", b"12 size=nine\n", b"6 a=b"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("7"), Some((7, 0)));
        assert_eq!(time("x"), None);
    }

    #[test]
    fn a_map_is_whole_or_needs_more() {
        assert_eq!(whole_map(b"1\n0\n").unwrap(), None);
        assert_eq!(whole_map(b"1\n0\n512\n\0\0").unwrap(), Some(vec![(0, 512)]));
        assert!(whole_map(b"99999999\n").is_err());
        assert!(whole_map(b"z\n").is_err());
    }
}
