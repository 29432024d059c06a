//! Replies to the guest, built from scratch and truncated to the transport's limit.

use std::net::IpAddr;

use domain::base::iana::{Class, Rcode};
use domain::base::message_builder::{
    AnswerBuilder, AuthorityBuilder, MessageBuilder, StaticCompressor,
};
use domain::base::{Rtype, Ttl};
use domain::rdata::{A, Aaaa};

use super::query::Query;
use super::{DnsTransport, MESSAGE_BYTES_MAX, UDP_BYTES_MAX};

/// Buffer that replies are built in.
type Buffer = StaticCompressor<Vec<u8>>;
/// TTL of the host alias, the same as the reference's.
const HOST_ALIAS_TTL: Ttl = Ttl::from_secs(60);

/// Returns a reply without records.
pub(super) fn empty_reply(query: &Query, code: Rcode) -> Vec<u8> {
    start_reply(query, code).map_or_else(Vec::new, |reply| finish_reply(query, reply.authority()))
}

/// Returns an error reply to an invalid query; it holds only the identifier.
pub(super) fn error_reply(id: u16, code: Rcode) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    let header = builder.header_mut();
    header.set_id(id);
    header.set_qr(true);
    header.set_ra(true);
    header.set_rcode(code);
    builder.finish()
}

/// Returns a reply with known addresses; without any of the queried type it has no records.
pub(super) fn address_reply(query: &Query, addresses: &[IpAddr]) -> Vec<u8> {
    let Some(mut reply) = start_reply(query, Rcode::NOERROR) else {
        return Vec::new();
    };
    let owner = &query.qname;
    let mut complete = true;
    for address in addresses {
        complete &= match (address, query.qtype) {
            (IpAddr::V4(v4), Rtype::A) => {
                reply.push((owner, Class::IN, HOST_ALIAS_TTL, A::new(*v4))).is_ok()
            }
            (IpAddr::V6(v6), Rtype::AAAA) => {
                reply.push((owner, Class::IN, HOST_ALIAS_TTL, Aaaa::new(*v6))).is_ok()
            }
            _ => true,
        };
    }
    if complete {
        finish_reply(query, reply.authority())
    } else {
        empty_reply(query, Rcode::SERVFAIL)
    }
}

/// Starts a reply with the identifier, flags and question. It is never `None`, since memory grows.
pub(super) fn start_reply(query: &Query, code: Rcode) -> Option<AnswerBuilder<Buffer>> {
    let mut builder = MessageBuilder::from_target(StaticCompressor::new(Vec::new())).ok()?;
    let header = builder.header_mut();
    header.set_id(query.id);
    header.set_qr(true);
    header.set_rd(query.recursion_desired);
    header.set_cd(query.checking_disabled);
    header.set_ra(true);
    header.set_rcode(code);
    let mut builder = builder.question();
    builder.push((&query.qname, query.qtype)).ok()?;
    Some(builder.answer())
}

/// Finishes a reply, with EDNS for a guest that supports it.
pub(super) fn finish_reply(query: &Query, reply: AuthorityBuilder<Buffer>) -> Vec<u8> {
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

/// Returns the reply, or a truncated one if it exceeds the transport's limit.
pub(super) fn truncate(query: &Query, transport: DnsTransport, reply: Vec<u8>) -> Vec<u8> {
    match transport {
        DnsTransport::Udp if reply.len() > query.udp_bytes() => {
            let mut short = empty_reply(query, Rcode::NOERROR);
            // The TC bit (RFC 1035, 4.1.1).
            if let Some(flags) = short.get_mut(2) {
                *flags |= 0x02;
            }
            short
        }
        _ if reply.len() > MESSAGE_BYTES_MAX || reply.is_empty() => {
            empty_reply(query, Rcode::SERVFAIL)
        }
        _ => reply,
    }
}
