//! What the guest asks: one question, taken apart and put together again.

use domain::base::iana::{Class, Opcode, Rcode};
use domain::base::name::ToName;
use domain::base::{Message, MessageBuilder, Name, ParsedName, Rtype};
use libmsb::net::name::HostName;

use super::{QUERY_BYTES_MAX, UDP_BYTES_MAX, UDP_BYTES_MIN, UPSTREAM_UDP_BYTES};

/// A question of the guest's.
#[derive(Clone, Debug)]
pub(super) struct Query {
    /// The guest's number for it.
    pub(super) id: u16,
    /// The name as the guest wrote it; its letters come back as they are.
    pub(super) written: Name<Vec<u8>>,
    /// The name, if it is one that rules can have.
    pub(super) name: Option<HostName>,
    /// What is asked of the name.
    pub(super) kind: Rtype,
    /// Whether somebody else may be asked.
    pub(super) recursion_desired: bool,
    /// Whether signatures are the guest's to check.
    pub(super) checking_disabled: bool,
    /// What the guest says of itself, if it knows EDNS.
    pub(super) edns: Option<Edns>,
}

/// EDNS of the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edns {
    /// Longest answer over UDP.
    pub(super) udp_bytes: u16,
    /// Whether it wants signatures.
    pub(super) dnssec_ok: bool,
}

/// Why there is no question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoQuery {
    /// It is not for a server at all: no reply.
    Ignored,
    /// A reply with that number says why.
    Refused(u16, Rcode),
}

impl Query {
    /// The question in a message.
    pub(super) fn parse(bytes: &[u8]) -> Result<Query, NoQuery> {
        if bytes.len() > QUERY_BYTES_MAX {
            return Err(NoQuery::Ignored);
        }
        let message = Message::from_slice(bytes).map_err(|_| NoQuery::Ignored)?;
        let header = message.header();
        if header.qr() {
            return Err(NoQuery::Ignored);
        }
        let refused = |code| NoQuery::Refused(header.id(), code);
        if header.opcode() != Opcode::QUERY {
            return Err(refused(Rcode::NOTIMP));
        }
        let counts = message.header_counts();
        if counts.ancount() != 0 || counts.nscount() != 0 {
            return Err(refused(Rcode::FORMERR));
        }
        // More than one question is refused with this too.
        let question = message
            .sole_question()
            .map_err(|_| refused(Rcode::FORMERR))?;
        let transfers = [
            Rtype::AXFR,
            Rtype::IXFR,
            Rtype::ANY,
            Rtype::MAILA,
            Rtype::MAILB,
            Rtype::OPT,
        ];
        if question.qclass() != Class::IN || transfers.contains(&question.qtype()) {
            return Err(refused(Rcode::REFUSED));
        }
        let edns = edns(message).map_err(refused)?;
        Ok(Query {
            id: header.id(),
            written: question.qname().to_name(),
            name: host_name(question.qname()),
            kind: question.qtype(),
            recursion_desired: header.rd(),
            checking_disabled: header.cd(),
            edns,
        })
    }

    /// The question to somebody else, with a number of ours.
    pub(super) fn to_upstream(&self, id: u16) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        let header = builder.header_mut();
        header.set_id(id);
        header.set_rd(true);
        header.set_cd(self.checking_disabled);
        let mut builder = builder.question();
        let mut whole = builder.push((&self.written, self.kind)).is_ok();
        let mut builder = builder.additional();
        let dnssec_ok = self.edns.is_some_and(|edns| edns.dnssec_ok);
        let opt = builder.opt(|opt| {
            opt.set_udp_payload_size(UPSTREAM_UDP_BYTES);
            opt.set_dnssec_ok(dnssec_ok);
            Ok(())
        });
        whole &= opt.is_ok();
        if whole { builder.finish() } else { Vec::new() }
    }

    /// Longest answer over UDP.
    pub(super) fn udp_bytes(&self) -> usize {
        let asked = self.edns.map_or(UDP_BYTES_MIN, |edns| edns.udp_bytes);
        usize::from(asked.clamp(UDP_BYTES_MIN, UDP_BYTES_MAX))
    }
}

/// What the guest says of itself; more than one such record is an error (RFC 6891, 6.1.1).
fn edns(message: &Message<[u8]>) -> Result<Option<Edns>, Rcode> {
    let additional = message.additional().map_err(|_| Rcode::FORMERR)?;
    let mut count = 0;
    for record in additional {
        let record = record.map_err(|_| Rcode::FORMERR)?;
        count += usize::from(record.rtype() == Rtype::OPT);
    }
    match (count, message.opt()) {
        (0, _) => Ok(None),
        (1, Some(opt)) => Ok(Some(Edns {
            udp_bytes: opt.udp_payload_size(),
            dnssec_ok: opt.dnssec_ok(),
        })),
        _ => Err(Rcode::FORMERR),
    }
}

/// The name, if it is one that rules can have.
pub(super) fn host_name<Octets: domain::dep::octseq::Octets>(
    name: &ParsedName<Octets>,
) -> Option<HostName> {
    name.to_string().parse().ok()
}
