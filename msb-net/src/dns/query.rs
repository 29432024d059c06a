//! Queries of the guest: parsing, and the query to upstream servers.

use domain::base::iana::{Class, Opcode, Rcode};
use domain::base::name::ToName;
use domain::base::{Message, MessageBuilder, Name, ParsedName, Rtype};
use libmsb::net::name::HostName;

use super::{QUERY_BYTES_MAX, UDP_BYTES_MAX, UDP_BYTES_MIN, UPSTREAM_UDP_BYTES};

/// A query of the guest.
#[derive(Clone, Debug)]
pub(super) struct Query {
    /// Message identifier of the guest.
    pub(super) id: u16,
    /// Name as the guest wrote it; the reply repeats its letters.
    pub(super) qname: Name<Vec<u8>>,
    /// Host name, if the name is one that rules can match.
    pub(super) name: Option<HostName>,
    /// Query type.
    pub(super) qtype: Rtype,
    /// RD flag: whether upstream servers may be asked.
    pub(super) recursion_desired: bool,
    /// CD flag: whether the guest checks signatures itself.
    pub(super) checking_disabled: bool,
    /// EDNS options, if the guest supports EDNS.
    pub(super) edns: Option<Edns>,
}

/// EDNS options of the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edns {
    /// Longest reply over UDP.
    pub(super) udp_bytes: u16,
    /// DO flag: whether the guest wants signatures.
    pub(super) dnssec_ok: bool,
}

/// Reason for rejecting a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueryError {
    /// The message is not a query: no reply.
    Ignored,
    /// A reply with this identifier and code.
    Refused(u16, Rcode),
}

impl Query {
    /// Parses a message.
    pub(super) fn parse(bytes: &[u8]) -> Result<Query, QueryError> {
        if bytes.len() > QUERY_BYTES_MAX {
            return Err(QueryError::Ignored);
        }
        let message = Message::from_slice(bytes).map_err(|_| QueryError::Ignored)?;
        let header = message.header();
        if header.qr() {
            return Err(QueryError::Ignored);
        }
        let refused = |code| QueryError::Refused(header.id(), code);
        if header.opcode() != Opcode::QUERY {
            return Err(refused(Rcode::NOTIMP));
        }
        let counts = message.header_counts();
        if counts.ancount() != 0 || counts.nscount() != 0 {
            return Err(refused(Rcode::FORMERR));
        }
        // A message with several questions is rejected with the same code.
        let question = message.sole_question().map_err(|_| refused(Rcode::FORMERR))?;
        let transfers =
            [Rtype::AXFR, Rtype::IXFR, Rtype::ANY, Rtype::MAILA, Rtype::MAILB, Rtype::OPT];
        if question.qclass() != Class::IN || transfers.contains(&question.qtype()) {
            return Err(refused(Rcode::REFUSED));
        }
        let edns = edns(message).map_err(refused)?;
        Ok(Query {
            id: header.id(),
            qname: question.qname().to_name(),
            name: host_name(question.qname()),
            qtype: question.qtype(),
            recursion_desired: header.rd(),
            checking_disabled: header.cd(),
            edns,
        })
    }

    /// Returns the query for an upstream server, with our identifier.
    pub(super) fn to_upstream(&self, id: u16) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        let header = builder.header_mut();
        header.set_id(id);
        header.set_rd(true);
        header.set_cd(self.checking_disabled);
        let mut builder = builder.question();
        let mut whole = builder.push((&self.qname, self.qtype)).is_ok();
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

    /// Returns the longest reply over UDP.
    pub(super) fn udp_bytes(&self) -> usize {
        let asked = self.edns.map_or(UDP_BYTES_MIN, |edns| edns.udp_bytes);
        usize::from(asked.clamp(UDP_BYTES_MIN, UDP_BYTES_MAX))
    }
}

/// Parses the OPT record; more than one is an error (RFC 6891, 6.1.1).
fn edns(message: &Message<[u8]>) -> Result<Option<Edns>, Rcode> {
    let additional = message.additional().map_err(|_| Rcode::FORMERR)?;
    let mut count = 0;
    for record in additional {
        let record = record.map_err(|_| Rcode::FORMERR)?;
        count += usize::from(record.rtype() == Rtype::OPT);
    }
    match (count, message.opt()) {
        (0, _) => Ok(None),
        (1, Some(opt)) => {
            Ok(Some(Edns { udp_bytes: opt.udp_payload_size(), dnssec_ok: opt.dnssec_ok() }))
        }
        _ => Err(Rcode::FORMERR),
    }
}

/// Returns the host name, if the name is one that rules can match.
pub(super) fn host_name<Octets: domain::dep::octseq::Octets>(
    name: &ParsedName<Octets>,
) -> Option<HostName> {
    name.to_string().parse().ok()
}
