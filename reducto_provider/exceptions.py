"""The errors of this package, one per cause.

Each is an ``AirflowException``, so that sensors treat them alike in every mode. One that no retry can mend is an
``AirflowFailException`` as well: Airflow then fails the task at once instead of spending its retries. Each takes
its message as the only positional argument and so survives pickling.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from reducto_provider.usage.report import CreditsUnavailableError, UsageContractError


class ReductoError(AirflowException):
    """
    Base of all errors of this package.

    :param retry_after: seconds that the service asked to wait before the next request, if it did.
    """

    transient: ClassVar[bool] = False
    """Whether the cause may pass by itself: the hook tries again, and a poll may go on."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ReductoConfigurationError(ReductoError, AirflowFailException):
    """The Airflow connection, or what an author gave, can't be used; the message names the field."""


class ReductoAuthenticationError(ReductoError, AirflowFailException):
    """401: the key is missing or invalid, often because it is the document API's key."""


class ReductoPermissionError(ReductoError, AirflowFailException):
    """403: the key's owner is not a member of the organization asked for."""


class ReductoRequestError(ReductoError, AirflowFailException):
    """400, or another 4xx without a class of its own: the service refuses the request as it is."""


class ReductoRateLimitError(ReductoError):
    """429, still after all attempts."""

    transient = True


class ReductoServerError(ReductoError):
    """5xx, 408 or 425, still after all attempts."""

    transient = True


class ReductoTransportError(ReductoError):
    """No whole answer came: refused, reset, timed out, cut short; still after all attempts."""

    transient = True


class ReductoGatewayError(ReductoError):
    """
    Something in between answered instead of Reducto, still after all attempts.

    HTML came, with whatever status, as from a gateway, a firewall or a login page; or 407, which only a proxy sends.
    """

    transient = True


class ReductoResponseError(ReductoError):
    """An answer came that breaks the contract (wrong range, not JSON, a redirect): never taken for data."""


class ReductoCreditsUnavailableError(ReductoError, AirflowFailException):
    """Credits are needed, but the service sends none for this account."""


class ReductoDayNotOverError(ReductoError):
    """The run's partition has a day that is not over or has not settled, or all days are to come: retry later."""


class ReductoExportError(ReductoError):
    """Files could not be written or read. Each is whole: the one that was there before, or the new one."""


class ReductoFleetError(ReductoError):
    """Some organizations of a fleet could not be exported, the others were. A retry asks for the former alone."""


class ReductoFleetFailError(ReductoError, AirflowFailException):
    """Some organizations of a fleet could not be exported, each for a reason that no retry can mend."""


class ReductoReconciliationError(ReductoError):
    """The dimensions of the same usage do not agree: figures that can't all be right."""


class ReductoPollError(ReductoError):
    """A poll failed for a reason that this package did not foresee, or that is Airflow's own; the message names it."""


class ReductoWindowClosedError(ReductoError, AirflowFailException):
    """The window is over and the threshold was not exceeded: waiting on is in vain."""


class ReductoBudgetExceededError(ReductoError, AirflowFailException):
    """The budget is used up, and the work behind a gate must not begin."""


class ReductoTriggerEventError(ReductoError):
    """A deferred task was resumed with an event that its trigger can't have sent."""


def error_by_name(name: str, message: str) -> ReductoError:
    """Return the error that a trigger's event names."""
    error = globals().get(name)
    if isinstance(error, type) and issubclass(error, ReductoError):
        return error(message)
    return ReductoTriggerEventError(f"the trigger failed: {name}: {message}")


@contextmanager
def translate_errors(who: str) -> Iterator[None]:
    """Raise what the domain and the stores raise as the error of this package that it is to a task."""
    try:
        yield
    except CreditsUnavailableError as error:
        raise ReductoCreditsUnavailableError(f"{who}: {error}") from error
    except UsageContractError as error:
        raise ReductoResponseError(f"{who}: {error}") from error
    except (ValueError, ImportError, OverflowError) as error:
        raise ReductoConfigurationError(f"{who}: {error}") from error
    except OSError as error:
        raise ReductoExportError(str(error)) from error
