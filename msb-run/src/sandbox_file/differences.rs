//! Comparison of a sandbox file with a sandbox that exists.

use std::collections::BTreeSet;

use libmsb::state::spec::Spec;
use serde_json::Value;

use super::{SandboxFile, net};

/// Fields of the identity of a sandbox, and those with another form in a file.
const NOT_COMPARED: [&str; 10] = [
    "version",
    "name",
    "created_at",
    "machine_id",
    "snapshot",
    "image",
    "root_folder",
    "root_image",
    "mounts",
    "ephemeral",
];

impl SandboxFile {
    /// Returns the fields that a sandbox does not have as they are written.
    pub(crate) fn differences(&self, spec: &Spec) -> anyhow::Result<Vec<String>> {
        let existing = serde_json::to_value(spec)?;
        let mut differ: BTreeSet<String> = BTreeSet::new();
        for (key, written) in self.written.as_object().into_iter().flatten() {
            let is_same = match key.as_str() {
                "net" => has_net(written, spec)?,
                key => NOT_COMPARED.contains(&key) || holds(written, &existing[key], key),
            };
            if !is_same {
                differ.insert(key.clone());
            }
        }
        let has = |mount| spec.mounts.contains(mount);
        if !self.mounts.iter().all(has) {
            differ.insert("mounts".to_owned());
        }
        Ok(differ.into_iter().collect())
    }
}

/// Returns whether a written network is that of the specification.
fn has_net(written: &Value, spec: &Spec) -> anyhow::Result<bool> {
    if written["enabled"] == Value::Bool(false) {
        return Ok(!spec.net.enabled);
    }
    Ok(net(written, &spec.net)? == spec.net)
}

/// Returns whether a written value is that of the specification, which may have more fields, and
/// more variables.
fn holds(written: &Value, existing: &Value, key: &str) -> bool {
    match (written, existing) {
        (Value::Object(written), existing) => {
            written.iter().all(|(key, written)| holds(written, &existing[key], key))
        }
        (Value::Array(written), Value::Array(existing)) if key == "env" || key == "directories" => {
            written.iter().all(|item| existing.contains(item))
        }
        (Value::Array(written), Value::Array(existing)) if key == "changes" => {
            // Paths on the host are absolute in the specification.
            written.len() == existing.len()
        }
        (written, Value::Null) => is_default(written, key),
        (written, existing) => written == existing,
    }
}

/// Returns whether a value is the default, which the specification omits.
fn is_default(value: &Value, key: &str) -> bool {
    match value {
        Value::Bool(is_on) => !is_on,
        Value::Array(items) => items.is_empty(),
        Value::String(word) => {
            matches!((key, word.as_str()), ("security", "default") | ("kind", "managed"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;
    use super::*;

    #[test]
    fn fields_that_differ_are_named() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "version": 1, "name": "a", "created_at": "2026-11-23T14:05:09+00:00",
            "image": {"reference": "x", "manifest_digest": format!("sha256:{}", "0".repeat(64))},
            "cpus": 1, "memory_mib": 512, "upper_mib": 4096, "hostname": "a",
            "env": ["PATH=/bin", "A=1"], "labels": {"team": "ml"}, "command": ["sh"],
            "mounts": [{"target": "/t", "kind": "tmpfs"}]
        }))
        .unwrap();
        let differences = |text| parse(text, Path::new("")).unwrap().differences(&spec).unwrap();
        let same = "name: b\nimage: y\ncpus: 1\nenv: [A=1]\nlabels: {team: ml}\ncommand: [sh]\n\
                    mounts: [{target: /t, kind: tmpfs}]\nguest: {security: default, shell: }\n";
        assert_eq!(differences(same), [""; 0]);
        let other = "cpus: 2\nenv: [A=2]\nlabels: {team: x}\ncommand: [ls]\n\
                     mounts: [{target: /u, kind: tmpfs}]\nguest: {security: restricted}\n";
        let all = ["command", "cpus", "env", "guest", "labels", "mounts"];
        assert_eq!(differences(other), all);
    }
}
