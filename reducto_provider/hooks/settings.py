"""The settings of the hook, parsed strictly from an Airflow connection."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from reducto_provider.exceptions import ReductoConfigurationError
from reducto_provider.usage.checks import check_number, check_text, check_whole_number, excerpt

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

log = logging.getLogger(__name__)

DEFAULT_HOST: Final = "https://studio.reducto.ai"
DEFAULT_TIMEOUT: Final = 60.0
DEFAULT_MAX_ATTEMPTS: Final = 5
_USER_INFO = re.compile(r"://[^/?#\s'\"]*@")
_IN_PATHS = "/:@!$&'()*+,;=~"
_MIN, _MAX = Decimal("0.001"), Decimal(86_400)  # of seconds and requests per second: what sockets and sleeps accept

KEY_HINT: Final = (
    "the Usage Export API takes the personal key from the API Keys page of Reducto Studio, not the "
    "REDUCTO_API_KEY of the document API at platform.reducto.ai"
)

_AS_JSON: Final = (
    'as JSON: {"conn_type": "reducto", "host": "https://gateway.example.com:8443/reducto", "password": "..."}'
)


@dataclass(frozen=True, kw_only=True)
class ReductoSettings:
    """
    The settings of a connection of type ``reducto``.

    :param base_url: scheme, host, and optionally port and path, without a trailing slash.
    :param key: the Studio API key; never shown.
    :param org_id: the organization to use if a query names none.
    :param timeout: seconds for one attempt, including the whole response.
    :param max_attempts: maximum number of requests for one query.
    :param requests_per_second: maximum rate, including retries; None for no limit.
    :param verify: whether to check the service's certificate, or the path of the CA bundle to check it with.
    :param proxy: URL of a proxy; None for the proxy of the environment (``https_proxy``, ``no_proxy``).
    :param conn_id: the connection's own id, for messages.
    """

    base_url: str
    key: str = field(repr=False)
    org_id: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    requests_per_second: float | None = None
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)
    conn_id: str = field(default="", compare=False)

    @classmethod
    def from_connection(cls, connection: Connection, extra: Mapping[str, Any]) -> ReductoSettings:
        """
        Return the settings of a connection and its extras.

        Extras may be text, as in connections that are URIs. Empty ones count as left out.

        :raises ReductoConfigurationError: naming the connection, the field and the remedy, never the key.
        """
        try:
            if not isinstance(extra, Mapping):
                raise ValueError(f"extra must be a JSON object, not {type(extra).__name__}")
            if unknown := sorted(extra.keys() - EXTRAS.keys()):
                log.warning(
                    "Connection %s has extras that the Reducto hook does not know: %s. It knows %s.",
                    connection.conn_id,
                    ", ".join(unknown),
                    ", ".join(EXTRAS),
                )
            options = {}
            for name, parse in EXTRAS.items():
                if (value := extra.get(name)) not in (None, ""):
                    options[name] = parse(f"extra {name!r}", value)
            return cls(
                base_url=_base_url(connection.host, connection.schema, connection.port),
                key=_key(connection.password),
                conn_id=connection.conn_id,
                **options,
            )
        except ValueError as error:
            message = f"connection {connection.conn_id!r}: {error}"
            if connection.password:  # the key may also have been pasted into another field
                message = message.replace(connection.password, "***")
            raise ReductoConfigurationError(message) from None

    @property
    def origin(self) -> tuple[str, str, int | None]:
        """The scheme, host and port that the key may be sent to."""
        return origin_of(self.base_url)

    def redact(self, text: str) -> str:
        """Return ``text`` without the connection's secrets, and without the user and password of any URL."""
        secrets = [self.key, quote(self.key, safe="")]
        if self.proxy and (password := urlsplit(self.proxy).password):
            secrets += [password, unquote(password)]
        for secret in secrets:
            text = text.replace(secret, "***")
        return _USER_INFO.sub("://***@", text)


def origin_of(url: str) -> tuple[str, str, int | None]:
    """Return the scheme, host and port of a URL, with the default port if it names none."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(scheme)


def _key(password: str | None) -> str:
    if not password:
        raise ValueError(f"password is empty: put the API key there; {KEY_HINT}")
    # A header can't carry the former, and white space is easily pasted along with a key.
    if not password.isascii() or not password.isprintable() or " " in password:
        raise ValueError("password (the API key) holds white space or characters that no key has: paste it again")
    return password


def _base_url(host: str | None, schema: str | None, port: object) -> str:
    try:
        return _join_url((host or "").strip(), (schema or "").strip(), port)
    except ValueError as error:
        raise ValueError(f"{error}; {_AS_JSON}") from None


def _join_url(host: str, schema: str, port: object) -> str:
    # For a URI, Airflow passes the path as the schema, and an IPv6 address without its brackets.
    scheme, path = (schema.lower(), "") if schema.lower() in ("", "http", "https") else ("", schema)
    url = _with_brackets(host or DEFAULT_HOST)
    try:
        parts = urlsplit(url if "://" in url else f"{scheme or 'https'}://{url}")
        number = parts.port or (int(str(port)) if port else None)
        name = _host_name(parts.hostname or "")
    except ValueError as error:
        raise ValueError(f"host and port must form a URL such as {DEFAULT_HOST}: {error}") from None
    if parts.scheme not in ("http", "https") or not name:
        raise ValueError(f"host must be a host name or an https URL such as {DEFAULT_HOST}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"host must be a plain URL such as {DEFAULT_HOST}, without user, query or fragment")
    if number is not None and not 1 <= number <= 65535:
        raise ValueError(f"port must be from 1 to 65535, not {number}")
    if host and scheme and scheme != parts.scheme:  # it may be the path of a URI
        raise ValueError(f"host begins with {parts.scheme}, but schema is {scheme}: leave schema empty")
    if path and parts.path.strip("/"):
        raise ValueError("host and schema both hold a path: give all of it in the host")
    if parts.scheme == "http" and not _is_loopback(parts):
        log.warning("The Reducto connection uses plain http to %s: the key is sent in clear.", name)
    # Airflow has decoded the schema. Percent-encoding in a host is kept.
    path = quote(f"/{path}", safe=_IN_PATHS) if path else quote(parts.path, safe=f"{_IN_PATHS}%")
    return f"{parts.scheme}://{name}{'' if number is None else f':{number}'}{path.rstrip('/')}"


def _with_brackets(host: str) -> str:
    """Return a host with its IPv6 address in brackets, which separate it from a port."""
    scheme, separator, rest = host.rpartition("://")
    address, slash, path = rest.partition("/")
    with suppress(ValueError):
        return f"{scheme}{separator}[{IPv6Address(address)}]{slash}{path}"
    return host


def _host_name(name: str) -> str:
    """Return a host name as it is sent, so that requests and aiohttp agree on the host that the key is for."""
    if ":" in name:
        return f"[{ip_address(name)}]"
    if any(character.isspace() or not character.isprintable() for character in name):
        raise ValueError("the name of the host holds white space")
    return name.encode("idna").decode() if name else name


def _is_loopback(url: SplitResult) -> bool:
    host = url.hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _text(name: str, value: object) -> str:
    return check_text(name, value).strip()


def _seconds(name: str, value: object) -> float:
    return _number(name, value, "a number of seconds")


def _rate(name: str, value: object) -> float:
    return _number(name, value, "a number")


def _number(name: str, value: object, kind: str) -> float:
    return float(check_number(name, value, lambda number: _MIN <= number <= _MAX, f"{kind}, from {_MIN:g} to {_MAX:g}"))


def _attempts(name: str, value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,2}\s*", value, re.ASCII):
        value = int(value)
    return check_whole_number(name, value, 1, 20)


def _verify(name: str, value: object) -> bool | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
        with suppress(OSError, ValueError):  # too long for a path, or with characters that none has
            if Path(value).exists():
                return value
    raise ValueError(f"{name} must be true, false or the path of a CA bundle that exists, not {excerpt(value)}")


def proxy_url(name: str, value: object) -> str:
    """
    Return the URL of a proxy, checked.

    :raises ValueError: naming the field, but not the value, which may hold a password.
    """
    with suppress(ValueError):  # not a URL, or its port is not a number
        url = _text(name, value)
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.port != 0 and _host_name(parts.hostname or ""):
            return url
    raise ValueError(f"{name} must be the URL of a proxy such as http://proxy:3128")


EXTRAS: Final[Mapping[str, Callable[[str, object], Any]]] = {
    "org_id": _text,
    "timeout": _seconds,
    "max_attempts": _attempts,
    "requests_per_second": _rate,
    "verify": _verify,
    "proxy": proxy_url,
}
