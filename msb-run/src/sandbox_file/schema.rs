//! The schema of a sandbox file, and the check of a document against it.
//!
//! The schema is the source of the names and types. The check knows the keywords that the schema
//! uses, since a validator of all keywords would bring a hundred crates.

use std::fmt::Write;

use serde_json::{Map, Value};

/// The schema, as printed by `msb config schema`.
pub(crate) const TEXT: &str = include_str!("schema.json");

/// Checks a document. The error names the field, and contains no value of the document.
pub(super) fn check(document: &Value) -> Result<(), String> {
    let schema: Value = serde_json::from_str(TEXT).map_err(|error| error.to_string())?;
    Schema { root: &schema }.check(&schema, document, "")
}

struct Schema<'a> {
    root: &'a Value,
}

impl Schema<'_> {
    fn check(&self, schema: &Value, value: &Value, path: &str) -> Result<(), String> {
        if let Some(reference) = schema["$ref"].as_str() {
            let target = self.root.pointer(reference.trim_start_matches('#'));
            self.check(target.unwrap_or(&Value::Null), value, path)?;
        }
        check_type(&schema["type"], value, path)?;
        if let Some(words) = schema["enum"].as_array()
            && !words.contains(value)
        {
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            return Err(format!("{} must be one of {}", name(path), words.join(", ")));
        }
        if let Some(only) = schema.get("const")
            && only != value
        {
            return Err(format!("{} must be {only}", name(path)));
        }
        check_range(schema, value, path)?;
        match value {
            Value::Object(fields) => self.check_fields(schema, fields, path),
            Value::Array(items) => {
                let mut items = items.iter().enumerate();
                items.try_for_each(|(index, item)| {
                    self.check(&schema["items"], item, &join(path, &index.to_string()))
                })
            }
            _ => Ok(()),
        }
    }

    fn check_fields(
        &self,
        schema: &Value,
        fields: &Map<String, Value>,
        path: &str,
    ) -> Result<(), String> {
        for required in schema["required"].as_array().into_iter().flatten() {
            let required = required.as_str().unwrap_or_default();
            if !fields.contains_key(required) {
                return Err(format!("{} is missing", name(&join(path, required))));
            }
        }
        for (key, field) in fields {
            let path = join(path, key);
            match (schema["properties"].get(key), &schema["additionalProperties"]) {
                (Some(property), _) => self.check(property, field, &path)?,
                (None, Value::Bool(false)) => return Err(unknown(schema, &path)),
                (None, others) => self.check(others, field, &path)?,
            }
        }
        Ok(())
    }
}

/// Returns the error of an unknown field, with the names that exist there.
fn unknown(schema: &Value, path: &str) -> String {
    let mut error = format!("{} is unknown", name(path));
    if let Some(properties) = schema["properties"].as_object().filter(|_| path.contains('.')) {
        let names: Vec<&str> = properties.keys().map(String::as_str).collect();
        let _ = write!(error, "; the fields there are {}", names.join(", "));
    }
    error
}

fn check_type(expected: &Value, value: &Value, path: &str) -> Result<(), String> {
    let words: Vec<&str> = match expected {
        Value::String(word) => vec![word],
        Value::Array(words) => words.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let fits = |word: &&str| match *word {
        "integer" => value.is_u64() || value.is_i64(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        _ => false,
    };
    if words.iter().any(fits) {
        return Ok(());
    }
    Err(format!("{} must be of the type {}", name(path), words.join(" or ")))
}

fn check_range(schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    let Value::Number(number) = value else {
        return Ok(());
    };
    let number = number.as_i64().unwrap_or(i64::MAX);
    let (least, most) = (schema["minimum"].as_i64(), schema["maximum"].as_i64());
    if let Some(least) = least.filter(|least| number < *least) {
        return Err(format!("{} must be at least {least}", name(path)));
    }
    match most.filter(|most| number > *most) {
        Some(most) => Err(format!("{} must be at most {most}", name(path))),
        None => Ok(()),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn name(path: &str) -> String {
    if path.is_empty() {
        "the document".to_owned()
    } else {
        format!("the field '{}'", libmsb::cli::escape::escape(path))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_invalid_field_is_named_and_its_value_is_not() {
        for (document, error) in [
            (json!([]), "the document must be of the type object"),
            (json!({"cpu": 1}), "the field 'cpu' is unknown"),
            (json!({"cpus": "secret"}), "the field 'cpus' must be of the type integer"),
            (json!({"cpus": 0}), "the field 'cpus' must be at least 1"),
            (json!({"cpus": 256}), "the field 'cpus' must be at most 255"),
            (json!({"version": 2}), "the field 'version' must be 1"),
            (json!({"engine": "secret"}), "the field 'engine' must be one of auto, krun, qemu"),
            (json!({"image": {}}), "the field 'image.reference' is missing"),
            (json!({"labels": {"a": 1}}), "the field 'labels.a' must be of the type string"),
            (json!({"env": ["A=1", 2]}), "the field 'env.1' must be of the type string or object"),
            (
                json!({"main": {"secret": 1}}),
                "the field 'main.secret' is unknown; the fields there are rlimits, timeout_ms",
            ),
            (json!({"workdir": {"hexx": "00"}}), "the field 'workdir.hex' is missing"),
        ] {
            assert_eq!(check(&document).unwrap_err(), error);
        }
        check(&json!({"image": "alpine", "workdir": {"hex": "2fff"}, "labels": {"a": "b"}}))
            .unwrap();
    }

    /// Calls a function with the schema of every field.
    fn visit(schema: &Value, path: &str, seen: &mut dyn FnMut(&str, &Value)) {
        if let Some(properties) = schema["properties"].as_object() {
            for (key, property) in properties {
                let path = join(path, key);
                seen(&path, property);
                visit(property, &path, seen);
            }
        }
        visit_items(schema, path, seen);
    }

    fn visit_items(schema: &Value, path: &str, seen: &mut dyn FnMut(&str, &Value)) {
        if schema["items"].is_object() {
            visit(&schema["items"], path, seen);
        }
    }

    #[test]
    fn every_keyword_of_the_schema_is_checked_and_every_field_described() {
        let known = [
            "$defs",
            "$ref",
            "$schema",
            "additionalProperties",
            "const",
            "description",
            "enum",
            "items",
            "maximum",
            "minimum",
            "properties",
            "required",
            "title",
            "type",
        ];
        let root: Value = serde_json::from_str(TEXT).unwrap();
        let mut fields = 0;
        let mut seen = |path: &str, schema: &Value| {
            fields += 1;
            for keyword in schema.as_object().unwrap().keys() {
                assert!(known.contains(&keyword.as_str()), "{path}: {keyword}");
            }
            let described = schema.get("description").or(schema.get("$ref"));
            assert!(described.is_some(), "{path} has no description");
        };
        visit(&root, "", &mut seen);
        assert!(fields > 60, "{fields}");
    }
}
