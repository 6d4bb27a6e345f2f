"""A service that means harm: whatever it sends is refused in bounded memory, and nobody goes on reading it."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import re
import resource
from collections.abc import Callable, Iterator
from datetime import date
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from reducto_provider.exceptions import ReductoError
from reducto_provider.hooks import transport
from reducto_provider.hooks.reducto import ReductoHook
from reducto_provider.usage.query import UsageQuery

QUERY = UsageQuery(start=date(2026, 5, 1), end=date(2026, 5, 31), org_id="org_acme")
LIMIT = 16 * 2**20
MOST = 6 * LIMIT
"""What an attempt may take at most: the answer, a copy of it, and what it is decoded into."""

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

Pieces = Iterator[bytes]
ATTACKS: dict[str, Callable[[bytes], Pieces]] = {}


def attack(function: Callable[[bytes], Pieces]) -> Callable[[bytes], Pieces]:
    ATTACKS[function.__name__] = function
    return function


def without_end(piece: bytes) -> Pieces:
    return repeat(piece * (2**16 // len(piece)))


def whole(body: bytes, headers: bytes = b"") -> Pieces:
    yield OK + headers + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    yield body


@cache
def keys() -> bytes:
    return b",".join(b'"%d":1' % number for number in range(LIMIT // 12))


def with_row(proper: bytes, credits: bytes, more: bytes = b"") -> Pieces:
    row = b'{"date":"2026-05-01","group":"parse","requestCount":1,"credits":' + credits + more + b"}"
    return whole(proper.replace(b'"data": []', b'"data": [' + row + b"]"))


@attack
def a_body_without_end(proper: bytes) -> Pieces:
    yield OK + b"\r\n"
    yield from without_end(b" ")


@attack
def a_body_of_a_terabyte(proper: bytes) -> Pieces:
    yield OK + b"Content-Length: 1000000000000\r\n\r\n"
    yield from without_end(b" ")


@attack
def tiny_chunks_without_end(proper: bytes) -> Pieces:
    yield CHUNKED
    yield from without_end(b"2\r\n  \r\n")


@attack
def an_error_page_without_end(proper: bytes) -> Pieces:
    yield b"HTTP/1.1 500 Oops\r\n\r\n"
    yield from without_end(b"<p>")


@attack
def a_gzip_bomb(proper: bytes) -> Pieces:
    return whole(gzip.compress(bytes(20 * LIMIT), 1), b"Content-Encoding: gzip\r\n")


@attack
def a_gzip_bomb_in_a_gzip_bomb(proper: bytes) -> Pieces:
    return whole(gzip.compress(gzip.compress(bytes(20 * LIMIT), 1)), b"Content-Encoding: gzip, gzip\r\n")


@attack
def a_gzip_bomb_for_an_error(proper: bytes) -> Pieces:
    for piece in a_gzip_bomb(proper):
        yield piece.replace(b"200 OK", b"400 No")


@attack
def a_status_line_without_end(proper: bytes) -> Pieces:
    yield b"HTTP/1.1 200 "
    yield from without_end(b"O")


@attack
def a_header_without_end(proper: bytes) -> Pieces:
    yield OK + b"X-Long: "
    yield from without_end(b"x")


@attack
def headers_without_end(proper: bytes) -> Pieces:
    yield OK
    yield from without_end(b"X-Many: x\r\n")


@attack
def interim_answers_without_end(proper: bytes) -> Pieces:
    return without_end(b"HTTP/1.1 100 Continue\r\n\r\n")


@attack
def a_chunk_s_extension_without_end(proper: bytes) -> Pieces:
    yield CHUNKED + b"5;x="
    yield from without_end(b"x")


@attack
def a_trailer_without_end(proper: bytes) -> Pieces:
    yield CHUNKED + b"2\r\n{}\r\n0\r\n"
    yield from without_end(b"X-Many: x\r\n")


@attack
def empty_members_of_gzip_without_end(proper: bytes) -> Pieces:
    yield OK + b"Content-Encoding: gzip\r\n\r\n"
    yield from without_end(gzip.compress(b""))


@attack
def zeros_behind_gzip_without_end(proper: bytes) -> Pieces:
    yield OK + b"Content-Encoding: x-gzip\r\n\r\n" + gzip.compress(proper)
    yield from without_end(b"\0")


@attack
def headers_that_are_many_and_long(proper: bytes) -> Pieces:
    yield OK
    yield from repeat(b"X-Long: " + b"x" * 65_000 + b"\r\n")


@attack
def an_error_of_many_reasons(proper: bytes) -> Pieces:
    for piece in whole(b"[" + b'{"msg":"x"},' * (LIMIT // 20) + b"{}]"):
        yield piece.replace(b"200 OK", b"400 No")


@attack
def empty_blocks_of_gzip_without_end(proper: bytes) -> Pieces:
    yield OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"{}")[:10]
    yield from without_end(b"\x00\x00\x00\xff\xff")


@attack
def nesting_without_end(proper: bytes) -> Pieces:
    return whole(b'{"data":' + b"[" * (LIMIT - 20))


@attack
def nesting_in_credits(proper: bytes) -> Pieces:
    return with_row(proper, b"[" * (LIMIT // 2))


@attack
def nesting_in_an_unknown_key(proper: bytes) -> Pieces:
    return with_row(proper, b"1", b',"more":' + b'{"more":' * (LIMIT // 16))


@attack
def millions_of_lists_for_credits(proper: bytes) -> Pieces:
    return with_row(proper, b"[" + b"[]," * (LIMIT // 4) + b"[]]")


@attack
def millions_of_numbers_for_credits(proper: bytes) -> Pieces:
    return with_row(proper, b" [" + b"1.5," * (LIMIT // 5) + b"1.5]")


@attack
def a_million_keys_for_credits(proper: bytes) -> Pieces:
    return with_row(proper, b"\t{" + keys() + b"}")


@attack
def a_million_keys_in_a_row(proper: bytes) -> Pieces:
    return with_row(proper, b"1", b"," + keys())


@attack
def a_million_keys_beside_the_rows(proper: bytes) -> Pieces:
    return whole(proper.replace(b'"data"', keys() + b',"data"'))


@attack
def a_number_of_millions_of_digits(proper: bytes) -> Pieces:
    return with_row(proper, b"9" * (LIMIT // 2))


@attack
def a_fraction_of_millions_of_digits(proper: bytes) -> Pieces:
    return with_row(proper, b"0." + b"9" * (LIMIT // 2))


@attack
def an_exponent_of_millions_of_digits(proper: bytes) -> Pieces:
    return with_row(proper, b"1e" + b"9" * (LIMIT // 2))


HARMLESS = {"a_million_keys_in_a_row", "a_million_keys_beside_the_rows", "a_fraction_of_millions_of_digits"}
"""Answers that hold what was requested, and much else."""


class Outcome(NamedTuple):
    error: str | None
    message: str
    grown: int
    """Bytes of memory, at their most."""
    readers: int
    """Connections that are still read from, now that the answer was refused."""


def memory(what: str) -> int:
    return int(re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def request_usage(pipe: Any, connection: str) -> None:
    """Request usage, in a process of its own."""
    os.environ["AIRFLOW_CONN_REDUCTO_DEFAULT"] = connection
    transport.MAX_RESPONSE_BYTES = LIMIT
    # Should a bound fail, the machine does not fail with it.
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + 2**31, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
    before, error, message = memory("VmRSS"), None, ""
    hook = ReductoHook()
    try:
        hook.get_usage(QUERY)
    except BaseException as found:
        error, message = ("a ReductoError" if isinstance(found, ReductoError) else repr(found)), str(found)
    grown = memory("VmHWM") - before
    (sessions,) = hook._sessions.values()
    readers = sum(len(session.connector._acquired) for session in sessions._sessions.values())
    pipe.send(Outcome(error, message, grown, readers))


@pytest.mark.parametrize("name", ATTACKS)
def test_is_refused_within_bounds(name: str, listen: Callable[..., Any], connect: Callable[..., str]) -> None:
    listener = listen(lambda request, proper: ATTACKS[name](proper.partition(b"\r\n\r\n")[2]))
    connect(host=listener.url, extra={"max_attempts": 1, "timeout": 0.7 if name.endswith("without_end") else 30})
    ours, theirs = multiprocessing.Pipe()
    # Not a fork of this process, which has threads of other tests and, who knows, their locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.hooks.test_hostile"])
    process = context.Process(target=request_usage, args=(theirs, os.environ["AIRFLOW_CONN_REDUCTO_DEFAULT"]))
    process.start()
    try:
        assert ours.poll(60), "it never ended"
        outcome = ours.recv()
    finally:
        process.kill()
        process.join()

    assert outcome.error == (None if name in HARMLESS else "a ReductoError"), outcome.message[:300]
    assert outcome.grown < MOST
    assert outcome.readers == 0
    assert len(outcome.message) < 1000
    assert outcome.message.isprintable()
    assert len(listener.requests) == 1
