"""Copies and pickles of tasks, without the state of a run."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from reducto_provider.airflow_compat import CACHED_LOGGER

Copied = TypeVar("Copied", bound="DropsRunState")


class DropsRunState:
    """
    Copy and pickle a task as if it had never run.

    The state of a run (a hook with the key and open sessions, threads, an event loop) belongs to one process and can't
    be copied. Each of its attributes has a default in the class, or is a cached property.
    """

    run_state: ClassVar[tuple[str, ...]] = ("hook",)
    """Names of the attributes that copies and pickles omit."""

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        return {name: value for name, value in state.items() if name not in (*self.run_state, CACHED_LOGGER)}

    def __deepcopy__(self: Copied, memo: dict[int, Any]) -> Copied:
        # Airflow's own copies every attribute and offers no way to omit one.
        held = {name: vars(self).pop(name) for name in self.run_state if name in vars(self)}
        try:
            copied: Copied = super().__deepcopy__(memo)  # type: ignore[misc]
        finally:
            vars(self).update(held)
        return copied
