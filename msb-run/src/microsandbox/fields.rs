//! Single fields of a stored configuration: parsing, and the list of unsupported ones.

use std::collections::BTreeMap;
use std::fmt;

use libmsb::cli::error::{Code, Failure};
use libmsb::cli::escape::escape;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A field that sandboxes of msb do not support.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UnsupportedField {
    /// Names from the top of the document, separated by dots; an array entry is its index.
    path: String,
    /// Description of the unsupported part.
    reason: String,
    omission: Omission,
}

/// Effect of leaving a field out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Omission {
    /// The sandbox lacks something, and is not less restricted.
    Allowed,
    /// The sandbox could do more than the stored one. The user can change the file as said here.
    Refused(&'static str),
}

impl UnsupportedField {
    pub(super) fn new(
        path: impl Into<String>,
        reason: impl Into<String>,
        omission: Omission,
    ) -> UnsupportedField {
        UnsupportedField { path: path.into(), reason: reason.into(), omission }
    }

    /// Returns the change of the file that makes the import possible, if the field cannot be left
    /// out.
    fn remedy(&self) -> Option<&'static str> {
        match self.omission {
            Omission::Allowed => None,
            Omission::Refused(remedy) => Some(remedy),
        }
    }
}

impl fmt::Display for UnsupportedField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", escape(&self.path), self.reason)
    }
}

/// Checks that exactly the unsupported fields are left out, and that each can be.
pub(super) fn check(
    unsupported: &[UnsupportedField],
    left_out: &[String],
    file: &str,
) -> Result<(), Failure> {
    let known = |name: &&String| unsupported.iter().all(|field| field.path != **name);
    if let Some(name) = left_out.iter().find(known) {
        let message = format!("cannot leave out '{}': not an unsupported field", escape(name));
        let remaining: Vec<&UnsupportedField> = unsupported.iter().collect();
        let failure = Failure::usage(message);
        return Err(match paths(&remaining) {
            Some(names) => failure.hint(format!("the unsupported fields are {names}")),
            None => failure.hint(format!("'{file}' can be imported without --leave-out")),
        });
    }
    let missing: Vec<&UnsupportedField> =
        unsupported.iter().filter(|field| !left_out.contains(&field.path)).collect();
    let kept = unsupported.iter().filter(|field| left_out.contains(&field.path));
    if let Some((field, remedy)) = kept.clone().find_map(|field| Some((field, field.remedy()?))) {
        let path = escape(&field.path);
        return Err(Failure::failed(format!(
            "cannot leave out '{path}': the sandbox would be less restricted than the stored one"
        ))
        .code(Code::UnsupportedOperation)
        .hint(format!("{remedy} in '{file}'")));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let failure = Failure::failed(format!(
        "cannot import '{file}': unsupported fields: {}",
        names.join(", ")
    ))
    .code(Code::UnsupportedOperation);
    let remedy = missing.iter().find_map(|field| field.remedy());
    Err(match (remedy, paths(&unsupported.iter().collect::<Vec<_>>())) {
        (Some(remedy), _) => failure.hint(format!("{remedy} in '{file}'")),
        (None, Some(names)) => {
            failure.hint(format!("create the sandbox without them: --leave-out {names}"))
        }
        (None, None) => failure,
    })
}

/// Returns the paths of the fields, if there are any.
fn paths(fields: &[&UnsupportedField]) -> Option<String> {
    let paths: Vec<_> = fields.iter().map(|field| escape(&field.path)).collect();
    (!paths.is_empty()).then(|| paths.join(","))
}

/// Takes a field out. Returns `None` if it is missing or null.
pub(super) fn take_field<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<T>, String> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => parse(value, name).map(Some),
    }
}

/// Parses the value of a field. The error has no values, which may be secrets.
pub(super) fn parse<T: DeserializeOwned>(value: Value, path: &str) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| {
        let path = escape(path);
        match unknown_field(&error.to_string()) {
            Some(name) => format!("unknown field '{path}.{}'", escape(name)),
            None => format!("field '{path}' has an invalid value"),
        }
    })
}

/// Returns the name of the field that the parser does not know.
fn unknown_field(error: &str) -> Option<&str> {
    error.strip_prefix("unknown field `")?.split('`').next()
}

/// Returns the fields that are not known here, with the path of their object.
pub(super) fn unknown(parent: &str, fields: &Map<String, Value>) -> Vec<UnsupportedField> {
    let set = fields.iter().filter(|(_, value)| is_set(value));
    let path = |name: &str| match parent {
        "" => name.to_owned(),
        parent => format!("{parent}.{name}"),
    };
    let remedy = Omission::Refused("remove the field, if the sandbox does not need it,");
    set.map(|(name, _)| UnsupportedField::new(path(name), "not known", remedy)).collect()
}

/// Returns whether a value is not empty.
pub(super) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => fields.values().any(is_set),
        Value::String(text) => !text.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// Pairs of strings, stored as an array of arrays or as an object.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct StringPairs(pub(crate) Vec<(String, String)>);

impl<'de> Deserialize<'de> for StringPairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<StringPairs, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Array(Vec<(String, String)>),
            Object(BTreeMap<String, String>),
        }
        Ok(StringPairs(match Form::deserialize(deserializer)? {
            Form::Array(pairs) => pairs,
            Form::Object(pairs) => pairs.into_iter().collect(),
        }))
    }
}
