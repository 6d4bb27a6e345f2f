"""An S3 server on loopback: moto's, with a journal of its requests and a say in how it answers.

Where moto is laxer than S3, this makes up for it: requests are served one after the other, so that conditional
writes exclude each other and nobody reads what is just being replaced; and who may not list a bucket gets a refusal
for what does not exist, instead of a 404.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from threading import Lock, Thread
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, unquote
from uuid import uuid4
from xml.sax.saxutils import escape

import boto3
from botocore.config import Config
from moto import settings
from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.access_control import IAMRequestBase
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server
from werkzeug.test import run_wsgi_app

try:
    from moto.core.authorization import enable_iam_authentication
    from moto.moto_server.werkzeug_app import MotoRequestHandler

    def iam_authentication(_: str) -> AbstractContextManager[None]:
        return enable_iam_authentication()

except ImportError:  # the moto of the release day of any Airflow so far
    from werkzeug.serving import WSGIRequestHandler as MotoRequestHandler

    @contextmanager
    def iam_authentication(uri: str) -> Iterator[None]:
        """Check the signature of the URI as it was sent: this moto decodes it first, whereby `%252F` becomes `/`."""
        create = IAMRequestBase._create_aws_request

        def create_as_sent(self: IAMRequestBase) -> Any:
            request = create(self)
            request.url = uri
            return request

        with (
            patch.object(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0),
            patch.object(IAMRequestBase, "_create_aws_request", create_as_sent),
        ):
            yield


BYSTANDER = "bystander"
REGION = "us-east-1"
ACTIONS = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}


@dataclass
class Call:
    """A request that the server got. The bystander's, with which a test looks around, are not counted."""

    method: str
    bucket: str
    key: str
    if_none_match: str | None
    prefix: str = ""
    status: int | None = None

    @property
    def action(self) -> str:
        """Return its action name in S3 policies."""
        return ACTIONS[self.method] if self.key else "s3:ListBucket"


@dataclass(frozen=True)
class Answer:
    """What the server says to a request."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes


def refusal(status: str, code: str, message: str, **details: str) -> Answer:
    """An error as S3 words it."""
    more = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in details.items())
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{escape(message)}</Message>{more}</Error>"
    return Answer(status, [("Content-Type", "application/xml")], body.encode())


ACCESS_DENIED = refusal("403 Forbidden", "AccessDenied", "Access Denied")
INCOMPLETE_BODY = refusal("400 Bad Request", "IncompleteBody", "You did not provide the number of bytes you promised.")
EXPIRED_TOKEN = refusal("400 Bad Request", "ExpiredToken", "The provided token has expired.")

How = Callable[[Call, Callable[[], Answer]], Answer]
"""Answers a call; the function that it is given is the server's own answer."""


class S3Server:
    """The server. Runs in threads of this process until it is closed."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._how: How | None = None
        self._may_list: dict[str, bool] = {}
        self._authorized = False
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = Lock()
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Handler)
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.bystander = self.client("s3")

    def close(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._server.server_close)
            stack.callback(self._thread.join)
            stack.callback(self._server.shutdown)
            stack.callback(self.bystander.close)

    def client(self, service: str) -> Any:
        """A client of boto3 that sees everything and leaves no trace."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=BYSTANDER,
            aws_secret_access_key=BYSTANDER,
            config=Config(user_agent_extra=BYSTANDER, proxies={}),
        )

    def make_bucket(self) -> str:
        """A new bucket's name."""
        name = f"lake-{uuid4().hex[:12]}"  # all servers of a process share what moto keeps
        self.bystander.create_bucket(Bucket=name)
        return name

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Return all objects, by key: without a request for each, which takes half of a test's time."""
        with self._one_at_a_time:
            keys = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys
            return {key: keys[key].value for key in sorted(keys) if key.startswith(prefix)}

    def connection(self, login: str = "AKIAFORTHETESTS", password: str = "a-secret-of-the-tests", **extra: Any) -> str:
        """An Airflow connection to this server, as JSON."""
        extra = {"endpoint_url": self.url, "region_name": REGION, **extra}
        return json.dumps({"conn_type": "aws", "login": login, "password": password, "extra": extra})

    def user(self, policy: Mapping[str, Any], **extra: Any) -> str:
        """An Airflow connection of somebody who may do what the policy says, and nothing else."""
        iam, name = self.client("iam"), f"user-{uuid4().hex[:12]}"
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="the-policy", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        self._may_list[key["AccessKeyId"]] = any(f'"s3:{name}"' in json.dumps(policy) for name in ("ListBucket", "*"))
        return self.connection(key["AccessKeyId"], key["SecretAccessKey"], **extra)

    @contextmanager
    def answering(self, how: How) -> Iterator[None]:
        """Meanwhile answer so, everybody but the bystander."""
        self._how = how
        try:
            yield
        finally:
            self._how = None

    @contextmanager
    def authorizing(self) -> Iterator[None]:
        """Meanwhile check signatures and policies, of everybody but the bystander."""
        self._authorized = True
        try:
            yield
        finally:
            self._authorized = False

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        counted = BYSTANDER not in environ.get("HTTP_USER_AGENT", "")
        # Read at once: an answer that leaves it unread would break the connection.
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        environ["wsgi.input"] = BytesIO(body)
        _, bucket, *key = unquote(environ["REQUEST_URI"].partition("?")[0]).split("/", 2)
        [prefix] = parse_qs(environ["QUERY_STRING"]).get("prefix", [""])
        call = Call(environ["REQUEST_METHOD"], bucket, "".join(key), environ.get("HTTP_IF_NONE_MATCH"), prefix)
        how = self._how
        if counted:
            self.calls.append(call)
        if len(body) < length:
            answer = INCOMPLETE_BODY  # its writer was killed
        elif counted and how:
            answer = how(call, lambda: self._moto_answer(environ, call))
        else:
            answer = self._moto_answer(environ, call)
        call.status = int(answer.status[:3])
        headers = [(name, value) for name, value in answer.headers if name.lower() != "connection"]
        if call.method != "HEAD" and not any(name.lower() == "content-length" for name, _ in headers):
            headers.append(("Content-Length", str(len(answer.body))))
        start_response(answer.status, headers)
        return [answer.body]

    def _moto_answer(self, environ: dict[str, Any], call: Call) -> Answer:
        bystander = BYSTANDER in environ.get("HTTP_USER_AGENT", "")
        is_checked = self._authorized and not bystander
        checked = iam_authentication(environ["REQUEST_URI"]) if is_checked else nullcontext()
        with self._one_at_a_time, checked:
            chunks, status, headers = run_wsgi_app(self._moto, environ, buffered=True)
            answer = Answer(status, list(headers.items()), b"".join(chunks))
        who = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition("/")[0]
        if status.startswith("404") and call.key and not self._may_list.get(who, True):
            return ACCESS_DENIED
        return answer


class _Handler(MotoRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        """The journal is enough."""
