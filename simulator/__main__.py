"""Run the simulator as a process, `python -m simulator`, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import signal
from datetime import UTC, datetime

from simulator.population import ORGANIZATIONS, keys_of, many_keys
from simulator.server import Simulator
from simulator.service import utc_now


def moment(text: str) -> datetime:
    """Return a time given in ISO 8601, in UTC if it has no offset."""
    given = datetime.fromisoformat(text)
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    keys = ", ".join(f"{key} of {' '.join(members)}" for key, members in keys_of(ORGANIZATIONS).items())
    parser = argparse.ArgumentParser("python -m simulator", description=__doc__, epilog=f"API keys: {keys}")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=8085, help="port to listen on, 0 for a free one (%(default)s)")
    add("--fault-rate", type=float, default=0.0, help="share of requests that fail, 0.1 for a tenth")
    add("--seed", type=int, default=0, help="determines which requests fail, and how (%(default)s)")
    add("--now", type=moment, help="stop the clock at this time, such as 2026-06-18T15:00")
    add("--api-keys", type=int, default=0, help="add org_large, with this many API keys")
    return parser.parse_args()


def main() -> None:
    """Serve until a signal arrives."""
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
