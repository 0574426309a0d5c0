"""The fields of an Airflow connection as :class:`Settings`. This module uses neither Airflow nor the network."""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from airflow_provider_roughy.exceptions import RoughyConfigurationError, RoughyUntrustedUrlError

#: Roughy in production (page "Quickstart").
DEFAULT_BASE_URL = "https://api.roughy.ai"
#: The Airflow asset whose events webhooks create, unless the connection names another one.
DEFAULT_WEBHOOK_ASSET = "roughy_media"

#: The types of connections that may lead to Roughy.
_CONN_TYPES = ("roughy", "generic", "http", "https")
#: The fields of a connection's extra.
_EXTRA_FIELDS = ("project_id", "timeout", "verify", "allow_http", "webhook_secret", "webhook_asset")

#: The prefixes of IPv6 addresses that stand for an IPv4 address: mapped, and translated (RFC 6052).
_MAPPED, _TRANSLATED = bytes(10) + b"\xff\xff", bytes.fromhex("0064ff9b") + bytes(8)
#: Names of this machine.
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
#: URLs from which all parsers read the same host: no user, no backslash, no space, nothing beyond ASCII.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?([/?][!-\[\]-~]*)?",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class Settings:
    """The settings of a connection.

    :param api_key: The API key, sent as a bearer token, and only to hosts that :meth:`url` allows.
    :param base_url: Roughy's address, without a trailing slash.
    :param project_id: The project that new assets belong to unless the caller names one.
    :param timeout: Seconds that a request may take in all. For a request that uploads bytes: seconds without progress,
        and seconds until the reply. ``None`` for this package's defaults.
    :param verify: A path to a CA bundle; ``True`` for the usual one, ``False`` to check no certificate.
    :param allow_http: Whether plain http may leave this machine.
    :param webhook_secret: The signing secret of the account's webhooks, or several, separated by spaces.
    :param webhook_asset: The name of the Airflow asset whose events webhooks create.
    :param conn_id: The id of the connection, for messages; ``None`` if there is none.
    :param ignored: The fields of the extra that have no meaning here, each with the one that was probably meant.
    """

    api_key: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    project_id: str | None = None
    timeout: float | None = None
    verify: bool | str = True
    allow_http: bool = False
    webhook_secret: str | None = field(default=None, repr=False)
    webhook_asset: str = DEFAULT_WEBHOOK_ASSET
    conn_id: str | None = field(default=None, compare=False)
    ignored: Mapping[str, str | None] = field(default_factory=dict, compare=False)

    @classmethod
    def from_connection(
        cls,
        *,
        host: str | None,
        schema: str | None,
        port: int | None,
        password: str | None,
        extra: Mapping[str, Any],
        conn_id: str | None = None,
        conn_type: str | None = None,
    ) -> Settings:
        """Read the fields of an Airflow connection, which are all text if it came from a URI.

        :raises RoughyConfigurationError: If a field is unusable. The message never has the key.
        """
        if (conn_type or "roughy").strip().lower() not in _CONN_TYPES:
            raise RoughyConfigurationError(
                f"its type is {conn_type!r}, not 'roughy'. Set `roughy_conn_id` to a connection of type 'roughy', "
                "whose password is the API key"
            )
        if not isinstance(extra, Mapping):
            raise RoughyConfigurationError("its extra is not a JSON object")
        key = (password or "").strip()
        if not key:
            raise RoughyConfigurationError("it has no API key: put the key (sk_…) into the password")
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise RoughyConfigurationError("its password is not an API key: it has spaces or characters beyond ASCII")
        base_url = (host or DEFAULT_BASE_URL).strip()
        if "://" not in base_url:
            base_url = f"{schema or 'https'}://{base_url}"
        settings = cls(
            api_key=key,
            base_url=_base_url(base_url, port),
            project_id=_text("project_id", extra.get("project_id")),
            timeout=_seconds(extra.get("timeout")),
            verify=_verify(extra.get("verify")),
            allow_http=_flag("allow_http", extra.get("allow_http"), default=False),
            webhook_secret=_text("webhook_secret", extra.get("webhook_secret")),
            webhook_asset=_text("webhook_asset", extra.get("webhook_asset")) or DEFAULT_WEBHOOK_ASSET,
            conn_id=conn_id,
            ignored={ascii(str(name))[1:-1]: _meant(str(name)) for name in extra if name not in _EXTRA_FIELDS},
        )
        own = Address.of(settings.base_url)
        if own is None:
            raise RoughyConfigurationError("its host is not a URL")
        if own.scheme == "http" and not (settings.allow_http or own.is_loopback):
            raise RoughyConfigurationError(
                f"its host {own.host} is plain http, so that the network can read the API key: use https, or "
                "set `allow_http` in the extra"
            )
        return settings

    def url(self, target: str) -> str:
        """Return the absolute URL of a request. The key goes to its own origin and to roughy.ai only.

        :param target: A path of the API, or a URL that Roughy named.
        :raises RoughyUntrustedUrlError: If the URL leads elsewhere.
        """
        if target.startswith("/"):
            return self.base_url + target
        base, named = Address.of(self.base_url), Address.of(target)
        if named is None:
            raise RoughyUntrustedUrlError("Roughy named a malformed URL; nothing was sent there")
        roughy = named.scheme == "https" and (named.host == "roughy.ai" or named.host.endswith(".roughy.ai"))
        if not (named == base or roughy):
            raise RoughyUntrustedUrlError(
                f"Roughy named a URL on {named.scheme}://{named.host}, which is neither {base and base.host} nor https "
                "under roughy.ai; the API key was not sent there"
            )
        return target

    def download_address(self, url: object) -> Address:
        """Return the address of a link to a file, to which a request without the key may be sent.

        Any https host is allowed, and plain http on this machine or with ``allow_http``. This machine and addresses of
        the local link (``169.254.169.254`` serves the credentials of cloud machines) are allowed only if the connection
        itself leads there.

        :param url: The link.
        :raises RoughyUntrustedUrlError: If the link is malformed or not allowed. The error does not quote it.
        """
        named = Address.of(url) if isinstance(url, str) else None
        if named is None or not (named.scheme == "https" or named.is_loopback or self.allow_http):
            raise RoughyUntrustedUrlError(
                "Roughy named a link that is neither an https URL nor one of this machine; nothing was sent there"
            )
        self.check_reached(named.host, named.host)
        return named

    def check_reached(self, host: str, reached: str) -> None:
        """Refuse an address that no link to a file may lead to, by the rule of :meth:`download_address`.

        :param host: The host of the link.
        :param reached: The host, or an address that its name resolves to.
        :raises RoughyUntrustedUrlError: If it is not allowed.
        """
        own = Address.of(self.base_url)
        where = _neighbourhood(reached)
        if where is not None and own is not None and host != own.host and where != _neighbourhood(own.host):
            raise RoughyUntrustedUrlError(
                f"Roughy named a link to {where} ({reached}), which is allowed only if the host of the connection is "
                "there too; nothing was sent there. Check the host of the connection"
            )

    @property
    def misspelled(self) -> str:
        """The fields of the extra that are probably misspelled, with a question each; empty if there are none."""
        return "; ".join(f"`{name}`: did you mean `{meant}`?" for name, meant in self.ignored.items() if meant)

    @property
    def unproxied(self) -> tuple[str, ...]:
        """The hosts that are reached without the proxies of the environment: those of this machine."""
        own = Address.of(self.base_url)
        return (*_LOOPBACK, own.host) if own is not None and own.is_loopback else _LOOPBACK


@dataclass(frozen=True)
class Address:
    """The scheme, host and port of a URL.

    :param scheme: ``http`` or ``https``.
    :param host: The host, in lower case; an IPv6 address in its brackets.
    :param port: The port.
    """

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Address | None:
        """Read a URL; return ``None`` if it is malformed, or if two parsers could read different hosts from it."""
        found = _URL.fullmatch(url)
        if found is None:
            return None
        scheme = found["scheme"].lower()
        port = int(found["port"] or {"http": 80, "https": 443}[scheme])
        return cls(scheme, found["host"].lower(), port) if port < 65536 else None

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine."""
        return _neighbourhood(self.host) == _THIS_MACHINE


#: The result of :func:`_neighbourhood` for this machine.
_THIS_MACHINE = "this machine"


def _neighbourhood(host: str) -> str | None:
    """Return whether a host is this machine or on its local link, in words; ``None`` for other hosts.

    :param host: A name or an address, in any spelling that a resolver takes: ``127.1`` and ``0x7f000001`` are
        ``127.0.0.1``.
    """
    name = host.strip("[]").rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return _THIS_MACHINE
    address: IPv4Address | IPv6Address | None
    try:
        address = ip_address(name)
    except ValueError:
        try:
            address = IPv4Address(socket.inet_aton(name))
        except OSError:
            return None
    if isinstance(address, IPv6Address):
        within = address.packed[12:] if address.packed[:12] in (_MAPPED, _TRANSLATED) else b""
        address = IPv4Address(within) if within else address
    # The unspecified address leads to this machine.
    if address.is_loopback or address.is_unspecified:
        return _THIS_MACHINE
    return "an address of the local link" if address.is_link_local else None


def _base_url(url: str, port: int | None) -> str:
    """Return the base URL, with the port.

    :raises RoughyConfigurationError: If the host is malformed.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    path = rest[len(authority) :]
    if scheme.lower() not in ("http", "https") or not authority:
        raise RoughyConfigurationError("its host must be an http or https URL")
    if "@" in authority or "?" in path or "#" in path:
        raise RoughyConfigurationError("its host must have neither user, query nor fragment")
    if path.rstrip("/").endswith("/v1"):
        raise RoughyConfigurationError("its host must not end with /v1: the paths of the API begin with that already")
    named = re.search(r":(\d+)$", authority)
    if port and named and int(named[1]) != port:
        raise RoughyConfigurationError(f"its host names port {named[1]}, but its port is {port}: remove one of them")
    if port and not named:
        authority += f":{port}"
    return f"{scheme}://{authority}{path}".rstrip("/")


def _seconds(value: Any) -> float | None:
    if value in (None, ""):
        return None
    try:
        seconds = float(value)
    except (OverflowError, TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise RoughyConfigurationError(
            f"`timeout` in the extra must be a number of seconds above 0, not {_shown(value)}"
        )
    return seconds


def _flag(name: str, value: Any, *, default: bool) -> bool:
    if value in (None, ""):
        return default
    flag = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(str(value).lower())
    if flag is None:
        raise RoughyConfigurationError(f"`{name}` in the extra must be true or false, not {_shown(value)}")
    return flag


def _shown(value: Any) -> str:
    """Return a value for a message; only its type if it is long, as it may be a secret in the wrong field."""
    return repr(value) if len(repr(value)) <= 16 else f"a {type(value).__name__}"


def _text(name: str, value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise RoughyConfigurationError(f"`{name}` in the extra must be text")
    if re.search("[\x00\ud800-\udfff]", value or ""):
        raise RoughyConfigurationError(f"`{name}` in the extra has a NUL character or half of a surrogate pair")
    return (value or "").strip() or None


def _meant(name: str) -> str | None:
    """Return the field of the extra that a name is probably a misspelling of, if there is one."""

    def bare(name: str) -> str:
        return re.sub(r"\W|_", "", name.lower().removeprefix("extra__roughy__"))

    known = {bare(field): field for field in _EXTRA_FIELDS}
    close = difflib.get_close_matches(bare(name), known, n=1, cutoff=0.75)
    return known[close[0]] if close else None


def _verify(value: Any) -> bool | str:
    if isinstance(value, str) and os.path.sep in value:
        return _text("verify", value) or True
    return _flag("verify", value, default=True)
