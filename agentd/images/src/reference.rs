//! References of images in the one form under which the store keeps them.

use oci_client::Reference;

use crate::error::{ImageError, Result};

/// Writes a reference out: `nginx` becomes `docker.io/library/nginx:latest`. A path of an OCI layout (`/path[:tag]`)
/// is its own reference.
pub fn normalise(reference: &str) -> Result<String> {
    if reference.starts_with('/') {
        return Ok(reference.to_owned());
    }
    parse(reference).map(|parsed| parsed.whole())
}

/// Takes a reference of a registry apart.
pub(crate) fn parse(reference: &str) -> Result<Reference> {
    let wrong = |reason: String| ImageError::Reference { reference: reference.chars().take(300).collect(), reason };
    if reference.is_empty() || reference.len() > 1024 {
        return Err(wrong(format!("{} characters", reference.len())));
    }
    let parsed = Reference::try_from(reference).map_err(|error| wrong(error.to_string()))?;
    if let Some(digest) = parsed.digest() {
        crate::digest::Digest::parse(digest).map_err(wrong)?;
    }
    Ok(parsed)
}

/// Splits `/path[:tag]` of an OCI layout.
pub(crate) fn split_layout(id: &str) -> (&str, Option<&str>) {
    match id.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') && !tag.is_empty() => (path, Some(tag)),
        _ => (id, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_written_out() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (given, whole) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("user/app", "docker.io/user/app:latest".to_owned()),
            ("localhost:5000/app", "localhost:5000/app:latest".to_owned()),
            ("quay.io/a/b/c:x", "quay.io/a/b/c:x".to_owned()),
            (&format!("nginx@{digest}"), format!("docker.io/library/nginx@{digest}")),
            ("/srv/layout:v1", "/srv/layout:v1".to_owned()),
        ] {
            assert_eq!(normalise(given).unwrap(), whole);
        }
    }

    #[test]
    fn a_normal_form_is_its_own() {
        for given in ["nginx", "localhost:5000/app:v1"] {
            let once = normalise(given).unwrap();
            assert_eq!(normalise(&once).unwrap(), once);
        }
    }

    #[test]
    fn what_names_no_image_is_refused() {
        for bad in ["", "UPPER", "a b", "x@sha256:12", "x@sha512:00", "name:", "../x", &"a".repeat(2000)] {
            let error = normalise(bad).unwrap_err().to_string();
            assert!(error.contains("image reference"), "{error}");
        }
    }

    #[test]
    fn a_layout_path_may_carry_a_tag() {
        assert_eq!(split_layout("/a/b:v1"), ("/a/b", Some("v1")));
        assert_eq!(split_layout("/a/b"), ("/a/b", None));
        assert_eq!(split_layout("/a:b/c"), ("/a:b/c", None));
    }
}
