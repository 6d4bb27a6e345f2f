"""A simulator of Reducto's Usage Export API, made from its public documentation.

In tests, `with Simulator() as simulator:`; as a process, `python -m simulator`. `service.py` is the service,
`usage.py` its figures, `faults.py` everything that can go wrong.
"""

from __future__ import annotations

from simulator.faults import (
    TRANSIENT,
    Altered,
    CutShort,
    Endless,
    Fault,
    Gzip,
    Reply,
    Reset,
    Stall,
    Trickle,
    html,
    redirect,
    status,
)
from simulator.journal import LoggedRequest
from simulator.population import ORGANIZATIONS, keys_of, many_keys
from simulator.server import Simulator
from simulator.usage import Organization, Record, Row, Workload

__all__ = [
    "ORGANIZATIONS",
    "TRANSIENT",
    "Altered",
    "CutShort",
    "Endless",
    "Fault",
    "Gzip",
    "LoggedRequest",
    "Organization",
    "Record",
    "Reply",
    "Reset",
    "Row",
    "Simulator",
    "Stall",
    "Trickle",
    "Workload",
    "html",
    "keys_of",
    "many_keys",
    "redirect",
    "status",
]
