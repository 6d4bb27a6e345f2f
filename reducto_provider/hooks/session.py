"""The requests session for the methods that the hook inherits from Airflow's HttpHook."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from requests.auth import AuthBase

from reducto_provider.exceptions import ReductoConfigurationError, ReductoError
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
    Send the key to the connection's own host only, follow no redirects, and ignore netrc and cookies.

    Each wait for the service has a time limit: the connection's ``timeout``, unless another is given. A request as a
    whole has no limit, and requests are not paced.
    """

    def __init__(self, settings: ReductoSettings) -> None:
        super().__init__()
        self._settings = settings
        self.trust_env = False  # requests would apply netrc, and the proxies of other URLs
        self.auth = _BearerAuth(settings)
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.headers.update(HEADERS)
        self.verify = verify_for(settings)
        if proxy := proxy_for(settings):
            self.proxies = {settings.origin[0]: proxy}

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """
        Send a prepared request.

        :raises ReductoError: one class per cause.
        """
        given, default = kwargs.get("timeout"), self._settings.timeout
        # A pair has a timeout to connect and one to read, and either may be None.
        kwargs["timeout"] = tuple(each or default for each in given) if isinstance(given, tuple) else given or default
        try:
            return super().send(request, **kwargs)
        except requests.Timeout:
            failure: ReductoError = timeout_error(self._settings)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            failure = transport_error(_cause(error), self._settings)
        except OSError as error:  # requests raises it for a missing CA bundle
            failure = bundle_error(error, self._settings)
        raise failure  # without its cause, which holds the request and so the key

    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Follow no redirect, even if the caller allows it: it could carry the key to another host."""
        return iter(())


@dataclass(frozen=True)
class _BearerAuth(AuthBase):
    """Send the key as a bearer token to the connection's own host only."""

    settings: ReductoSettings

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if origin_of(request.url or "") != self.settings.origin:
            raise ReductoConfigurationError(
                f"the Reducto key is for {self.settings.base_url}: it is not sent to another host"
            )
        request.headers["Authorization"] = f"Bearer {self.settings.key}"
        return request


def _cause(error: Exception) -> str:
    """Return what went wrong, without text that the service or a proxy sent."""
    reason = getattr(error.args[0], "reason", None) if error.args else None  # of urllib3: why connecting failed
    if reason is None or isinstance(error, requests.exceptions.ProxyError):
        return type(error).__name__
    return f"{type(error).__name__}: {reason}"
