"""For tests of the hook: a clock without waiting, what was logged, and servers that the simulator can't be."""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from reducto_provider.hooks import reducto


@pytest.fixture(autouse=True)
def _hardly_any_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reducto, "BACKOFF_INITIAL", 0.001)


class Clock:
    """Time that passes only while the hook sleeps, or not even then: no test waits for it or measures it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stands_still = False
        self.slept: list[float] = []

    @property
    def waits(self) -> list[float]:
        """Every sleep that was not for nothing."""
        return [seconds for seconds in self.slept if seconds > 0]

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if not self.stands_still:
            self.now += seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)  # the rest of the module that this stands in for


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this thread and of the hook's event loop; the simulator's thread keeps the real one."""
    clock = Clock()
    here = threading.current_thread().name
    pause = asyncio.sleep

    async def sleep(seconds: float, result: Any = None) -> Any:
        if threading.current_thread().name not in (here, "reducto-loop"):
            return await pause(seconds, result)
        clock.sleep(seconds)
        return await pause(0, result)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(reducto, "time", clock)
    return clock


class Log(logging.Handler):
    """All that was logged, by the standard library's loggers and by Airflow's own, which go around them."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.warnings: list[str] = []
        self.everything: list[str] = []

    @property
    def retries(self) -> list[str]:
        """The hook's warnings that an attempt failed and that another follows."""
        return [text for text in self.warnings if text.startswith("Attempt ")]

    def emit(self, record: logging.LogRecord) -> None:
        self.everything += [self.format(record), repr(record.__dict__)]
        # Airflow warns once in a process of short secrets, and of connections that it does not encrypt.
        if record.levelno >= logging.WARNING and not record.name.endswith(("secrets_masker", "models.crypto")):
            self.warnings.append(record.getMessage())

    def process(self, _: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        """As a processor of structlog."""
        text = str(event["event"])
        if args := event.get("positional_args"):
            text %= tuple(args)
        self.everything += [text, repr(event)]
        if method in ("warning", "error", "critical", "exception"):
            self.warnings.append(text)
        raise sys.modules["structlog"].DropEvent


@pytest.fixture
def logged() -> Iterator[Log]:
    """What is logged from now on. caplog misses most of it: Airflow's loggers are structlog's since 3.1."""
    log = Log()
    root = logging.getLogger()
    level = root.level
    root.addHandler(log)
    root.setLevel(logging.DEBUG)
    structlog = sys.modules.get("structlog")
    processors = structlog.get_config()["processors"] if structlog else []
    before = list(processors)
    processors[:] = [log.process]
    yield log
    processors[:] = before
    root.setLevel(level)
    root.removeHandler(log)


@pytest.fixture
def conceals(logged: Log) -> Callable[..., None]:
    """Assert that a secret is nowhere in an error, in what it was raised from, or in anything that was logged."""

    def check(error: BaseException | None, *secrets: str) -> None:
        places = {"the log": "\n".join(logged.everything)}
        if error is not None:
            places["the traceback"] = "".join(traceback.format_exception(error))
            chain: list[BaseException | None] = [error]
            seen: set[int] = set()
            while chain:
                link = chain.pop()
                if link is not None and id(link) not in seen:
                    seen.add(id(link))
                    places[f"{type(link).__name__} in the chain"] = f"{link}\n{link!r}"
                    chain += [link.__cause__, link.__context__]
        leaks = [f"{secret} in {place}" for place, text in places.items() for secret in secrets if secret in text]
        assert not leaks

    return check


@pytest.fixture
def all_is_closed(logged: Log) -> Iterator[Callable[[], None]]:
    """Assert that nothing that should have been closed was left to the garbage collector."""
    gc.collect()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)

        def check() -> None:
            gc.collect()
            assert [str(warning.message) for warning in seen if warning.category is ResourceWarning] == []
            assert [text for text in logged.everything if "Unclosed" in text] == []

        yield check


class Certificate(NamedTuple):
    """A certificate of 127.0.0.1, for a server, and the bundle of the authority that nobody else trusts."""

    tls: ssl.SSLContext
    bundle: Path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("certificate")
    now = datetime.now(UTC)

    def make(name: str, issuer: str, key: Any, signer: Any, *extensions: tuple[Any, bool]) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(signer, hashes.SHA256())

    def usage(**used: bool) -> x509.KeyUsage:
        names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        flags = dict.fromkeys((*names, "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False)
        return x509.KeyUsage(**{**flags, **used})

    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = make(
        "Tests",
        "Tests",
        authority_key,
        authority_key,
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (usage(key_cert_sign=True, crl_sign=True), True),
    )
    server = make(
        "127.0.0.1",
        "Tests",
        server_key,
        authority_key,
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage(digital_signature=True), True),
        (x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False),
    )
    bundle, chain = folder / "authority.pem", folder / "server.pem"
    bundle.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    chain.write_bytes(
        server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + server.public_bytes(serialization.Encoding.PEM)
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain)
    return Certificate(tls, bundle)
