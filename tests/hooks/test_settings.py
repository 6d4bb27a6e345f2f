"""An Airflow connection, in every form that it comes in, read strictly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

from reducto_provider.exceptions import ReductoConfigurationError
from reducto_provider.hooks.reducto import ReductoHook
from reducto_provider.hooks.settings import ReductoSettings, origin_of
from reducto_provider.usage.query import UsageQuery
from tests.airflow_sdk import AirflowNotFoundException
from tests.airflows import AIRFLOW

KEY = "sim-key-all"
QUERY = UsageQuery(start=date(2026, 6, 1), end=date(2026, 6, 1), org_id="org_acme")

Connect = Callable[..., str]
Read = Callable[..., ReductoSettings]


@pytest.fixture(params=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Read:
    """The two ways to read a connection, which must not differ."""
    if request.param == "sync":
        return lambda conn_id="reducto_default": ReductoHook(conn_id).settings
    return lambda conn_id="reducto_default": asyncio.run(ReductoHook(conn_id).aget_settings())


@pytest.fixture
def connect_by_uri(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda uri: monkeypatch.setenv("AIRFLOW_CONN_REDUCTO_DEFAULT", uri)


def test_the_defaults(read: Read, connect: Connect) -> None:
    connect()
    settings = read()
    assert settings == ReductoSettings(base_url="https://studio.reducto.ai", key=KEY)
    assert (settings.org_id, settings.timeout, settings.max_attempts) == (None, 60, 5)
    assert (settings.requests_per_second, settings.verify, settings.proxy) == (None, True, None)
    with pytest.raises(FrozenInstanceError):
        settings.key = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({}, "https://studio.reducto.ai"),
        ({"host": ""}, "https://studio.reducto.ai"),
        ({"host": "  "}, "https://studio.reducto.ai"),
        ({"schema": "http"}, "https://studio.reducto.ai"),
        ({"host": "example.com"}, "https://example.com"),
        ({"host": " example.com "}, "https://example.com"),
        ({"host": "example.com:8443"}, "https://example.com:8443"),
        ({"host": "example.com", "port": 8443}, "https://example.com:8443"),
        ({"host": "example.com:8443", "port": 9443}, "https://example.com:8443"),
        ({"host": "https://example.com", "port": 8443}, "https://example.com:8443"),
        ({"host": "https://example.com:8443", "port": 9443}, "https://example.com:8443"),
        ({"host": "example.com", "schema": "https"}, "https://example.com"),
        ({"host": "localhost", "schema": "http"}, "http://localhost"),
        ({"host": "localhost", "schema": ""}, "https://localhost"),
        ({"host": "https://localhost", "schema": "https"}, "https://localhost"),
        ({"host": "http://localhost", "schema": "HTTP"}, "http://localhost"),
        ({"host": "http://localhost:8085"}, "http://localhost:8085"),
        ({"host": "HTTPS://example.com"}, "https://example.com"),
        ({"host": "https://example.com/"}, "https://example.com"),
        ({"host": "https://example.com///"}, "https://example.com"),
        ({"host": "https://example.com/reducto/"}, "https://example.com/reducto"),
        ({"host": "https://example.com/reducto", "port": 8443}, "https://example.com:8443/reducto"),
        ({"host": "example.com/reducto/v2"}, "https://example.com/reducto/v2"),
        ({"host": "http://[::1]:8085"}, "http://[::1]:8085"),
        ({"host": "https://[::1]", "port": 8085}, "https://[::1]:8085"),
        ({"host": "[::1]", "schema": "http", "port": 8085}, "http://[::1]:8085"),
        ({"host": "127.0.0.1", "schema": "http", "port": 8085}, "http://127.0.0.1:8085"),
        ({"host": "::1"}, "https://[::1]"),
        ({"host": "http://::1", "port": 8085}, "http://[::1]:8085"),
        ({"host": "http://::1/reducto"}, "http://[::1]/reducto"),
        ({"host": "https://2001:DB8::0:1"}, "https://[2001:db8::1]"),
        ({"host": "example.com", "schema": "reducto/eu"}, "https://example.com/reducto/eu"),
        ({"host": "https://example.com/", "schema": "/reducto/"}, "https://example.com//reducto"),
        ({"schema": "eu"}, "https://studio.reducto.ai/eu"),
        ({"host": "https://example.com", "login": "somebody"}, "https://example.com"),
    ],
)
def test_the_host(read: Read, connect: Connect, logged: Any, fields: dict[str, Any], url: str) -> None:
    connect(**fields)
    assert read().base_url == url
    assert logged.warnings == []


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "http://example.com"},
        {"host": "HTTP://example.com"},
        {"host": "example.com", "schema": "http"},
        {"host": "http://10.0.0.1:80"},
        {"host": "http://localhost.example.com"},
        {"host": "http://127.0.0.1.example.com"},
    ],
)
def test_plain_http_off_loopback_is_warned_of(
    read: Read, connect: Connect, logged: Any, fields: dict[str, Any]
) -> None:
    connect(**fields)
    assert read().base_url.startswith("http://")
    (warning,) = logged.warnings
    assert "plain http" in warning
    assert "in clear" in warning
    assert KEY not in warning


@pytest.mark.parametrize(
    "host",
    [
        "http://localhost",
        "http://LOCALHOST:1",
        "http://127.0.0.1",
        "http://127.8.9.1:80",
        "http://[::1]:1",
        "http://simulator.localhost:8085",
    ],
)
def test_plain_http_on_loopback_is_fine(read: Read, connect: Connect, logged: Any, host: str) -> None:
    connect(host=host)
    assert read().base_url.startswith("http://")
    assert logged.warnings == []


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "https://me@example.com"},
        {"host": "https://me:password-1@example.com"},
        {"host": "https://:password-1@example.com"},
        {"host": "me:password-1@example.com"},
        {"host": "https://example.com?groupBy=product"},
        {"host": "https://example.com/a?b=c"},
        {"host": "https://example.com#top"},
        {"host": "ftp://example.com"},
        {"host": "file:///etc/passwd"},
        {"host": "ws://example.com"},
        {"host": "http+unix://example.com"},
        {"host": "https://example.com", "schema": "http"},
        {"host": "http://localhost", "schema": "https"},
        {"host": "https://example.com/reducto", "schema": "eu"},
        {"host": "https://"},
        {"host": "https:///path"},
        {"host": "://example.com"},
        {"host": "https://example.com:port"},
        {"host": "https://example.com:99999"},
        {"host": "https://[::1"},
        {"host": "https://[nonsense]"},
        {"host": "::1::"},
        {"host": "https://::1::"},
        {"host": "https://example.com\\@other.example"},
        {"host": "https://exam ple.com"},
        {"host": "example.com", "port": 99999},
        {"host": "example.com", "port": -1},
        {"host": "https://example.com:", "port": "-1"},
    ],
    ids=str,
)
def test_a_host_that_is_refused(read: Read, connect: Connect, fields: dict[str, Any]) -> None:
    connect(**fields)
    with pytest.raises(ReductoConfigurationError, match=r"^connection 'reducto_default': .*(host|port)") as caught:
        read()
    assert "password-1" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert 'as JSON: {"conn_type": "reducto", "host": "https://' in str(caught.value)


def test_the_json_that_errors_show_can_be_used(read: Read, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(host="ftp://example.com")
    with pytest.raises(ReductoConfigurationError) as caught:
        read()
    monkeypatch.setenv("AIRFLOW_CONN_REDUCTO_DEFAULT", str(caught.value).split("as JSON: ")[1])
    assert read().base_url == "https://gateway.example.com:8443/reducto"


@pytest.mark.parametrize("host", ["https://example.com:", "https://@example.com"])
def test_an_empty_part_of_the_host_is_no_part(read: Read, connect: Connect, host: str) -> None:
    connect(host=host, port=8443)
    settings = read()
    assert settings.origin == ("https", "example.com", 8443)


# Extras


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("org_id", "org_acme", "org_acme"),
        ("org_id", "  org_acme ", "org_acme"),
        ("timeout", 5, 5.0),
        ("timeout", 0.5, 0.5),
        ("timeout", "2.5", 2.5),
        ("timeout", " 3 ", 3.0),
        ("max_attempts", 1, 1),
        ("max_attempts", 20, 20),
        ("max_attempts", "3", 3),
        ("max_attempts", " 3 ", 3),
        ("requests_per_second", 10, 10.0),
        ("requests_per_second", "0.5", 0.5),
        ("verify", True, True),
        ("verify", False, False),
        ("verify", "true", True),
        ("verify", "false", False),
        ("verify", " False ", False),
        ("verify", "TRUE", True),
        ("verify", __file__, __file__),
        ("verify", str(Path(__file__).parent), str(Path(__file__).parent)),
        ("proxy", "http://proxy:3128", "http://proxy:3128"),
        ("proxy", "https://me:pass%40word@proxy", "https://me:pass%40word@proxy"),
        ("proxy", "http://[::1]:3128", "http://[::1]:3128"),
    ],
)
def test_an_extra(read: Read, connect: Connect, logged: Any, name: str, given: Any, value: Any) -> None:
    connect(extra={name: given})
    found = getattr(read(), name)
    assert (found, type(found)) == (value, type(value))
    assert logged.warnings == []


@pytest.mark.parametrize("name", ["org_id", "timeout", "max_attempts", "requests_per_second", "verify", "proxy"])
@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_extra_counts_as_left_out(read: Read, connect: Connect, name: str, empty: Any) -> None:
    connect(extra={name: empty})
    assert read() == ReductoSettings(base_url="https://studio.reducto.ai", key=KEY)


BAD_NUMBERS = [0, -1, "0", "-1", "nan", "inf", "-inf", "1e999", "soon", "5 s", "1,5", True, False, [5], {"a": 5}, "  "]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("timeout", value) for value in BAD_NUMBERS),
        *(("requests_per_second", value) for value in BAD_NUMBERS),
        *(("max_attempts", value) for value in [*BAD_NUMBERS, 21, "21", 1.5, "1.5", 3.0, "3.0", "+3", "0x3"]),
        *(("org_id", value) for value in [5, True, ["org_acme"], {"org": "acme"}, "  "]),
        *(("verify", value) for value in [0, 1, "yes", "no", "0", "/nowhere/bundle.pem", [], ["a"], "a\0b", "  "]),
        *(("proxy", value) for value in [5, True, "proxy", "proxy:3128", "socks5://proxy", "http://", "  "]),
        *(("proxy", value) for value in ["http://proxy:port", "http://proxy:99999", "http://[::1", ["http://a"]]),
    ],
    ids=lambda value: repr(value),
)
def test_an_extra_that_is_refused(read: Read, connect: Connect, name: str, given: Any) -> None:
    connect(extra={name: given})
    with pytest.raises(ReductoConfigurationError, match=rf"^connection 'reducto_default': extra '{name}' must be") as e:
        read()
    assert KEY not in str(e.value)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        pytest.param("timeout", "1e300", id="no socket waits so long"),
        pytest.param("timeout", 1e12, id="nor so long"),
        pytest.param("requests_per_second", 1e-300, id="no sleep lasts so long"),
        pytest.param("max_attempts", "9" * 5000, id="more digits than Python reads"),
        pytest.param("verify", "a" * 5000, id="longer than any path"),
    ],
)
def test_an_extra_out_of_all_bounds(read: Read, connect: Connect, name: str, given: Any) -> None:
    connect(extra={name: given})
    with pytest.raises(ReductoConfigurationError, match=rf"extra '{name}' must be"):
        read()


@pytest.mark.parametrize("name", ["timeout", "max_attempts", "requests_per_second", "verify", "proxy"])
def test_a_key_in_the_wrong_field_is_not_shown(read: Read, connect: Connect, name: str) -> None:
    connect(extra={name: KEY})
    with pytest.raises(ReductoConfigurationError, match=f"extra '{name}'") as caught:
        read()
    assert KEY not in str(caught.value)


def test_a_proxy_s_password_is_not_shown(read: Read, connect: Connect) -> None:
    connect(extra={"proxy": "socks5://me:password-1@proxy"})
    with pytest.raises(ReductoConfigurationError) as caught:
        read()
    assert "password-1" not in str(caught.value)


def test_unknown_extras_are_named_not_shown(read: Read, connect: Connect, logged: Any) -> None:
    connect(extra={"srv_lookup": True, "X-Team": "team-value", "Timeout": "value-2", "retries": 81729})
    assert read() == ReductoSettings(base_url="https://studio.reducto.ai", key=KEY)
    (warning,) = logged.warnings
    names = ("reducto_default", "srv_lookup", "X-Team", "Timeout", "retries", "requests_per_second")
    assert [name for name in names if name not in warning] == []
    assert [value for value in ("team-value", "value-2", "81729", KEY) if value in warning] == []


@pytest.mark.parametrize("extra", ["[1, 2]", '"text"', "5", "true"])
def test_extras_that_are_no_object(read: Read, connect: Connect, extra: str) -> None:
    connect(extra=extra)
    if (3, 0) <= AIRFLOW < (3, 2):  # such a connection is none at all
        with pytest.raises(AirflowNotFoundException, match="`reducto_default`"):
            read()
    else:
        with pytest.raises(ReductoConfigurationError, match=r"^connection 'reducto_default': extra"):
            read()


# Connections written as URIs


def test_a_uri(read: Read, connect_by_uri: Callable[[str], None], logged: Any) -> None:
    connect_by_uri(
        f"reducto://https://:{KEY}@example.com:8443/?timeout=2.5&max_attempts=3&requests_per_second=4&verify=false"
        "&org_id=org_acme&proxy=http%3A%2F%2Fproxy%3A3128"
    )
    assert read() == ReductoSettings(
        base_url="https://example.com:8443",
        key=KEY,
        org_id="org_acme",
        timeout=2.5,
        max_attempts=3,
        requests_per_second=4.0,
        verify=False,
        proxy="http://proxy:3128",
    )
    assert logged.warnings == []


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        (f"reducto://:{KEY}@", "https://studio.reducto.ai"),
        (f"reducto://:{KEY}@/?timeout=60", "https://studio.reducto.ai"),
        (f"reducto://:{KEY}@example.com", "https://example.com"),
        (f"reducto://:{KEY}@example.com:8443", "https://example.com:8443"),
        (f"reducto://:{KEY}@localhost:8085/http", "http://localhost:8085"),
        (f"reducto://http://:{KEY}@localhost:8085", "http://localhost:8085"),
        (f"reducto://:{KEY}@{quote('http://localhost:8085/a', safe='')}", "http://localhost:8085/a"),
        (f"reducto://https://:{KEY}@example.com/reducto/eu", "https://example.com/reducto/eu"),
        (f"reducto://https://:{KEY}@example.com:8443/reducto/eu/?timeout=60", "https://example.com:8443/reducto/eu"),
        (f"reducto://:{KEY}@example.com/reducto/eu", "https://example.com/reducto/eu"),
        (f"reducto://:{KEY}@example.com/http/eu", "https://example.com/http/eu"),
        (f"reducto://:{KEY}@/eu", "https://studio.reducto.ai/eu"),
        (f"reducto://:{KEY}@example.com/a%20b/%2520", "https://example.com/a%20b/%2520"),
        (f"reducto://:{KEY}@example.com/a%3Fb%23c", "https://example.com/a%3Fb%23c"),
        (f"reducto://http://:{KEY}@[::1]:8085", "http://[::1]:8085"),
        (f"reducto://http://:{KEY}@[::1]/reducto/eu", "http://[::1]/reducto/eu"),
        (f"reducto://:{KEY}@[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
        (f"reducto://:{KEY}@%5B%3A%3A1%5D:8443", "https://[::1]:8443"),
    ],
)
def test_the_host_of_a_uri(read: Read, connect_by_uri: Callable[[str], None], uri: str, url: str) -> None:
    connect_by_uri(uri)
    assert read() == ReductoSettings(base_url=url, key=KEY)


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "https://example.com:8443/reducto/eu"},
        {"host": "https://example.com/a%20b"},
        {"host": "http://[::1]:8085/reducto"},
        {"host": "http://[::1]", "port": 8085},
        {"host": "example.com/reducto", "port": 8443},
    ],
    ids=str,
)
def test_a_connection_that_airflow_writes_as_a_uri(
    read: Read, connect: Connect, connect_by_uri: Callable[[str], None], fields: dict[str, Any]
) -> None:
    """As it does to test one."""
    from airflow.models.connection import Connection

    connect(**fields)
    before = read()
    connect_by_uri(Connection(conn_id="c", conn_type="reducto", password=KEY, **fields).get_uri())
    assert read() == before


@pytest.mark.parametrize("uri", [f"reducto://https://:{KEY}@example.com/http", f"reducto://:{KEY}@example.com%2Fa/b"])
def test_a_uri_that_would_lose_its_path(read: Read, connect_by_uri: Callable[[str], None], uri: str) -> None:
    connect_by_uri(uri)
    with pytest.raises(ReductoConfigurationError, match=r"schema .*as JSON: "):
        read()


def test_a_uri_s_extras_are_text_and_read_strictly(read: Read, connect_by_uri: Callable[[str], None]) -> None:
    connect_by_uri(f"reducto://:{KEY}@example.com?verify=nope")
    with pytest.raises(ReductoConfigurationError, match="extra 'verify' must be true, false or"):
        read()


def test_a_uri_s_key_is_unquoted(read: Read, connect_by_uri: Callable[[str], None]) -> None:
    connect_by_uri(f"reducto://:{quote('k/e+y=%', safe='')}@example.com")
    assert read().key == "k/e+y=%"


# The key


@pytest.mark.parametrize("password", [None, ""])
def test_a_missing_key(read: Read, connect: Connect, password: str | None) -> None:
    connect(password=password)
    with pytest.raises(ReductoConfigurationError, match=r"^connection 'reducto_default': password is empty") as caught:
        read()
    for words in ("API Keys page of Reducto Studio", "REDUCTO_API_KEY", "platform.reducto.ai"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "password",
    [
        "secret-part ",
        " secret-part",
        "secret part",
        "secret-part\n",
        "secret-part\r\nX: y",
        "secret-part\t",
        "secret-part\x00",
        "secret-pärt",
        "secret-part\u200b",
        "\ufeffsecret-part",
        "“secret-part”",
        "   ",
    ],
    ids=ascii,
)
def test_a_key_that_no_header_carries(read: Read, connect: Connect, password: str) -> None:
    connect(password=password)
    with pytest.raises(ReductoConfigurationError, match=r"^connection 'reducto_default': password .*white space") as e:
        read()
    assert "secret" not in str(e.value)
    assert e.value.__cause__ is None
    assert e.value.__suppress_context__


def test_a_connection_that_does_not_exist(read: Read) -> None:
    with pytest.raises(AirflowNotFoundException, match="nowhere"):
        read("nowhere")


def test_the_connection_is_named_as_given(read: Read, connect: Connect) -> None:
    connect(conn_id="reducto_emea", password="")
    with pytest.raises(ReductoConfigurationError, match=r"^connection 'reducto_emea': "):
        read("reducto_emea")


def test_the_type_of_the_connection_does_not_matter(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_REDUCTO_DEFAULT", json.dumps({"conn_type": "http", "password": KEY}))
    assert read().key == KEY


# Secrets


def test_settings_show_neither_key_nor_proxy() -> None:
    settings = ReductoSettings(base_url="https://example.com", key=KEY, proxy="http://me:password-1@proxy")
    assert KEY not in f"{settings} {settings!r}"
    assert "password-1" not in f"{settings} {settings!r}"


@pytest.mark.parametrize(("text", "hidden"), [(f"a {KEY} b {KEY}", "a *** b ***"), ("http://proxy", "http://proxy")])
def test_hide(text: str, hidden: str) -> None:
    settings = ReductoSettings(base_url="https://example.com", key=KEY, proxy="http://proxy")
    assert settings.redact(text) == hidden


def test_hide_a_key_as_it_is_written_in_a_url() -> None:
    settings = ReductoSettings(base_url="https://example.com", key="sk/1+2=")
    assert settings.redact("token sk/1+2= or sk%2F1%2B2%3D") == "token *** or ***"


@pytest.mark.parametrize("password", ["password-1", "pass%40word-1"])
def test_hide_a_proxy_s_password(password: str) -> None:
    settings = ReductoSettings(base_url="https://example.com", key=KEY, proxy=f"http://me:{password}@proxy")
    for form in (password, unquote(password)):
        assert form not in settings.redact(f"login me, {form}: {settings.proxy} refuses")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://example.com", "https://example.com:443/path?query", True),
        ("http://example.com", "http://example.com:80", True),
        ("https://EXAMPLE.com", "HTTPS://example.COM", True),
        ("https://[::1]:8085/a", "https://[::1]:8085", True),
        ("https://example.com", "http://example.com", False),
        ("https://example.com", "https://example.com:8443", False),
        ("http://example.com", "http://example.com:443", False),
        ("https://example.com", "https://www.example.com", False),
        ("https://example.com", "https://example.com.other.example", False),
        ("https://example.com", "https://example.com@other.example", False),
        ("https://example.com", "https://other.example/https://example.com", False),
    ],
)
def test_origins(one: str, other: str, same: bool) -> None:
    assert (origin_of(one) == origin_of(other)) == same


def test_settings_are_replaced_not_changed() -> None:
    settings = ReductoSettings(base_url="https://example.com", key=KEY)
    assert replace(settings, max_attempts=1) != settings
    assert settings.max_attempts == 5
