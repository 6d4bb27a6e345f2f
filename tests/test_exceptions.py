"""The errors: what they are to Airflow, whether they pass, and that they survive the way between processes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest

from reducto_provider import exceptions
from reducto_provider.exceptions import ReductoError
from tests.airflow_sdk import AirflowException, AirflowFailException

# name: whether no retry of the task can fix it, whether the cause may pass by itself
ERRORS = {
    "ReductoError": (False, False),
    "ReductoConfigurationError": (True, False),
    "ReductoAuthenticationError": (True, False),
    "ReductoPermissionError": (True, False),
    "ReductoRequestError": (True, False),
    "ReductoRateLimitError": (False, True),
    "ReductoServerError": (False, True),
    "ReductoTransportError": (False, True),
    "ReductoGatewayError": (False, True),
    "ReductoResponseError": (False, False),
    "ReductoCreditsUnavailableError": (True, False),
    "ReductoDayNotOverError": (False, False),
    "ReductoExportError": (False, False),
    "ReductoFleetError": (False, False),
    "ReductoFleetFailError": (True, False),
    "ReductoReconciliationError": (False, False),
    "ReductoPollError": (False, False),
    "ReductoWindowClosedError": (True, False),
    "ReductoBudgetExceededError": (True, False),
    "ReductoTriggerEventError": (False, False),
}


def classes(base: type[ReductoError] = ReductoError) -> Iterator[type[ReductoError]]:
    yield base
    for derived in base.__subclasses__():
        yield from classes(derived)


def test_the_table_is_complete() -> None:
    assert {error.__name__ for error in classes() if error.__module__ == exceptions.__name__} == set(ERRORS)


@pytest.mark.parametrize(("name", "permanent", "transient"), [(name, *row) for name, row in ERRORS.items()])
def test_what_an_error_is_to_airflow(name: str, permanent: bool, transient: bool) -> None:
    error = getattr(exceptions, name)
    assert issubclass(error, ReductoError)
    assert issubclass(error, AirflowException)
    assert issubclass(error, AirflowFailException) == permanent
    assert error.transient == transient
    assert not (permanent and transient)


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("retry_after", [None, 0.0, 7.5])
def test_an_error_survives_pickling_and_copying(name: str, retry_after: float | None) -> None:
    error = getattr(exceptions, name)("what happened: 50 % of 'it'", retry_after=retry_after)
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for each in (error, *copies, copy.copy(error), copy.deepcopy(error)):
        assert type(each) is type(error)
        assert str(each) == "what happened: 50 % of 'it'"
        assert each.args == ("what happened: 50 % of 'it'",)
        assert each.retry_after == retry_after
        assert each.transient == error.transient


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_takes_a_message_and_nothing_else_by_position(name: str) -> None:
    error = getattr(exceptions, name)
    assert error("message").retry_after is None
    with pytest.raises(TypeError):
        error("message", 5)


def test_errors_that_two_handlers_would_take_are_told_apart() -> None:
    """No class of a cause is a kind of another's: an `except` for one never takes the other."""
    causes = [getattr(exceptions, name) for name in ERRORS if name != "ReductoError"]
    for one in causes:
        assert [other for other in causes if issubclass(one, other)] == [one]
