//! What the guest is told: messages built anew, cut to what the way to it takes.

use std::net::IpAddr;

use domain::base::iana::{Class, Rcode};
use domain::base::message_builder::{
    AnswerBuilder, AuthorityBuilder, MessageBuilder, StaticCompressor,
};
use domain::base::{Rtype, Ttl};
use domain::rdata::{A, Aaaa};

use super::query::Query;
use super::{MESSAGE_BYTES_MAX, Transport, UDP_BYTES_MAX};

/// What a reply is built on.
type Buffer = StaticCompressor<Vec<u8>>;
/// Life of the host alias, in seconds; the reference's.
const ALIAS_TTL: Ttl = Ttl::from_secs(60);

/// A reply with no records.
pub(super) fn empty(query: &Query, code: Rcode) -> Vec<u8> {
    start(query, code).map_or_else(Vec::new, |reply| finish(query, reply.authority()))
}

/// A reply to what is no question; it holds nothing but the number.
pub(super) fn refusal(id: u16, code: Rcode) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    let header = builder.header_mut();
    header.set_id(id);
    header.set_qr(true);
    header.set_ra(true);
    header.set_rcode(code);
    builder.finish()
}

/// A reply with addresses that we know ourselves; none of the asked kind is a reply without records.
pub(super) fn addresses(query: &Query, addresses: &[IpAddr]) -> Vec<u8> {
    let Some(mut reply) = start(query, Rcode::NOERROR) else {
        return Vec::new();
    };
    let owner = &query.written;
    let mut whole = true;
    for address in addresses {
        whole &= match (address, query.kind) {
            (IpAddr::V4(v4), Rtype::A) => reply
                .push((owner, Class::IN, ALIAS_TTL, A::new(*v4)))
                .is_ok(),
            (IpAddr::V6(v6), Rtype::AAAA) => reply
                .push((owner, Class::IN, ALIAS_TTL, Aaaa::new(*v6)))
                .is_ok(),
            _ => true,
        };
    }
    if whole {
        finish(query, reply.authority())
    } else {
        empty(query, Rcode::SERVFAIL)
    }
}

/// The beginning of a reply: number, flags, the question. `None` never is: memory grows.
pub(super) fn start(query: &Query, code: Rcode) -> Option<AnswerBuilder<Buffer>> {
    let mut builder = MessageBuilder::from_target(StaticCompressor::new(Vec::new())).ok()?;
    let header = builder.header_mut();
    header.set_id(query.id);
    header.set_qr(true);
    header.set_rd(query.recursion_desired);
    header.set_cd(query.checking_disabled);
    header.set_ra(true);
    header.set_rcode(code);
    let mut builder = builder.question();
    builder.push((&query.written, query.kind)).ok()?;
    Some(builder.answer())
}

/// The end of a reply: EDNS, for a guest that knows it.
pub(super) fn finish(query: &Query, reply: AuthorityBuilder<Buffer>) -> Vec<u8> {
    let mut reply = reply.additional();
    if let Some(edns) = query.edns {
        let opt = reply.opt(|opt| {
            opt.set_udp_payload_size(UDP_BYTES_MAX);
            opt.set_dnssec_ok(edns.dnssec_ok);
            Ok(())
        });
        if opt.is_err() {
            return Vec::new();
        }
    }
    reply.finish().into_target()
}

/// The reply, or, if the way to the guest does not take it, one that says so.
pub(super) fn cut(query: &Query, transport: Transport, reply: Vec<u8>) -> Vec<u8> {
    match transport {
        Transport::Udp if reply.len() > query.udp_bytes() => {
            let mut short = empty(query, Rcode::NOERROR);
            // The TC bit (RFC 1035, 4.1.1).
            if let Some(flags) = short.get_mut(2) {
                *flags |= 0x02;
            }
            short
        }
        _ if reply.len() > MESSAGE_BYTES_MAX || reply.is_empty() => empty(query, Rcode::SERVFAIL),
        _ => reply,
    }
}
