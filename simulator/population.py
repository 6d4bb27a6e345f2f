"""The organizations that the simulator starts with, and their keys.

The service documents no list of products, features or file types: these are plausible ones. So are the prices,
except for parsing (1 credit per standard page, 2 per complex page, 0.5 per text page). `classify` costs a tenth of a
credit, so that sums of binary floats show their rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from simulator.usage import Organization, Workload

PRICES = {
    ("parse", "standard"): Decimal("1"),
    ("parse", "complex"): Decimal("2"),
    ("parse", "text"): Decimal("0.5"),
    ("extract", "fields"): Decimal("2"),
    ("extract", "citations"): Decimal("3"),
    ("split", "standard"): Decimal("1"),
    ("edit", "form_fill"): Decimal("4"),
    ("classify", "label"): Decimal("0.1"),
}
"""Credits per page."""


def work(
    product: str, feature: str, api_key: str, file_type: str, requests: int, pages: int, active: float = 1.0
) -> Workload:
    """Return a workload at the usual price."""
    return Workload(product, feature, api_key, file_type, requests, pages, PRICES[product, feature], active)


ACME = Organization(
    "org_acme",
    (
        work("parse", "standard", "invoices-prod", "pdf", 90, 4),
        work("parse", "complex", "invoices-prod", "pdf", 25, 3),
        work("parse", "text", "contracts-prod", "docx", 40, 9),
        work("parse", "standard", "contracts-prod", "png", 12, 1),
        work("extract", "fields", "invoices-prod", "pdf", 60, 2),
        work("extract", "citations", "contracts-prod", "pdf", 10, 5),
        work("split", "standard", "mailroom", "tiff", 15, 12, active=0.6),
        work("edit", "form_fill", "back-office", "pdf", 4, 2, active=0.5),
        work("classify", "label", "mailroom", "pdf", 70, 1),
        work("classify", "label", "mailroom", "png", 30, 1),
        work("classify", "label", "back-office", "tiff", 9, 1),
    ),
    weekend=0.3,
    growth=0.3,
)
"""Large, with every product and quiet weekends."""

GLOBEX = Organization(
    "org_globex",
    (
        work("parse", "standard", "claims", "pdf", 45, 5),
        work("parse", "text", "claims", "txt", 20, 7),
        work("extract", "fields", "claims", "pdf", 30, 2),
        work("extract", "fields", "research", "xlsx", 8, 6, active=0.4),
        work("classify", "label", "claims", "pdf", 45, 1),
        work("classify", "label", "research", "html", 13, 3),
    ),
    weekend=0.0,
    growth=0.15,
)
"""Of medium size, closed at weekends."""

INITECH = Organization(
    "org_initech",
    (
        work("parse", "standard", "milton", "pdf", 2, 3, active=0.12),
        work("parse", "text", "milton", "docx", 1, 5, active=0.08),
        work("classify", "label", "milton", "pdf", 3, 1, active=0.06),
    ),
    weekend=0.0,
)
"""Tiny: most of its days are empty."""

UMBRELLA = Organization(
    "org_umbrella",
    (
        work("parse", "complex", "lab", "pdf", 35, 6),
        work("parse", "standard", "lab", "png", 50, 1),
        work("extract", "citations", "clinic", "pdf", 18, 3),
    ),
    weekend=0.6,
    growth=0.2,
    credits="null",
)
"""On the newer pricing: its rows carry no credits."""

HOOLI = Organization(
    "org_hooli",
    (
        work("parse", "standard", "search-prod", "pdf", 900, 6),
        work("parse", "complex", "search-prod", "pptx", 240, 8),
        work("parse", "text", "search-prod", "html", 1500, 3),
        work("parse", "text", "search-staging", "html", 35, 3, active=0.7),
        work("extract", "fields", "box", "pdf", 310, 3),
        work("extract", "citations", "box", "docx", 45, 4),
        work("split", "standard", "box", "pdf", 80, 20),
        work("edit", "form_fill", "nucleus", "pdf", 22, 3),
        work("classify", "label", "nucleus", "pdf", 610, 1),
        work("classify", "label", "box", "docx", 130, 1),
        work("classify", "label", "search-prod", "html", 390, 1),
    ),
    weekend=0.85,
    growth=0.8,
)
"""The largest, active all week and growing fast."""

ORGANIZATIONS = (ACME, GLOBEX, INITECH, UMBRELLA, HOOLI)


def many_keys(org: str, count: int) -> Organization:
    """Return an organization with this many API keys, all used every day: with thousands, an answer is large."""
    return Organization(org, [work("parse", "standard", f"key-{number:05}", "pdf", 5, 3) for number in range(count)])


def keys_of(organizations: Iterable[Organization]) -> dict[str, tuple[str, ...]]:
    """Return one key that is a member everywhere, and one per organization: `sim-key-acme` for `org_acme`."""
    ids = tuple(organization.id for organization in organizations)
    return {"sim-key-all": ids} | {f"sim-key-{org.removeprefix('org_')}": (org,) for org in ids}
