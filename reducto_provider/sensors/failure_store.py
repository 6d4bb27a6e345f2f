"""Remember failed polls between the visits of a rescheduled sensor to a worker."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from reducto_provider.triggers.polls import FailedPolls

log = logging.getLogger(__name__)


class FailureStore:
    """
    Store the failed polls of a rescheduled sensor in Airflow's task state store.

    Nothing else that a task may write survives a reschedule: Airflow clears its XComs at each start, and of earlier
    visits to a worker gives only when the first one began. An entry is valid for the next visit of the same try only.
    So nothing has to be removed when a poll succeeds, and no outdated entry counts.
    """

    _KEY = "reducto_failed_polls"

    def __init__(self, context: Mapping[str, Any]) -> None:
        self._store = context["task_state_store"]
        self._try = str(context["ti"].id)
        self._visit = int(context.get("task_reschedule_count", 0))
        self._readable = True
        self.is_current = False
        """Whether the next visit will find the failures so far."""

    def load(self, failed_polls: FailedPolls) -> None:
        """Add the failures that the previous visit stored."""
        if self._visit == 0:
            return
        try:
            stored = self._store.get(self._KEY)
        except Exception as error:  # noqa: BLE001  # of Airflow's API, or of a backend of the deployment's own
            self._readable = False
            log.warning("The task state store can't be read, and failed polls so far are forgotten: %s", error)
            return
        match stored:
            case {"try": self._try, "visit": int(visit), "count": int(count), "since": int() | float() as since}:
                if visit == self._visit - 1:
                    failed_polls.count, failed_polls.since = count, float(since)
                    self.is_current = True

    def save(self, failed_polls: FailedPolls) -> None:
        """Store the failures so far for the next visit."""
        failures = {"try": self._try, "visit": self._visit, "count": failed_polls.count, "since": failed_polls.since}
        self.is_current = False
        if not self._readable:
            return
        try:
            self._store.set(self._KEY, failures)
        except Exception as error:  # noqa: BLE001  # as above
            log.warning("Failed polls can't be stored, and the task stays on its worker while they fail: %s", error)
        else:
            self.is_current = True
