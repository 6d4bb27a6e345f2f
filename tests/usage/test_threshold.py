"""When a threshold is exceeded, and when it can't be any more."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import StrictUndefined

from reducto_provider.usage.days import DayRange
from reducto_provider.usage.report import CreditsUnavailableError
from reducto_provider.usage.threshold import Reading, UsageThreshold, parse_threshold

NOON = datetime(2026, 6, 18, 12, tzinfo=UTC)


@pytest.fixture
def threshold(query):
    def make(threshold="100", *, days=None, metric="credits", **fields):
        given = query() if days is None else query(start=days[0], end=days[1])
        return UsageThreshold(query=given, metric=metric, threshold=Decimal(threshold), **fields)

    return make


def make_reading(value="150", threshold="100", *, time=NOON, **fields):
    return Reading(
        **{
            "metric": "credits",
            "value": Decimal(value),
            "used": Decimal(value),
            "projected": False,
            "threshold": Decimal(threshold),
            "window": DayRange(date(2026, 6, 1), date(2026, 6, 30)),
            "org_id": "org_abc123",
            "group_by": "product",
            "group": None,
            "time": time,
            **fields,
        }
    )


@pytest.fixture
def reading():
    return make_reading


AMOUNTS = st.decimals(0, Decimal("1e29"), places=9)


class TestRoom:
    @given(AMOUNTS, AMOUNTS, AMOUNTS)
    def test_is_exact(self, value, reserve, budget):
        reading = make_reading(value, budget)

        assert reading.has_room_for(reserve) is (Fraction(value) + Fraction(reserve) <= Fraction(budget))

    @given(AMOUNTS, AMOUNTS)
    def test_a_sum_that_equals_the_budget_is_within(self, value, reserve):
        with localcontext(prec=80):
            budget, more = value + reserve, value + reserve + Decimal("1e-9")

        assert make_reading(value, budget).has_room_for(reserve)
        assert not make_reading(more, budget).has_room_for(reserve)
        assert not make_reading(value, budget).exceeded

    def test_the_line_says_it(self):
        reading = make_reading("99.5", "100")

        assert reading.describe_room(Decimal("0.5")) == f"{reading}, and 0.5 in reserve: within the budget"
        assert reading.describe_room(Decimal("0.50")).endswith("and 0.5 in reserve: within the budget")
        assert reading.describe_room(Decimal(0)) == f"{reading}: within the budget"
        assert reading.describe_room(Decimal("0.6")).endswith("over the budget")


class TestRead:
    @pytest.mark.parametrize(
        ("credits", "exceeded"),
        [("99.999999999", False), ("100", False), ("100.0000000004", False), ("100.000000001", True), ("1e28", True)],
    )
    def test_to_exceed_is_strictly_more(self, threshold, report, credits, exceeded):
        assert threshold("100").read(report(("parse", credits, 1)), NOON).exceeded is exceeded

    @pytest.mark.parametrize(("credits", "exceeded"), [("0", False), ("0.000000001", True)])
    def test_any_usage_exceeds_zero(self, threshold, report, credits, exceeded):
        assert threshold("0").read(report(("parse", credits, 1)), NOON).exceeded is exceeded

    def test_the_sum_of_all_rows(self, threshold, report):
        usage = report(("parse", "60", 1), ("extract", "0.1", 2), ("parse", "39.95", 3, "2026-06-01"))

        reading = threshold("100").read(usage, NOON)

        assert reading == Reading(
            metric="credits",
            value=Decimal("100.05"),
            used=Decimal("100.05"),
            projected=False,
            threshold=Decimal(100),
            window=DayRange(date(2026, 5, 19), date(2026, 6, 18)),
            org_id="org_abc123",
            group_by="product",
            group=None,
            time=NOON,
        )
        assert reading.exceeded

    def test_requests(self, threshold, report):
        usage = report(("parse", "1000", 60), ("extract", "1000", 40, "2026-06-01"))

        assert threshold("100", metric="requests").read(usage, NOON).value == 100
        assert not threshold("100", metric="requests").read(usage, NOON).exceeded
        assert threshold("99", metric="requests").read(usage, NOON).exceeded

    @pytest.mark.parametrize("per_group", [False, True])
    def test_no_usage(self, threshold, report, per_group):
        reading = threshold("0", per_group=per_group).read(report(), NOON)

        assert reading.value == 0
        assert reading.group is None
        assert not reading.exceeded

    def test_one_group_by_itself(self, threshold, report):
        usage = report(
            ("parse", "60", 1),
            ("extract", "70", 1),
            ("extract", "0.5", 1, "2026-06-01"),
            ("split", "69", 1),
            ("split", "1.4", 1, "2026-06-18"),
        )

        reading = threshold("70.5", per_group=True).read(usage, NOON)

        assert reading.group == "extract"
        assert reading.value == Decimal("70.5")
        assert not reading.exceeded
        assert threshold("70.4", per_group=True).read(usage, NOON).exceeded

    @pytest.mark.parametrize("group", ["", "a/b", "\N{GRINNING FACE}"])
    def test_any_group(self, threshold, report, group):
        usage = report(("a", "1", 1), (group, "5", 1), ("z", "1", 1))

        assert threshold("4", per_group=True).read(usage, NOON).group == group

    def test_no_group_is_a_group_too(self, threshold, report):
        usage = report((None, "60", 1), ("", "50", 1), (None, "5", 1, "2026-06-01"))

        assert threshold("64", per_group=True).read(usage, NOON).value == 65

    @pytest.mark.parametrize("per_group", [False, True])
    def test_credits_that_are_not_there_are_no_zero(self, threshold, report, per_group):
        usage = report(("parse", "1000", 1), ("extract", "null", 5))

        with pytest.raises(CreditsUnavailableError) as error:
            threshold("100", per_group=per_group).read(usage, NOON)

        assert "org_abc123" in str(error.value)
        assert "metric='requests'" in str(error.value)

    def test_requests_need_no_credits(self, threshold, report):
        usage = report(("parse", "null", 3), ("extract", "null", 5))

        assert threshold("7", metric="requests").read(usage, NOON).value == 8
        assert threshold("7", metric="requests", per_group=True).read(usage, NOON).value == 5

    def test_metric_is_checked(self, threshold):
        with pytest.raises(ValueError, match="metric must be one of credits, requests, not 'pages'"):
            threshold(metric="pages")


class TestQueryAt:
    MONTH = (date(2026, 6, 1), date(2026, 6, 30))

    @pytest.mark.parametrize(
        ("moment", "end"),
        [
            (datetime(2026, 6, 18, 12, tzinfo=UTC), date(2026, 6, 18)),
            (datetime(2026, 6, 18, 23, 59, 59, 999999, tzinfo=UTC), date(2026, 6, 18)),
            (datetime(2026, 6, 19, tzinfo=UTC), date(2026, 6, 19)),
            (datetime(2026, 6, 30, 23, 59, tzinfo=UTC), date(2026, 6, 30)),
            (datetime(2026, 7, 1, tzinfo=UTC), date(2026, 6, 30)),
            (datetime(2027, 1, 1, tzinfo=UTC), date(2026, 6, 30)),
            (datetime(2026, 6, 1, tzinfo=UTC), date(2026, 6, 1)),
            # A moment in another zone: the day is UTC's.
            (datetime(2026, 6, 19, 1, tzinfo=timezone(timedelta(hours=2))), date(2026, 6, 18)),
            (datetime(2026, 6, 18, 23, tzinfo=timezone(timedelta(hours=-5))), date(2026, 6, 19)),
        ],
        ids=lambda value: value.isoformat(),
    )
    def test_days_to_come_are_left_out(self, threshold, moment, end):
        given = threshold(days=self.MONTH).query_at(moment)

        assert (given.start, given.end) == (date(2026, 6, 1), end)

    def test_before_the_window_there_is_nothing_to_request(self, threshold):
        condition = threshold(days=self.MONTH)

        assert condition.query_at(datetime(2026, 5, 31, 23, 59, tzinfo=UTC)) is None
        assert condition.describe_wait(None) == "2026-06-01 to 2026-06-30 has not begun"

    def test_the_rest_of_the_query_stays(self, query):
        given = query(group_by="feature", org_id="org_abc123", products=["parse"], end=date(2026, 12, 31))
        condition = UsageThreshold(query=given, metric="credits", threshold=Decimal(1))

        assert condition.query_at(NOON) == query(group_by="feature", org_id="org_abc123", products=["parse"])
        assert condition.window == DayRange(given.start, date(2026, 12, 31))


class TestOutcome:
    @pytest.mark.parametrize(
        ("settle_days", "moment", "outcome"),
        [
            (0, datetime(2026, 6, 30, 23, 59, 59, 999999, tzinfo=UTC), "waiting"),
            (0, datetime(2026, 7, 1, tzinfo=UTC), "closed"),
            (2, datetime(2026, 7, 1, tzinfo=UTC), "waiting"),
            (2, datetime(2026, 7, 2, 23, 59, 59, 999999, tzinfo=UTC), "waiting"),
            (2, datetime(2026, 7, 3, tzinfo=UTC), "closed"),
            (0, datetime(2026, 5, 1, tzinfo=UTC), "waiting"),
            (0, datetime(2026, 7, 1, 1, 59, tzinfo=timezone(timedelta(hours=2))), "waiting"),
            (0, datetime(2026, 6, 30, 19, tzinfo=timezone(timedelta(hours=-5))), "closed"),
        ],
        ids=str,
    )
    def test_a_window_closes_when_its_last_days_have_settled(self, threshold, reading, settle_days, moment, outcome):
        condition = threshold(days=TestQueryAt.MONTH, settle_days=settle_days)

        assert condition.outcome(reading("100", time=moment)) == outcome

    @pytest.mark.parametrize("moment", [NOON, datetime(2027, 1, 1, tzinfo=UTC)])
    def test_exceeded_stays_exceeded_in_a_closed_window(self, threshold, reading, moment):
        assert threshold(days=TestQueryAt.MONTH).outcome(reading("100.000000001", time=moment)) == "exceeded"


class TestParse:
    @pytest.mark.parametrize(
        ("value", "number"),
        [
            (0, "0"),
            (100, "100"),
            (0.1, "0.1"),
            (1e3, "1000"),
            (Decimal("99.95"), "99.95"),
            ("100", "100"),
            (" 99.95\n", "99.95"),
            ("1e3", "1000"),
            ("0", "0"),
            ("1e-9", "0.000000001"),
            ("999999999999999999.999999999", "999999999999999999.999999999"),
        ],
        ids=repr,
    )
    def test_a_number_or_one_as_text(self, value, number):
        assert parse_threshold(value) == Decimal(number)

    @pytest.mark.parametrize(
        "value",
        [
            *(-1, -0.5, "-1", "-1e-9", 1e-10, "0.0000000009", "1e-999999"),
            *(float("nan"), float("inf"), "nan", "sNaN", "Infinity", Decimal("NaN"), "1e18", 10**18, "1e999"),
            *("", "  ", "None", "{{ x }}", "1,000", "1.000,5", "100 credits", "0x10"),
            *(None, True, False, [100], {}, b"100"),
            StrictUndefined(),  # what a native template leaves of a name that is not there; its text can't be taken
        ],
        ids=repr,
    )
    def test_anything_else_is_refused(self, value):
        with pytest.raises(ValueError) as error:
            parse_threshold(value)

        assert "threshold must be 0 or a number from 1e-9 to less than 1e18" in str(error.value)
        assert repr(value) in str(error.value)


class TestReading:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"value": Decimal("230.1"), "threshold": Decimal("230.1")},
            {"value": Decimal(0), "threshold": Decimal(0)},
            {"value": Decimal("0.000000001")},
            {"metric": "requests", "value": Decimal(2**63)},
            {"group": "parse"},
            {"group": ""},
            {"group": 'a/b\n"c" \N{GRINNING FACE}\x01'},
            {"window": DayRange(date(2026, 6, 18), date(2026, 6, 18)), "group_by": "api_key"},
        ],
        ids=str,
    )
    def test_there_and_back_as_json(self, reading, fields):
        original = reading(**fields)

        assert Reading.from_json(json.loads(json.dumps(original.as_json()))) == original

    def test_what_postgresql_keeps_in_no_json_is_replaced(self, reading):
        sent = reading(org_id="org\0", group="\0a").as_json()

        assert (sent["org_id"], sent["group"]) == ("org\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}a")

    def test_as_json(self, reading):
        assert reading("230.1", "200", group="parse").as_json() == {
            "metric": "credits",
            "value": 230.1,
            "used": 230.1,
            "projected": False,
            "threshold": 200,
            "exceeded": True,
            "usage_start_date": "2026-06-01",
            "usage_end_date": "2026-06-30",
            "org_id": "org_abc123",
            "group_by": "product",
            "group": "parse",
            "time": "2026-06-18T12:00:00+00:00",
        }

    @pytest.mark.parametrize(
        ("value", "threshold"),
        [("100000000.000000001", "100000000"), ("12345678901234.123456789", "12345678901234.123456788")],
    )
    def test_exceeded_by_less_than_a_json_number_holds_stays_exceeded(self, reading, value, threshold):
        original = reading(value, threshold)
        assert original.exceeded

        assert original.as_json()["exceeded"] is True

    @pytest.mark.parametrize(
        "content",
        [
            None,
            "reading",
            [],
            {},
            {"metric": "pages"},
            {"value": "150"},
            {"value": None},
            {"value": True},
            {"value": float("nan")},
            {"value": float("inf")},
            {"used": float("nan")},
            {"threshold": float("nan")},
            {"usage_start_date": "01.06.2026"},
            {"usage_end_date": None},
            {"org_id": None},
            {"group": 5},
            {"time": "noon"},
            {"time": "2026-06-18T12:00:00"},
            {"time": 1781784000},
        ],
        ids=str,
    )
    def test_what_is_no_reading_is_refused(self, reading, content):
        if isinstance(content, dict) and content:
            content = {**reading().as_json(), **content}

        with pytest.raises(ValueError):
            Reading.from_json(content)

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({}, "org_abc123, 2026-06-01 to 2026-06-30: 150 of 100 credits (150.0%)"),
            (
                {"value": "0.5", "threshold": "3", "group": "parse"},
                "org_abc123, product 'parse', 2026-06-01 to 2026-06-30: 0.5 of 3 credits (16.7%)",
            ),
            ({"threshold": "0", "group": ""}, "org_abc123, product '', 2026-06-01 to 2026-06-30: 150 of 0 credits"),
            (
                {"metric": "requests", "window": DayRange(date(2026, 6, 18), date(2026, 6, 18))},
                "org_abc123, 2026-06-18: 150 of 100 requests (150.0%)",
            ),
            ({"value": "1E+3"}, "org_abc123, 2026-06-01 to 2026-06-30: 1000 of 100 credits (1000.0%)"),
        ],
        ids=str,
    )
    def test_as_people_read_it(self, reading, fields, text):
        assert str(reading(**fields)) == text
