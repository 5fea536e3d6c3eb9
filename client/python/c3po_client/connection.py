"""Where calls go and what every one of them brings: addresses, TLS, tokens, the channel's options, the environment."""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import grpc

from c3po_client.errors import ArgumentError
from c3po_client.retry import RetryPolicy, service_config
from c3po_client.version import __version__

DEFAULT_TARGET = "127.0.0.1:50051"
PREFIX = "C3PO_"
VARIABLES = ("CACHE_DIR", "SERVER", "TOKEN", "TLS_CA", "TLS_CERT", "TLS_KEY", "INSECURE_TOKEN")  # Of all clients.
NO = ("", "0", "false", "no", "off", "disable", "n", "f")  # Of a variable that is a flag, as the command reads it.
RETRY_BUFFER_BYTES = 64 << 20  # Of a request that gRPC keeps for its retries; a larger one is sent once.

ChannelOptions = list[tuple[str, str | int]]
Metadata = tuple[tuple[str, str], ...]
MoreMetadata = Iterable[tuple[str, str]]  # of one call: names in lower case, as gRPC has them


def is_this_machine(target: str) -> bool:
    """Whether an address, as gRPC reads it, can only be this machine's: a unix socket, "localhost", or a number of loopback."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target[1:].partition("]")[0] if target.startswith("[") else target.partition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_target(target: str) -> None:
    """ArgumentError: gRPC would take the address for one with port 443."""
    _, colon, port = target.rpartition("]")[2].rpartition(":")
    if not target.startswith(("unix:", "unix-abstract:")) and not (colon and port.isascii() and port.isdecimal()):
        raise ArgumentError(f"{target!r} is not ADDRESS:PORT")


def misspelled_variables(environment: Mapping[str, str]) -> list[str]:
    """A line for each variable that is nearly called as one that a client reads. Others with the prefix are the server's or a script's."""
    lines = []
    for name in sorted(environment):
        prefix, ending = name[:len(PREFIX)], name[len(PREFIX):]
        nearest = difflib.get_close_matches(ending, VARIABLES, 1, cutoff=0.75)
        if prefix == PREFIX and nearest and ending not in VARIABLES:
            lines.append(f"{name} is set, and nothing reads it here; did you mean {PREFIX}{nearest[0]}?")
    return lines


@dataclasses.dataclass(frozen=True)
class Tls:
    """Transport security by files in PEM. `Tls()` trusts the system's authorities and has no certificate of its own."""

    ca: str | os.PathLike[str] | None = None  # who may sign the server's certificate
    cert: str | os.PathLike[str] | None = None  # this client's own, for a server that asks for one; with `key`
    key: str | os.PathLike[str] | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """ArgumentError: a file cannot be read, or one of cert and key is given without the other."""
        if (self.cert is None) != (self.key is None):
            raise ArgumentError("tls: cert and key belong together")
        return grpc.ssl_channel_credentials(_read("ca", self.ca), _read("key", self.key), _read("cert", self.cert))


def _read(name: str, path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ArgumentError(f"tls.{name}: {os.fspath(path)}: {error.strerror}") from error


def channel_options(target: str, policy: RetryPolicy) -> ChannelOptions:
    return [
        ("grpc.enable_http_proxy", 0 if is_this_machine(target) else 1),  # This machine is not to be looked for behind a proxy.
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_retries", 1),
        ("grpc.per_rpc_retry_buffer_size", RETRY_BUFFER_BYTES),
        ("grpc.service_config", service_config(policy)),
        ("grpc.service_config_disable_resolution", 1),  # A name's TXT record does not override it.
        ("grpc.initial_reconnect_backoff_ms", 200),  # gRPC's own second would outlast the first retries.
        ("grpc.max_reconnect_backoff_ms", 5000),
        ("grpc.primary_user_agent", f"c3po-client/{__version__}"),
    ]


def call_metadata(target: str, token: str | None, encrypted: bool, insecure_token: bool, more: Sequence[tuple[str, str]]) -> Metadata:
    """What every call brings. ArgumentError: the token would go to another machine in plaintext, or is none."""
    if not token:
        return tuple(more)
    if not encrypted and not insecure_token and not is_this_machine(target):
        raise ArgumentError(f"{target} is another machine, and without TLS the token could be read on the way: give TLS (C3PO_TLS_CA), or "
                            "insecure_token (C3PO_INSECURE_TOKEN=1) to send it all the same")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ArgumentError("token: holds a character that no token has")
    return (("authorization", f"Bearer {token}"), *more)


@dataclasses.dataclass(frozen=True)
class EnvironmentSettings:
    """What the variables of the `c3po` command say."""

    target: str
    token: str | None = dataclasses.field(repr=False)
    tls: Tls | None
    insecure_token: bool


def read_environment(environment: Mapping[str, str]) -> EnvironmentSettings:
    value = {name: environment.get(PREFIX + name) or None for name in VARIABLES}
    files = (value["TLS_CA"], value["TLS_CERT"], value["TLS_KEY"])
    tls = Tls(*files) if any(files) else None
    insecure_token = (value["INSECURE_TOKEN"] or "").lower() not in NO
    return EnvironmentSettings(value["SERVER"] or DEFAULT_TARGET, value["TOKEN"], tls, insecure_token)
