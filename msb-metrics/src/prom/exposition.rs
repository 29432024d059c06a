//! Prometheus text exposition format, version 0.0.4:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::exits::ExitCounters;
use crate::metrics::{EXITS, MetricValue, by_name};
use crate::sample::{Collection, SandboxIdentity};

/// Prefix of label names of sandboxes, so that none replaces a built-in label.
const LABEL_PREFIX: &str = "label_";
/// Separator between values of labels whose names become equal; a rule of OpenTelemetry.
const SEPARATOR: &str = ";";

/// Renders a collection.
pub(super) fn render(collection: &Collection, exits: &ExitCounters) -> String {
    let labels: Vec<String> =
        collection.samples.iter().map(|sample| labels(&sample.identity)).collect();
    let mut page = String::new();
    for metrics in by_name() {
        let mut lines = String::new();
        for metric in metrics {
            let mut more = String::new();
            for (key, value) in metric.attributes {
                put_label(&mut more, key, value);
            }
            for (sample, labels) in collection.samples.iter().zip(&labels) {
                if let Some(value) = metric.of(sample) {
                    put_line(&mut lines, metric.prom, &format!("{labels}{more}"), value);
                }
            }
        }
        if let Some(first) = metrics.first().filter(|_| !lines.is_empty()) {
            put_title(&mut page, first.prom, first.about);
            page.push_str(&lines);
        }
    }
    put_exits(&mut page, exits);
    put_title(&mut page, "microsandbox_sandboxes", "Sandboxes that run");
    let count = MetricValue::Int(collection.samples.len() as u64);
    put_line(&mut page, "microsandbox_sandboxes", "", count);
    page
}

fn put_exits(page: &mut String, exits: &ExitCounters) {
    let (_, name, about) = EXITS;
    let mut lines = String::new();
    for (sandbox, reason, count) in exits.iter() {
        let mut labels = String::new();
        if let Some(sandbox) = sandbox {
            put_label(&mut labels, "name", sandbox);
        }
        put_label(&mut labels, "reason", reason);
        put_line(&mut lines, name, &labels, MetricValue::Int(count));
    }
    if !lines.is_empty() {
        put_title(page, name, about);
        page.push_str(&lines);
    }
}

fn put_title(page: &mut String, name: &str, about: &str) {
    let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
    // Writing to a string cannot fail.
    let _ = write!(page, "# HELP {name} {about}\n# TYPE {name} {kind}\n");
}

fn put_line(page: &mut String, name: &str, labels: &str, value: MetricValue) {
    let labels = labels.trim_end_matches(',');
    let braces = if labels.is_empty() { ["", ""] } else { ["{", "}"] };
    let [open, close] = braces;
    let _ = match value {
        MetricValue::Int(value) => writeln!(page, "{name}{open}{labels}{close} {value}"),
        MetricValue::Float(value) => writeln!(page, "{name}{open}{labels}{close} {value}"),
    };
}

/// Returns the labels of a sandbox, built-in ones first, each followed by a comma.
fn labels(identity: &SandboxIdentity) -> String {
    let mut text = String::new();
    put_label(&mut text, "name", &identity.name);
    put_label(&mut text, "id", &identity.id.to_string());
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in &identity.labels {
        named
            .entry(label_name(key))
            .and_modify(|values| {
                values.push_str(SEPARATOR);
                values.push_str(value);
            })
            .or_insert_with(|| value.clone());
    }
    for (key, value) in &named {
        put_label(&mut text, key, value);
    }
    text
}

/// Converts a label key: characters other than letters, digits and `_` become `_`.
fn label_name(key: &str) -> String {
    let plain = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    LABEL_PREFIX.chars().chain(plain).collect()
}

fn put_label(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    text.push_str("\",");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Labels, Sample, SampleValues};
    use jiff::Timestamp;
    use std::sync::Arc;

    #[test]
    fn a_page_has_known_values_and_escaped_labels() {
        let labels = [("a.b", "1"), ("a-b", "2"), ("q", "\"\\\n")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let sample = Sample {
            timestamp: Timestamp::UNIX_EPOCH,
            values: SampleValues {
                cpu_percent: Some(50.0),
                pressure_cpu_some_secs: Some(1.5),
                ..SampleValues::default()
            },
            identity: Arc::new(SandboxIdentity {
                name: "web".into(),
                id: 5,
                labels: Labels::from(labels),
                ..SandboxIdentity::default()
            }),
        };
        let collection =
            Collection { at: Timestamp::UNIX_EPOCH, samples: vec![sample], exits: Vec::new() };
        let page = render(&collection, &ExitCounters::default());
        let of = r#"name="web",id="5",label_a_b="2;1",label_q="\"\\\n""#;
        assert!(page.contains(&format!("microsandbox_cpu_utilization_ratio{{{of}}} 0.5\n")));
        assert!(page.contains(&format!(
            "microsandbox_pressure_seconds_total{{{of},resource=\"cpu\",stalled=\"some\"}} 1.5\n"
        )));
        assert!(page.contains("# TYPE microsandbox_pressure_seconds_total counter\n"));
        assert!(page.ends_with("microsandbox_sandboxes 1\n"));
        assert!(!page.contains("memory"), "{page}");
    }
}
