//! Entity tags of pods: what tells one state of a pod from another, for requests that depend on it.
//!
//! A tag is `"<version>;<state>"`. The version is that of the pod's specification, and changes with each update. The rest
//! changes with its instances, so that a client that asks with `If-None-Match` sees whether anything is new. A change
//! with `If-Match` depends on the version alone: whoever updates a pod does not mind that a container has started.

use agentd_api::problem::Violation;
use agentd_api::status::PodStatus;
use hyper::HeaderMap;
use hyper::header::{ETAG, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::answer::Refusal;

/// Most tags in one header.
const MOST: usize = 32;

/// The entity tags of a header.
#[derive(Debug, PartialEq, Eq)]
pub enum Tags {
    /// There is no such header.
    Absent,
    /// `*`
    Any,
    /// These.
    Some(Vec<String>),
}

impl Tags {
    /// The versions of which a pod must have one; none where any will do.
    pub fn versions(self) -> Option<Vec<String>> {
        let version = |tag: String| match tag.strip_prefix('"') {
            Some(tag) => tag.split([';', '"']).next().unwrap_or_default().to_owned(),
            // a weak tag is no ground for a change
            None => tag,
        };
        match self {
            Self::Absent | Self::Any => None,
            Self::Some(tags) => Some(tags.into_iter().map(version).collect()),
        }
    }
}

/// The tag of a pod as it is now.
pub fn entity_tag(status: &PodStatus) -> String {
    // a status is text and numbers only, which serialise
    let instances = serde_json::to_vec(&status.instances).unwrap_or_default();
    let hash = Sha256::digest(&instances);
    let hash = u64::from_be_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]);
    format!("\"{};{hash:016x}\"", status.spec.version.as_deref().unwrap_or_default())
}

/// Puts a tag into the head of an answer.
pub fn insert_tag(tag: &str, headers: &mut HeaderMap) {
    if let Ok(tag) = HeaderValue::try_from(tag) {
        headers.insert(ETAG, tag);
    }
}

/// The tags of `If-Match` or `If-None-Match`, with their quotes.
pub fn entity_tags(headers: &HeaderMap, name: &HeaderName) -> Result<Tags, Refusal> {
    let mut tags = Vec::new();
    let refuse = |found: &[u8]| {
        let found: String = String::from_utf8_lossy(found).chars().take(80).collect();
        let message = format!("found {found:?}, expected * or entity tags in double quotes, as ETag has them");
        Refusal::bad_request(vec![Violation::new(name.as_str(), message)])
    };
    for value in headers.get_all(name) {
        let text = value.to_str().map_err(|_| refuse(value.as_bytes()))?.trim();
        if text == "*" {
            return Ok(Tags::Any);
        }
        for tag in text.split(',').map(str::trim) {
            let quoted = tag.strip_prefix("W/").unwrap_or(tag);
            let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            if inner.is_none_or(|inner| inner.is_empty() || inner.contains('"')) || tags.len() == MOST {
                return Err(refuse(value.as_bytes()));
            }
            tags.push(tag.to_owned());
        }
    }
    Ok(if tags.is_empty() { Tags::Absent } else { Tags::Some(tags) })
}

#[cfg(test)]
mod tests {
    use hyper::header::IF_MATCH;

    use super::*;

    fn read(text: &'static str) -> Result<Tags, Refusal> {
        entity_tags(&HeaderMap::from_iter([(IF_MATCH, HeaderValue::from_static(text))]), &IF_MATCH)
    }

    #[test]
    fn tags_are_read_or_refused() {
        assert_eq!(entity_tags(&HeaderMap::new(), &IF_MATCH).unwrap(), Tags::Absent);
        assert_eq!(read("*").unwrap().versions(), None);
        let versions = read("\"a;1\", \"b\" , W/\"c;1\"").unwrap().versions();
        assert_eq!(versions.unwrap(), ["a", "b", "W/\"c;1\""]);
        for bad in ["", "a", "\"a", "\"\"", "\"a\"\"b\"", "\"a\",", "*, \"a\""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
