//! Image references: their parser and their canonical form.
//!
//! `python`, `docker.io/python` and `docker.io/library/python:latest` are the same image. The
//! grammar is that of the distribution project: `[registry[:port]/]path[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use crate::cli::error::Failure;
use crate::cli::escape::escape;
use crate::digest::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";

/// Longest canonical reference, in bytes: it must fit into a file name.
pub const REFERENCE_BYTES_MAX: usize = 240;
const TAG_BYTES_MAX: usize = 128;

/// An image reference in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Returns the host name of the registry, with its port if it has one.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the tag. A reference without a digest always has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the same name with a digest in place of its tag.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// Returns the digest that the manifest must have.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns the short form for people: without the default registry and namespace.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        short
            .strip_prefix("library/")
            .filter(|rest| !rest.contains('/'))
            .unwrap_or(short)
            .to_owned()
    }

    /// Returns the canonical form as a file name. It contains `+` for `/`, which a file name cannot
    /// contain and no reference contains.
    pub fn file_name(&self) -> String {
        format!("{}.json", self.to_string().replace('/', "+"))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Reference, Failure> {
        parse(text).map_err(|reason| {
            Failure::usage(format!("'{}' is not an image reference: {reason}", escape(text)))
                .hint("write it as [registry/]name[:tag][@sha256:digest], in lower case")
        })
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            (rest, Some(digest.parse::<Digest>().map_err(|error| error.to_string())?))
        }
        None => (text, None),
    };
    // A colon after the last slash starts the tag; one before it starts a port.
    let name_at = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[name_at..].split_once(':') {
        Some((last, tag)) => (&rest[..name_at + last.len()], Some(tag)),
        None => (rest, None),
    };
    let (registry, path) = split_registry(name);
    check_registry(registry)?;
    check_path(path)?;
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let tag = tag.or(if digest.is_none() { Some(DEFAULT_TAG) } else { None });
    let path = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("{DEFAULT_NAMESPACE}/{path}")
    } else {
        path.to_owned()
    };
    let reference =
        Reference { registry: registry.to_owned(), path, tag: tag.map(str::to_owned), digest };
    if reference.to_string().len() > REFERENCE_BYTES_MAX {
        return Err(format!("it is longer than {REFERENCE_BYTES_MAX} bytes"));
    }
    Ok(reference)
}

/// Splits off the registry. The first part is one if it looks like a host: with a dot, a port, or
/// `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", path)) => (DEFAULT_REGISTRY, path),
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) =
        registry.rsplit_once(':').map_or((registry, None), |(host, port)| (host, Some(port)));
    let host_ok = host.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    });
    let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok());
    if host_ok && port_ok { Ok(()) } else { Err("its registry is not a host name".to_owned()) }
}

fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("it has no name".to_owned());
    }
    for part in path.split('/') {
        check_path_part(part)?;
    }
    Ok(())
}

/// Checks a component of a path: lower-case letters and digits, joined by one `.`, one or two `_`,
/// or any number of `-`.
fn check_path_part(part: &str) -> Result<(), String> {
    let words = part.split(['.', '_', '-']);
    let alphanumeric =
        |word: &str| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let ends_ok = part.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && part.bytes().last().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let joined_ok =
        !["..", "___", "._", "_.", ".-", "-.", "_-", "-_"].iter().any(|joint| part.contains(joint));
    if part.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("its name has upper-case letters".to_owned());
    }
    if words.into_iter().all(alphanumeric) && ends_ok && joined_ok {
        return Ok(());
    }
    Err(format!("'{}' cannot be part of its name", escape(part)))
}

fn check_tag(tag: &str) -> Result<(), String> {
    let first_ok =
        tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let rest_ok =
        tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if first_ok && rest_ok && tag.len() <= TAG_BYTES_MAX {
        Ok(())
    } else {
        Err("its tag is invalid".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn all_spellings_of_an_image_become_one() {
        for spelling in [
            "python",
            "python:latest",
            "library/python",
            "docker.io/python",
            "index.docker.io/library/python",
        ] {
            assert_eq!(full(spelling), "docker.io/library/python:latest", "{spelling}");
        }
        assert_eq!(full("localhost/deb:ess"), "localhost/deb:ess");
        assert_eq!(full("127.0.0.1:5000/a/b"), "127.0.0.1:5000/a/b:latest");
        assert_eq!(full("me/app:v1"), "docker.io/me/app:v1");
        let pinned = format!("alpine@sha256:{}", "a".repeat(64));
        assert_eq!(full(&pinned), format!("docker.io/library/{pinned}"));
    }

    #[test]
    fn people_see_the_short_form() {
        let familiar = |text: &str| text.parse::<Reference>().unwrap().familiar();
        assert_eq!(familiar("docker.io/library/python:3"), "python:3");
        assert_eq!(familiar("me/app"), "me/app:latest");
        assert_eq!(familiar("localhost/x"), "localhost/x:latest");
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_reason() {
        let long = "a".repeat(300);
        for text in [
            "",
            "/",
            "a//b",
            "../etc",
            "a/..",
            "Alpine",
            "a:",
            "a:b c",
            "a@sha256:00",
            "-a",
            "a\u{1b}[31m",
            &long,
            ".hidden",
            "a:.x",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
