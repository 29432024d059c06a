"""Network of a sandbox: policies, rules, DNS, and published ports.

Everything here is data. The programs check it when a sandbox is created.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Union, cast

from . import types
from .errors import NetworkPolicyError
from .secret import Violation
from .tool import Json
from .types import Action, DestGroup, Direction, PortProtocol, Protocol, ViolationAction

IPV4_POOL = "172.16.0.0/12"
IPV6_POOL = "fd42:6d73:62::/48"


@dataclass(frozen=True)
class NetworkDestination:
    """The remote side of a rule: a kind and its value."""

    kind: str
    value: str = ""

    def to_json(self) -> Any:
        """Returns the form of a stored configuration."""
        if self.kind == "any":
            return "any"
        if self.kind == "group":
            return {"group": "link_local" if self.value == "link-local" else self.value}
        return {self.kind: self.value}


class Destination:
    """Makers of destinations."""

    @staticmethod
    def any() -> NetworkDestination:
        """Returns every address."""
        return NetworkDestination("any")

    @staticmethod
    def ip(address: str) -> NetworkDestination:
        """Returns one address."""
        found = ipaddress.ip_address(address)
        return NetworkDestination("cidr", f"{found}/{found.max_prefixlen}")

    @staticmethod
    def cidr(cidr: str) -> NetworkDestination:
        """Returns an address range."""
        return NetworkDestination("cidr", str(ipaddress.ip_network(cidr, strict=False)))

    @staticmethod
    def domain(domain: str) -> NetworkDestination:
        """Returns the addresses that a name resolves to."""
        return NetworkDestination("domain", domain)

    @staticmethod
    def domain_suffix(suffix: str) -> NetworkDestination:
        """Returns the addresses of a name and of all names below it."""
        return NetworkDestination("domain_suffix", suffix.lstrip("."))

    @staticmethod
    def group(group: Union[DestGroup, str]) -> NetworkDestination:
        """Returns a group of addresses."""
        return NetworkDestination("group", types.word(DestGroup, "group", group).value)

    @staticmethod
    def parse(text: str) -> NetworkDestination:
        """Parses `*`, `domain=NAME`, `suffix=NAME`, a group, `.SUFFIX`, a range, an address or a
        name."""
        if text == "*":
            return Destination.any()
        for prefix, make in (
            ("domain=", Destination.domain),
            ("suffix=", Destination.domain_suffix),
        ):
            if text.startswith(prefix):
                return make(text[len(prefix) :])
        if text in {group.value for group in DestGroup}:
            return Destination.group(text)
        if text.startswith("."):
            return Destination.domain_suffix(text)
        try:
            return Destination.cidr(text) if "/" in text else Destination.ip(text)
        except ValueError:
            if "/" in text or not text:
                raise NetworkPolicyError(f"{text!r} is not a destination") from None
            return Destination.domain(text)


DestinationLike = Union[NetworkDestination, DestGroup, str]
PortLike = Union[int, str]


def _ports(port: PortLike | None) -> list[Json]:
    """Returns the ranges of a number, or of a text such as `443`, `8000-9000` or `80,443`."""
    if port is None:
        return []
    ranges: list[Json] = []
    for text in str(port).split(","):
        first, _, last = text.strip().partition("-")
        try:
            start, end = int(first), int(last or first)
        except ValueError:
            raise NetworkPolicyError(f"{port!r} is not a port or a range of ports") from None
        if isinstance(port, bool) or not 0 <= start <= end <= 65535:
            raise NetworkPolicyError(f"{port!r} is not a port or a range of ports")
        ranges.append({"start": start, "end": end})
    return ranges


@dataclass(frozen=True)
class Rule:
    """A rule: an action for connections to a destination. The first rule that matches decides."""

    action: Union[Action, str]
    direction: Union[Direction, str] = Direction.EGRESS
    destination: DestinationLike = "*"
    protocol: Union[Protocol, str, None] = None
    port: PortLike | None = None

    @classmethod
    def allow(
        cls,
        *,
        destination: DestinationLike = "*",
        direction: Union[Direction, str] = Direction.EGRESS,
        protocol: Union[Protocol, str, None] = None,
        port: PortLike | None = None,
    ) -> Rule:
        """Returns a rule that allows."""
        return cls(Action.ALLOW, direction, destination, protocol, port)

    @classmethod
    def deny(
        cls,
        *,
        destination: DestinationLike = "*",
        direction: Union[Direction, str] = Direction.EGRESS,
        protocol: Union[Protocol, str, None] = None,
        port: PortLike | None = None,
    ) -> Rule:
        """Returns a rule that denies."""
        return cls(Action.DENY, direction, destination, protocol, port)

    @classmethod
    def allow_dns(cls) -> tuple[Rule, Rule]:
        """Returns the two rules that allow DNS queries to the host, by UDP and TCP."""
        return (
            cls(Action.ALLOW, Direction.EGRESS, DestGroup.HOST, Protocol.UDP, 53),
            cls(Action.ALLOW, Direction.EGRESS, DestGroup.HOST, Protocol.TCP, 53),
        )

    def to_json(self) -> Json:
        """Returns the form of a stored configuration."""
        destination = self.destination
        if isinstance(destination, DestGroup):
            destination = Destination.group(destination)
        elif isinstance(destination, str):
            destination = Destination.parse(destination)
        protocol = self.protocol
        return {
            "action": types.word(Action, "action", self.action).value,
            "direction": types.word(Direction, "direction", self.direction).value,
            "destination": destination.to_json(),
            "protocols": []
            if protocol is None
            else [types.word(Protocol, "protocol", protocol).value],
            "ports": _ports(self.port),
        }


@dataclass(frozen=True)
class NetworkPolicy:
    """Rules in order, and the actions for connections that match none."""

    default_egress: Union[Action, str] = Action.DENY
    default_ingress: Union[Action, str] = Action.ALLOW
    rules: tuple[Rule, ...] = ()

    @classmethod
    def none(cls) -> NetworkPolicy:
        """Returns the policy that denies everything."""
        return cls(Action.DENY, Action.DENY)

    @classmethod
    def public_only(cls) -> NetworkPolicy:
        """Returns the policy that allows the public Internet and DNS. It is the default."""
        public = Rule.allow(destination=DestGroup.PUBLIC)
        return cls(Action.DENY, Action.ALLOW, (*Rule.allow_dns(), public))

    @classmethod
    def non_local(cls) -> NetworkPolicy:
        """Returns the public policy with the private networks."""
        public = cls.public_only()
        private = Rule.allow(destination=DestGroup.PRIVATE)
        return cls(Action.DENY, Action.ALLOW, (*public.rules, private))

    @classmethod
    def allow_all(cls) -> NetworkPolicy:
        """Returns the policy that allows everything."""
        return cls(Action.ALLOW, Action.ALLOW)

    @classmethod
    def named(cls, name: str) -> NetworkPolicy:
        """Returns the policy of a word: `none`, `public_only`, `non_local` or `allow_all`."""
        words = name.replace("-", "_")
        if words not in ("none", "public_only", "non_local", "allow_all"):
            raise ValueError(f"there is no policy {name!r}")
        policy: NetworkPolicy = getattr(cls, words)()
        return policy


@dataclass(frozen=True)
class DnsConfig:
    """DNS of a sandbox."""

    rebind_protection: bool = True
    """Refuse answers with addresses that are not public, unless a rule allows them."""
    nameservers: tuple[str, ...] = ()
    """Name servers; without any, those of the host."""
    query_timeout_ms: int | None = None
    """Timeout of a query; 5000 by default."""

    def to_json(self) -> Json:
        """Returns the form of a stored configuration."""
        fields: Json = {
            "rebind_protection": self.rebind_protection,
            "nameservers": list(self.nameservers),
        }
        if self.query_timeout_ms is not None:
            fields["query_timeout_ms"] = types.whole("query_timeout_ms", self.query_timeout_ms, 1)
        return fields


@dataclass(frozen=True)
class TlsConfig:
    """TLS interception: the guest trusts a certificate of the sandbox."""

    bypass: tuple[str, ...] = ()
    verify_upstream: bool = True
    intercepted_ports: tuple[int, ...] = (443,)
    block_quic: bool = False
    ca_cert: str | None = None
    ca_key: str | None = None
    ca_cn: str | None = None

    def to_json(self) -> Json:
        """Returns the form of a stored configuration."""
        return {
            "enabled": True,
            "bypass": list(self.bypass),
            "verify_upstream": self.verify_upstream,
            "intercepted_ports": list(self.intercepted_ports),
            "block_quic_on_intercept": self.block_quic,
            "intercept_ca": {"cert_path": self.ca_cert, "key_path": self.ca_key},
        }


@dataclass(frozen=True)
class PortBinding:
    """A published port: a port of the host that leads to a port of the guest."""

    host_port: int
    guest_port: int
    bind: str = "127.0.0.1"
    protocol: Union[PortProtocol, str] = PortProtocol.TCP

    @classmethod
    def tcp(cls, host_port: int, guest_port: int, *, bind: str = "127.0.0.1") -> PortBinding:
        """Returns a TCP port."""
        return cls(host_port, guest_port, bind, PortProtocol.TCP)

    @classmethod
    def udp(cls, host_port: int, guest_port: int, *, bind: str = "127.0.0.1") -> PortBinding:
        """Returns a UDP port."""
        return cls(host_port, guest_port, bind, PortProtocol.UDP)

    def to_json(self) -> Json:
        """Returns the form of a stored configuration."""
        for name, port in (("host_port", self.host_port), ("guest_port", self.guest_port)):
            if not 1 <= types.whole(name, port) <= 65535:
                raise ValueError(f"{name} must be from 1 to 65535, not {port}")
        return {
            "host_port": self.host_port,
            "guest_port": self.guest_port,
            "host_bind": str(ipaddress.ip_address(self.bind)),
            "protocol": types.word(PortProtocol, "protocol", self.protocol).value,
        }


PortsLike = Union[Mapping[int, int], Iterable[PortBinding]]


def bindings(ports: PortsLike) -> list[PortBinding]:
    """Returns published ports from a mapping of host ports to guest ports, or from a list."""
    if not isinstance(ports, Mapping):
        return list(ports)
    pairs = cast("Mapping[int, int]", ports)
    return [PortBinding(host, guest) for host, guest in pairs.items()]


@dataclass(frozen=True)
class Network:
    """Network of a sandbox. Without a policy, the guest reaches the public Internet."""

    policy: Union[NetworkPolicy, str, None] = None
    ports: Mapping[int, int] = field(default_factory=dict[int, int])
    deny_domains: tuple[str, ...] = ()
    deny_domain_suffixes: tuple[str, ...] = ()
    dns: DnsConfig | None = None
    tls: TlsConfig | None = None
    ipv4_pool: str = IPV4_POOL
    ipv6_pool: str = IPV6_POOL
    max_connections: int | None = None
    on_secret_violation: Violation = ViolationAction.BLOCK_AND_LOG
    trust_host_cas: bool = False

    @classmethod
    def none(cls) -> Network:
        """Returns a network without connections."""
        return cls(policy="none")

    @classmethod
    def public_only(cls) -> Network:
        """Returns a network with the public Internet."""
        return cls(policy="public_only")

    @classmethod
    def allow_all(cls) -> Network:
        """Returns a network without limits."""
        return cls(policy="allow_all")

    def to_json(self) -> Json:
        """Returns the form of a stored configuration."""
        policy = self.policy
        if policy is None:
            policy = NetworkPolicy.public_only()
        elif isinstance(policy, str):
            policy = NetworkPolicy.named(policy)
        denied = [
            *(Rule.deny(destination=Destination.domain(name)) for name in self.deny_domains),
            *(
                Rule.deny(destination=Destination.domain_suffix(name))
                for name in self.deny_domain_suffixes
            ),
        ]
        fields: Json = {
            "enabled": True,
            "policy": {
                "default_egress": types.word(Action, "default_egress", policy.default_egress).value,
                "default_ingress": types.word(
                    Action, "default_ingress", policy.default_ingress
                ).value,
                "rules": [rule.to_json() for rule in [*denied, *policy.rules]],
            },
            "ports": [binding.to_json() for binding in bindings(self.ports)],
            "interface": {"ipv4_pool": self.ipv4_pool, "ipv6_pool": self.ipv6_pool},
        }
        if self.dns is not None:
            fields["dns"] = self.dns.to_json()
        if self.tls is not None:
            fields["tls"] = self.tls.to_json()
        if self.max_connections is not None:
            fields["max_connections"] = types.whole("max_connections", self.max_connections, 1)
        if self.trust_host_cas:
            fields["trust_host_cas"] = True
        return fields
