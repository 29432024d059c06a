//! Validation of answers from upstream servers.

use std::net::IpAddr;
use std::time::Duration;

use domain::base::iana::{Class, Rcode, SvcParamKey};
use domain::base::message_builder::{AnswerBuilder, AuthorityBuilder, StaticCompressor};
use domain::base::name::{Name, ParsedName, ToName};
use domain::base::{Message, ParsedRecord, Record, Rtype, Ttl};
use domain::dep::octseq::Octets;
use domain::rdata::svcb::{SvcParams, SvcbRdata, UnknownSvcParam};
use domain::rdata::{AllRecordData, Cname};

use super::query::{Query, host_name};
use super::{TTL_SECONDS_MAX, reply};
use crate::policy::{PolicyEngine, Verdict};

/// Limit of a CNAME chain. Servers stop at 11 to 16.
const CNAME_CHAIN_MAX: usize = 16;
/// Records of the authority section that prove a negative answer; none of them holds an address.
const PROOF_TYPES: [Rtype; 4] = [Rtype::SOA, Rtype::NSEC, Rtype::NSEC3, Rtype::RRSIG];

/// Result of validating an answer.
#[derive(Debug)]
pub(super) enum AnswerCheck {
    /// A message that does not answer this query: wait for another.
    Unrelated,
    /// Truncated: ask over TCP.
    Truncated,
    /// The server has no answer: ask another.
    Failed,
    /// Valid, with the reply for the guest.
    Accepted(AcceptedAnswer),
    /// Denied by the policy, with the addresses in the answer.
    Denied(Verdict, Vec<IpAddr>),
}

/// A valid answer as the guest gets it.
#[derive(Debug)]
pub(super) struct AcceptedAnswer {
    pub(super) code: Rcode,
    pub(super) message: Vec<u8>,
    /// Addresses in the answer with their lifetimes.
    pub(super) addresses: Vec<(IpAddr, Duration)>,
}

type Builder = AnswerBuilder<StaticCompressor<Vec<u8>>>;
type OwnedName = Name<Vec<u8>>;

/// Validates an answer against the query and the policy.
pub(super) fn check(engine: &PolicyEngine, query: &Query, id: u16, bytes: &[u8]) -> AnswerCheck {
    let Ok(message) = Message::from_slice(bytes) else {
        return AnswerCheck::Unrelated;
    };
    if !is_reply_to(message, query, id) {
        return AnswerCheck::Unrelated;
    }
    if message.header().tc() {
        return AnswerCheck::Truncated;
    }
    let code = message.header().rcode();
    if !matches!(code, Rcode::NOERROR | Rcode::NXDOMAIN) {
        return AnswerCheck::Failed;
    }
    check_records(engine, query, code, message).unwrap_or(AnswerCheck::Failed)
}

/// Returns whether the message has our identifier and exactly our question.
fn is_reply_to(message: &Message<[u8]>, query: &Query, id: u16) -> bool {
    let header = message.header();
    let Ok(question) = message.sole_question() else {
        return false;
    };
    header.qr()
        && header.id() == id
        && question.qname().name_eq(&query.qname)
        && question.qtype() == query.qtype
        && question.qclass() == Class::IN
}

/// Checks the records and builds the reply. `None`: the message cannot be parsed.
fn check_records(
    engine: &PolicyEngine,
    query: &Query,
    code: Rcode,
    message: &Message<[u8]>,
) -> Option<AnswerCheck> {
    let names = cname_chain(query, message)?;
    for name in &names[1..] {
        let denied = name.to_string().parse().ok().filter(|name| engine.is_name_denied(name));
        if let Some(name) = denied {
            return Some(AnswerCheck::Denied(engine.query_verdict(Some(&name)), Vec::new()));
        }
    }
    let addresses = addresses(query, &names, message)?;
    let all = || addresses.iter().map(|(address, _)| *address);
    if let Some(verdict) =
        all().map(|address| engine.answer_verdict(address)).find(|verdict| !verdict.allows())
    {
        return Some(AnswerCheck::Denied(verdict, all().collect()));
    }
    let mut answer = reply::start_reply(query, code)?;
    for record in message.answer().ok()? {
        let record = record.ok()?;
        if is_asked_for(&record, query, &names) {
            push_record(engine, &mut answer, &record)?;
        }
    }
    let mut answer = answer.authority();
    if answer.counts().ancount() == 0 || query.edns.is_some_and(|edns| edns.dnssec_ok) {
        push_proofs(&mut answer, message)?;
    }
    Some(AnswerCheck::Accepted(AcceptedAnswer {
        code,
        message: reply::finish_reply(query, answer),
        addresses,
    }))
}

/// Returns the queried name and the names that it is an alias of, in order.
fn cname_chain(query: &Query, message: &Message<[u8]>) -> Option<Vec<OwnedName>> {
    let mut names = vec![query.qname.clone()];
    if query.qtype == Rtype::CNAME {
        return Some(names);
    }
    let aliases: Vec<_> =
        message.answer().ok()?.limit_to_in::<Cname<_>>().collect::<Result<_, _>>().ok()?;
    while let Some(alias) =
        aliases.iter().find(|alias| alias.owner().name_eq(&names[names.len() - 1]))
    {
        let target: OwnedName = alias.data().cname().to_name();
        if names.len() > CNAME_CHAIN_MAX || names.iter().any(|name| name.name_eq(&target)) {
            return None;
        }
        names.push(target);
    }
    Some(names)
}

/// Returns whether a record belongs to one of the names and has the queried type, or is an alias on
/// the way.
fn is_asked_for(record: &ParsedRecord<'_, [u8]>, query: &Query, names: &[OwnedName]) -> bool {
    let kind = record.rtype();
    let signature = kind == Rtype::RRSIG && query.edns.is_some_and(|edns| edns.dnssec_ok);
    record.class() == Class::IN
        && (kind == query.qtype || kind == Rtype::CNAME || signature)
        && names.iter().any(|name| name.name_eq(&record.owner()))
}

/// Returns the addresses that the guest would get, with their lifetimes.
fn addresses(
    query: &Query,
    names: &[OwnedName],
    message: &Message<[u8]>,
) -> Option<Vec<(IpAddr, Duration)>> {
    let mut addresses = Vec::new();
    for record in message.answer().ok()? {
        let record = record.ok()?;
        if !is_asked_for(&record, query, names) {
            continue;
        }
        let lifetime = Duration::from_secs(u64::from(ttl(&record).as_secs()));
        match record.to_any_record::<AllRecordData<_, ParsedName<_>>>().ok()?.data() {
            AllRecordData::A(a) => addresses.push((IpAddr::V4(a.addr()), lifetime)),
            AllRecordData::Aaaa(aaaa) => addresses.push((IpAddr::V6(aaaa.addr()), lifetime)),
            _ => {}
        }
    }
    Some(addresses)
}

fn ttl(record: &ParsedRecord<'_, [u8]>) -> Ttl {
    Ttl::from_secs(record.ttl().as_secs().min(TTL_SECONDS_MAX))
}

/// Appends a record to the reply, without data that would bypass the resolver.
fn push_record(
    engine: &PolicyEngine,
    answer: &mut Builder,
    record: &ParsedRecord<'_, [u8]>,
) -> Option<()> {
    let parsed = record.to_any_record::<AllRecordData<_, ParsedName<_>>>().ok()?;
    let (owner, ttl) = (*parsed.owner(), ttl(record));
    let pushed = match parsed.data() {
        AllRecordData::Svcb(service) => match strip_service(engine, &owner, service) {
            Some(service) => answer.push((owner, Class::IN, ttl, service)),
            None => return Some(()),
        },
        AllRecordData::Https(service) => match strip_service(engine, &owner, service) {
            Some(service) => answer.push((owner, Class::IN, ttl, service)),
            None => return Some(()),
        },
        data => answer.push(Record::new(owner, Class::IN, ttl, data.clone())),
    };
    pushed.ok()
}

/// Parameters removed from service records: address hints and the ECH key.
const STRIPPED: [SvcParamKey; 3] = [SvcParamKey::IPV4HINT, SvcParamKey::IPV6HINT, SvcParamKey::ECH];

/// Returns a service record without [`STRIPPED`]. `None`: the record requires one of them, or its
/// target may not be queried.
fn strip_service<Variant, Octs: Octets>(
    engine: &PolicyEngine,
    owner: &ParsedName<Octs::Range<'_>>,
    service: &SvcbRdata<Variant, Octs, ParsedName<Octs>>,
) -> Option<SvcbRdata<Variant, Vec<u8>, OwnedName>> {
    let target: OwnedName = service.target().to_name();
    // The root stands for the owner itself (RFC 9460, 2.5).
    let elsewhere = !target.is_root() && !target.name_eq(owner);
    if elsewhere && !engine.query_verdict(host_name(service.target()).as_ref()).allows() {
        return None;
    }
    let mut mandatory = false;
    let params = SvcParams::<Vec<u8>>::from_values(|params| {
        for param in service.params().iter::<UnknownSvcParam<_>>().flatten() {
            mandatory |=
                param.key() == SvcParamKey::MANDATORY && lists_stripped_key(param.as_slice());
            if !STRIPPED.contains(&param.key()) {
                params.push(&param)?;
            }
        }
        Ok(())
    });
    if mandatory {
        return None;
    }
    SvcbRdata::new(service.priority(), target, params.ok()?).ok()
}

/// Returns whether a list of keys contains a removed one.
fn lists_stripped_key(list: &[u8]) -> bool {
    let keys =
        list.chunks_exact(2).map(|key| SvcParamKey::from_int(u16::from_be_bytes([key[0], key[1]])));
    keys.into_iter().any(|key| STRIPPED.contains(&key))
}

/// Appends the proof of a negative answer, for resolvers that cache or validate it.
fn push_proofs(
    answer: &mut AuthorityBuilder<StaticCompressor<Vec<u8>>>,
    message: &Message<[u8]>,
) -> Option<()> {
    for record in message.authority().ok()? {
        let record = record.ok()?;
        if record.class() == Class::IN && PROOF_TYPES.contains(&record.rtype()) {
            let parsed = record.to_any_record::<AllRecordData<_, ParsedName<_>>>().ok()?;
            let data = parsed.data().clone();
            answer.push(Record::new(*parsed.owner(), Class::IN, ttl(&record), data)).ok()?;
        }
    }
    Some(())
}

impl AnswerCheck {
    /// Returns the verdict on the answer, or else that on the query.
    pub(super) fn verdict(&self, query_verdict: Verdict) -> Verdict {
        match self {
            AnswerCheck::Denied(verdict, _) => *verdict,
            _ => query_verdict,
        }
    }
}
