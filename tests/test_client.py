"""Settings, retries and the two drivers, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import ssl
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from airflow_provider_roughy import __version__, api
from airflow_provider_roughy.compat import AirflowFailException
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyError,
    RoughyInterruptedError,
    RoughyNotFoundError,
    RoughyProtocolError,
    RoughyRateLimitError,
    RoughyServerError,
    RoughyUnreachableError,
    RoughyUntrustedUrlError,
    RoughyValidationError,
)
from airflow_provider_roughy.http import interrupt, transport
from airflow_provider_roughy.http.client import AsyncClient, Backoff, Client, Settings

NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"

Run = Callable[[Settings, api.Call[Any]], Any]


def quick(tries: int = 5) -> Backoff:
    return Backoff(tries=tries, first=0.01)


def run_sync(settings: Settings, call: api.Call[Any]) -> Any:
    with Client(settings) as client:
        return client.run(call, backoff=quick())


def run_async(settings: Settings, call: api.Call[Any]) -> Any:
    async def run() -> Any:
        async with await AsyncClient.open(settings) as client:
            return await client.run(call, backoff=quick())

    return asyncio.run(run())


@pytest.fixture(params=[run_sync, run_async], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def settings(roughy: Emulator) -> Settings:
    return Settings(api_key=roughy.api_key, base_url=roughy.url, timeout=1.0)


def connection(**fields: Any) -> Settings:
    known: dict[str, Any] = {"host": None, "schema": None, "port": None, "password": "sk_key", "extra": {}}
    return Settings.from_connection(**{**known, **fields})


# ---- The connection's fields


@pytest.mark.parametrize(
    "extra",
    [
        {"project_id": 17},
        {"project_id": ["x"]},
        {"project_id": "x\x00"},
        {"webhook_asset": "media\x00"},
        {"webhook_asset": "\ud83d"},
        {"webhook_secret": {}},
        {"verify": "/ca\x00.pem"},
        {"timeout": 10**400},
        {"timeout": "1e999"},
        {"allow_http": []},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_an_extra_that_cannot_be_used_is_named(extra: dict[str, Any]) -> None:
    with pytest.raises(RoughyConfigurationError, match=f"^`{next(iter(extra))}` in the extra"):
        connection(extra=extra)


def test_an_empty_connection_needs_only_a_key() -> None:
    assert connection() == Settings(api_key="sk_key", base_url="https://api.roughy.ai")


@pytest.mark.parametrize(
    ("fields", "base_url"),
    [
        ({"host": "https://roughy-api-staging.fly.dev/"}, "https://roughy-api-staging.fly.dev"),
        ({"host": "api.roughy.ai"}, "https://api.roughy.ai"),
        ({"host": "127.0.0.1", "schema": "http", "port": 8321}, "http://127.0.0.1:8321"),
        ({"host": "http://[::1]:8321"}, "http://[::1]:8321"),
        ({"host": "https://gateway.example/roughy"}, "https://gateway.example/roughy"),
        ({"host": "http://roughy.internal", "extra": {"allow_http": True}}, "http://roughy.internal"),
        ({"host": "https://gateway.example/roughy", "port": 8443}, "https://gateway.example:8443/roughy"),
        ({"host": "gateway.example/roughy/", "port": 8443}, "https://gateway.example:8443/roughy"),
        ({"host": "https://gateway.example:8443", "port": 8443}, "https://gateway.example:8443"),
        ({"host": "http://[::1]", "port": 8321}, "http://[::1]:8321"),
        ({"host": "http://roughy_1:8321", "extra": {"allow_http": True}}, "http://roughy_1:8321"),
    ],
)
def test_the_host_may_be_written_in_several_ways(fields: dict[str, Any], base_url: str) -> None:
    assert connection(**fields).base_url == base_url


def test_the_extra_may_be_text_as_it_is_in_a_uri() -> None:
    read = connection(extra={"timeout": "2.5", "verify": "false", "allow_http": "true", "project_id": NOBODY})
    assert (read.timeout, read.verify, read.allow_http, read.project_id) == (2.5, False, True, NOBODY)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"password": None}, "no API key"),
        ({"password": "  "}, "no API key"),
        ({"password": "sk_a b"}, "not an API key: it has spaces"),
        ({"password": "sk_schlüssel"}, "beyond ASCII"),
        ({"host": "http://roughy.internal"}, "plain http"),
        ({"host": "http://127.0.0.1.evil.example"}, "plain http"),
        ({"host": "ftp://roughy.ai"}, "http or https"),
        ({"host": "https://"}, "http or https"),
        ({"host": "https://user:pw@roughy.ai"}, "neither user"),
        ({"host": "https://roughy.ai?x=1"}, "neither user"),
        ({"host": "https://api.roughy.ai/v1/"}, "must not end with /v1"),
        ({"host": "https://gateway.example:8443", "port": 9443}, "names port 8443"),
        ({"host": "https://gateway.example:70000"}, "not a URL"),
        ({"host": "https://evil.example\\.roughy.ai"}, "not a URL"),
        ({"host": "https://gate way.example"}, "not a URL"),
        ({"extra": ["timeout"]}, "not a JSON object"),
        ({"extra": {"timeout": "soon"}}, "timeout"),
        ({"extra": {"timeout": -1}}, "timeout"),
        ({"extra": {"timeout": "inf"}}, "timeout"),
        ({"extra": {"verify": "maybe"}}, "verify"),
        ({"extra": {"allow_http": "maybe"}}, "allow_http"),
    ],
)
def test_a_connection_that_cannot_work_is_refused_in_words(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RoughyConfigurationError, match=words) as refused:
        connection(**fields)
    assert "sk_" not in str(refused.value).replace("sk_…", "")


def test_invalid_ca_bundle_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(RoughyConfigurationError, match="no CA bundle"):
        Client(connection(extra={"verify": str(tmp_path / "missing.pem")}))


def test_invalid_ca_bundle_of_the_environment_is_named_in_the_error(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport._ssl_context.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(RoughyConfigurationError, match="SSL_CERT_FILE"):
        run(connection(), api.get_credit_balance())


def test_settings_do_not_show_the_key() -> None:
    assert "sk_key" not in repr(connection())


# ---- Who may see the key


@pytest.mark.parametrize(
    "url", ["https://api.roughy.ai/v1/uploads/u", "https://uploads.roughy.ai/u", "http://127.0.0.1:8321/v1/uploads/u"]
)
def test_the_key_goes_to_its_own_origin_and_to_roughy(url: str) -> None:
    assert connection(host="http://127.0.0.1:8321").url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/v1/uploads/u",
        "https://roughy.ai.evil.example/u",
        "https://notroughy.ai/u",
        "http://api.roughy.ai/u",
        "https://api.roughy.ai@evil.example/u",
        "http://127.0.0.1:8322/u",
        "//evil.example/ux",
        "file:///etc/passwd",
        "https://[::1",
        "https://evil.example\\@api.roughy.ai/u",
        "https://evil.example\\.roughy.ai/u",
        "https://evil.example#.roughy.ai/u",
        "https://evil.example\t.roughy.ai/u",
        "https://api.roughy.ai:pw@evil.example/u",
        "https:/api.roughy.ai/u",
        "https://api.roughy.ai:443443/u",
        "https://\uff41pi.roughy.ai/u",
        "",
    ],
)
def test_the_key_goes_nowhere_else(url: str) -> None:
    settings = connection(host="http://127.0.0.1:8321")
    if url.startswith("//"):
        # A path, however it looks: it stays on the connection's own origin.
        assert settings.url(url).startswith("http://127.0.0.1:8321/")
        return
    with pytest.raises(RoughyUntrustedUrlError):
        settings.url(url)


def test_a_foreign_upload_url_is_refused_before_a_byte_is_sent(settings: Settings) -> None:
    with Client(settings) as client, listener() as (port, seen), pytest.raises(RoughyUntrustedUrlError):
        client.run(api.cancel_upload(f"http://127.0.0.1:{port}/v1/uploads/u"))
    assert seen == []


def test_a_redirect_is_not_followed(roughy: Emulator, settings: Settings, run: Run) -> None:
    with listener() as (port, seen):
        location = {"Location": f"http://127.0.0.1:{port}/"}
        roughy.inject(Fault(path="/v1/credits/balance", status=307, headers=location, times=None))
        with pytest.raises(RoughyProtocolError, match="redirect"):
            run(settings, api.get_credit_balance())
    assert seen == []


def test_netrc_does_not_replace_the_key(
    roughy: Emulator, settings: Settings, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_bytes(netrc.read_bytes())
    run(settings, api.get_credit_balance())
    assert roughy.requests[-1].headers["authorization"] == f"Bearer {roughy.api_key}"


def test_a_proxy_from_the_environment_is_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with listener(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as (port, seen):
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(RoughyServerError):
            run(Settings("sk_key", base_url="http://roughy.internal", allow_http=True), api.get_credit_balance())
    assert seen[0].startswith(b"GET http://roughy.internal/v1/credits/balance")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_requests_to_this_machine_bypass_proxies(
    roughy: Emulator, run: Run, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    with listener(answer(b"", status="502 Bad Gateway")) as (port, seen):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        base_url = roughy.url.replace("127.0.0.1", host)
        assert run(Settings(roughy.api_key, base_url=base_url), api.get_credit_balance()) == roughy.balance
    assert seen == []


NO_PROXY = [
    # What Kubernetes, OpenShift and OrbStack set.
    ("localhost,127.0.0.1,::1,10.0.0.0/8,fd00::/8,.svc,.cluster.local", "10.1.2.3", True),
    ("10.0.0.0/8,fd00::/8", "[fd00::7]", True),
    ("::1/128,[::1],fd07:b51a:cc66:f0::/64", "roughy.internal", False),
    ("10.0.0.0/8", "11.1.2.3", False),
    ("10.1.2.3", "10.1.2.3", True),
    ("[fd00::7]:443", "[fd00::7]", True),
    ("10.1.2.3:8443,10.1.2.3:80", "10.1.2.3", False),
    ("internal", "roughy.internal", True),
    ("other internal", "roughy.internal", True),
    (".internal", "roughy.internal", True),
    ("*.Internal", "roughy.internal", True),
    ("roughy.internal.", "roughy.internal", True),
    ("nternal", "roughy.internal", False),
    ("roughy.internal:443", "roughy.internal", True),
    ("roughy.internal:8443", "roughy.internal", False),
    ("https://roughy.internal", "roughy.internal", True),
    ("b\u00fccher.example", "roughy.internal", False),
    ("b\u00fccher.example", "xn--bcher-kva.example", True),
    ("*", "roughy.internal", True),
    ("", "roughy.internal", False),
]  # fmt: skip


@pytest.mark.parametrize(("no_proxy", "host", "direct"), NO_PROXY)
@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_no_proxy_is_read_as_others_read_it(
    no_proxy: str, host: str, direct: bool, make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    proxied(monkeypatch, "http://proxy.example:3128", no_proxy=no_proxy)
    settings = connection(host=f"https://{host}")
    client = make(settings) if make is Client else asyncio.run(AsyncClient.open(settings))
    chosen = client._http._transport_for_url(httpx.URL(f"https://{host}/v1"))
    assert (chosen is client._http._transport) == direct
    assert "NO_PROXY" not in caplog.text


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"])
@pytest.mark.parametrize(
    "entry",
    ["10.0.0.0/99", "a/b", "user@host", "${HOSTS}", "[::1", "::1]", "**.svc", "\x7f", "x:99999", "-", "fe80::%"],
)
def test_what_cannot_be_read_in_no_proxy_is_ignored(
    roughy: Emulator, run: Run, entry: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxied(monkeypatch, proxy, no_proxy=f"{entry},{entry}")
    assert run(Settings(roughy.api_key, base_url=roughy.url), api.get_credit_balance()) == roughy.balance


def test_what_cannot_be_read_in_no_proxy_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    proxied(monkeypatch, None, no_proxy="once/per/process,localhost")
    for _ in range(2):
        Client(Settings("sk_key")).close()
    assert caplog.text.count("Ignored 'once/per/process' in NO_PROXY") == 1


def proxied(monkeypatch: pytest.MonkeyPatch, proxy: str | None, *, no_proxy: str) -> None:
    """Set the proxies of the environment."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        if proxy is not None and not name.lower().startswith("all"):
            monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, no_proxy)


@pytest.mark.parametrize("proxy", ["gopher://user:password@proxy.example", "http://[:::]:1"])
def test_invalid_proxy_is_named_in_the_error(run: Run, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(RoughyConfigurationError, match="proxy") as refused:
        run(Settings("sk_key"), api.get_credit_balance())
    assert "password" not in str(refused.value)


@pytest.mark.parametrize("host", ["[::::]", "xn--a", "a..b", "a" * 64, "gateway.example/" + "p" * 70_000])
def test_invalid_host_is_named_in_the_error(run: Run, host: str) -> None:
    with pytest.raises(RoughyError, match="GET "):
        run(Settings("sk_key", base_url=f"https://{host}"), api.get_credit_balance())


def test_https_goes_through_a_proxy_in_a_tunnel(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("roughy.internal").configure_cert(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    # It answers the CONNECT and is then the server itself, which spares a tunnel.
    with listener(answer(b'{"balance": 7}'), tls=context, tunnel=True) as (port, seen):
        for name in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        settings = Settings("sk_key", base_url="https://roughy.internal", verify=str(tmp_path / "ca.pem"), timeout=2.0)
        assert run(settings, api.get_credit_balance()) == 7
    opened, asked = seen
    assert opened.startswith(b"CONNECT roughy.internal:443 HTTP/1.1\r\n")
    assert b"sk_key" not in opened
    assert b"Bearer sk_key" in asked


def test_requests_have_a_user_agent(roughy: Emulator, settings: Settings, run: Run) -> None:
    run(settings, api.get_credit_balance())
    agent = roughy.requests[-1].headers["user-agent"]
    assert agent.startswith(f"airflow-provider-roughy/{__version__} apache-airflow/")


def test_httpx_does_not_log_requests(
    roughy: Emulator, settings: Settings, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    quiet = {httpx.__name__, httpx.__name__.replace("httpx", "httpcore") + ".http11"}
    for name in quiet:
        caplog.set_level(logging.DEBUG, name)
    roughy.clear_requests()
    run(settings, api.get_credit_balance())
    names = {record.name for record in caplog.records}
    assert not names & quiet
    httpx.get(f"{roughy.url}/_emulator/state")
    assert httpx.__name__ in {record.name for record in caplog.records}, "the requests of others are not ours to hide"


# ---- Retries


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 502}, {"drop": True}, {"garbage": True}, {"hang": True}])
def test_a_passing_fault_is_retried(roughy: Emulator, settings: Settings, run: Run, fault: dict[str, Any]) -> None:
    roughy.inject(Fault(path="/v1/credits/balance", times=1, **fault))
    assert run(settings, api.get_credit_balance()) == roughy.balance
    assert len(roughy.requests) == 2


def test_retry_after_is_obeyed(roughy: Emulator, settings: Settings, run: Run) -> None:
    roughy.inject(Fault(path="/v1/credits/balance", status=429, headers={"Retry-After": "1"}))
    run(settings, api.get_credit_balance())
    first, second = roughy.requests
    assert second.started_at - first.started_at >= 1.0


def test_a_delete_whose_reply_was_lost_has_deleted(roughy: Emulator, settings: Settings, run: Run) -> None:
    asset = run(settings, api.create_asset(roughy.project_id, 64))
    roughy.inject(Fault(method="DELETE", lose_reply=True, times=1))
    roughy.clear_requests()
    assert run(settings, api.delete_asset(asset.id)) is None
    assert len(roughy.requests) == 2
    assert roughy.assets == []


@pytest.mark.parametrize("fault", [None, {"status": 429, "headers": {"Retry-After": "0"}}], ids=["none", "turned away"])
def test_delete_of_a_missing_resource_is_not_found(
    roughy: Emulator, settings: Settings, run: Run, fault: dict[str, Any] | None
) -> None:
    if fault:
        roughy.inject(Fault(method="DELETE", times=1, **fault))
    with pytest.raises(RoughyNotFoundError):
        run(settings, api.delete_asset(NOBODY))


def test_each_pause_is_one_line_of_the_log(
    roughy: Emulator, settings: Settings, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "airflow_provider_roughy")
    roughy.inject(Fault(path="/v1/credits/balance", status=429, headers={"Retry-After": "1"}, nth=1))
    roughy.inject(Fault(path="/v1/credits/balance", status=500, nth=2))
    roughy.inject(Fault(path="/v1/credits/balance", drop=True, nth=3))
    run(settings, api.get_credit_balance())
    first, second, third = (r for r in caplog.records if r.name.startswith("airflow_provider_roughy."))
    assert (first.levelname, second.levelname, third.levelname) == ("INFO", "WARNING", "WARNING")
    call = "GET /v1/credits/balance"
    assert first.getMessage().startswith(f"Retrying in 1.0 s (Retry-After); attempt 1 of 5 failed: {call}: 429")
    assert second.getMessage().startswith(f"Retrying in 0.0 s; attempt 2 of 5 failed: {call}: 500")
    assert third.getMessage().startswith(f"Retrying in 0.0 s; attempt 3 of 5 failed: {call}: no answer")
    assert settings.api_key not in caplog.text


def test_retries_end(roughy: Emulator, settings: Settings, run: Run) -> None:
    roughy.inject(Fault(path="/v1/credits/balance", status=503, times=None))
    with pytest.raises(RoughyServerError):
        run(settings, api.get_credit_balance())
    assert len(roughy.requests) == 5


def test_a_retry_after_beyond_all_patience_is_left_to_airflow(roughy: Emulator, settings: Settings, run: Run) -> None:
    roughy.inject(Fault(path="/v1/credits/balance", status=429, headers={"Retry-After": "3600"}, times=None))
    with pytest.raises(RoughyRateLimitError) as limited:
        run(settings, api.get_credit_balance())
    assert limited.value.retry_after == 3600
    assert len(roughy.requests) == 1


def test_what_cannot_be_mended_is_not_retried(roughy: Emulator, run: Run) -> None:
    with pytest.raises(RoughyAuthenticationError, match="password of the Airflow connection"):
        run(Settings("sk_wrong", base_url=roughy.url), api.get_credit_balance())
    assert len(roughy.requests) == 1


@pytest.mark.parametrize(
    ("fault", "requests"),
    [
        ({"status": 429, "headers": {"Retry-After": "0"}}, 2),
        ({"status": 503, "headers": {"Retry-After": "0"}}, 2),
        ({"status": 503}, 1),
        ({"status": 500}, 1),
        ({"lose_reply": True}, 1),
        ({"hang": True}, 1),
    ],
    ids=str,
)
def test_creating_is_repeated_only_if_it_certainly_did_nothing(
    roughy: Emulator, settings: Settings, run: Run, fault: dict[str, Any], requests: int
) -> None:
    roughy.inject(Fault(method="POST", path="/v1/assets", **fault))
    call = api.create_asset(roughy.project_id, 64)
    if requests == 1:
        with pytest.raises((RoughyServerError, RoughyUnreachableError)):
            run(settings, call)
    else:
        run(settings, call)
    assert len(roughy.requests) == requests
    assert len(roughy.assets) <= 1


def test_creation_is_retried_while_the_connection_is_refused(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(RoughyUnreachableError, match=r"no answer from 127\.0\.0\.1") as unreachable:
            run(Settings("sk_key", base_url=f"http://127.0.0.1:{port}"), api.create_asset(NOBODY, 64))
    assert unreachable.value.sent is False
    assert time.monotonic() - started >= 0.05, "it gave up at once"


def test_a_pause_grows_and_has_jitter() -> None:
    error = RoughyServerError("GET /", status=500)
    pauses = [Backoff(tries=9, first=1.0, longest=8.0) for _ in range(200)]
    rounds = [[backoff.pause_after(error) for backoff in pauses] for _ in range(8)]
    for number, column in enumerate(rounds):
        ceiling = min(8.0, 2.0**number)
        assert all(pause is not None and ceiling / 2 <= pause <= ceiling for pause in column)
        assert len(set(column)) > 100
    assert all(backoff.pause_after(error) is None for backoff in pauses)


def test_the_tries_are_counted_anew_after_progress() -> None:
    backoff = Backoff(tries=2, first=0.0)
    error = RoughyServerError("GET /", status=500)
    for _ in range(20):
        assert backoff.pause_after(error) is not None
        backoff.refill()
    backoff.pause_after(error)
    assert backoff.pause_after(error) is None


def test_a_validation_error_names_the_field(roughy: Emulator, settings: Settings, run: Run) -> None:
    with pytest.raises(RoughyValidationError, match=r"query\.limit"):
        run(settings, api.list_assets(limit=101))


def test_the_event_loop_is_not_blocked_by_a_silent_server(roughy: Emulator, settings: Settings) -> None:
    roughy.inject(Fault(path="/v1/credits/balance", hang=True))

    async def race() -> int:
        beats = 0
        async with await AsyncClient.open(settings) as client:
            asking = asyncio.ensure_future(client.run(api.get_credit_balance(), backoff=quick(tries=1)))
            while not asking.done():
                await asyncio.sleep(0.01)
                beats += 1
            with pytest.raises(RoughyError):
                asking.result()
        return beats

    assert asyncio.run(race()) > 3, "few on a busy machine, and one if the loop is blocked"


# ---- An end to every exchange


def once_sync(settings: Settings, call: api.Call[Any], within: float | None = None) -> Any:
    with Client(settings) as client:
        return client.once(call, within=within)


def once_async(settings: Settings, call: api.Call[Any], within: float | None = None) -> Any:
    async def once() -> Any:
        async with await AsyncClient.open(settings) as client:
            return await client.once(call, within=within)

    return asyncio.run(once())


@pytest.fixture(params=[once_sync, once_async], ids=["sync", "async"])
def once(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param  # type: ignore[no-any-return]


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(head).encode() + body


#: Enough bytes that one every 20 ms takes seconds. Whoever waits for the last one gets a valid reply.
LONG = answer(json.dumps({"balance": 7, "padding": "x" * 100}).encode())


@pytest.mark.parametrize("start", [0, LONG.index(b"\r\n\r\n") + 4], ids=["head", "body"])
@pytest.mark.parametrize("within", [None, 0.4], ids=["connection", "call"])
def test_a_reply_that_trickles_ends_with_its_time(once: Callable[..., Any], start: int, within: float | None) -> None:
    with listener(LONG, trickle_from=start) as (port, _):
        settings = Settings("sk_key", base_url=f"http://127.0.0.1:{port}", timeout=60 if within else 0.4)
        with pytest.raises(RoughyUnreachableError, match=r"no complete reply within 0\.4 s") as late:
            once(settings, api.get_credit_balance(), within)
    assert late.value.sent is True


def test_request_times_out_without_a_reply(once: Callable[..., Any]) -> None:
    with listener(b"", silent=True) as (port, seen):
        settings = Settings("sk_key", base_url=f"http://127.0.0.1:{port}")
        with pytest.raises(RoughyUnreachableError, match=r"within 0\.2 s") as late:
            once(settings, api.get_credit_balance(), 0.2)
    assert late.value.sent is True
    assert len(seen) == 1


def test_an_upload_has_time_as_long_as_bytes_move() -> None:
    def blocks() -> Iterator[bytes]:
        for _ in range(8):
            time.sleep(0.1)
            yield b"x" * 8

    with listener(answer(b"", "Upload-Offset: 64", status="204 No Content"), expect=64) as (port, _):
        settings = Settings("sk_key", base_url=f"http://127.0.0.1:{port}", timeout=0.5)
        url = f"http://127.0.0.1:{port}/v1/uploads/u"
        with Client(settings) as client:
            assert client.once(api.send_bytes(url, blocks(), offset=0, length=64)) == 64


def test_the_reply_to_an_upload_may_not_trickle() -> None:
    reply = answer(b"", "Upload-Offset: 64", "Padding: " + "x" * 100, status="204 No Content")
    with listener(reply, expect=64, trickle_from=0) as (port, _):
        settings = Settings("sk_key", base_url=f"http://127.0.0.1:{port}", timeout=0.4)
        url = f"http://127.0.0.1:{port}/v1/uploads/u"
        with Client(settings) as client, pytest.raises(RoughyUnreachableError, match="no complete reply"):
            client.once(api.send_bytes(url, [b"x" * 64], offset=0, length=64))


@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
def test_a_reply_of_any_length_is_given_up(once: Callable[..., Any], packed: bool) -> None:
    body = b'{"balance": 7, "padding": "' + b"0" * (64 if packed else 9) * 1024 * 1024 + b'"}'
    reply = answer(gzip.compress(body), "Content-Encoding: gzip") if packed else answer(body)
    with listener(reply) as (port, _), pytest.raises(RoughyProtocolError, match="longer than"):
        once(Settings("sk_key", base_url=f"http://127.0.0.1:{port}"), api.get_credit_balance())


def test_no_more_is_unpacked_than_is_allowed() -> None:
    body = b'{"padding": "' + b"0" * 100 * 1024 * 1024 + b'"}'
    with listener(answer(gzip.compress(body), "Content-Encoding: gzip")) as (port, _):
        tracemalloc.start()
        try:
            with pytest.raises(RoughyProtocolError, match="longer than"):
                once_sync(Settings("sk_key", base_url=f"http://127.0.0.1:{port}"), api.get_credit_balance())
            assert tracemalloc.get_traced_memory()[1] < 32 * 1024 * 1024
        finally:
            tracemalloc.stop()


def test_a_packed_reply_is_read(once: Callable[..., Any]) -> None:
    with listener(answer(gzip.compress(b'{"balance": 7}'), "Content-Encoding: gzip")) as (port, seen):
        assert once(Settings("sk_key", base_url=f"http://127.0.0.1:{port}"), api.get_credit_balance()) == 7
    assert b"accept-encoding: gzip\r\n" in seen[0].lower()


@pytest.mark.parametrize(
    "reply",
    [
        answer(b'{"balance": 7}', "Content-Encoding: gzip"),
        answer(gzip.compress(b'{"balance": 7}')[:-12], "Content-Encoding: gzip"),
        answer(b'{"balance": 7}', "Content-Encoding: br"),
    ],
    ids=["no gzip", "cut gzip", "not asked for"],
)
def test_a_reply_that_cannot_be_unpacked_breaks_the_contract(once: Callable[..., Any], reply: bytes) -> None:
    with listener(reply) as (port, _), pytest.raises(RoughyProtocolError):
        once(Settings("sk_key", base_url=f"http://127.0.0.1:{port}"), api.get_credit_balance())


EXPORT = b"TITLE: talk\n" * 100
HALF = len(EXPORT) // 2


def unframed(body: bytes, *headers: str) -> bytes:
    """A reply that ends where its connection does."""
    return "\r\n".join(["HTTP/1.1 200 OK", *headers, "", ""]).encode() + body


def in_chunks(*bodies: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return unframed(b"".join(b"%x\r\n%s\r\n" % (len(b), b) for b in bodies) + end, "Transfer-Encoding: chunked")


def export(reply: bytes) -> bytes:
    with listener(reply) as (port, _):
        settings = Settings("sk_key", base_url=f"http://127.0.0.1:{port}", timeout=5)
        return once_sync(settings, api.export_cut(NOBODY, "edl")).content  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "reply",
    [
        answer(EXPORT),
        answer(EXPORT, status="200 OK").replace(b"HTTP/1.1", b"HTTP/1.0"),
        in_chunks(EXPORT[:HALF], EXPORT[HALF:]),
        answer(gzip.compress(EXPORT), "Content-Encoding: gzip"),
        answer(gzip.compress(EXPORT), "Content-Encoding: X-GZip, identity"),
        answer(gzip.compress(EXPORT[:HALF]) + gzip.compress(EXPORT[HALF:]), "Content-Encoding: gzip"),
        answer(gzip.compress(b"") + gzip.compress(EXPORT) + gzip.compress(b""), "Content-Encoding: gzip"),
    ],
    ids=["length", "HTTP/1.0", "chunks", "gzip", "x-gzip", "two members", "three members"],
)
def test_export_is_read_to_its_end(reply: bytes) -> None:
    assert export(reply) == EXPORT


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"", status="204 No Content"),
        answer(b"", "Content-Encoding: gzip", status="204 No Content"),
        answer(EXPORT, "Content-Range: bytes 0-1199/2400", status="206 Partial Content"),
        answer(EXPORT, status="203 Non-Authoritative Information"),
        answer(EXPORT)[:-1],
        answer(EXPORT).replace(b"HTTP/1.1", b"HTTP/1.0")[:-1],
        unframed(EXPORT),
        unframed(EXPORT[:HALF]).replace(b"HTTP/1.1", b"HTTP/1.0"),
        in_chunks(EXPORT, end=b""),
        answer(gzip.compress(EXPORT)[:-1], "Content-Encoding: gzip"),
        answer(gzip.compress(EXPORT)[:-8], "Content-Encoding: gzip"),
        answer(b"", "Content-Encoding: gzip"),
        answer(gzip.compress(EXPORT) + gzip.compress(EXPORT)[:-9], "Content-Encoding: gzip"),
        answer(gzip.compress(EXPORT) + b"more", "Content-Encoding: gzip"),
        unframed(gzip.compress(EXPORT)[:-9], "Content-Encoding: gzip"),
        # Another member may have been lost.
        unframed(gzip.compress(EXPORT), "Content-Encoding: gzip"),
        answer(gzip.compress(EXPORT), "Content-Encoding: gzip, gzip"),
        answer(EXPORT, "Content-Encoding: br"),
        answer(EXPORT, "Content-Encoding: zstd"),
    ],
    ids=[
        "204",
        "204 that says gzip",
        "206",
        "203",
        "shorter than its length",
        "shorter, HTTP/1.0",
        "no length",
        "no length, HTTP/1.0",
        "no last chunk",
        "gzip short of one byte",
        "gzip without its checksum",
        "no gzip at all",
        "second member cut",
        "garbage after gzip",
        "gzip cut, no length",
        "gzip, no length",
        "gzip twice",
        "br",
        "zstd",
    ],
)
def test_export_that_may_be_cut_short_is_an_error_that_may_pass(reply: bytes) -> None:
    with pytest.raises((RoughyProtocolError, RoughyUnreachableError)) as refused:
        export(reply)
    assert refused.value.transient


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"x", "Content-Encoding: br", "Retry-After: 7", status="429 Too Many Requests"),
        answer(gzip.compress(EXPORT)[:-9], "Content-Encoding: gzip", "Retry-After: 7", status="429 Too Many Requests"),
        answer(b"no gzip", "Content-Encoding: gzip", "Retry-After: 7", status="429 Too Many Requests"),
    ],
    ids=["unknown coding", "cut", "no gzip"],
)
def test_error_keeps_its_status_whatever_its_body_is(once: Callable[..., Any], reply: bytes) -> None:
    with listener(reply) as (port, _), pytest.raises(RoughyRateLimitError) as refused:
        once(Settings("sk_key", base_url=f"http://127.0.0.1:{port}"), api.get_credit_balance())
    assert refused.value.retry_after == 7


@pytest.mark.parametrize(
    "quoted", ["the key", "the URL", "its path", "its last part", "its query", "a value", "decoded"]
)
def test_error_hides_a_secret_that_the_reply_repeats(
    roughy: Emulator, settings: Settings, once: Callable[..., Any], quoted: str
) -> None:
    path = "/v1/uploads/needle-1234?signature=needle%2F5678"
    words = {
        "the key": settings.api_key,
        "the URL": roughy.url + path,
        "its path": path.partition("?")[0],
        "its last part": "needle-1234",
        "its query": path.partition("?")[2],
        "a value": "needle%2F5678",
        "decoded": "needle/5678",
    }[quoted]
    body = {"error": {"code": "forbidden", "message": f"Nobody may {words} that"}}
    roughy.inject(Fault(method="DELETE", status=403, body=body, reply_headers={"X-Request-Id": f"of {words}"}))
    with pytest.raises(RoughyAuthenticationError, match="Nobody may … that") as refused:
        once(settings, api.cancel_upload(roughy.url + path))
    told = json.dumps(refused.value.to_dict()) + str(refused.value)
    assert "needle" not in told
    assert settings.api_key not in told


def test_once_is_once(roughy: Emulator, settings: Settings, once: Callable[..., Any]) -> None:
    roughy.inject(Fault(path="/v1/credits/balance", status=500, times=1))
    with pytest.raises(RoughyServerError):
        once(settings, api.get_credit_balance())
    assert len(roughy.requests) == 1
    assert once(settings, api.get_credit_balance()) == roughy.balance


# ---- Killed tasks


def test_unfinished_connection_attempt_can_be_interrupted() -> None:
    """A firewall that drops packets: nothing answers."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        end_when_told(Settings("sk_key", base_url=f"http://127.0.0.1:{full.getsockname()[1]}"))


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("shakes_hands", [False, True], ids=["silent", "then silent"])
def test_request_can_be_interrupted(secure: bool, shakes_hands: bool) -> None:
    ca, tls = trustme.CA(), None
    if secure and shakes_hands:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1").configure_cert(tls)
    with listener(silent=True, tls=tls) as (port, _), ca.cert_pem.tempfile() as bundle:
        scheme = "https" if secure else "http"
        end_when_told(Settings("sk_key", base_url=f"{scheme}://127.0.0.1:{port}", verify=bundle))


def end_when_told(settings: Settings) -> None:
    killer = interrupt.Interrupt()
    told: list[float] = []

    def tell() -> None:
        told.append(time.monotonic())
        killer.set()

    timer = threading.Timer(0.5, tell)
    timer.start()
    with killer, Client(settings) as client, pytest.raises(RoughyInterruptedError):
        client.run(api.get_credit_balance(), backoff=Backoff(first=60))
    assert time.monotonic() - told[0] < 1
    timer.join()
    # What is done outside of it goes on.
    interrupt.pause(0)
    interrupt.check()


def test_no_request_starts_after_an_interruption(roughy: Emulator, settings: Settings) -> None:
    killer = interrupt.Interrupt()
    with Client(settings) as client:
        with killer:
            assert client.run(api.get_credit_balance()) == roughy.balance
        killer.set()
        assert client.run(api.get_credit_balance()) == roughy.balance
        with killer, pytest.raises(RoughyInterruptedError):
            interrupt.pause(1)


# ---- Certificates


@pytest.fixture
def secure() -> Iterator[tuple[str, trustme.CA]]:
    """The URL of a server over TLS, and the CA that vouches for it."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    with listener(answer(b'{"balance": 7}'), tls=context) as (port, _):
        yield f"https://127.0.0.1:{port}", ca


def test_a_ca_bundle_that_was_replaced_is_read_again(secure: tuple[str, trustme.CA], run: Run, tmp_path: Path) -> None:
    url, ca = secure
    bundle = tmp_path / "ca.pem"
    settings = Settings("sk_key", base_url=url, verify=str(bundle))
    trustme.CA().cert_pem.write_to_path(str(bundle))
    with pytest.raises(RoughyUnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        run(settings, api.get_credit_balance())
    ca.cert_pem.write_to_path(str(bundle))
    assert run(settings, api.get_credit_balance()) == 7


def test_a_running_client_reads_a_replaced_ca_bundle(secure: tuple[str, trustme.CA], tmp_path: Path) -> None:
    url, ca = secure
    bundle = tmp_path / "ca.pem"
    settings = Settings("sk_key", base_url=url, verify=str(bundle))
    stranger = trustme.CA().cert_pem
    stranger.write_to_path(str(bundle))

    async def look() -> int:
        async with await AsyncClient.open(settings) as client:
            with pytest.raises(RoughyUnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.once(api.get_credit_balance())
            ca.cert_pem.write_to_path(str(bundle))
            return await client.run(api.get_credit_balance(), backoff=quick())

    assert asyncio.run(look()) == 7
    stranger.write_to_path(str(bundle))
    with Client(settings) as client:
        with pytest.raises(RoughyUnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
            client.once(api.get_credit_balance())
        ca.cert_pem.write_to_path(str(bundle))
        assert client.run(api.get_credit_balance(), backoff=quick()) == 7


# ---- Downloads


def test_a_download_is_streamed_without_the_key() -> None:
    body = bytes(range(256)) * 8192
    reply = answer(body, "ETag: x", "Set-Cookie: a=b")
    with listener(reply) as (port, seen), Client(connection(host="http://127.0.0.1")) as client:
        url = f"http://127.0.0.1:{port}/file?signature=secret"
        with client.download(url, headers={"Range": "bytes=7-"}) as opened:
            assert (opened.status, opened.headers["etag"]) == (200, "x")
            blocks = [bytes(block) for block in opened.blocks]
    assert b"".join(blocks) == body
    assert len(blocks) > 1
    (asked,) = seen
    assert asked.startswith(b"GET /file?signature=secret HTTP/1.1\r\n")
    assert b"range: bytes=7-" in asked.lower()
    assert b"accept-encoding: identity" in asked.lower()
    for word in (b"sk_", b"authorization", b"cookie", b"bearer"):
        assert word not in asked.lower()


def test_a_download_is_not_redirected() -> None:
    with listener() as (elsewhere, seen):
        reply = answer(b"", f"Location: http://127.0.0.1:{elsewhere}/", status="302 Found")
        with pytest.raises(RoughyProtocolError, match="redirect"):
            download(reply)
    assert seen == []


@pytest.mark.parametrize(
    "url",
    ["http://storage.example/f", "file:///etc/passwd", "https://[::1", "/v1/assets", "", "https://\u212aey.example/f"],
)
def test_a_download_from_nowhere_is_refused(url: str) -> None:
    with Client(connection()) as client, pytest.raises(RoughyUntrustedUrlError), client.download(url):
        pass


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.8.9.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "LOCALHOST."),
        *(
            "app.localhost",
            "0.0.0.0",
            "0",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[64:ff9b::7f00:1]",
        ),
        *("169.254.169.254", "2852039166", "[fe80::1]", "[::ffff:169.254.169.254]"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_download_from_this_machine_is_refused_for_a_connection_elsewhere(host: str, scheme: str) -> None:
    with listener(answer(b"internal secret!")) as (port, seen):
        client = Client(connection(extra={"allow_http": True}))
        link = f"{scheme}://{host}:{port}/admin?secret"
        refusal = pytest.raises(RoughyUntrustedUrlError, match="named a link to")
        with client, refusal as refused, client.download(link):
            pass
    assert "secret" not in str(refused.value)
    assert isinstance(refused.value, AirflowFailException)
    assert seen == []


def test_name_that_stands_for_this_machine_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def hosts(host: str, *args: Any, **kwargs: Any) -> Any:
        return resolve("127.0.0.1" if host in ("files.example", "roughy.example") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hosts)
    for own, allowed in (
        ("https://api.roughy.ai", False),
        ("http://roughy.example", False),
        ("http://127.0.0.1", True),
    ):
        with listener(answer(b"secret")) as (port, seen):
            settings = connection(host=own, extra={"allow_http": True, "timeout": 5})
            with ExitStack() as stack:
                client = stack.enter_context(Client(settings))
                if not allowed:
                    stack.enter_context(pytest.raises(RoughyUntrustedUrlError))
                with client.download(f"http://files.example:{port}/file"):
                    pass
        assert bool(seen) == allowed
    # The connection's own host is where it is.
    with listener(answer(b"file")) as (port, seen):
        settings = connection(host="http://roughy.example", extra={"allow_http": True, "timeout": 5})
        with Client(settings) as client, client.download(f"http://roughy.example:{port}/file") as reply:
            assert b"".join(reply.blocks) == b"file"


def test_proxy_on_this_machine_may_lead_to_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener(answer(b"file")) as (port, seen):
        monkeypatch.setenv("HTTP_PROXY", f"http://localhost:{port}")
        settings = connection(extra={"allow_http": True, "timeout": 5})
        with Client(settings) as client, client.download("http://storage.example/file") as reply:
            assert b"".join(reply.blocks) == b"file"
    assert seen[0].startswith(b"GET http://storage.example/file ")


def test_a_download_that_breaks_off_is_an_error_that_keeps_the_link_to_itself() -> None:
    with pytest.raises(RoughyUnreachableError) as broken:
        download(answer(b"x" * 1000)[:-500])
    assert broken.value.sent is True
    assert "GET /bucket/…" in str(broken.value)
    assert "secret" not in str(broken.value)


def test_invalid_reply_is_not_quoted() -> None:
    reply = answer(b"", "Location: https://a.example/?signature=hidden\0", status="302 Found")
    with pytest.raises(RoughyUnreachableError, match="illegal header line") as broken:
        download(reply)
    assert "hidden" not in "".join(traceback.format_exception(broken.value))


def test_a_download_that_never_begins_ends_with_its_time() -> None:
    with pytest.raises(RoughyUnreachableError, match="no complete reply"):
        download(LONG, trickle_from=0)


def download(reply: bytes, **manner: Any) -> bytes:
    """Download from a server that replies this."""
    local = connection(host="http://127.0.0.1", extra={"timeout": 0.4})
    with listener(reply, **manner) as (port, _), Client(local) as client:
        url = f"http://127.0.0.1:{port}/bucket/name?signature=secret"
        with client.download(url) as opened:
            return b"".join(opened.blocks)


@contextmanager
def listener(
    answer: bytes = b"",
    *,
    trickle_from: int | None = None,
    expect: int = 0,
    silent: bool = False,
    tls: ssl.SSLContext | None = None,
    tunnel: bool = False,
) -> Iterator[tuple[int, list[bytes]]]:
    """A socket that takes note of what it is told.

    :param answer: What it replies.
    :param trickle_from: From which byte of that on it sends only one every 20 ms.
    :param expect: How many bytes of a body it reads before it replies.
    :param silent: Whether it keeps the connection open, and says nothing.
    :param tls: Its certificate, if it talks TLS.
    :param tunnel: Whether it is asked for a tunnel first.
    """
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    continue
                with peer, suppress(OSError):
                    peer.settimeout(5)
                    if tunnel:
                        seen.append(peer.recv(65536))
                        peer.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                    if tls is None:
                        talk(peer)
                    else:
                        with tls.wrap_socket(peer, server_side=True) as wrapped:
                            talk(wrapped)

        def talk(peer: socket.socket) -> None:
            told = peer.recv(65536)
            while expect and len(told.partition(b"\r\n\r\n")[2]) < expect:
                told += peer.recv(65536)
            seen.append(told)
            if silent:
                done.wait()
            peer.sendall(answer[:trickle_from])
            if trickle_from is not None:
                for number in range(trickle_from, len(answer)):
                    if done.wait(0.02):
                        return
                    peer.sendall(answer[number : number + 1])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], seen
        finally:
            done.set()
            thread.join()
