//! `msb net explain`: a verdict without a connection.

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
use libmsb::net::{HOST_ALIAS, NetSpec, own};
use libmsb::state::Home;
use serde::{Deserialize, Serialize};

use crate::address::HostFacts;
use crate::arguments::{Explain, Format, PolicyArgs};
use crate::policy::{Facts, Judge, Reason, Tls, Verdict};

/// Longest file with a policy, in bytes: that of a spec.json.
const POLICY_BYTES_MAX: u64 = libmsb::state::spec::SPEC_BYTES_MAX;

/// What a verdict is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Case {
    /// A connection.
    Connection(Facts),
    /// A question for a name, and what was answered.
    Question(Question),
}

/// A question for a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Question {
    /// The name.
    pub(crate) name: HostName,
    /// The addresses in the answer.
    #[serde(default)]
    pub(crate) answers: Vec<IpAddr>,
}

/// A case with its verdict, as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Explained<'a> {
    #[serde(flatten)]
    case: &'a Case,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    /// The rule in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule_text: Option<String>,
    /// The reason, for people.
    text: &'static str,
}

pub(crate) fn run(args: Explain) -> anyhow::Result<()> {
    let judge = judge(&args.policy)?;
    if args.lines {
        return explain_lines(&judge, &mut io::stdin().lock(), args.format);
    }
    let case = case(&args)?;
    print(&explain(&judge, &case), args.format)
}

fn explain_lines(
    judge: &Judge,
    input: &mut impl BufRead,
    format: Option<Format>,
) -> anyhow::Result<()> {
    for number in 1.. {
        let Some(case) = jsonl::read::<Case>(input, number)? else {
            break;
        };
        print(&explain(judge, &case), format)?;
    }
    Ok(())
}

/// The policy that the command line means.
pub(crate) fn judge(args: &PolicyArgs) -> anyhow::Result<Judge> {
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
    // A sandbox is kept from the addresses of the host that it runs on; a policy alone is on none.
    let own = match (&args.own[..], &args.sandbox) {
        ([], Some(_)) => own::addresses(),
        (own, _) => own.to_vec(),
    };
    let host = HostFacts {
        gateways,
        own,
        nat64: spec.nat64,
    };
    Ok(Judge::new(spec.policy, spec.dns.rebind_protection, host))
}

/// A `spec.json`, its part `net`, or the part `policy` of that.
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
    Ok(NetSpec {
        policy,
        ..NetSpec::public()
    })
}

fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(POLICY_BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > POLICY_BYTES_MAX {
        return Err(Failure::failed("it is too long").into());
    }
    Ok(text)
}

/// What was typed, understood.
fn case(args: &Explain) -> Result<Case, Failure> {
    let mut words = args.what.iter().map(String::as_str);
    let (kind, what) = (words.next().unwrap_or_default(), words.next());
    let what = what.ok_or_else(|| {
        Failure::usage("what is to be explained has two words")
            .hint("as tcp 1.2.3.4:443, or dns example.com")
    })?;
    if kind == "dns" {
        let answers: Result<Vec<IpAddr>, Failure> = words.map(parse_address).collect();
        return Ok(Case::Question(Question {
            name: what.parse()?,
            answers: answers?,
        }));
    }
    if let Some(word) = words.next() {
        return Err(Failure::usage(format!(
            "'{}' is one word too many",
            escape(word)
        )));
    }
    let protocol: Protocol = kind.parse()?;
    let (address, port) = parse_peer(protocol, what)?;
    Ok(Case::Connection(Facts {
        direction: if args.ingress {
            Direction::Ingress
        } else {
            Direction::Egress
        },
        protocol,
        address,
        port,
        names: args.found.clone(),
        tls: tls(args),
    }))
}

fn tls(args: &Explain) -> Tls {
    if args.sni.is_some() || args.no_sni || args.ech {
        Tls::Hello {
            sni: args.sni.clone(),
            ech: args.ech,
        }
    } else if args.plain {
        Tls::Plain
    } else {
        Tls::Unseen
    }
}

fn parse_address(text: &str) -> Result<IpAddr, Failure> {
    let wrong = |_| Failure::usage(format!("'{}' is not an address", escape(text)));
    text.parse().map_err(wrong)
}

fn parse_peer(protocol: Protocol, text: &str) -> Result<(IpAddr, Option<u16>), Failure> {
    if protocol.is_icmp() {
        let address = parse_address(text)?;
        if address.is_ipv4() != (protocol == Protocol::Icmpv4) {
            return Err(Failure::usage(format!(
                "{protocol} does not reach '{address}'"
            )));
        }
        return Ok((address, None));
    }
    let wrong = |_| {
        Failure::usage(format!("'{}' is not an address with a port", escape(text)))
            .hint("as 1.2.3.4:443 or [2001:db8::1]:443")
    };
    let peer: SocketAddr = text.parse().map_err(wrong)?;
    Ok((peer.ip(), Some(peer.port())))
}

/// The verdict on a case.
pub(crate) fn explain<'a>(judge: &Judge, case: &'a Case) -> Explained<'a> {
    let verdict = match case {
        Case::Connection(facts) => judge.verdict(facts),
        Case::Question(question) => answer(judge, question),
    };
    let rule = verdict
        .rule
        .and_then(|rule| judge.policy().rules.get(rule - 1));
    Explained {
        case,
        verdict,
        rule_text: rule.map(ToString::to_string),
        text: if verdict.reason == Reason::Default && verdict.allows() {
            "it is allowed where no rule speaks of it"
        } else {
            verdict.reason.text()
        },
    }
}

/// The verdict on a name, and on all that it was found to have: one bad address spoils the answer.
fn answer(judge: &Judge, question: &Question) -> Verdict {
    let alias = question.name.as_str() == HOST_ALIAS;
    let name = if alias {
        judge.alias()
    } else {
        judge.name(Some(&question.name))
    };
    if alias || !name.allows() {
        return name;
    }
    let answers = question
        .answers
        .iter()
        .map(|address| judge.answer(*address));
    answers
        .into_iter()
        .find(|verdict| !verdict.allows())
        .unwrap_or(name)
}

/// Prints a case with its verdict.
pub(crate) fn print(explained: &Explained<'_>, format: Option<Format>) -> anyhow::Result<()> {
    if format == Some(Format::Json) {
        let mut stdout = output::stdout();
        jsonl::write(&mut stdout, explained)?;
        return Ok(stdout.flush()?);
    }
    Ok(output::print(&explained.sentence())?)
}

impl Explained<'_> {
    /// In one line: what, the verdict, why.
    pub(crate) fn sentence(&self) -> String {
        let action = match (self.verdict.action, self.verdict.look) {
            (Action::Allow, true) => "allow, if the name in its first bytes agrees".to_owned(),
            (action, _) => action.to_string(),
        };
        let why = match (&self.rule_text, self.verdict.rule) {
            (Some(text), Some(number)) => format!("rule {number}, {text}"),
            _ => self.text.to_owned(),
        };
        format!("{}: {action}: {why}", self.case)
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Case::Question(question) => {
                write!(f, "dns {}", question.name)?;
                question
                    .answers
                    .iter()
                    .try_for_each(|address| write!(f, " {address}"))
            }
            Case::Connection(facts) => {
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
