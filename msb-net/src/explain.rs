//! `msb net explain`: evaluates the policy without a connection.

use std::io::{self, BufRead, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::cli::output;
use libmsb::jsonl;
use libmsb::net::name::HostName;
use libmsb::net::network::Network;
use libmsb::net::policy::Policy;
use libmsb::net::rule::{Action, Direction, Protocol};
use libmsb::net::{HOST_ALIAS, NetSpec, host_addresses};
use libmsb::state::Home;
use serde::{Deserialize, Serialize};

use crate::address::HostFacts;
use crate::args::{ExplainArgs, OutputFormat, PolicyArgs};
use crate::policy::{ConnectionFacts, PolicyEngine, TlsPeek, Verdict, VerdictReason};

/// Limit of a policy file in bytes: that of a spec.json.
const POLICY_BYTES_MAX: u64 = libmsb::state::spec::SPEC_BYTES_MAX;

/// The subject of a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum ExplainCase {
    /// A connection.
    Connection(ConnectionFacts),
    /// A DNS query and its answer.
    Query(DnsQuery),
}

/// A DNS query and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DnsQuery {
    /// The name.
    pub(crate) name: HostName,
    /// Addresses in the answer.
    #[serde(default)]
    pub(crate) answers: Vec<IpAddr>,
}

/// A case with its verdict, as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct ExplainedCase<'a> {
    #[serde(flatten)]
    case: &'a ExplainCase,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    /// The rule in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule_text: Option<String>,
    /// The reason as text.
    text: &'static str,
}

/// Runs `msb net explain`.
pub(crate) fn run(args: ExplainArgs) -> anyhow::Result<()> {
    let engine = policy_engine(&args.policy)?;
    if args.lines {
        return explain_lines(&engine, &mut io::stdin().lock(), args.format);
    }
    let case = parse_case(&args)?;
    print(&explain(&engine, &case), args.format)
}

/// Evaluates each JSON case on the input.
fn explain_lines(
    engine: &PolicyEngine,
    input: &mut impl BufRead,
    format: Option<OutputFormat>,
) -> anyhow::Result<()> {
    for number in 1.. {
        let Some(case) = jsonl::read::<ExplainCase>(input, number)? else {
            break;
        };
        print(&explain(engine, &case), format)?;
    }
    Ok(())
}

/// Builds the policy engine for the command line.
pub(crate) fn policy_engine(args: &PolicyArgs) -> anyhow::Result<PolicyEngine> {
    let mut spec = match (&args.sandbox, &args.policy) {
        (Some(name), _) => Home::from_env()?.sandboxes().find(name)?.spec()?.net,
        (None, Some(path)) => read_policy(path)?,
        (None, None) => NetSpec::public(),
    };
    args.net.change(&mut spec)?;
    let name = args.sandbox.as_ref().map_or("", |name| name.as_str());
    let gateways = match &args.gateway[..] {
        [] => Network::of_sandbox(name, &spec).gateways(),
        gateways => gateways.to_vec(),
    };
    // A sandbox's policy covers the addresses of its host; a policy alone has no host.
    let host_addresses = match (&args.own[..], &args.sandbox) {
        ([], Some(_)) => host_addresses::addresses(),
        (own, _) => own.to_vec(),
    };
    let host = HostFacts { gateways, host_addresses, nat64: spec.nat64 };
    let engine = PolicyEngine::new(spec.policy, spec.dns.rebind_protection, host);
    Ok(engine.with_tls(spec.tls))
}

/// Reads a `spec.json`, its member `net`, or the member `policy` of that.
fn read_policy(path: &Path) -> anyhow::Result<NetSpec> {
    let cannot = || format!("cannot read the policy '{}'", path.display());
    let text = read_file(path).with_context(cannot)?;
    let mut value: serde_json::Value = serde_json::from_slice(&text).with_context(cannot)?;
    if let Some(net) = value.get_mut("net") {
        value = net.take();
    }
    if value.get("policy").is_some() {
        return serde_json::from_value(value).with_context(cannot);
    }
    let policy: Policy = serde_json::from_value(value).with_context(cannot)?;
    Ok(NetSpec { policy, ..NetSpec::public() })
}

fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(POLICY_BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > POLICY_BYTES_MAX {
        return Err(Failure::failed(format!("longer than {POLICY_BYTES_MAX} bytes")).into());
    }
    Ok(text)
}

/// Parses the case on the command line.
fn parse_case(args: &ExplainArgs) -> Result<ExplainCase, Failure> {
    let mut words = args.what.iter().map(String::as_str);
    let (kind, what) = (words.next().unwrap_or_default(), words.next());
    let what = what.ok_or_else(|| {
        Failure::usage("expected a protocol and an address, or dns and a name")
            .hint("msb net explain tcp 1.2.3.4:443, or msb net explain dns example.com")
    })?;
    if kind == "dns" {
        let answers: Result<Vec<IpAddr>, Failure> = words.map(parse_address).collect();
        return Ok(ExplainCase::Query(DnsQuery { name: what.parse()?, answers: answers? }));
    }
    if let Some(word) = words.next() {
        return Err(Failure::usage(format!("unexpected argument '{}'", escape(word))));
    }
    let protocol: Protocol = kind.parse()?;
    let (address, port) = parse_peer(protocol, what)?;
    Ok(ExplainCase::Connection(ConnectionFacts {
        direction: if args.ingress { Direction::Ingress } else { Direction::Egress },
        protocol,
        address,
        port,
        names: args.found.clone(),
        tls: tls_from_args(args),
    }))
}

fn tls_from_args(args: &ExplainArgs) -> TlsPeek {
    if args.sni.is_some() || args.no_sni || args.ech {
        TlsPeek::Hello { sni: args.sni.clone(), ech: args.ech }
    } else if args.plain {
        TlsPeek::Plain
    } else {
        TlsPeek::Unseen
    }
}

fn parse_address(text: &str) -> Result<IpAddr, Failure> {
    let wrong = |_| Failure::usage(format!("invalid address '{}'", escape(text)));
    text.parse().map_err(wrong)
}

fn parse_peer(protocol: Protocol, text: &str) -> Result<(IpAddr, Option<u16>), Failure> {
    if protocol.is_icmp() {
        let address = parse_address(text)?;
        if address.is_ipv4() != (protocol == Protocol::Icmpv4) {
            return Err(Failure::usage(format!(
                "{protocol} does not apply to '{address}': wrong address family"
            )));
        }
        return Ok((address, None));
    }
    let wrong = |_| {
        Failure::usage(format!("invalid address and port '{}'", escape(text)))
            .hint("write 1.2.3.4:443 or [2001:db8::1]:443")
    };
    let peer: SocketAddr = text.parse().map_err(wrong)?;
    Ok((peer.ip(), Some(peer.port())))
}

/// Evaluates a case.
pub(crate) fn explain<'a>(engine: &PolicyEngine, case: &'a ExplainCase) -> ExplainedCase<'a> {
    let verdict = match case {
        ExplainCase::Connection(facts) => engine.verdict(facts),
        ExplainCase::Query(query) => query_verdict(engine, query),
    };
    let rule = verdict.rule.and_then(|rule| engine.policy().rules.get(rule - 1));
    ExplainedCase {
        case,
        verdict,
        rule_text: rule.map(ToString::to_string),
        text: if verdict.reason == VerdictReason::Default && verdict.allows() {
            "no rule matches, and the default is to allow"
        } else {
            verdict.reason.text()
        },
    }
}

/// Evaluates a query and every address in its answer: one denied address rejects the answer.
fn query_verdict(engine: &PolicyEngine, query: &DnsQuery) -> Verdict {
    let alias = query.name.as_str() == HOST_ALIAS;
    let name =
        if alias { engine.host_alias_verdict() } else { engine.query_verdict(Some(&query.name)) };
    if alias || !name.allows() {
        return name;
    }
    let answers = query.answers.iter().map(|address| engine.answer_verdict(*address));
    answers.into_iter().find(|verdict| !verdict.allows()).unwrap_or(name)
}

/// Prints a case with its verdict.
pub(crate) fn print(
    explained: &ExplainedCase<'_>,
    format: Option<OutputFormat>,
) -> anyhow::Result<()> {
    if format == Some(OutputFormat::Json) {
        let mut stdout = output::stdout();
        jsonl::write(&mut stdout, explained)?;
        return Ok(stdout.flush()?);
    }
    Ok(output::print(&explained.sentence())?)
}

impl ExplainedCase<'_> {
    /// Formats the case, the verdict and the reason as one line.
    pub(crate) fn sentence(&self) -> String {
        let action = match (self.verdict.action, self.verdict.needs_peek) {
            (Action::Allow, true) => {
                "allow, if the server name in the ClientHello matches".to_owned()
            }
            (action, _) if self.verdict.intercepted => format!("{action}, intercepted"),
            (action, _) => action.to_string(),
        };
        let why = match (&self.rule_text, self.verdict.rule) {
            (Some(text), Some(number)) => format!("rule {number}, {text}"),
            _ => self.text.to_owned(),
        };
        format!("{}: {action}: {why}", self.case)
    }
}

impl std::fmt::Display for ExplainCase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExplainCase::Query(query) => {
                write!(f, "dns {}", query.name)?;
                query.answers.iter().try_for_each(|address| write!(f, " {address}"))
            }
            ExplainCase::Connection(facts) => {
                let (protocol, address) = (facts.protocol, facts.address);
                match facts.port.filter(|_| facts.direction == Direction::Egress) {
                    Some(port) => write!(f, "{protocol} {}", SocketAddr::new(address, port)),
                    None if facts.direction == Direction::Egress => {
                        write!(f, "{protocol} {address}")
                    }
                    None => write!(
                        f,
                        "{protocol} from {address} to port {}",
                        facts.port.unwrap_or_default()
                    ),
                }
            }
        }
    }
}
