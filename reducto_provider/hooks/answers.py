"""Raise the error that a response stands for: one of the service, or of something in between."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec

from reducto_provider.exceptions import (
    ReductoAuthenticationError,
    ReductoGatewayError,
    ReductoPermissionError,
    ReductoRateLimitError,
    ReductoRequestError,
    ReductoResponseError,
    ReductoServerError,
)
from reducto_provider.hooks.settings import KEY_HINT, ReductoSettings
from reducto_provider.usage.checks import INVALID_JSON

Parameters = Iterable[tuple[str, str]]

_REASON_FIELDS = ("error", "message", "detail", "errors", "msg", "title", "error_description", "description", "reason")
_TITLE = r"<title[^>]*>([^<]+)"
_JSON = msgspec.json.Decoder()


class Answer(NamedTuple):
    """A response. The body of an error is only as much as its message may need."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def raise_for_status(answer: Answer, settings: ReductoSettings, parameters: Parameters) -> None:
    """
    Return if the answer is a 200 of the service.

    :raises ReductoError: otherwise, one class per cause.
    """
    status, conn_id = answer.status, settings.conn_id
    if is_html(answer) or status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        raise ReductoGatewayError(_describe_gateway(answer, settings), retry_after=_retry_after(answer))
    if status == HTTPStatus.OK:
        if (encoding := content_encoding(answer.headers)) not in ("", "identity", "gzip", "x-gzip"):
            raise ReductoResponseError(f"Reducto's answer is encoded as {printable(encoding, settings)}, not as gzip")
        return
    what = f"({status}{_error_detail(answer, settings)})"
    if status == HTTPStatus.UNAUTHORIZED:
        raise ReductoAuthenticationError(f"Reducto refused the API key of connection {conn_id!r} {what}: {KEY_HINT}")
    if status == HTTPStatus.FORBIDDEN:
        org_id = dict(parameters).get("orgId")
        whose = f"organization {org_id!r}" if org_id else "the key's own organization"
        raise ReductoPermissionError(
            f"Reducto refused {whose} to the API key of connection {conn_id!r} {what}: the key's owner must be a "
            "member of the organization"
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise ReductoRateLimitError(
            f"Reducto's rate limit is exceeded {what}: lower requests_per_second of connection {conn_id!r}, "
            "or send fewer requests",
            retry_after=_retry_after(answer),
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY):
        raise ReductoServerError(f"Reducto failed {what}", retry_after=_retry_after(answer))
    if status >= HTTPStatus.BAD_REQUEST:
        raise ReductoRequestError(f"Reducto refused the request {what}: {urlencode(list(parameters))}")
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        raise ReductoResponseError(
            f"{settings.base_url} redirects to {_target(answer, settings)} {what}: not followed, since the key is for "
            f"its own host only; correct the host of connection {conn_id!r}"
        )
    raise ReductoResponseError(f"Reducto answered with a status that it does not document {what}")


def is_html(answer: Answer) -> bool:
    """Return whether the body is HTML or XML, which Reducto never sends. The Content-Type of either may be wrong."""
    beginning = answer.body.lstrip(b" \t\r\n\xef\xbb\xbf")[:1]
    is_labelled = "html" in answer.headers.get("Content-Type", "").lower()
    return beginning == b"<" or (is_labelled and beginning not in (b"", b"{", b"["))


def content_encoding(headers: Mapping[str, str]) -> str:
    """Return the encoding of a body; empty if it has none."""
    return headers.get("Content-Encoding", "").strip().lower()


def _describe_gateway(answer: Answer, settings: ReductoSettings) -> str:
    if not is_html(answer):
        return (
            f"a proxy on the way to {settings.base_url} asks for a login ({answer.status}): correct extra 'proxy' of "
            "the connection, or the environment's"
        )
    page = "an HTML page"
    if title := re.search(_TITLE, answer.body.decode(errors="replace"), re.IGNORECASE):
        page += f" ({printable(title[1], settings)})"
    if "Location" in answer.headers:
        page += f" and a redirect to {_target(answer, settings)}"
    return (
        f"{page} came with status {answer.status} from {settings.base_url}: a proxy, a firewall or a login page "
        "answered instead of Reducto"
    )


def _target(answer: Answer, settings: ReductoSettings) -> str:
    """Return the host of a redirect's target."""
    with suppress(ValueError):
        if host := urlsplit(answer.headers.get("Location", "")).netloc.rpartition("@")[2]:
            return printable(host, settings)
    return "another page"


def _error_detail(answer: Answer, settings: ReductoSettings) -> str:
    """Return the reason that the service gives, in any form, without secrets and never the whole body."""
    text = ""
    try:
        text = "; ".join(dict.fromkeys(_reasons_in(_JSON.decode(answer.body))))
    except INVALID_JSON:
        if answer.headers.get("Content-Type", "text/").startswith("text/"):
            text = answer.body.decode(errors="replace")
    return f": {text}" if (text := printable(text, settings)) else ""


def _reasons_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _reasons_in(each)
    elif isinstance(value, dict):
        for name in _REASON_FIELDS:
            yield from _reasons_in(value.get(name))


def printable(text: str, settings: ReductoSettings, length: int = 200) -> str:
    """Return foreign text for an error message: short, on one line, without secrets."""
    line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return settings.redact(line)[:length]


def _retry_after(answer: Answer) -> float | None:
    """Return the delay in seconds of ``Retry-After``, which is a number of seconds or an HTTP date."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
