//! A network that becomes another while its sandbox runs.
//!
//! The ports that are new are bound here, and `msb-net` is told of all at once: it takes all or nothing. Only when it has is
//! the sandbox's network the new one, and only then is the client told so, who writes it down.

use libmsb::cli::error::{Failure, hint, message};
use libmsb::net::NetSpec;
use msb_wire::network::{NetworkEvent, NetworkRequest};

use super::Life;
use crate::net::Net;
use crate::supervisor::relay::ClientStream;

/// A change that `msb-net` was told of.
pub(super) struct Renewal {
    asker: ClientStream,
    net: Net,
}

impl Life {
    /// A client wants another network.
    pub(super) fn renew_net(&mut self, asker: ClientStream, request: NetworkRequest) {
        match self.begin_renewal(request) {
            Ok(Some(net)) => self.renewal = Some(Renewal { asker, net }),
            Ok(None) => self.answer_renewal(asker, &NetworkEvent::Changed),
            Err(error) => self.answer_renewal(asker, &failed(&error)),
        }
    }

    /// Gives what is to be the network when `msb-net` has taken it. Before it runs, the network is another at once.
    fn begin_renewal(&mut self, request: NetworkRequest) -> anyhow::Result<Option<Net>> {
        let wrong_state = |message: &str| Err(Failure::wrong_state(message).into());
        let Some(net) = &self.setup.net else {
            return wrong_state("the sandbox has no network");
        };
        if self.renewal.is_some() {
            return wrong_state("its network is being changed already");
        }
        let spec: NetSpec = serde_json::from_value(request.net)?;
        let (net, new_ports) = net.renewed(spec, request.nameservers, request.own)?;
        let Some(process) = &self.machine.net else {
            self.adopt(net);
            return Ok(None);
        };
        net.tell(process, &new_ports)?;
        Ok(Some(net))
    }

    /// `msb-net` has something to say.
    pub(super) fn net_answered(&mut self) {
        let Some(process) = &self.machine.net else {
            return;
        };
        let (Some(answer), Some(renewal)) = (process.answer(), self.renewal.take()) else {
            return;
        };
        let event = match answer.error {
            None => {
                self.adopt(renewal.net);
                NetworkEvent::Changed
            }
            Some(error) => NetworkEvent::Failed {
                message: error,
                hint: None,
            },
        };
        self.answer_renewal(renewal.asker, &event);
    }

    fn adopt(&mut self, net: Net) {
        self.setup.spec.net = net.spec().clone();
        self.setup.net = Some(net);
    }

    fn answer_renewal(&mut self, (client, stream): ClientStream, event: &NetworkEvent) {
        self.relay.answer(client, stream, event);
    }
}

fn failed(error: &anyhow::Error) -> NetworkEvent {
    NetworkEvent::Failed {
        message: message(error),
        hint: hint(error).map(str::to_owned),
    }
}
