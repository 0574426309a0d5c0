"""The proxies of the environment: ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeVar
from urllib.request import getproxies

import httpx

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.exceptions import RoughyConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_roughy.settings import Settings

B = TypeVar("B", httpx.BaseTransport, httpx.AsyncBaseTransport)


@contextmanager
def proxy_errors() -> Iterator[None]:
    """Raise the errors of httpx about a proxy's URL as errors of the configuration.

    :raises RoughyConfigurationError: If the environment names a proxy that cannot be used.
    """
    try:
        yield
    except (ImportError, RuntimeError, ValueError, httpx.InvalidURL) as err:
        raise RoughyConfigurationError(f"The proxy settings of the environment cannot be used: {err}") from err


def proxy_mounts(settings: Settings, host: str, make: Callable[[httpx.Proxy], B]) -> dict[str, B | None]:
    """Return the transports of the environment's proxies by httpx URL pattern; ``None`` for a direct connection.

    :param settings: The connection, whose own hosts no proxy may see.
    :param host: The host that the client sends requests to.
    :param make: Creates the transport of a proxy.
    """
    proxies = _proxies(host).items()
    mounts: dict[str, B | None] = {pattern: None if proxy is None else make(proxy) for pattern, proxy in proxies}
    # A proxy must not see requests to this machine: they carry the key, in plain text.
    return mounts | {f"all://{name}": None for name in settings.unproxied}


def _proxies(host: str) -> dict[str, httpx.Proxy | None]:
    """Return the proxies of the environment by httpx URL pattern.

    httpx's own reader raises for an entry of ``NO_PROXY`` that it cannot parse, such as an IPv6 network, and takes an
    IPv4 network for an address.

    :param host: The host that the client sends requests to. It is compared with the networks in ``NO_PROXY``.
    """
    found = getproxies()
    proxies: dict[str, httpx.Proxy | None] = {}
    for scheme in ("http", "https", "all"):
        if url := found.get(scheme):
            proxies[f"{scheme}://"] = httpx.Proxy(url if "://" in url else f"http://{url}")
    for entry in filter(None, re.split(r"[\s,]+", found.get("no") or "")):
        if entry == "*":
            return {}
        try:
            proxies |= dict.fromkeys(_no_proxy_patterns(entry, host))
        except (ValueError, httpx.InvalidURL):
            decode.report_once("Ignored %a in NO_PROXY: neither a host, an IP address nor a network", entry[:100])
    return proxies


def _no_proxy_patterns(entry: str, host: str) -> list[str]:
    """Return the httpx URL patterns of an entry of ``NO_PROXY``; an empty list for a network without the host.

    :param entry: A host name, a domain or an IP address, each optionally with a port; or an IP network.
    :param host: The host that the client sends requests to.
    :raises ValueError: If the entry is none of these.
    :raises httpx.InvalidURL: If httpx accepts no such pattern.
    """
    scheme, separator, rest = entry.rpartition("://")
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:[0-9]+)?", rest)
    # An IPv6 address without brackets has colons, but no port.
    address, port = (found[1].strip("[]"), found[2] or "") if found else (rest, "")
    # httpx drops the default port of a scheme from a URL.
    default_scheme = {":80": "http", ":443": "https"}.get(port)
    scheme, port = (scheme if separator else default_scheme or "all"), ("" if default_scheme else port)
    with suppress(ValueError):
        network = ip_network(address, strict=False)
        return [f"{scheme}://{host}{port}"] if _is_inside(host, network) else []
    name = re.sub(r"^\*?\.", "*.", address.lower().rstrip("."))
    if not re.fullmatch(r"(\*\.)?[\w.-]+", name):
        raise ValueError("not a host name")
    # httpx2 accepts no wildcard before an international name, so that its subdomains need entries of their own.
    wildcard = "" if name == "localhost" or name.startswith("*.") or not name.isascii() else "*"
    pattern = f"{scheme}://{wildcard}{name if name.isascii() else name.encode('idna').decode()}{port}"
    # Raises for a pattern that httpx would not accept as the key of a mount.
    _ = httpx.URL(pattern).host
    return [pattern]


def _is_inside(host: str, network: IPv4Network | IPv6Network) -> bool:
    try:
        return ip_address(host.strip("[]")) in network
    except ValueError:
        return False
