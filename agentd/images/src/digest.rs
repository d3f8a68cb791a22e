//! SHA-256 digests, the only kind that registries use in practice.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// `sha256:` and 64 lowercase hexadecimal digits. Safe as a part of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest(String);

impl Digest {
    /// Takes a digest from outside.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let hex = text
            .strip_prefix("sha256:")
            .ok_or_else(|| format!("digest {text:?} is not of the kind sha256, the only one supported"))?;
        if hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(format!("digest {text:?} is not sha256: and 64 lowercase hexadecimal digits"));
        }
        Ok(Self(text.to_owned()))
    }

    /// Digest of bytes at hand.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(format!("sha256:{:x}", Sha256::digest(bytes)))
    }

    /// Digest of what a hasher has seen.
    pub(crate) fn finish(hasher: Sha256) -> Self {
        Self(format!("sha256:{:x}", hasher.finalize()))
    }

    /// With `sha256:`.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Without.
    pub(crate) fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lowercase_sha256_is_a_digest() {
        let good = Digest::of(b"x");
        assert_eq!(Digest::parse(good.as_str()), Ok(good.clone()));
        assert_eq!(good.hex().len(), 64);
        for bad in ["", "sha256:", "sha512:00", "sha256:../../x", &good.as_str().to_uppercase(), &good.as_str()[..70]] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }
}
