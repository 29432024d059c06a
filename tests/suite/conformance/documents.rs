//! The outputs of both programs, compared as far as scripts rely on them.

use serde_json::Value;

/// Returns what an output is, in a word.
pub(super) fn kind(output: &[u8]) -> &'static str {
    if output.is_empty() {
        "nothing"
    } else if serde_json::from_slice::<Value>(output).is_ok() {
        "json"
    } else {
        "text"
    }
}

/// Returns how the output of msb differs from the other. JSON may have more fields than the other
/// has, and values where the other has none; text for people may have other words, and be there
/// where the other has none; but text for scripts is the same.
pub(super) fn differences(line: &str, theirs: &[u8], ours: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(theirs) = serde_json::from_slice(theirs) {
        match serde_json::from_slice(ours) {
            Ok(ours) => compare(&theirs, &ours, "", &mut found),
            Err(_) => found.push(format!("{}, not JSON", kind(ours))),
        }
    } else if line.split(' ').any(|word| matches!(word, "-q" | "-aq" | "--version")) {
        if theirs != ours {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().replace('\n', " ");
            found.push(format!("'{}', not '{}'", text(ours), text(theirs)));
        }
    } else if ours.is_empty() && !theirs.is_empty() {
        found.push(format!("{}, not {}", kind(ours), kind(theirs)));
    }
    found
}

fn compare(theirs: &Value, ours: &Value, path: &str, found: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Null, _) => {}
        (Value::Object(theirs), Value::Object(ours)) => {
            for (name, value) in theirs {
                let path = format!("{path}.{name}");
                match ours.get(name) {
                    Some(ours) => compare(value, ours, &path, found),
                    None => found.push(format!("{path} is missing")),
                }
            }
        }
        (Value::Array(theirs), Value::Array(ours)) => {
            if theirs.len() != ours.len() {
                found.push(format!("{path} has {} elements, not {}", ours.len(), theirs.len()));
            }
            for (index, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
                compare(theirs, ours, &format!("{path}[{index}]"), found);
            }
        }
        // Each program names files in its own state directory.
        (Value::String(theirs), Value::String(ours)) if path.ends_with("_path") => {
            let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
            if name(theirs) != name(ours) {
                found.push(format!("{path} is \"{ours}\", not \"{theirs}\""));
            }
        }
        (Value::String(theirs), Value::String(ours)) => {
            if !same_text(theirs, ours) {
                found.push(format!("{path} is \"{ours}\", not \"{theirs}\""));
            }
        }
        // Sizes are those of each program's own files.
        (Value::Number(_), Value::Number(_)) if path.contains("bytes") => {}
        _ if theirs == ours => {}
        _ => found.push(format!("{path} is {ours}, not {theirs}")),
    }
}

/// Returns whether two texts mean the same: equal, or two times or digests of one form.
fn same_text(theirs: &str, ours: &str) -> bool {
    let is_digest = |text: &str| {
        let digest = text.strip_prefix("sha256:").unwrap_or_default();
        digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    theirs == ours || is_digest(theirs) && is_digest(ours) || is_time(theirs) && is_time(ours)
}

/// Returns whether a text is a time of UTC as RFC 3339 has it.
fn is_time(text: &str) -> bool {
    let time = text.strip_suffix("+00:00").or_else(|| text.strip_suffix('Z'));
    let Some(time) = time else { return false };
    let (seconds, fraction) = time.split_once('.').unwrap_or((time, ""));
    let has_form = |(byte, form): (u8, u8)| byte == form || form == b'0' && byte.is_ascii_digit();
    seconds.len() == 19
        && seconds.bytes().zip(*b"0000-00-00T00:00:00").all(has_form)
        && fraction.bytes().all(|byte| byte.is_ascii_digit())
}
