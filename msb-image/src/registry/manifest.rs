//! Manifests and indexes of a registry: parsing, validation and choice of a platform.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::digest::Digest;
use libmsb::platform::NormalPlatform;
use libmsb::state::images;
use serde::Deserialize;

use crate::document::{Descriptor, ManifestDocument, Platform};
use crate::limits::{IMAGE_LAYERS_MAX, LAYER_TAR_BYTES_MAX};

/// Bytes of a manifest or an index: the minimum that registries must accept, and Docker's maximum.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// A parsed manifest or index.
#[derive(Debug)]
pub(crate) enum ParsedManifest {
    Image(ImageManifest),
    Index(Vec<Descriptor>),
}

/// A validated manifest of an image.
#[derive(Debug)]
pub(crate) struct ImageManifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// The platform to choose from an index, in its normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedPlatform(NormalPlatform);

/// Result of a choice from an index.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum IndexChoice {
    /// The manifest of the platform.
    Manifest(Descriptor),
    /// Nested indexes that may contain the platform.
    Indexes(Vec<Descriptor>),
}

/// Parses and validates a manifest or an index.
pub(crate) fn parse(bytes: &[u8]) -> Result<ParsedManifest> {
    refuse_schema_1(bytes)?;
    let document = ManifestDocument::parse(bytes)?;
    if let Some(manifests) = document.manifests {
        return Ok(ParsedManifest::Index(manifests));
    }
    let config = document.config.context("not an image: the manifest has no configuration")?;
    check_config(&config)?;
    let layers = document.layers.unwrap_or_default();
    ensure!(layers.len() <= IMAGE_LAYERS_MAX, "the image has more than {IMAGE_LAYERS_MAX} layers");
    for (number, layer) in layers.iter().enumerate() {
        check_layer(layer).with_context(|| format!("layer {} ({})", number + 1, layer.digest))?;
    }
    images::check_manifest(bytes)?;
    Ok(ParsedManifest::Image(ImageManifest { config, layers }))
}

/// Rejects schema 1, the format before 2016: it has no digests of its own, only signatures.
fn refuse_schema_1(bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        schema_version: Option<u64>,
    }
    let version: Version = serde_json::from_slice(bytes).context("cannot parse the manifest")?;
    if version.schema_version == Some(1) {
        return Err(Failure::failed("unsupported manifest format: schema 1 (before 2016)")
            .hint("push the image again with a current program")
            .into());
    }
    Ok(())
}

fn check_config(config: &Descriptor) -> Result<()> {
    let known = [
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
        // Some old programs write only this.
        "application/octet-stream",
        "application/json",
    ];
    let kind = config.media_type.as_str();
    ensure!(kind.is_empty() || known.contains(&kind), "not an image, but '{}'", escape(kind));
    ensure!(
        config.size > 0 && config.size <= MANIFEST_BYTES_MAX,
        "the configuration has {} bytes; the limit is {MANIFEST_BYTES_MAX}",
        config.size
    );
    Ok(())
}

fn check_layer(layer: &Descriptor) -> Result<()> {
    let kind = layer.media_type.as_str();
    ensure!(
        !kind.contains("foreign") && !kind.contains("nondistributable"),
        "unsupported foreign layer, which is not in the registry"
    );
    let known = kind.is_empty()
        || kind == "application/octet-stream"
        || ["tar", "tar.gzip", "tar+gzip", "tar+zstd", "tar.zstd"]
            .iter()
            .any(|ending| kind.ends_with(&format!(".{ending}")));
    ensure!(known, "unsupported layer type '{}'", escape(kind));
    ensure!(
        layer.size > 0 && layer.size <= LAYER_TAR_BYTES_MAX,
        "invalid size in the manifest: {} bytes",
        layer.size
    );
    Ok(())
}

/// Chooses a manifest from an index.
pub(crate) fn choose(manifests: Vec<Descriptor>, wanted: &WantedPlatform) -> Result<IndexChoice> {
    let images: Vec<Descriptor> =
        manifests.into_iter().filter(|descriptor| !descriptor.is_attestation()).collect();
    let fitting = images.iter().filter(|image| {
        let platform = image.platform.as_ref();
        platform.is_some_and(|platform| wanted.fits(platform))
    });
    // Of several matching variants: the one requested, otherwise the first.
    if let Some(best) = fitting.min_by_key(|image| !wanted.is_exactly(image.platform.as_ref())) {
        return Ok(if is_index(best) {
            IndexChoice::Indexes(vec![best.clone()])
        } else {
            IndexChoice::Manifest(best.clone())
        });
    }
    let (indexes, nameless): (Vec<Descriptor>, Vec<Descriptor>) =
        images.iter().filter(|image| image.platform.is_none()).cloned().partition(is_index);
    match (indexes.is_empty(), nameless.as_slice()) {
        (false, _) => Ok(IndexChoice::Indexes(indexes)),
        // Its configuration has the platform.
        (true, [only]) => Ok(IndexChoice::Manifest(only.clone())),
        _ => bail!("{}", none_for(wanted, &images)),
    }
}

fn none_for(wanted: &WantedPlatform, images: &[Descriptor]) -> String {
    let mut others: Vec<String> = images
        .iter()
        .filter_map(|image| image.platform.as_ref())
        .map(Platform::to_string)
        .collect();
    others.sort();
    others.dedup();
    let others = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
    format!("there is no image for {wanted}; available: {others}")
}

fn is_index(descriptor: &Descriptor) -> bool {
    descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list")
}

/// Checks the size and digest of a document.
pub(crate) fn check_document(bytes: &[u8], digest: &Digest, size: Option<u64>) -> Result<()> {
    if let Some(size) = size.filter(|size| *size > 0) {
        ensure!(bytes.len() as u64 == size, "{digest} has {} bytes instead of {size}", bytes.len());
    }
    let found = crate::stream::digest_of(bytes);
    ensure!(found == *digest, "{digest} has the digest {found}");
    Ok(())
}

impl WantedPlatform {
    /// Returns the platform of the host.
    pub(crate) fn host() -> WantedPlatform {
        WantedPlatform(NormalPlatform::host())
    }

    /// Returns whether an image of this platform matches. Without a requested variant any variant
    /// matches.
    pub(crate) fn fits(&self, platform: &Platform) -> bool {
        let (wanted, platform) = (&self.0, platform.normal());
        let variant = wanted.variant.is_none()
            || platform.variant.is_none()
            || wanted.variant == platform.variant;
        platform.os == wanted.os && platform.architecture == wanted.architecture && variant
    }

    fn is_exactly(&self, platform: Option<&Platform>) -> bool {
        platform.is_some_and(|platform| platform.normal().variant == self.0.variant)
    }
}

impl FromStr for WantedPlatform {
    type Err = Failure;

    fn from_str(text: &str) -> Result<WantedPlatform, Failure> {
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => ("", "", None),
        };
        if os.is_empty() || !parts.iter().all(plain) {
            return Err(Failure::usage(format!(
                "invalid platform '{}'; use OS/ARCH[/VARIANT], such as linux/amd64",
                escape(text)
            )));
        }
        Ok(WantedPlatform(NormalPlatform::of(os, architecture, variant)))
    }
}

impl fmt::Display for WantedPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NormalPlatform { os, architecture, variant } = &self.0;
        write!(f, "{os}/{architecture}")?;
        match variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

    fn digest(n: u8) -> String {
        Digest::of_bytes([n; 32]).to_string()
    }

    fn entry(n: u8, kind: &str, platform: Option<(&str, &str, Option<&str>)>) -> Value {
        let mut entry = json!({ "mediaType": kind, "digest": digest(n), "size": 1 });
        if let Some((os, architecture, variant)) = platform {
            entry["platform"] = json!({ "os": os, "architecture": architecture });
            if let Some(variant) = variant {
                entry["platform"]["variant"] = json!(variant);
            }
        }
        entry
    }

    fn chosen(entries: &[Value], wanted: &str) -> Result<Vec<Digest>> {
        let index = json!({ "schemaVersion": 2, "manifests": entries });
        let ParsedManifest::Index(manifests) = parse(index.to_string().as_bytes())? else {
            panic!("an index is no image")
        };
        Ok(match choose(manifests, &wanted.parse()?)? {
            IndexChoice::Manifest(one) => vec![one.digest],
            IndexChoice::Indexes(many) => many.into_iter().map(|one| one.digest).collect(),
        })
    }

    fn is(found: Result<Vec<Digest>>, expected: &[u8]) {
        let expected: Vec<Digest> = expected.iter().map(|n| Digest::of_bytes([*n; 32])).collect();
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn the_wanted_platform_is_chosen() {
        let entries = [
            entry(1, IMAGE, Some(("windows", "amd64", None))),
            entry(2, IMAGE, Some(("linux", "arm", Some("v6")))),
            entry(3, IMAGE, Some(("linux", "arm", Some("v7")))),
            entry(4, IMAGE, Some(("linux", "amd64", None))),
            entry(5, IMAGE, Some(("unknown", "unknown", None))),
        ];
        is(chosen(&entries, "linux/amd64"), &[4]);
        is(chosen(&entries, "linux/arm/v7"), &[3]);
        is(chosen(&entries, "linux/arm"), &[2]);
        let error = chosen(&entries, "linux/s390x").unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no image for linux/s390x; available: linux/amd64, linux/arm/v6, linux/arm/v7, windows/amd64"
        );
    }

    #[test]
    fn other_spellings_of_a_platform_are_the_same_platform() {
        let entries = [
            entry(1, IMAGE, Some(("Linux", "x86_64", Some("v4")))),
            entry(2, IMAGE, Some(("linux", "X86-64", Some("v1")))),
            entry(3, IMAGE, Some(("linux", "aarch64", Some("v8")))),
            entry(4, IMAGE, Some(("linux", "armel", None))),
            entry(5, IMAGE, Some(("linux", "armhf", None))),
            entry(6, IMAGE, Some(("linux", "i386", None))),
        ];
        for (wanted, expected) in [
            ("linux/amd64", 2),
            ("linux/x86_64", 2),
            ("Linux/AMD64/v4", 1),
            ("linux/arm64", 3),
            ("linux/aarch64/8", 3),
            ("linux/arm/6", 4),
            ("linux/armhf", 5),
            ("linux/386", 6),
        ] {
            is(chosen(&entries, wanted), &[expected]);
        }
    }

    #[test]
    fn attestations_are_skipped_and_nested_indexes_are_searched() {
        let mut attestation = entry(1, IMAGE, None);
        attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
        is(chosen(&[attestation.clone(), entry(2, IMAGE, None)], "linux/amd64"), &[2]);
        let nested = [attestation.clone(), entry(3, INDEX, None), entry(4, INDEX, None)];
        is(chosen(&nested, "linux/amd64"), &[3, 4]);
        assert!(chosen(&[attestation], "linux/amd64").is_err());
    }

    fn manifest(config_kind: &str, layer_kind: &str, layer_bytes: u64) -> Result<ParsedManifest> {
        let text = json!({
            "schemaVersion": 2,
            "config": { "mediaType": config_kind, "digest": digest(1), "size": 2 },
            "layers": [{ "mediaType": layer_kind, "digest": digest(2), "size": layer_bytes }],
        });
        parse(text.to_string().as_bytes())
    }

    #[test]
    fn only_images_with_supported_layers_are_accepted() {
        let config = "application/vnd.oci.image.config.v1+json";
        let layer = "application/vnd.oci.image.layer.v1.tar+zstd";
        assert!(manifest(config, layer, 9).is_ok());
        let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        assert!(manifest("application/vnd.docker.container.image.v1+json", docker, 9).is_ok());
        let refused = [
            ("application/vnd.cncf.helm.config.v1+json", layer, 9, "helm"),
            (
                config,
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                9,
                "foreign layer",
            ),
            (config, "application/vnd.oci.image.layer.nondistributable.v1.tar", 9, "foreign layer"),
            (
                config,
                "application/vnd.oci.image.layer.v1.tar+encrypted",
                9,
                "unsupported layer type",
            ),
            (config, layer, 0, "0 bytes"),
            (config, layer, u64::MAX, "bytes"),
        ];
        for (config, layer, bytes, words) in refused {
            let error = format!("{:#}", manifest(config, layer, bytes).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn schema_1_is_rejected_by_name() {
        let error = parse(br#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#).unwrap_err();
        assert!(error.to_string().contains("schema 1"), "{error}");
        for bad in [&b"[]"[..], b"<html>", b"{}", b"null"] {
            assert!(parse(bad).is_err());
        }
    }

    #[test]
    fn an_invalid_platform_is_rejected() {
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/am d64", "/x"] {
            assert!(bad.parse::<WantedPlatform>().is_err(), "{bad}");
        }
        assert_eq!("linux/arm/v7".parse::<WantedPlatform>().unwrap().to_string(), "linux/arm/v7");
    }
}
