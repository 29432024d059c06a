//! The JSON documents of images, as far as they are looked at. Their bytes are stored as they came.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use serde::{Deserialize, Serialize};

use crate::layer::index::Summary;
use crate::limits::{IMAGE_LAYERS_MAX, REFERENCES_MAX};

pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// A manifest or an index. One that is both at once is refused, for its readers could not agree what it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
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

/// What a document says of another blob.
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

/// For which machine an image is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    /// A version of the architecture, as `v7` of arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// The configuration of an image.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(flatten)]
    pub(crate) platform: Platform,
    pub(crate) rootfs: RootFs,
    #[serde(default)]
    pub(crate) config: Option<Process>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RootFs {
    pub(crate) diff_ids: Vec<Digest>,
}

/// What a container of the image runs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Process {
    pub(crate) env: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) working_dir: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) stop_signal: Option<String>,
}

impl Document {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Document> {
        let document: Document =
            serde_json::from_slice(bytes).context("cannot understand the manifest")?;
        let is_index = document.manifests.is_some();
        let is_manifest = document.layers.is_some() || document.config.is_some();
        ensure!(
            !(is_index && is_manifest),
            "the document is a manifest and an index at once"
        );
        if let Some(kind) = &document.media_type {
            let says_index = kind.contains("index") || kind.contains("manifest.list");
            let says_manifest = kind.contains("manifest.v");
            ensure!(
                !(says_index && is_manifest || says_manifest && is_index),
                "the document is not the '{kind}' that it says"
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

    /// Notes about a build, which some tools put beside the images.
    pub(crate) fn is_attestation(&self) -> bool {
        self.annotation("vnd.docker.reference.type").is_some()
            || self
                .platform
                .as_ref()
                .is_some_and(|platform| platform.os == "unknown")
    }
}

impl Config {
    /// Reads a configuration and checks that it can be run here.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Config> {
        let config: Config =
            serde_json::from_slice(bytes).context("cannot understand the configuration")?;
        ensure!(
            config.rootfs.diff_ids.len() <= IMAGE_LAYERS_MAX,
            "the image has more than {IMAGE_LAYERS_MAX} layers"
        );
        // Whoever runs the image reads it this way; so what would not do then is refused now.
        serde_json::from_slice::<oci_spec::image::ImageConfiguration>(bytes)
            .context("cannot understand the configuration")?;
        Ok(config)
    }

    pub(crate) fn check_platform(&self) -> Result<()> {
        if self.platform.is_of_host() {
            return Ok(());
        }
        bail!(
            "the image is for {}, and this machine needs {}",
            self.platform,
            Platform::host()
        )
    }
}

impl Platform {
    /// What this machine can run.
    pub(crate) fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Platform {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: None,
        }
    }

    /// Whether this machine can run it.
    pub(crate) fn is_of_host(&self) -> bool {
        let host = Platform::host();
        self.os == host.os && self.architecture == host.architecture
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

/// The manifest of an image that came without one. Its layers are named as they are unpacked, so that however they were
/// packed the same image has the same manifest.
pub(crate) fn manifest_for(
    config: &Digest,
    config_bytes: u64,
    layers: &[Summary],
) -> Result<Vec<u8>> {
    let layers = layers
        .iter()
        .map(|layer| Descriptor::new(LAYER_TYPE, layer.diff_id, layer.tar_bytes));
    manifest_of(config, config_bytes, layers.collect())
}

/// The manifest of layers that are packed in some way.
pub(crate) fn manifest_of(
    config: &Digest,
    config_bytes: u64,
    layers: Vec<Descriptor>,
) -> Result<Vec<u8>> {
    let document = Document {
        schema_version: 2,
        media_type: Some(MANIFEST_TYPE.to_owned()),
        config: Some(Descriptor::new(CONFIG_TYPE, *config, config_bytes)),
        layers: Some(layers),
        manifests: None,
    };
    Ok(serde_json::to_vec(&document)?)
}

/// The digest in a path like `blobs/sha256/HEX`, `HEX.json` or `HEX.tar`.
pub(crate) fn digest_in_path(path: &str) -> Option<Digest> {
    let name = path.strip_prefix("blobs/sha256/").unwrap_or(path);
    let hex = name
        .strip_suffix(".json")
        .or_else(|| name.strip_suffix(".tar"))
        .unwrap_or(name);
    format!("sha256:{hex}").parse().ok()
}

/// References from strings of an archive.
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
        assert!(Document::parse(layers.as_bytes()).is_err());
        let says = r#"{"mediaType":"application/vnd.oci.image.index.v1+json","layers":[]}"#;
        assert!(Document::parse(says.as_bytes()).is_err());
        assert!(Document::parse(br#"{"layers":[{"digest":"sha256:../../x"}]}"#).is_err());
        assert!(Document::parse(br#"{"schemaVersion":2,"manifests":[]}"#).is_ok());
    }

    #[test]
    fn a_manifest_made_here_is_always_the_same() {
        let id = Digest::of_bytes([1; 32]);
        let layer = Summary {
            diff_id: id,
            tar_bytes: 10,
            data_bytes: 0,
        };
        let text = String::from_utf8(manifest_for(&id, 5, &[layer]).unwrap()).unwrap();
        let hex = id.hex();
        let expected = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{{"mediaType":"{CONFIG_TYPE}","digest":"sha256:{hex}","size":5}},"layers":[{{"mediaType":"{LAYER_TYPE}","digest":"sha256:{hex}","size":10}}]}}"#
        );
        assert_eq!(text, expected);
        assert!(serde_json::from_str::<oci_spec::image::ImageManifest>(&text).is_ok());
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
