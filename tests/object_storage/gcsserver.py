"""A Google Cloud Storage server on loopback: gcp-storage-emulator's, with the precondition that an export needs.

The emulator ignores ``ifGenerationMatch``: whoever creates an object would overwrite another. It serves requests one
after the other, so that nobody writes between the check and the upload.
"""

from __future__ import annotations

import json
import os
from functools import cache, partial
from http.server import HTTPServer
from io import BytesIO
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import Request, RequestHandler
from gcp_storage_emulator.storage import Storage

# Read when gcsfs is imported. By default it looks up each bucket's layout over gRPC at Google, whatever the endpoint.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

_PRECONDITION_FAILED = {
    "error": {
        "code": 412,
        "message": "At least one of the pre-conditions you specified did not hold.",
        "errors": [{"domain": "global", "reason": "conditionNotMet", "locationType": "header", "location": "If-Match"}],
    }
}


class _Handler(RequestHandler):
    def do_POST(self) -> None:  # noqa: N802
        parts = urlsplit(self.path)
        if parts.path == "/token":
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(200, {"access_token": "emulated", "expires_in": 3600, "token_type": "Bearer"})
            return
        if parse_qs(parts.query).get("ifGenerationMatch") == ["0"]:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.rfile = BytesIO(body)
            bucket, name = parts.path.split("/")[-2], Request(self, "POST").data["meta"]["name"]
            self.rfile = BytesIO(body)  # for the upload
            try:
                self.storage.get_file_obj(bucket, name)
            except NotFound:
                pass
            else:
                self._answer(412, _PRECONDITION_FAILED)
                return
        super().do_POST()

    def _answer(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@cache
def _private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


class GcsServer:
    """The server. Runs in a thread of this process until it is closed."""

    def __init__(self) -> None:
        self._storage = Storage(use_memory_fs=True)
        self._server = HTTPServer(("127.0.0.1", 0), partial(_Handler, self._storage))
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        try:
            self._server.shutdown()
            self._thread.join()
        finally:
            self._server.server_close()

    def make_bucket(self) -> str:
        """Make a bucket and return its name."""
        name = f"lake-{uuid4().hex[:12]}"
        buckets.create_bucket(name, self._storage)
        return name

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Return all objects, by name."""
        found, _ = self._storage.get_file_list(bucket)
        return {each["name"]: self._storage.get_file(bucket, each["name"]) for each in found}

    def connection(self, **extra: Any) -> str:
        """
        Return an Airflow connection to this server, as JSON.

        It has the key of a service account: older Google providers need a token, which nobody anonymous gets.
        """
        key = {
            "type": "service_account",
            "project_id": "finops",
            "private_key": _private_key(),
            "client_email": "exports@finops.iam.gserviceaccount.com",
            "token_uri": f"{self.url}/token",
        }
        extra = {"keyfile_dict": key, "project": "finops", "gcs.endpoint": self.url, **extra}
        return json.dumps({"conn_type": "google_cloud_platform", "extra": extra})
