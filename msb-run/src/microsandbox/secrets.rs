//! Conversion of a stored configuration's TLS interception and secrets.
//!
//! Bindings are stored, values are not: those of a document on standard input are for the start that
//! follows, those of a file are dropped.

use std::fmt;
use std::path::PathBuf;

use libmsb::net::NetSpec;
use libmsb::net::intercept::SecretValues;
use libmsb::net::name::NamePattern;
use libmsb::net::secret::{SecretHeaders, SecretSpec, ViolationAction, check_value};
use libmsb::net::tls::{TLS_PORT, TlsSpec};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::fields::{Omission, UnsupportedField, is_set, take_field, unknown};

/// Values of secrets that a document has given. Its `Debug` form has their names only.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct GivenValues(pub(crate) SecretValues);

impl fmt::Debug for GivenValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Converts the interception and the secrets. Adds unsupported fields to `unsupported`. Returns the
/// values of the secrets.
pub(super) fn interception(
    fields: &mut Map<String, Value>,
    net: &mut NetSpec,
    unsupported: &mut Vec<UnsupportedField>,
) -> Result<GivenValues, String> {
    if let Some(tls) = take_field::<Map<String, Value>>(fields, "tls")?
        && tls.get("enabled") != Some(&Value::Bool(false))
    {
        settings(tls, &mut net.tls, unsupported)?;
    }
    let mut values = GivenValues::default();
    if let Some(mut stored) = take_field::<Map<String, Value>>(fields, "secrets")? {
        let list: Vec<Value> = take_field(&mut stored, "secrets")?.unwrap_or_default();
        let action: Option<StoredAction> = take_field(&mut stored, "on_violation")?;
        // The action has no effect without secrets.
        if !list.is_empty()
            && let Some(StoredAction::Word(action)) = action
        {
            net.tls.on_violation = Some(action);
        } else if !list.is_empty() && action.is_some() {
            unsupported.push(UnsupportedField::new(
                "network.secrets.on_violation",
                "hosts that a placeholder may pass to are those of a secret",
                Omission::Allowed,
            ));
        }
        for (index, secret) in list.into_iter().enumerate() {
            let path = format!("network.secrets.secrets.{index}");
            // A parser's error could repeat the value.
            let secret: StoredSecret = serde_json::from_value(secret)
                .map_err(|_| format!("field '{path}' has an invalid value"))?;
            let value = secret.value.clone();
            match secret.spec() {
                Ok(spec) => {
                    if let Some(value) = value.filter(|value| !value.is_empty()) {
                        check_value(&spec.name, &value).map_err(|error| error.to_string())?;
                        values.0.insert(spec.name.clone(), value);
                    }
                    net.tls.secrets.push(spec);
                }
                Err(reason) => {
                    unsupported.push(UnsupportedField::new(path, reason, Omission::Allowed));
                }
            }
        }
        unsupported.extend(unknown("network.secrets", &stored));
    }
    Ok(values)
}

/// Converts the settings of the interception.
fn settings(
    mut fields: Map<String, Value>,
    tls: &mut TlsSpec,
    unsupported: &mut Vec<UnsupportedField>,
) -> Result<(), String> {
    tls.intercept = true;
    fields.remove("enabled");
    // Certificates are kept for as long as they are valid.
    fields.remove("cache");
    tls.ports = take_field(&mut fields, "intercepted_ports")?.unwrap_or_default();
    if tls.ports == [TLS_PORT] {
        tls.ports.clear();
    }
    let bypass: Vec<String> = take_field(&mut fields, "bypass")?.unwrap_or_default();
    for (index, name) in bypass.iter().enumerate() {
        let path = format!("network.tls.bypass.{index}");
        match name.parse() {
            Ok(pattern) => tls.bypass.push(pattern),
            Err(_) => unsupported.push(UnsupportedField::new(
                path,
                "not a host name or a pattern such as *.example.com",
                Omission::Allowed,
            )),
        }
    }
    tls.allow_quic = take_field(&mut fields, "block_quic_on_intercept")? == Some(false);
    let files: Vec<PathBuf> = take_field(&mut fields, "upstream_ca_cert")?.unwrap_or_default();
    for (index, file) in files.into_iter().enumerate() {
        match std::path::absolute(file).ok().filter(|file| file.is_file()) {
            Some(file) => tls.upstream_ca.push(file),
            None => unsupported.push(UnsupportedField::new(
                format!("network.tls.upstream_ca_cert.{index}"),
                "no such file",
                Omission::Allowed,
            )),
        }
    }
    if take_field(&mut fields, "verify_upstream")? == Some(false) {
        unsupported.push(UnsupportedField::new(
            "network.tls.verify_upstream",
            "servers are always verified",
            Omission::Allowed,
        ));
    }
    if let Some(authority) = take_field::<Map<String, Value>>(&mut fields, "intercept_ca")?
        && authority.values().any(is_set)
    {
        unsupported.push(UnsupportedField::new(
            "network.tls.intercept_ca",
            "each sandbox has an authority of its own",
            Omission::Allowed,
        ));
    }
    unsupported.extend(unknown("network.tls", &fields));
    Ok(())
}

/// A stored secret.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSecret {
    env_var: String,
    #[serde(default)]
    value: Option<String>,
    #[serde(default)]
    placeholder: Option<String>,
    #[serde(default)]
    allowed_hosts: Vec<StoredHost>,
    #[serde(default)]
    require_tls_identity: Option<bool>,
    #[serde(default)]
    on_violation: Option<StoredAction>,
    #[serde(default)]
    injection: Injection,
}

/// A host that gets the value.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredHost {
    Exact(String),
    Wildcard(String),
    Any,
}

/// An action when a placeholder is sent to another host.
#[derive(Deserialize)]
#[serde(untagged)]
enum StoredAction {
    Word(ViolationAction),
    Passthrough { passthrough: Passthrough },
}

/// Hosts to which a placeholder may be sent as it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Passthrough {
    hosts: Vec<String>,
    host_patterns: Vec<String>,
    all_hosts: bool,
}

/// Parts of a request in which the placeholder is replaced.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Injection {
    headers: bool,
    basic_auth: bool,
    query_params: bool,
    body: bool,
}

impl Default for Injection {
    fn default() -> Injection {
        Injection { headers: true, basic_auth: true, query_params: false, body: false }
    }
}

impl StoredSecret {
    /// Returns the secret in the terms of msb, or the reason why it is unsupported.
    fn spec(self) -> Result<SecretSpec, &'static str> {
        let mut hosts = Vec::new();
        for host in self.allowed_hosts {
            match host {
                StoredHost::Exact(name) | StoredHost::Wildcard(name) => hosts.push(name),
                StoredHost::Any => return Err("a secret is bound to hosts"),
            }
        }
        if self.require_tls_identity == Some(false) {
            return Err("a host always proves its name");
        }
        let wrong = |_| "not a secret of msb, see --secret in msb-run(1)";
        let text = format!("{}@{}", self.env_var, hosts.join(","));
        let mut spec: SecretSpec = text.parse().map_err(wrong)?;
        if let Some(placeholder) = self.placeholder {
            spec = spec.with_placeholder(placeholder).map_err(wrong)?;
        }
        spec.headers = match (self.injection.headers, self.injection.basic_auth) {
            (true, true) => SecretHeaders::Usual,
            (false, false) => SecretHeaders::None,
            (false, true) => SecretHeaders::Named(vec!["authorization".to_owned()]),
            (true, false) => return Err("headers include credentials in the Basic form"),
        };
        (spec.query, spec.body) = (self.injection.query_params, self.injection.body);
        match self.on_violation {
            None => {}
            Some(StoredAction::Word(action)) => spec.action = Some(action),
            Some(StoredAction::Passthrough { passthrough }) if passthrough.all_hosts => {
                spec.action = Some(ViolationAction::Passthrough);
            }
            Some(StoredAction::Passthrough { passthrough }) => {
                let names = passthrough.hosts.iter().chain(&passthrough.host_patterns);
                let patterns = names.map(|name| name.parse::<NamePattern>());
                spec.passthrough = patterns.collect::<Result<_, _>>().map_err(wrong)?;
            }
        }
        Ok(spec)
    }
}

/// Returns the interception and the secrets in the stored form, without values. Adds the settings
/// that the form has no field for to `omitted`.
pub(super) fn stored(tls: &TlsSpec, omitted: &mut Vec<&'static str>) -> (Value, Value) {
    let ports = if tls.ports.is_empty() { vec![TLS_PORT] } else { tls.ports.clone() };
    let settings = json!({
        "enabled": tls.intercept,
        "intercepted_ports": ports,
        "bypass": texts(&tls.bypass),
        "verify_upstream": true,
        "block_quic_on_intercept": !tls.allow_quic,
        "upstream_ca_cert": tls.upstream_ca,
    });
    let has_field = |secret: &SecretSpec| {
        let basic = |name: &String| name == "authorization";
        !secret.path
            && secret.source.is_none()
            && match &secret.headers {
                SecretHeaders::Usual | SecretHeaders::None => true,
                SecretHeaders::Named(names) => names.iter().all(basic),
                SecretHeaders::All => false,
            }
    };
    if !tls.secrets.iter().all(has_field) {
        omitted.push("net.tls.secrets");
    }
    let secrets: Vec<Value> = tls.secrets.iter().map(stored_secret).collect();
    let action = tls.on_violation.unwrap_or_default();
    (settings, json!({"secrets": secrets, "on_violation": action}))
}

fn texts(patterns: &[NamePattern]) -> Vec<String> {
    patterns.iter().map(ToString::to_string).collect()
}

fn stored_secret(secret: &SecretSpec) -> Value {
    let hosts = texts(&secret.hosts).into_iter().map(|host| {
        if host.starts_with("*.") { json!({"wildcard": host}) } else { json!({"exact": host}) }
    });
    let action = if secret.passthrough.is_empty() {
        match secret.action {
            Some(ViolationAction::Passthrough) => json!({"passthrough": {"all_hosts": true}}),
            action => json!(action),
        }
    } else {
        let all = texts(&secret.passthrough);
        let (patterns, hosts): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|host| host.starts_with("*."));
        json!({"passthrough": {"hosts": hosts, "host_patterns": patterns}})
    };
    json!({
        "env_var": secret.name,
        "value": "",
        "placeholder": secret.placeholder,
        "allowed_hosts": hosts.collect::<Vec<_>>(),
        "require_tls_identity": true,
        "on_violation": action,
        "injection": {
            "headers": secret.headers == SecretHeaders::Usual,
            "basic_auth": secret.headers != SecretHeaders::None,
            "query_params": secret.query,
            "body": secret.body,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: Value) -> (TlsSpec, GivenValues, Vec<String>) {
        let Value::Object(mut fields) = json else { panic!("no object") };
        let (mut net, mut unsupported) = (NetSpec::public(), Vec::new());
        let values = interception(&mut fields, &mut net, &mut unsupported).unwrap();
        (net.tls, values, unsupported.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn bindings_are_converted_and_values_are_apart() {
        let (tls, values, unsupported) = read(json!({
            "tls": {"enabled": true, "intercepted_ports": [443, 8443], "bypass": ["*.b.test"],
                "verify_upstream": true, "block_quic_on_intercept": true, "upstream_ca_cert": [],
                "intercept_ca": {"cert_path": null, "key_path": null}, "cache": {"capacity": 1}},
            "secrets": {"on_violation": "block", "secrets": [
                {"env_var": "KEY", "value": "hunter2", "placeholder": "$OTHER",
                 "allowed_hosts": [{"exact": "a.test"}, {"wildcard": "*.a.test"}],
                 "require_tls_identity": true,
                 "on_violation": {"passthrough": {"hosts": ["c.test"], "host_patterns": [],
                     "all_hosts": false}},
                 "injection": {"headers": false, "basic_auth": true, "query_params": true,
                     "body": true}},
                {"env_var": "B", "allowed_hosts": [{"exact": "b.a.test"}]}]}}));
        assert_eq!(unsupported, Vec::<String>::new());
        assert!(tls.intercept && !tls.allow_quic);
        assert_eq!(tls.ports, [443, 8443]);
        assert_eq!(tls.on_violation, Some(ViolationAction::Block));
        let [key, other] = tls.secrets.as_slice() else { panic!("{tls:?}") };
        assert_eq!(key.to_string(), "KEY@a.test,*.a.test");
        assert_eq!(key.placeholder(), "$OTHER");
        assert_eq!(key.headers, SecretHeaders::Named(vec!["authorization".to_owned()]));
        assert!(key.query && key.body && key.passthrough.len() == 1);
        assert_eq!(
            (other.headers.clone(), other.placeholder()),
            (SecretHeaders::Usual, "$MSB_B".to_owned())
        );
        assert_eq!(values.0.get("KEY").map(String::as_str), Some("hunter2"));
        assert_eq!(format!("{values:?}"), "{\"KEY\"}");
        // The way back and forth again.
        let mut omitted = Vec::new();
        let (settings, secrets) = stored(&tls, &mut omitted);
        let (again, values, unsupported) = read(json!({"tls": settings, "secrets": secrets}));
        let named =
            |tls: &TlsSpec| tls.secrets.iter().map(|one| one.placeholder()).collect::<Vec<_>>();
        assert_eq!((named(&again), omitted), (named(&tls), Vec::new()));
        assert_eq!(
            (again.ports, again.secrets[0].clone()),
            (tls.ports.clone(), tls.secrets[0].clone())
        );
        assert!(values.0.is_empty() && unsupported.is_empty());
    }

    #[test]
    fn what_msb_does_otherwise_is_unsupported_and_shows_no_value() {
        let secret = |extra: Value| {
            let mut secret = json!({"env_var": "KEY", "value": "hunter2",
                "allowed_hosts": [{"exact": "a.test"}]});
            secret.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({"secrets": {"secrets": [secret]}})
        };
        for (extra, reason) in [
            (json!({"allowed_hosts": ["any"]}), "a secret is bound to hosts"),
            (json!({"require_tls_identity": false}), "a host always proves its name"),
            (json!({"allowed_hosts": []}), "not a secret of msb"),
            (json!({"env_var": "K=hunter2"}), "not a secret of msb"),
            (json!({"placeholder": "x"}), "not a secret of msb"),
            (
                json!({"injection": {"headers": true, "basic_auth": false}}),
                "headers include credentials",
            ),
        ] {
            let (tls, values, unsupported) = read(secret(extra));
            assert!(unsupported[0].contains(reason), "{unsupported:?}");
            assert!(!unsupported[0].contains("hunter2"), "{unsupported:?}");
            assert!(tls.secrets.is_empty() && values.0.is_empty());
        }
        let (_, _, unsupported) = read(json!({"tls": {"enabled": true, "verify_upstream": false,
            "upstream_ca_cert": ["none.pem"], "intercept_ca": {"cert_path": "/a"}, "bypass": ["*"],
            "later": 1}}));
        assert_eq!(unsupported.len(), 5);
        for wrong in [
            json!({"later": "hunter2"}),
            json!({"allowed_hosts": [{"Regex": "hunter2"}]}),
            json!({"value": 7}),
        ] {
            let Value::Object(mut fields) = secret(wrong) else { panic!() };
            let error = interception(&mut fields, &mut NetSpec::public(), &mut Vec::new());
            assert_eq!(
                error.unwrap_err(),
                "field 'network.secrets.secrets.0' has an invalid value"
            );
        }
    }
}
