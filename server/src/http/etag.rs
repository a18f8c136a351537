//! `ETag` and `If-Match`: a change is made to what its author saw, or not at all.

use axum::extract::FromRequestParts;
use http::header::{ETAG, IF_MATCH};
use http::request::Parts;
use http::{HeaderName, HeaderValue};

use super::problem::{Kind, Problem};

/// What identifies one version of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tag(String);

impl Tag {
    pub(crate) fn of_version(version: i64) -> Self {
        Self(format!("\"{version}\""))
    }

    /// For what has no version: a hash of what can change.
    pub(crate) fn of_content(content: &[u8]) -> Self {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
        let short = hash.as_ref().get(..12).expect("SHA-256 has 32 bytes");
        Self(format!("\"{}\"", data_encoding::BASE64URL_NOPAD.encode(short)))
    }

    pub(crate) fn header(&self) -> [(HeaderName, HeaderValue); 1] {
        [(ETAG, HeaderValue::from_str(&self.0).expect("tags are ASCII"))]
    }
}

/// The header `If-Match`, which must be there.
#[derive(Debug)]
pub(crate) struct IfMatch(String);

impl IfMatch {
    /// Whether the present version is one of those that the caller will change.
    pub(crate) fn check(&self, present: &Tag) -> Result<(), Problem> {
        let is_met = self.0.trim() == "*" || self.0.split(',').any(|tag| tag.trim() == present.0);
        if is_met {
            return Ok(());
        }
        Err(Problem::new(Kind::VersionMismatch, "It has changed since you read it. Read it again, then decide anew."))
    }
}

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let values = parts.headers.get_all(IF_MATCH).iter().map(|value| value.to_str().map_err(|_| ()));
        let values: Vec<&str> =
            values.collect::<Result<_, ()>>().map_err(|()| Problem::bad_request("If-Match is not ASCII."))?;
        if values.is_empty() {
            let detail = "Send the `ETag` that you got when you read it, as `If-Match`.";
            return Err(Problem::new(Kind::VersionRequired, detail));
        }
        Ok(Self(values.join(",")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_present_version_only() {
        let present = Tag::of_version(3);
        for header in ["\"3\"", "\"2\", \"3\"", "*", " \"3\" "] {
            assert!(IfMatch(header.into()).check(&present).is_ok(), "{header}");
        }
        for header in ["\"2\"", "3", "W/\"3\"", "", "\"33\""] {
            assert!(IfMatch(header.into()).check(&present).is_err(), "{header}");
        }
    }
}
