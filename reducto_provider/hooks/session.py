"""The requests session for what the hook inherits from Airflow's HttpHook. It keeps the hook's promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from requests.auth import AuthBase

from reducto_provider.exceptions import ReductoConfigurationError, ReductoError
from reducto_provider.hooks.answers import Answer
from reducto_provider.hooks.settings import ReductoSettings, origin_of
from reducto_provider.hooks.transport import (
    HEADERS,
    bundle_error,
    proxy_for,
    timeout_error,
    transport_error,
    verify_for,
)


class KeyedSession(requests.Session):
    """
    Sends the key to the connection's own host only, takes a redirect for an answer, and ignores netrc and cookies.

    Each wait for the service has a time limit, the connection's ``timeout`` unless another is given. There is none for
    a request as a whole, and requests are not paced.
    """

    def __init__(self, settings: ReductoSettings) -> None:
        super().__init__()
        self._settings = settings
        self.trust_env = False  # or netrc and the proxies of other URLs would be mixed in
        self.auth = _BearerAuth(settings)
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.headers.update(HEADERS)
        self.verify = verify_for(settings)
        if proxy := proxy_for(settings):
            self.proxies = {settings.origin[0]: proxy}

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """
        Send a request that is prepared.

        :raises ReductoError: one class per cause.
        """
        given, longest = kwargs.get("timeout"), self._settings.timeout
        # Of a pair, to connect and to read, either may be None.
        kwargs["timeout"] = tuple(each or longest for each in given) if isinstance(given, tuple) else given or longest
        try:
            return super().send(request, **kwargs)
        except requests.Timeout:
            failure: ReductoError = timeout_error(self._settings)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            failure = transport_error(_cause(error), self._settings)
        except OSError as error:  # requests' own, for a bundle that is not there
            failure = bundle_error(error, self._settings)
        raise failure  # without what led to it: that holds the request, and so the key

    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Follow none, whatever a caller says: it could take the key along."""
        return iter(())


def answer_of(response: requests.Response) -> Answer:
    """Return what came, for errors."""
    return Answer(response.status_code, response.headers, response.content)


@dataclass(frozen=True)
class _BearerAuth(AuthBase):
    """The key as a bearer token, for the connection's own host only."""

    settings: ReductoSettings

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if origin_of(request.url or "") != self.settings.origin:
            raise ReductoConfigurationError(
                f"the Reducto key is for {self.settings.base_url}: it is not sent to another host"
            )
        request.headers["Authorization"] = f"Bearer {self.settings.key}"
        return request


def _cause(error: Exception) -> str:
    """Say what went wrong, without what the service or a proxy has sent."""
    reason = getattr(error.args[0], "reason", None) if error.args else None  # urllib3's: a connection was not made
    if reason is None or isinstance(error, requests.exceptions.ProxyError):
        return type(error).__name__
    return f"{type(error).__name__}: {reason}"
