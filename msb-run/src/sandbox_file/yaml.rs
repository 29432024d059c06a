//! YAML in the terms of JSON: one document, the core schema of YAML 1.2, and no anchors, aliases or
//! tags. An alias could make a short file as large as memory.

use std::borrow::Cow;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// Maximum nesting of collections.
const DEPTH_MAX: usize = 32;

/// An open collection.
enum Collection {
    Sequence(Vec<Value>),
    /// Entries, and the key whose value comes next.
    Mapping(Map<String, Value>, Option<String>),
}

/// Parses a document. The error contains the line, and no value.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut builder = DocumentBuilder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| format!("line {}: {}", error.marker().line(), error.info()))?;
        builder.add(event).map_err(|why| at(span.start, why))?;
    }
    Ok(builder.root.unwrap_or(Value::Null))
}

fn at(marker: Marker, why: &str) -> String {
    format!("line {}: {why}", marker.line())
}

/// The state of a document that is built from events.
#[derive(Default)]
struct DocumentBuilder {
    open: Vec<Collection>,
    documents: usize,
    root: Option<Value>,
}

impl DocumentBuilder {
    fn add(&mut self, event: Event<'_>) -> Result<(), &'static str> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err("more than one document");
                }
            }
            Event::Alias(_) => return Err("aliases are not supported"),
            Event::Scalar(text, style, anchor, tag) => {
                refuse(anchor, tag.is_some())?;
                return self.scalar(text, style);
            }
            Event::SequenceStart(anchor, tag) => {
                refuse(anchor, tag.is_some())?;
                return self.open(Collection::Sequence(Vec::new()));
            }
            Event::MappingStart(anchor, tag) => {
                refuse(anchor, tag.is_some())?;
                return self.open(Collection::Mapping(Map::new(), None));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let value = match self.open.pop() {
                    Some(Collection::Sequence(values)) => Value::Array(values),
                    Some(Collection::Mapping(entries, _)) => Value::Object(entries),
                    None => return Err("unexpected end of a collection"),
                };
                return self.place(value);
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn open(&mut self, collection: Collection) -> Result<(), &'static str> {
        if let Some(Collection::Mapping(_, None)) = self.open.last() {
            return Err("a key is not a string");
        }
        if self.open.len() == DEPTH_MAX {
            return Err("nested too deeply");
        }
        self.open.push(collection);
        Ok(())
    }

    fn scalar(&mut self, text: Cow<'_, str>, style: ScalarStyle) -> Result<(), &'static str> {
        if let Some(Collection::Mapping(entries, key @ None)) = self.open.last_mut() {
            if style == ScalarStyle::Plain && text == "<<" {
                return Err("merge keys are not supported");
            }
            if entries.contains_key(text.as_ref()) {
                return Err("a key is given twice");
            }
            *key = Some(text.into_owned());
            return Ok(());
        }
        let value = match style {
            ScalarStyle::Plain => plain(&text),
            _ => Value::String(text.into_owned()),
        };
        self.place(value)
    }

    fn place(&mut self, value: Value) -> Result<(), &'static str> {
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some(Collection::Sequence(values)) => values.push(value),
            Some(Collection::Mapping(entries, key)) => {
                let key = key.take().ok_or("a key is not a string")?;
                entries.insert(key, value);
            }
        }
        Ok(())
    }
}

fn refuse(anchor: usize, is_tagged: bool) -> Result<(), &'static str> {
    match (anchor, is_tagged) {
        (0, false) => Ok(()),
        (0, true) => Err("tags are not supported"),
        _ => Err("anchors are not supported"),
    }
}

/// Resolves a plain scalar by the core schema of YAML 1.2, section 10.3.2. A number that JSON cannot
/// represent is a string.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let radix = |prefix, radix| {
        let digits = text.strip_prefix(prefix)?;
        let is_number = digits.bytes().all(|b| b.is_ascii_hexdigit());
        u64::from_str_radix(digits, radix).ok().filter(|_| is_number).map(Number::from)
    };
    let number = if is_digits(text.trim_start_matches(['-', '+'])) {
        let text = text.strip_prefix('+').unwrap_or(text);
        text.parse::<u64>()
            .map(Number::from)
            .or_else(|_| text.parse::<i64>().map(Number::from))
            .ok()
    } else if let Some(number) = radix("0o", 8).or_else(|| radix("0x", 16)) {
        Some(number)
    } else {
        let digits = text.trim_start_matches(['-', '+']);
        let has_digit = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        let is_float = digits.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
        let parsed = text.parse::<f64>().ok().filter(|_| has_digit && is_float);
        parsed.and_then(Number::from_f64)
    };
    number.map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn collections_and_scalars_are_those_of_the_core_schema() {
        let text = "# comment\nname: web\ncpus: 2\nlabels: {team: ml, version: \"1\"}\nnone: ~\n\
                    empty:\nyes: no\nport: 8080:80\nlist:\n- a b\n- -1\n- 0o17\n- 0xff\n- 1.5\n- 1e3\n\
                    - .5\n- 0o9\n- 1.2.3\n- true\nblock: |\n  one\n  two\n";
        assert_eq!(
            parse(text).unwrap(),
            json!({
                "name": "web", "cpus": 2, "labels": {"team": "ml", "version": "1"}, "none": null,
                "empty": null, "yes": "no", "port": "8080:80",
                "list": ["a b", -1, 15, 255, 1.5, 1000.0, 0.5, "0o9", "1.2.3", true],
                "block": "one\ntwo\n"
            })
        );
        assert_eq!(parse("").unwrap(), Value::Null);
        assert_eq!(parse("18446744073709551616").unwrap(), json!("18446744073709551616"));
    }

    #[test]
    fn what_a_document_cannot_have_is_refused_with_its_line() {
        let deep = "[".repeat(DEPTH_MAX + 1);
        for (text, why) in [
            ("a: &x 1\nb: *x", "line 1: anchors are not supported"),
            ("a: !!str 1", "line 1: tags are not supported"),
            ("a: 1\na: 2", "line 2: a key is given twice"),
            ("a: 1\n<<: {}\n", "line 2: merge keys are not supported"),
            ("a: 1\n---\nb: 2", "line 2: more than one document"),
            ("[a]: 1", "line 1: a key is not a string"),
            ("a: [1", ""),
            (&deep, "nested too deeply"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
