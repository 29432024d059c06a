"""Secrets: placeholders in the guest, and the hosts that get their values.

Everything here is data. The programs check it when a sandbox is created.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Union

from . import types
from .tool import Json
from .types import ViolationAction


@dataclass(frozen=True)
class ViolationPolicy:
    """Action when a secret is about to reach another host, with the hosts that pass."""

    action: ViolationAction = ViolationAction.BLOCK_AND_LOG
    hosts: tuple[str, ...] = ()
    host_patterns: tuple[str, ...] = ()
    all_hosts: bool = False

    @classmethod
    def block(cls) -> ViolationPolicy:
        """Blocks the request."""
        return cls(ViolationAction.BLOCK)

    @classmethod
    def block_and_log(cls) -> ViolationPolicy:
        """Blocks and logs the request."""
        return cls(ViolationAction.BLOCK_AND_LOG)

    @classmethod
    def block_and_terminate(cls) -> ViolationPolicy:
        """Blocks the request and ends the sandbox."""
        return cls(ViolationAction.BLOCK_AND_TERMINATE)

    @classmethod
    def passthrough(
        cls,
        *,
        hosts: Iterable[str] = (),
        host_patterns: Iterable[str] = (),
        all_hosts: bool = False,
    ) -> ViolationPolicy:
        """Lets the placeholder pass to these hosts."""
        return cls(ViolationAction.PASSTHROUGH, tuple(hosts), tuple(host_patterns), all_hosts)

    def to_json(self) -> Any:
        """Returns the form of a stored configuration."""
        if self.action is not ViolationAction.PASSTHROUGH:
            return self.action.value
        return {
            "passthrough": {
                "hosts": list(self.hosts),
                "host_patterns": list(self.host_patterns),
                "all_hosts": self.all_hosts,
            }
        }


Violation = Union[ViolationAction, ViolationPolicy, str]


def violation(value: Violation) -> ViolationPolicy:
    """Returns the policy of a value or word."""
    if isinstance(value, ViolationPolicy):
        return value
    return ViolationPolicy(types.word(ViolationAction, "on_secret_violation", value))


@dataclass(frozen=True)
class SecretInjection:
    """Parts of a request in which a placeholder is replaced."""

    headers: bool = True
    basic_auth: bool = True
    query_params: bool = False
    body: bool = False


@dataclass(frozen=True)
class SecretEntry:
    """A secret: the guest sees a placeholder, and allowed hosts get the value."""

    env_var: str
    value: str = field(repr=False)
    allow_hosts: tuple[str, ...] = ()
    allow_host_patterns: tuple[str, ...] = ()
    placeholder: str | None = None
    require_tls: bool = True
    on_violation: Violation | None = None
    injection: SecretInjection = SecretInjection()

    def to_json(self) -> Json:
        """Returns the form of a stored configuration."""
        return {
            "env_var": self.env_var,
            "value": self.value,
            "placeholder": self.placeholder,
            "allowed_hosts": [
                *({"exact": host} for host in self.allow_hosts),
                *({"wildcard": host} for host in self.allow_host_patterns),
            ],
            "require_tls_identity": self.require_tls,
            "on_violation": None
            if self.on_violation is None
            else violation(self.on_violation).to_json(),
            "injection": {
                "headers": self.injection.headers,
                "basic_auth": self.injection.basic_auth,
                "query_params": self.injection.query_params,
                "body": self.injection.body,
            },
        }


class Secret:
    """Makers of secrets."""

    @staticmethod
    def env(
        env_var: str,
        *,
        value: str,
        allow_hosts: Iterable[str] = (),
        allow_host_patterns: Iterable[str] = (),
        placeholder: str | None = None,
        require_tls: bool = True,
        on_violation: Violation | None = None,
        injection: SecretInjection | None = None,
    ) -> SecretEntry:
        """Returns a secret whose placeholder is in an environment variable."""
        hosts, patterns = tuple(allow_hosts), tuple(allow_host_patterns)
        if not hosts and not patterns:
            raise ValueError("a secret needs at least one host")
        injected = injection or SecretInjection()
        return SecretEntry(
            env_var, value, hosts, patterns, placeholder, require_tls, on_violation, injected
        )
