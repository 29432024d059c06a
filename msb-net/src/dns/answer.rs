//! What is believed of an answer from outside.

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
use crate::policy::{Judge, Verdict};

/// Longest chain of aliases. Servers stop at 11 to 16.
const ALIASES_MAX: usize = 16;
/// Records of the authority section that say why there is nothing: none of them holds an address.
const PROOFS: [Rtype; 4] = [Rtype::SOA, Rtype::NSEC, Rtype::NSEC3, Rtype::RRSIG];

/// What an answer comes to.
#[derive(Debug)]
pub(super) enum Judged {
    /// It is not an answer to this question: wait for another.
    Foreign,
    /// It was cut: ask over TCP.
    Cut,
    /// The server cannot say: ask another.
    Useless,
    /// It is believed, and this is the reply.
    Believed(Believed),
    /// It is not for the guest.
    Refused(Verdict, Vec<IpAddr>),
}

/// An answer as the guest gets it.
#[derive(Debug)]
pub(super) struct Believed {
    pub(super) code: Rcode,
    pub(super) message: Vec<u8>,
    /// Addresses in it, and how long they hold.
    pub(super) addresses: Vec<(IpAddr, Duration)>,
}

type Builder = AnswerBuilder<StaticCompressor<Vec<u8>>>;
type OwnName = Name<Vec<u8>>;

/// Holds an answer against the question and the policy.
pub(super) fn judge(judge: &Judge, query: &Query, id: u16, bytes: &[u8]) -> Judged {
    let Ok(message) = Message::from_slice(bytes) else {
        return Judged::Foreign;
    };
    if !is_reply_to(message, query, id) {
        return Judged::Foreign;
    }
    if message.header().tc() {
        return Judged::Cut;
    }
    let code = message.header().rcode();
    if !matches!(code, Rcode::NOERROR | Rcode::NXDOMAIN) {
        return Judged::Useless;
    }
    believe(judge, query, code, message).unwrap_or(Judged::Useless)
}

/// Whether it has our number and our question, and no other.
fn is_reply_to(message: &Message<[u8]>, query: &Query, id: u16) -> bool {
    let header = message.header();
    let Ok(question) = message.sole_question() else {
        return false;
    };
    header.qr()
        && header.id() == id
        && question.qname().name_eq(&query.written)
        && question.qtype() == query.kind
        && question.qclass() == Class::IN
}

/// `None`: the message cannot be read.
fn believe(judge: &Judge, query: &Query, code: Rcode, message: &Message<[u8]>) -> Option<Judged> {
    let names = chain(query, message)?;
    for name in &names[1..] {
        let denied = name
            .to_string()
            .parse()
            .ok()
            .filter(|name| judge.is_name_denied(name));
        if let Some(name) = denied {
            return Some(Judged::Refused(judge.name(Some(&name)), Vec::new()));
        }
    }
    let addresses = addresses(query, &names, message)?;
    let all = || addresses.iter().map(|(address, _)| *address);
    if let Some(verdict) = all()
        .map(|address| judge.answer(address))
        .find(|verdict| !verdict.allows())
    {
        return Some(Judged::Refused(verdict, all().collect()));
    }
    let mut answer = reply::start(query, code)?;
    for record in message.answer().ok()? {
        let record = record.ok()?;
        if is_asked_for(&record, query, &names) {
            push(judge, &mut answer, &record)?;
        }
    }
    let mut answer = answer.authority();
    if answer.counts().ancount() == 0 || query.edns.is_some_and(|edns| edns.dnssec_ok) {
        push_proofs(&mut answer, message)?;
    }
    Some(Judged::Believed(Believed {
        code,
        message: reply::finish(query, answer),
        addresses,
    }))
}

/// The name that was asked for, and those that it is an alias of, in order.
fn chain(query: &Query, message: &Message<[u8]>) -> Option<Vec<OwnName>> {
    let mut names = vec![query.written.clone()];
    if query.kind == Rtype::CNAME {
        return Some(names);
    }
    let aliases: Vec<_> = message
        .answer()
        .ok()?
        .limit_to_in::<Cname<_>>()
        .collect::<Result<_, _>>()
        .ok()?;
    while let Some(alias) = aliases
        .iter()
        .find(|alias| alias.owner().name_eq(&names[names.len() - 1]))
    {
        let target: OwnName = alias.data().cname().to_name();
        if names.len() > ALIASES_MAX || names.iter().any(|name| name.name_eq(&target)) {
            return None;
        }
        names.push(target);
    }
    Some(names)
}

/// Whether a record is of one of the names, and what was asked for, or an alias on the way there.
fn is_asked_for(record: &ParsedRecord<'_, [u8]>, query: &Query, names: &[OwnName]) -> bool {
    let kind = record.rtype();
    let signature = kind == Rtype::RRSIG && query.edns.is_some_and(|edns| edns.dnssec_ok);
    record.class() == Class::IN
        && (kind == query.kind || kind == Rtype::CNAME || signature)
        && names.iter().any(|name| name.name_eq(&record.owner()))
}

/// The addresses that the guest would get, and how long they hold.
fn addresses(
    query: &Query,
    names: &[OwnName],
    message: &Message<[u8]>,
) -> Option<Vec<(IpAddr, Duration)>> {
    let mut addresses = Vec::new();
    for record in message.answer().ok()? {
        let record = record.ok()?;
        if !is_asked_for(&record, query, names) {
            continue;
        }
        let life = Duration::from_secs(u64::from(ttl(&record).as_secs()));
        match record
            .to_any_record::<AllRecordData<_, ParsedName<_>>>()
            .ok()?
            .data()
        {
            AllRecordData::A(a) => addresses.push((IpAddr::V4(a.addr()), life)),
            AllRecordData::Aaaa(aaaa) => addresses.push((IpAddr::V6(aaaa.addr()), life)),
            _ => {}
        }
    }
    Some(addresses)
}

fn ttl(record: &ParsedRecord<'_, [u8]>) -> Ttl {
    Ttl::from_secs(record.ttl().as_secs().min(TTL_SECONDS_MAX))
}

/// Puts a record into the reply, without what would lead past us.
fn push(judge: &Judge, answer: &mut Builder, record: &ParsedRecord<'_, [u8]>) -> Option<()> {
    let parsed = record
        .to_any_record::<AllRecordData<_, ParsedName<_>>>()
        .ok()?;
    let (owner, ttl) = (*parsed.owner(), ttl(record));
    let pushed = match parsed.data() {
        AllRecordData::Svcb(service) => match stripped(judge, &owner, service) {
            Some(service) => answer.push((owner, Class::IN, ttl, service)),
            None => return Some(()),
        },
        AllRecordData::Https(service) => match stripped(judge, &owner, service) {
            Some(service) => answer.push((owner, Class::IN, ttl, service)),
            None => return Some(()),
        },
        data => answer.push(Record::new(owner, Class::IN, ttl, data.clone())),
    };
    pushed.ok()
}

/// What is taken out of a service's record: addresses, and the key of encrypted names.
const STRIPPED: [SvcParamKey; 3] = [
    SvcParamKey::IPV4HINT,
    SvcParamKey::IPV6HINT,
    SvcParamKey::ECH,
];

/// A service's record without [`STRIPPED`]. `None`: it is of no use without, or leads to a name that may not be asked for.
fn stripped<Variant, Octs: Octets>(
    judge: &Judge,
    owner: &ParsedName<Octs::Range<'_>>,
    service: &SvcbRdata<Variant, Octs, ParsedName<Octs>>,
) -> Option<SvcbRdata<Variant, Vec<u8>, OwnName>> {
    let target: OwnName = service.target().to_name();
    // The root stands for the owner itself (RFC 9460, 2.5).
    let elsewhere = !target.is_root() && !target.name_eq(owner);
    if elsewhere && !judge.name(host_name(service.target()).as_ref()).allows() {
        return None;
    }
    let mut mandatory = false;
    let params = SvcParams::<Vec<u8>>::from_values(|params| {
        for param in service.params().iter::<UnknownSvcParam<_>>().flatten() {
            mandatory |= param.key() == SvcParamKey::MANDATORY && names_stripped(param.as_slice());
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

/// Whether a list of keys has one that is taken out.
fn names_stripped(list: &[u8]) -> bool {
    let keys = list
        .chunks_exact(2)
        .map(|key| SvcParamKey::from_int(u16::from_be_bytes([key[0], key[1]])));
    keys.into_iter().any(|key| STRIPPED.contains(&key))
}

/// Why there is nothing, for who keeps that, or checks it.
fn push_proofs(
    answer: &mut AuthorityBuilder<StaticCompressor<Vec<u8>>>,
    message: &Message<[u8]>,
) -> Option<()> {
    for record in message.authority().ok()? {
        let record = record.ok()?;
        if record.class() == Class::IN && PROOFS.contains(&record.rtype()) {
            let parsed = record
                .to_any_record::<AllRecordData<_, ParsedName<_>>>()
                .ok()?;
            let data = parsed.data().clone();
            answer
                .push(Record::new(*parsed.owner(), Class::IN, ttl(&record), data))
                .ok()?;
        }
    }
    Some(())
}

impl Judged {
    /// The verdict on an answer.
    pub(super) fn verdict(&self, asked: Verdict) -> Verdict {
        match self {
            Judged::Refused(verdict, _) => *verdict,
            _ => asked,
        }
    }
}
