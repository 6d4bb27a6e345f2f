"""The errors of this package, one per cause.

Each is an ``AirflowException``, so that sensors treat them alike in every mode. One that a retry can't fix is also an
``AirflowFailException``: Airflow then fails the task at once instead of spending its retries. Each takes its message as
the only positional argument and so survives pickling.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from reducto_provider.airflow_compat import AirflowException, AirflowFailException
from reducto_provider.usage.report import CreditsUnavailableError, UsageContractError


class ReductoError(AirflowException):
    """
    Base class of all errors of this package.

    :param retry_after: seconds to wait before the next request, if the service sent ``Retry-After``.
    """

    transient: ClassVar[bool] = False
    """Whether the cause may be temporary: the hook retries, and a sensor continues to poll."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ReductoConfigurationError(ReductoError, AirflowFailException):
    """The Airflow connection or an argument is invalid. The message names the field."""


class ReductoAuthenticationError(ReductoError, AirflowFailException):
    """401: the key is missing or invalid, often because it is the document API's key."""


class ReductoPermissionError(ReductoError, AirflowFailException):
    """403: the key's owner is not a member of the requested organization."""


class ReductoRequestError(ReductoError, AirflowFailException):
    """400, or another 4xx without a class of its own: the service rejects the request."""


class ReductoRateLimitError(ReductoError):
    """429, still after all attempts."""

    transient = True


class ReductoServerError(ReductoError):
    """5xx, 408 or 425, still after all attempts."""

    transient = True


class ReductoTransportError(ReductoError):
    """No complete response arrived: refused, reset, timed out, cut short; still after all attempts."""

    transient = True


class ReductoGatewayError(ReductoError):
    """
    Something between Airflow and Reducto responded in its place, still after all attempts.

    The response was HTML with any status, as from a gateway, a firewall or a login page; or 407, which only a proxy
    sends.
    """

    transient = True


class ReductoResponseError(ReductoError):
    """The response violates the contract (wrong range, not JSON, a redirect). It is never used as data."""


class ReductoCreditsUnavailableError(ReductoError, AirflowFailException):
    """Credits are required, but the service sends none for this account."""


class ReductoDayNotOverError(ReductoError):
    """A day of the run's partition is not over or not settled, or all days are in the future. A retry may succeed."""


class ReductoExportError(ReductoError):
    """Files could not be written or read. Each is complete: either the previous version or the new one."""


class ReductoFleetError(ReductoError):
    """Some organizations of a fleet could not be exported, the others were. A retry exports only the former."""


class ReductoFleetFailError(ReductoError, AirflowFailException):
    """Some organizations of a fleet could not be exported, each because of a permanent error."""


class ReductoReconciliationError(ReductoError):
    """The totals by different dimensions of the same usage differ, so not all of them can be right."""


class ReductoPollError(ReductoError):
    """A poll failed with another exception, for instance one of Airflow's. The message names it."""


class ReductoWindowClosedError(ReductoError, AirflowFailException):
    """The window is over and the threshold was not exceeded."""


class ReductoBudgetExceededError(ReductoError, AirflowFailException):
    """The budget is used up, and the work behind a gate must not begin."""


class ReductoTriggerEventError(ReductoError):
    """A deferred task was resumed with an event that is not one of its trigger's."""


def error_by_name(name: str, message: str) -> ReductoError:
    """Return the error that a trigger's event names."""
    error = globals().get(name)
    if isinstance(error, type) and issubclass(error, ReductoError):
        return error(message)
    return ReductoTriggerEventError(f"the trigger failed: {name}: {message}")


@contextmanager
def translate_errors(source: str) -> Iterator[None]:
    """
    Raise errors of the domain and of storage as the matching errors of this package.

    :param source: what their messages begin with, such as the id of the task.
    """
    try:
        yield
    except CreditsUnavailableError as error:
        raise ReductoCreditsUnavailableError(f"{source}: {error}") from error
    except UsageContractError as error:
        raise ReductoResponseError(f"{source}: {error}") from error
    except (ValueError, ImportError, OverflowError) as error:
        raise ReductoConfigurationError(f"{source}: {error}") from error
    except OSError as error:
        raise ReductoExportError(str(error)) from error
