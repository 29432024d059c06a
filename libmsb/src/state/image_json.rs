//! JSON documents of images: manifests, indexes and configurations of many writers.
//!
//! Most writers and readers of images are Go programs. Go writes an absent list, map or string as
//! `null` and reads `null` as the empty value, at every depth. [`parse`] reads a document in the
//! same way. A value of another type is an error that names the field, such as `config.Env[1]`.

use anyhow::bail;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::cli::escape::escape;
use crate::digest::Digest;

/// Type of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentKind {
    /// A configuration.
    Config,
    /// A manifest of an image.
    Manifest,
    /// A manifest or an index.
    ManifestOrIndex,
    /// `manifest.json` of a docker-archive.
    DockerManifest,
}

/// Expected type of a value.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Text,
    Number,
    Flag,
    /// A digest, which must be present and valid.
    Digest,
    /// A map of strings.
    TextMap,
    /// A map of empty objects, used as a set.
    KeySet,
    /// A list of strings; `null` is the empty string.
    Texts,
    /// A list of strings without its `null` entries.
    Variables,
    /// A list of strings, or one string.
    Words,
    /// A list of digests.
    Digests,
    /// An object with known fields.
    Object(&'static [Field]),
    /// A list of such objects.
    Objects(&'static [Field]),
}

/// A field of an object.
#[derive(Debug)]
struct Field {
    name: &'static str,
    shape: Shape,
    presence: Presence,
}

/// Treatment of a field that is absent or `null`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// `null` counts as absent.
    Optional,
    /// `null` is the empty value. An absent field is left to the reader.
    Required,
    /// An absent field and `null` are the empty value.
    Defaulted,
}

const fn optional(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, presence: Presence::Optional }
}

const fn required(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, presence: Presence::Required }
}

const fn defaulted(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, presence: Presence::Defaulted }
}

const PLATFORM: &[Field] = &[
    required("architecture", Shape::Text),
    required("os", Shape::Text),
    optional("os.version", Shape::Text),
    optional("os.features", Shape::Texts),
    optional("variant", Shape::Text),
    optional("features", Shape::Texts),
];

const DESCRIPTOR: &[Field] = &[
    required("mediaType", Shape::Text),
    required("digest", Shape::Digest),
    required("size", Shape::Number),
    optional("urls", Shape::Texts),
    optional("annotations", Shape::TextMap),
    optional("platform", Shape::Object(PLATFORM)),
    optional("artifactType", Shape::Text),
    optional("data", Shape::Text),
];

const MANIFEST: &[Field] = &[
    required("schemaVersion", Shape::Number),
    optional("mediaType", Shape::Text),
    optional("artifactType", Shape::Text),
    optional("config", Shape::Object(DESCRIPTOR)),
    required("layers", Shape::Objects(DESCRIPTOR)),
    optional("subject", Shape::Object(DESCRIPTOR)),
    optional("annotations", Shape::TextMap),
];

const MANIFEST_OR_INDEX: &[Field] = &[
    required("schemaVersion", Shape::Number),
    optional("mediaType", Shape::Text),
    optional("artifactType", Shape::Text),
    optional("config", Shape::Object(DESCRIPTOR)),
    optional("layers", Shape::Objects(DESCRIPTOR)),
    optional("manifests", Shape::Objects(DESCRIPTOR)),
    optional("subject", Shape::Object(DESCRIPTOR)),
    optional("annotations", Shape::TextMap),
];

const CONFIG: &[Field] = &[
    optional("created", Shape::Text),
    optional("author", Shape::Text),
    required("architecture", Shape::Text),
    required("os", Shape::Text),
    optional("os.version", Shape::Text),
    optional("os.features", Shape::Texts),
    optional("variant", Shape::Text),
    optional("config", Shape::Object(PROCESS)),
    required("rootfs", Shape::Object(ROOT_FS)),
    optional("history", Shape::Objects(HISTORY)),
];

const PROCESS: &[Field] = &[
    optional("User", Shape::Text),
    optional("ExposedPorts", Shape::KeySet),
    optional("Env", Shape::Variables),
    optional("Entrypoint", Shape::Words),
    optional("Cmd", Shape::Words),
    optional("Volumes", Shape::KeySet),
    optional("WorkingDir", Shape::Text),
    optional("Labels", Shape::TextMap),
    optional("StopSignal", Shape::Text),
];

const ROOT_FS: &[Field] = &[defaulted("type", Shape::Text), required("diff_ids", Shape::Digests)];

const HISTORY: &[Field] = &[
    optional("created", Shape::Text),
    optional("author", Shape::Text),
    optional("created_by", Shape::Text),
    optional("comment", Shape::Text),
    optional("empty_layer", Shape::Flag),
];

const DOCKER_IMAGE: &[Field] = &[
    required("Config", Shape::Text),
    optional("RepoTags", Shape::Texts),
    optional("Layers", Shape::Texts),
];

/// Parses a document.
pub fn parse<T: DeserializeOwned>(bytes: &[u8], kind: DocumentKind) -> anyhow::Result<T> {
    let mut value: Value = serde_json::from_slice(bytes)?;
    let shape = match kind {
        DocumentKind::Config => Shape::Object(CONFIG),
        DocumentKind::Manifest => Shape::Object(MANIFEST),
        DocumentKind::ManifestOrIndex => Shape::Object(MANIFEST_OR_INDEX),
        DocumentKind::DockerManifest => Shape::Objects(DOCKER_IMAGE),
    };
    if value.is_null() {
        bail!("the document is null");
    }
    shape.normalize(&mut value, "")?;
    Ok(serde_json::from_value(value)?)
}

impl Shape {
    /// Checks a value and replaces each `null` by the empty value.
    fn normalize(self, value: &mut Value, path: &str) -> anyhow::Result<()> {
        if value.is_null() {
            *value = self.empty();
        }
        match (self, &mut *value) {
            (Shape::Text, Value::String(_)) | (Shape::Flag, Value::Bool(_)) => Ok(()),
            (Shape::Number, Value::Number(number)) if number.is_u64() => Ok(()),
            (Shape::Number, Value::Number(number)) => {
                bail!("'{path}' is {number}, not a whole number from 0")
            }
            (Shape::Digest, Value::String(text)) => match text.parse::<Digest>() {
                _ if text.is_empty() => bail!("'{path}' is empty"),
                Err(error) => bail!("'{path}' is '{}': {error}", escape(text)),
                Ok(_) => Ok(()),
            },
            (Shape::TextMap, Value::Object(map)) => members(map, Shape::Text, path),
            (Shape::KeySet, Value::Object(map)) => {
                members(map, Shape::Object(&[]), path)?;
                map.values_mut().for_each(|member| *member = Value::Object(Map::new()));
                Ok(())
            }
            (Shape::Variables, Value::Array(list)) => {
                list.retain(|entry| !entry.is_null());
                entries(list, Shape::Text, path)
            }
            (Shape::Words, Value::String(word)) => {
                *value = Value::Array(vec![Value::String(std::mem::take(word))]);
                Ok(())
            }
            (Shape::Texts | Shape::Words, Value::Array(list)) => entries(list, Shape::Text, path),
            (Shape::Digests, Value::Array(list)) => entries(list, Shape::Digest, path),
            (Shape::Objects(fields), Value::Array(list)) => {
                entries(list, Shape::Object(fields), path)
            }
            (Shape::Object(fields), Value::Object(object)) => {
                normalize_fields(object, fields, path)
            }
            (shape, value) => {
                let path =
                    if path.is_empty() { "the document".to_owned() } else { format!("'{path}'") };
                bail!("{path} is {}, not {}", name_of(value), shape.name())
            }
        }
    }

    /// Returns the value that `null` stands for.
    fn empty(self) -> Value {
        match self {
            Shape::Text | Shape::Digest => Value::String(String::new()),
            Shape::Number => Value::from(0),
            Shape::Flag => Value::Bool(false),
            Shape::TextMap | Shape::KeySet | Shape::Object(_) => Value::Object(Map::new()),
            Shape::Texts | Shape::Variables | Shape::Words | Shape::Digests | Shape::Objects(_) => {
                Value::Array(Vec::new())
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Shape::Text | Shape::Digest => "a string",
            Shape::Number => "a number",
            Shape::Flag => "true or false",
            Shape::TextMap | Shape::KeySet | Shape::Object(_) => "an object",
            _ => "a list",
        }
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Normalizes the fields of an object that are present.
fn normalize_fields(
    object: &mut Map<String, Value>,
    fields: &[Field],
    path: &str,
) -> anyhow::Result<()> {
    for field in fields {
        let path = join(path, field.name);
        match object.get_mut(field.name) {
            Some(Value::Null) if field.presence == Presence::Optional => {
                object.remove(field.name);
            }
            Some(value) => field.shape.normalize(value, &path)?,
            None if field.presence == Presence::Defaulted => {
                object.insert(field.name.to_owned(), field.shape.empty());
            }
            None if matches!(field.shape, Shape::Digest) => bail!("'{path}' is missing"),
            None => {}
        }
    }
    Ok(())
}

fn members(map: &mut Map<String, Value>, shape: Shape, path: &str) -> anyhow::Result<()> {
    for (name, member) in map.iter_mut() {
        shape.normalize(member, &join(path, &escape(name)))?;
    }
    Ok(())
}

fn entries(list: &mut [Value], shape: Shape, path: &str) -> anyhow::Result<()> {
    for (number, entry) in list.iter_mut().enumerate() {
        shape.normalize(entry, &format!("{path}[{number}]"))?;
    }
    Ok(())
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{ImageConfiguration, ImageManifest};
    use serde_json::json;

    use super::*;

    fn digest() -> String {
        format!("sha256:{}", "a".repeat(64))
    }

    #[test]
    fn null_is_the_empty_value_at_every_depth() {
        let text = json!({
            "created": null, "architecture": "amd64", "os": "linux", "os.features": [null],
            "config": {
                "User": null, "Env": ["A=1", null], "Cmd": ["/bin/sh", null], "Entrypoint": null,
                "Volumes": { "/d": null }, "ExposedPorts": { "80/tcp": null },
                "Labels": { "a": null }, "OnBuild": [null], "Healthcheck": null,
            },
            "rootfs": { "type": null, "diff_ids": null },
            "history": [null, { "created_by": null, "empty_layer": null }],
        });
        let config: ImageConfiguration =
            parse(text.to_string().as_bytes(), DocumentKind::Config).unwrap();
        let process = config.config().as_ref().unwrap();
        assert_eq!(process.env().as_ref().unwrap(), &["A=1"]);
        assert_eq!(process.cmd().as_ref().unwrap(), &["/bin/sh", ""]);
        assert_eq!(process.volumes().as_ref().unwrap(), &["/d"]);
        assert_eq!(process.labels().as_ref().unwrap()["a"], "");
        assert_eq!(config.history().as_ref().unwrap().len(), 2);
        let text = json!({
            "schemaVersion": 2, "mediaType": null, "annotations": { "x": null },
            "config": { "mediaType": null, "digest": digest(), "size": 1, "annotations": null },
            "layers": null, "subject": null,
        });
        let manifest: ImageManifest =
            parse(text.to_string().as_bytes(), DocumentKind::Manifest).unwrap();
        assert!(manifest.layers().is_empty());
    }

    #[test]
    fn an_error_names_the_field() {
        let error = |kind, text: Value| {
            let error = parse::<Value>(text.to_string().as_bytes(), kind).unwrap_err();
            format!("{error:#}")
        };
        for (text, expected) in [
            (
                json!({ "config": { "Env": ["A=1", 2] } }),
                "'config.Env[1]' is a number, not a string",
            ),
            (json!({ "config": { "Cmd": {} } }), "'config.Cmd' is an object, not a list"),
            (json!({ "config": { "Volumes": [] } }), "'config.Volumes' is a list, not an object"),
            (json!({ "rootfs": { "diff_ids": [null] } }), "'rootfs.diff_ids[0]' is empty"),
            (json!([]), "the document is a list, not an object"),
        ] {
            assert_eq!(error(DocumentKind::Config, text), expected);
        }
        let layers = json!({ "layers": [{ "digest": digest() }, {}] });
        assert_eq!(error(DocumentKind::ManifestOrIndex, layers), "'layers[1].digest' is missing");
        let wrong = json!({ "manifests": [{ "digest": "x" }] });
        assert!(
            error(DocumentKind::ManifestOrIndex, wrong)
                .starts_with("'manifests[0].digest' is 'x': a digest must")
        );
    }
}
