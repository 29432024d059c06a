//! Names of images as typed: a reference, or an image ID or digest, whole or its first digits.
//!
//! A reference in the store is found first, so an image that is called `cafe` hides IDs that start
//! with these digits.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::images::{Image, RefRecord, Store};
use crate::cli::error::{Code, Failure};
use crate::cli::escape::escape;
use crate::digest::Digest;
use crate::platform::NormalPlatform;
use crate::reference::Reference;

/// Fewest digits of an ID, as in git: fewer are more likely a name.
const DIGITS_MIN: usize = 4;
/// Digits of an ID in tables. A word with as many is not pulled.
const DIGITS_SHOWN: usize = 12;
/// Digits of a whole ID.
const DIGITS_MAX: usize = 64;
/// Images listed in an error.
const CANDIDATES_MAX: usize = 8;

/// The name of an image as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    typed: String,
    reference: Reference,
    /// First digits of an ID or digest.
    digits: Option<String>,
}

impl FromStr for ImageName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<ImageName, Failure> {
        let reference = text.parse()?;
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let is_id = is_hex && (DIGITS_MIN..=DIGITS_MAX).contains(&digits.len());
        let digits = is_id.then(|| digits.to_owned());
        Ok(ImageName { typed: text.to_owned(), reference, digits })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.typed)
    }
}

impl ImageName {
    /// Returns the text as a reference.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Returns the short form for people: of an ID the typed text, else of the reference.
    pub fn familiar(&self) -> String {
        if self.is_id() { self.typed.clone() } else { self.reference.familiar() }
    }

    /// Returns whether the text is an ID and cannot be a name: no image of that name is pulled.
    pub fn is_id(&self) -> bool {
        self.digits.as_ref().is_some_and(|digits| {
            let has_number = digits.bytes().any(|byte| byte.is_ascii_digit());
            self.typed.starts_with("sha256:") || (digits.len() >= DIGITS_SHOWN && has_number)
        })
    }

    /// Returns the error that no image has this name.
    pub fn not_found(&self) -> Failure {
        let hint = if self.is_id() {
            let name = self.reference.familiar();
            format!("no image has this ID or digest: msb images; if it is a name: msb pull {name}")
        } else {
            "list images with `msb images`; get one with `msb pull`, `msb load` or `msb image import`"
                .to_owned()
        };
        Failure::not_found(format!("there is no image '{}'", self.familiar()))
            .code(Code::ImageNotFound)
            .hint(hint)
    }

    /// Returns whether the name stands for an image that was found as `reference`.
    pub fn matches(
        &self,
        store: &Store,
        reference: &str,
        manifest: &Digest,
    ) -> anyhow::Result<bool> {
        if self.reference.to_string() == reference {
            return Ok(true);
        }
        Ok(store.named(self)?.iter().any(|record| record.manifest_digest == *manifest))
    }
}

impl Store {
    /// Finds an image. Checks that it can run on this host and that its disk exists. Hold the
    /// store's lock, shared, while it is in use.
    pub fn find(&self, name: &ImageName) -> anyhow::Result<Image> {
        let record = self.named(name)?.into_iter().next().ok_or_else(|| name.not_found())?;
        let reference = match name.reference().digest() {
            Some(_) => name.reference().clone(),
            None => record.reference.parse()?,
        };
        let image = self.open(&reference, &record.manifest_digest)?;
        check_platform(&image)?;
        Ok(image)
    }

    /// Returns the records of the image with this name: one for a reference, and all names of the
    /// image for an ID or digest; none if there is no such image. An ambiguous ID is an error.
    pub fn named(&self, name: &ImageName) -> anyhow::Result<Vec<RefRecord>> {
        if let Some(record) = self.record(&name.reference)? {
            return Ok(vec![record]);
        }
        if let Some(digest) = name.reference.digest() {
            let same_repository = |record: &RefRecord| {
                let reference = record.reference.parse::<Reference>();
                reference.is_ok_and(|reference| {
                    reference.registry() == name.reference.registry()
                        && reference.path() == name.reference.path()
                })
            };
            let mut records = self.records()?;
            records.retain(|record| record.manifest_digest == *digest && same_repository(record));
            return Ok(records);
        }
        match &name.digits {
            Some(digits) => self.with_digits(name, digits),
            None => Ok(Vec::new()),
        }
    }

    /// Returns the records of the image whose ID or digest starts with these digits.
    fn with_digits(&self, name: &ImageName, digits: &str) -> anyhow::Result<Vec<RefRecord>> {
        let mut images: BTreeMap<Digest, Vec<RefRecord>> = BTreeMap::new();
        let mut ids: BTreeMap<Digest, Option<Digest>> = BTreeMap::new();
        for record in self.records()? {
            let digest = record.manifest_digest;
            let id = ids.entry(digest).or_insert_with(|| self.image_id(&digest));
            let starts = |digest: &Digest| digest.hex().starts_with(digits);
            if starts(&digest) || id.as_ref().is_some_and(starts) {
                images.entry(digest).or_default().push(record);
            }
        }
        let mut found = images.keys().map(|digest| ids[digest].unwrap_or(*digest));
        let first = found.next();
        // Manifests with one configuration are the same image, compressed in several ways.
        if found.all(|id| Some(id) == first) {
            return Ok(images.into_values().next().unwrap_or_default());
        }
        let shown = images.iter().flat_map(|(digest, records)| {
            let id = ids[digest].unwrap_or(*digest);
            records.iter().map(move |record| {
                let reference = record.reference.parse::<Reference>();
                let name = reference.map_or(record.reference.clone(), |name| name.familiar());
                format!("{name} (digest {}, ID {})", digest.short(), id.short())
            })
        });
        let shown: Vec<String> = shown.take(CANDIDATES_MAX).collect();
        let message = format!("'{name}' is the start of several images: {}", shown.join(", "));
        Err(Failure::usage(message).hint("type more digits, or the name").into())
    }

    /// Returns the digest of a manifest's configuration; `None` for a broken image.
    fn image_id(&self, manifest: &Digest) -> Option<Digest> {
        let manifest = self.manifest(manifest).ok()?;
        manifest.config().digest().to_string().parse().ok()
    }
}

/// Checks that an image can run on this host. The store may hold images of other platforms, to be
/// saved again.
fn check_platform(image: &Image) -> Result<(), Failure> {
    let (os, architecture) =
        (image.config.os().to_string(), image.config.architecture().to_string());
    if NormalPlatform::of(&os, &architecture, None).is_of_host() {
        return Ok(());
    }
    let host = NormalPlatform::host();
    Err(Failure::failed(format!(
        "image '{}' is for {}/{}, and this machine needs {}/{}",
        image.reference.familiar(),
        escape(&os),
        escape(&architecture),
        host.os,
        host.architecture
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ImageName {
        text.parse().unwrap()
    }

    #[test]
    fn digits_of_an_id_are_told_from_names() {
        let whole = "a1".repeat(32);
        for id in ["c4476e3e7e56", "sha256:c447", &whole, &format!("sha256:{whole}")] {
            assert!(name(id).is_id(), "{id}");
            assert_eq!(name(id).familiar(), id);
        }
        // They may be names, and are pulled if no ID starts with them.
        for word in ["cafe", "c447", "deadbeefcafe"] {
            assert!(name(word).digits.is_some() && !name(word).is_id(), "{word}");
        }
        for word in ["abc", "debian", "cafe:1", "me/cafe", "sha256:xyz", "cafe@x"] {
            let parsed = word.parse::<ImageName>();
            assert!(parsed.is_ok_and(|parsed| parsed.digits.is_none()) || word.contains('@'));
        }
    }

    fn put(store: &Store, reference: &str, digest: &str) {
        let record = RefRecord {
            reference: reference.parse::<Reference>().unwrap().to_string(),
            manifest_digest: format!("sha256:{digest}").parse().unwrap(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            other: serde_json::Map::new(),
        };
        let path = store.ref_path(&reference.parse().unwrap());
        std::fs::write(path, serde_json::to_string(&record).unwrap()).unwrap();
    }

    #[test]
    fn digits_of_several_images_are_an_error_that_lists_them() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().to_owned());
        std::fs::create_dir(store.refs()).unwrap();
        let (one, two) = ("abcd".to_owned() + &"1".repeat(60), "abcd".to_owned() + &"2".repeat(60));
        put(&store, "one", &one);
        put(&store, "also:1", &one);
        put(&store, "two", &two);
        let error = store.named(&name("abcd")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "'abcd' is the start of several images: \
             also:1 (digest abcd11111111, ID abcd11111111), \
             one:latest (digest abcd11111111, ID abcd11111111), \
             two:latest (digest abcd22222222, ID abcd22222222)"
        );
        let names = |text: &str| -> Vec<String> {
            let records = store.named(&name(text)).unwrap();
            records.into_iter().map(|record| record.reference).collect()
        };
        assert_eq!(names("abcd1"), ["docker.io/library/also:1", "docker.io/library/one:latest"]);
        assert_eq!(names("sha256:abcd2"), ["docker.io/library/two:latest"]);
        assert_eq!(names(&format!("one@sha256:{one}")), ["docker.io/library/one:latest"]);
        assert!(names(&format!("one@sha256:{two}")).is_empty());
        put(&store, "abcd", &two);
        assert_eq!(names("abcd"), ["docker.io/library/abcd:latest"]);
    }
}
