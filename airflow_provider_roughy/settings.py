"""What an Airflow connection says, read into :class:`Settings`. Knows neither Airflow nor the network."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from airflow_provider_roughy.exceptions import RoughyConfigurationError, RoughyUntrustedUrlError

#: Roughy in production (page "Quickstart").
DEFAULT_BASE_URL = "https://api.roughy.ai"
#: The Airflow asset that webhooks make events of, unless the connection names another one.
DEFAULT_WEBHOOK_ASSET = "roughy_media"

#: Names of this machine.
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
#: URLs that no two readers take to lead to different hosts: no user, no backslash, no space, nothing beyond ASCII.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?([/?][!-\[\]-~]*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Settings:
    """What a connection says.

    :param api_key: Sent as a bearer token, and only to hosts that :meth:`url` lets pass.
    :param base_url: Roughy's address, without a trailing slash.
    :param project_id: The project that new assets belong to unless the caller names one.
    :param timeout: Seconds that a request may take in all; of one that carries an upload's bytes, seconds that may pass
        without any of them moving, and seconds until it is answered. ``None`` for this package's own choice.
    :param verify: A path to a CA bundle; ``True`` for the usual one, ``False`` to trust anybody.
    :param allow_http: Whether plain http may leave this machine.
    :param webhook_secret: What the account's webhooks are signed with: one secret, or several, separated by spaces.
    :param webhook_asset: The name of the Airflow asset that they make events of.
    """

    api_key: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    project_id: str | None = None
    timeout: float | None = None
    verify: bool | str = True
    allow_http: bool = False
    webhook_secret: str | None = field(default=None, repr=False)
    webhook_asset: str = DEFAULT_WEBHOOK_ASSET

    @classmethod
    def from_connection(
        cls,
        *,
        host: str | None,
        schema: str | None,
        port: int | None,
        password: str | None,
        extra: Mapping[str, Any],
    ) -> Settings:
        """Read an Airflow connection's fields, which are all text if it came from a URI.

        :raises RoughyConfigurationError: If one of them is unusable; the key is never shown.
        """
        if not isinstance(extra, Mapping):
            raise RoughyConfigurationError("the extra is no JSON object")
        key = (password or "").strip()
        if not key:
            raise RoughyConfigurationError("it has no API key: put the key (sk_…) into the password")
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise RoughyConfigurationError("the password is no API key: it has spaces or characters beyond ASCII")
        base_url = (host or DEFAULT_BASE_URL).strip()
        if "://" not in base_url:
            base_url = f"{schema or 'https'}://{base_url}"
        settings = cls(
            api_key=key,
            base_url=_base_url(base_url, port),
            project_id=extra.get("project_id") or None,
            timeout=_seconds(extra.get("timeout")),
            verify=_verify(extra.get("verify")),
            allow_http=_flag("allow_http", extra.get("allow_http"), default=False),
            webhook_secret=_text("webhook_secret", extra.get("webhook_secret")),
            webhook_asset=_text("webhook_asset", extra.get("webhook_asset")) or DEFAULT_WEBHOOK_ASSET,
        )
        own = Address.of(settings.base_url)
        if own is None:
            raise RoughyConfigurationError("the host is no URL")
        if own.scheme == "http" and not (settings.allow_http or own.is_loopback):
            raise RoughyConfigurationError(
                f"the host {own.host} is plain http, where anybody on the way can read the API key; "
                "use https, or set allow_http in the extra"
            )
        return settings

    def url(self, target: str) -> str:
        """Return the absolute URL of a request's target.

        :raises RoughyUntrustedUrlError: If it must not see the key: only the connection's own origin, and https hosts
            under roughy.ai, may.
        """
        if target.startswith("/"):
            return self.base_url + target
        base, named = Address.of(self.base_url), Address.of(target)
        if named is None:
            raise RoughyUntrustedUrlError("Roughy named a URL that is none; nothing was sent there")
        roughy = named.scheme == "https" and (named.host == "roughy.ai" or named.host.endswith(".roughy.ai"))
        if not (named == base or roughy):
            raise RoughyUntrustedUrlError(
                f"Roughy named a URL on {named.scheme}://{named.host}, which is neither {base and base.host} nor https "
                "under roughy.ai; the API key was not sent there"
            )
        return target

    @property
    def unproxied(self) -> tuple[str, ...]:
        """The hosts that no proxy of the environment is asked for: those of this machine."""
        own = Address.of(self.base_url)
        return (*_LOOPBACK, own.host) if own is not None and own.is_loopback else _LOOPBACK


@dataclass(frozen=True)
class Address:
    """Whom a URL leads to.

    :param scheme: ``http`` or ``https``.
    :param host: The host, in small letters; an IPv6 address in its brackets.
    :param port: The port.
    """

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Address | None:
        """Read a URL, or return ``None`` if it is none that every reader would read alike."""
        found = _URL.fullmatch(url)
        if found is None:
            return None
        scheme = found["scheme"].lower()
        port = int(found["port"] or {"http": 80, "https": 443}[scheme])
        return cls(scheme, found["host"].lower(), port) if port < 65536 else None

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine."""
        try:
            return self.host == "localhost" or ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


def _base_url(url: str, port: int | None) -> str:
    """Return a base URL, with the port in its place.

    :raises RoughyConfigurationError: If it is none.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    path = rest[len(authority) :]
    if scheme.lower() not in ("http", "https") or not authority:
        raise RoughyConfigurationError("the host must be an http or https URL")
    if "@" in authority or "?" in path or "#" in path:
        raise RoughyConfigurationError("the host must have neither user, query nor fragment")
    if path.rstrip("/").endswith("/v1"):
        raise RoughyConfigurationError("the host must not end with /v1, with which each path of the API begins")
    named = re.search(r":(\d+)$", authority)
    if port and named and int(named[1]) != port:
        raise RoughyConfigurationError(f"the host names port {named[1]}, and the port is {port}")
    if port and not named:
        authority += f":{port}"
    return f"{scheme}://{authority}{path}".rstrip("/")


def _seconds(value: Any) -> float | None:
    if value in (None, ""):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise RoughyConfigurationError(f"timeout in the extra must be a number of seconds above 0, not {value!r}")
    return seconds


def _flag(name: str, value: Any, *, default: bool) -> bool:
    if value in (None, ""):
        return default
    flag = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(str(value).lower())
    if flag is None:
        raise RoughyConfigurationError(f"{name} in the extra must be true or false, not {value!r}")
    return flag


def _text(name: str, value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise RoughyConfigurationError(f"{name} in the extra must be text")
    return (value or "").strip() or None


def _verify(value: Any) -> bool | str:
    if isinstance(value, str) and os.path.sep in value:
        return value
    return _flag("verify", value, default=True)
