"""`python -m simulator`: the stand-in as a process, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import signal
from datetime import UTC, datetime

from simulator.population import ORGANIZATIONS, many_keys
from simulator.server import Simulator
from simulator.service import utc_now


def moment(text: str) -> datetime:
    """A time in ISO 8601, in UTC unless it says otherwise."""
    given = datetime.fromisoformat(text)
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m simulator", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=8085, help="port to listen on, 0 for a free one (%(default)s)")
    add("--fault-rate", type=float, default=0.0, help="share of requests that go wrong, 0.1 for a tenth")
    add("--seed", type=int, default=0, help="which requests go wrong, and how (%(default)s)")
    add("--now", type=moment, help="let the clock stand still, at 2026-06-18T15:00 for instance")
    add("--api-keys", type=int, default=0, help="add org_large, with so many API keys of its own")
    return parser.parse_args()


def main() -> None:
    """Serve until a signal comes."""
    options = arguments()
    # Blocked before any thread starts, so that all threads leave them to sigwait.
    ending = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    large = (many_keys("org_large", options.api_keys),) if options.api_keys else ()
    simulator = Simulator(
        (*ORGANIZATIONS, *large),
        clock=(lambda: options.now) if options.now else utc_now,
        host=options.host,
        port=options.port,
    )
    if options.fault_rate:
        simulator.faults.at_rate(options.fault_rate, seed=options.seed)
    with simulator:
        print(f"Usage Export API simulator ready at {simulator.url}", flush=True)
        signal.sigwait(ending)


if __name__ == "__main__":
    main()
