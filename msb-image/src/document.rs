//! JSON documents of images: manifests, indexes and configurations, with the fields that msb reads.
//! Their bytes are stored unchanged.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use libmsb::cli::error::Failure;
use libmsb::digest::Digest;
use libmsb::platform::NormalPlatform;
use libmsb::reference::Reference;
use libmsb::state::image_json::{self, DocumentKind};
use libmsb::state::image_name::ImageName;
use libmsb::state::images;
use serde::{Deserialize, Serialize};

use crate::layer::index::LayerSummary;
use crate::limits::{IMAGE_LAYERS_MAX, REFERENCES_MAX};

pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// A manifest or an index. A document that is both is rejected, because its readers could disagree.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ManifestDocument {
    #[serde(default)]
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) layers: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manifests: Option<Vec<Descriptor>>,
}

/// A descriptor: the type, digest and size of another blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
}

/// The platform of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    /// Version of the architecture, such as `v7` of arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// The configuration of an image.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(flatten)]
    pub(crate) platform: Platform,
    pub(crate) rootfs: RootFs,
    #[serde(default)]
    pub(crate) config: Option<ProcessConfig>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RootFs {
    pub(crate) diff_ids: Vec<Digest>,
}

/// The part of a configuration that describes the process of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ProcessConfig {
    pub(crate) env: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) working_dir: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) stop_signal: Option<String>,
}

impl ManifestDocument {
    pub(crate) fn parse(bytes: &[u8]) -> Result<ManifestDocument> {
        let document: ManifestDocument = image_json::parse(bytes, DocumentKind::ManifestOrIndex)
            .context("cannot parse the manifest")?;
        let is_index = document.manifests.is_some();
        let is_manifest = document.layers.is_some() || document.config.is_some();
        ensure!(!(is_index && is_manifest), "the document is both a manifest and an index");
        if let Some(kind) = &document.media_type {
            let names_index = kind.contains("index") || kind.contains("manifest.list");
            let names_manifest = kind.contains("manifest.v");
            ensure!(
                !(names_index && is_manifest || names_manifest && is_index),
                "the document does not match its media type '{kind}'"
            );
        }
        Ok(document)
    }
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: None,
            platform: None,
        }
    }

    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Returns whether the descriptor names an attestation: build metadata that some tools put
    /// beside the images.
    pub(crate) fn is_attestation(&self) -> bool {
        self.annotation("vnd.docker.reference.type").is_some()
            || self
                .platform
                .as_ref()
                .is_some_and(|platform| platform.os.eq_ignore_ascii_case("unknown"))
    }
}

impl ImageConfig {
    /// Parses a configuration and checks that msb can run it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<ImageConfig> {
        let config: ImageConfig = image_json::parse(bytes, DocumentKind::Config)
            .context("cannot parse the configuration")?;
        ensure!(
            config.rootfs.diff_ids.len() <= IMAGE_LAYERS_MAX,
            "the image has more than {IMAGE_LAYERS_MAX} layers"
        );
        // What `msb run` would reject is rejected here.
        images::check_config(bytes)?;
        Ok(config)
    }

    pub(crate) fn check_platform(&self) -> Result<()> {
        if self.platform.is_of_host() {
            return Ok(());
        }
        bail!("the image is for {}, but this host needs {}", self.platform, Platform::host())
    }
}

impl Platform {
    /// Returns the platform of the host.
    pub(crate) fn host() -> Platform {
        let NormalPlatform { os, architecture, variant } = NormalPlatform::host();
        Platform { architecture, os, variant }
    }

    /// Returns the platform in its normal form, for comparisons.
    pub(crate) fn normal(&self) -> NormalPlatform {
        NormalPlatform::of(&self.os, &self.architecture, self.variant.as_deref())
    }

    /// Returns whether the host can run an image of this platform.
    pub(crate) fn is_of_host(&self) -> bool {
        self.normal().is_of_host()
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |text: &str| libmsb::cli::escape::escape(text).into_owned();
        write!(f, "{}/{}", shown(&self.os), shown(&self.architecture))?;
        match &self.variant {
            Some(variant) => write!(f, "/{}", shown(variant)),
            None => Ok(()),
        }
    }
}

/// Builds the manifest of an image that has none. It names the uncompressed layers, so the same
/// image has the same manifest however its layers were compressed.
pub(crate) fn manifest_for(
    config: &Digest,
    config_bytes: u64,
    layers: &[LayerSummary],
) -> Result<Vec<u8>> {
    let layers =
        layers.iter().map(|layer| Descriptor::new(LAYER_TYPE, layer.diff_id, layer.tar_bytes));
    manifest_of(config, config_bytes, layers.collect())
}

/// Builds a manifest for layers with any compression.
pub(crate) fn manifest_of(
    config: &Digest,
    config_bytes: u64,
    layers: Vec<Descriptor>,
) -> Result<Vec<u8>> {
    let document = ManifestDocument {
        schema_version: 2,
        media_type: Some(MANIFEST_TYPE.to_owned()),
        config: Some(Descriptor::new(CONFIG_TYPE, *config, config_bytes)),
        layers: Some(layers),
        manifests: None,
    };
    Ok(serde_json::to_vec(&document)?)
}

/// Parses the digest in a path such as `blobs/sha256/HEX`, `HEX.json` or `HEX.tar`.
pub(crate) fn digest_in_path(path: &str) -> Option<Digest> {
    let name = path.strip_prefix("blobs/sha256/").unwrap_or(path);
    let hex = name.strip_suffix(".json").or_else(|| name.strip_suffix(".tar")).unwrap_or(name);
    format!("sha256:{hex}").parse().ok()
}

/// Names that an archive gives to an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageNames {
    pub(crate) references: Vec<Reference>,
    /// Names that are not image references, each with the reason.
    pub(crate) rejected: Vec<(String, String)>,
}

impl ImageNames {
    /// Parses names. An empty one is no name.
    pub(crate) fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<ImageNames> {
        let mut names = ImageNames::default();
        for text in texts.into_iter().filter(|text| !text.is_empty()) {
            match text.parse() {
                Ok(reference) => names.add(reference)?,
                Err(failure) => names.reject(text, failure)?,
            }
        }
        Ok(names)
    }

    /// Adds the names of another list.
    pub(crate) fn extend(&mut self, other: ImageNames) -> Result<()> {
        for reference in other.references {
            self.add(reference)?;
        }
        for rejected in other.rejected {
            if !self.rejected.contains(&rejected) {
                self.rejected.push(rejected);
            }
        }
        self.check_count()
    }

    /// Returns whether there is no reference.
    pub(crate) fn is_empty(&self) -> bool {
        self.references.is_empty()
    }

    fn add(&mut self, reference: Reference) -> Result<()> {
        if !self.references.contains(&reference) {
            self.references.push(reference);
        }
        self.check_count()
    }

    fn reject(&mut self, text: &str, failure: Failure) -> Result<()> {
        if self.rejected.iter().all(|(rejected, _)| rejected != text) {
            self.rejected.push((text.to_owned(), failure.to_string()));
        }
        self.check_count()
    }

    fn check_count(&self) -> Result<()> {
        ensure!(
            self.references.len() + self.rejected.len() <= REFERENCES_MAX,
            "an image has more than {REFERENCES_MAX} names"
        );
        Ok(())
    }
}

/// Parses names of images and drops duplicates.
pub(crate) fn image_names<'a>(
    texts: impl IntoIterator<Item = &'a String>,
) -> Result<Vec<ImageName>> {
    let mut names = Vec::new();
    for text in texts {
        let name: ImageName = text.parse()?;
        if !names.contains(&name) {
            names.push(name);
        }
        ensure!(names.len() <= REFERENCES_MAX, "more than {REFERENCES_MAX} names of images");
    }
    Ok(names)
}

/// Parses references and drops duplicates.
pub(crate) fn references<'a>(
    texts: impl IntoIterator<Item = &'a String>,
) -> Result<Vec<Reference>> {
    let mut references = Vec::new();
    for text in texts {
        let reference: Reference = text.parse()?;
        if !references.contains(&reference) {
            references.push(reference);
        }
        ensure!(
            references.len() <= REFERENCES_MAX,
            "an image has more than {REFERENCES_MAX} names"
        );
    }
    Ok(references)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_cannot_be_a_manifest_and_an_index() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let layers = format!(r#"{{"layers":[{{"digest":"{digest}"}}],"manifests":[]}}"#);
        assert!(ManifestDocument::parse(layers.as_bytes()).is_err());
        let says = r#"{"mediaType":"application/vnd.oci.image.index.v1+json","layers":[]}"#;
        assert!(ManifestDocument::parse(says.as_bytes()).is_err());
        assert!(ManifestDocument::parse(br#"{"layers":[{"digest":"sha256:../../x"}]}"#).is_err());
        assert!(ManifestDocument::parse(br#"{"schemaVersion":2,"manifests":[]}"#).is_ok());
    }

    #[test]
    fn a_manifest_made_here_is_always_the_same() {
        let id = Digest::of_bytes([1; 32]);
        let layer = LayerSummary { diff_id: id, tar_bytes: 10, data_bytes: 0 };
        let text = String::from_utf8(manifest_for(&id, 5, &[layer]).unwrap()).unwrap();
        let hex = id.hex();
        let expected = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{{"mediaType":"{CONFIG_TYPE}","digest":"sha256:{hex}","size":5}},"layers":[{{"mediaType":"{LAYER_TYPE}","digest":"sha256:{hex}","size":10}}]}}"#
        );
        assert_eq!(text, expected);
        images::check_manifest(text.as_bytes()).unwrap();
    }

    #[test]
    fn digests_are_found_in_paths() {
        let hex = "a".repeat(64);
        for path in [
            hex.clone(),
            format!("{hex}.json"),
            format!("{hex}.tar"),
            format!("blobs/sha256/{hex}"),
        ] {
            assert_eq!(digest_in_path(&path).unwrap().hex(), hex);
        }
        assert!(digest_in_path("manifest.json").is_none());
    }
}
