"""What the log says of certificates that are about to expire: each thing once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from mailproxy.net.openssl.pairs import Leaf
from mailproxy.process.certificate_values import DEFAULT_WARNINGS
from mailproxy.process.expiry import Expiry

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def leaf(life: timedelta, *names: str) -> Leaf:
    return Leaf(begins=NOW, ends=NOW + life, names=names or ("a.example.org",))


def story(made: Leaf, *times: timedelta) -> list[str]:
    """What is said at these times before the end of a certificate."""
    expiry = Expiry(DEFAULT_WARNINGS)
    said = []
    assert made.ends is not None
    for left in times:
        for remark in expiry.due([("F", made), ("F", made)], made.ends - left):
            assert remark.file == "F"
            said.append(f"[{remark.level}] {remark.text}")
    return said


def test_each_threshold_is_said_once() -> None:
    times = [timedelta(hours=hours) for hours in range(24 * 40, -24 * 3, -1)]
    assert story(leaf(90 * DAY), *times) == [
        '[warn] certificate "F" (a.example.org) expires in 30 days, on 2027-02-24',
        '[warn] certificate "F" (a.example.org) expires in 7 days, on 2027-02-24',
        '[error] certificate "F" (a.example.org) expires in 24 hours, on 2027-02-24',
        '[error] certificate "F" has expired on 2027-02-24',
        '[error] certificate "F" has expired on 2027-02-24',
        '[error] certificate "F" has expired on 2027-02-24',
    ]


def test_only_the_tightest_threshold_is_said() -> None:
    said = story(leaf(90 * DAY, "a", "b", "c"), 31 * DAY, 12 * DAY, 6 * DAY, 20 * HOUR)
    assert said == [
        '[warn] certificate "F" (a and 2 more) expires in 12 days, on 2027-02-24',
        '[warn] certificate "F" (a and 2 more) expires in 6 days, on 2027-02-24',
        '[error] certificate "F" (a and 2 more) expires in 20 hours, on 2027-02-24',
    ]


def test_a_short_life_is_not_about_to_end_all_the_time() -> None:
    times = [timedelta(hours=hours) for hours in range(24 * 6, 0, -1)]
    assert story(leaf(6 * DAY), *times) == [
        '[error] certificate "F" (a.example.org) expires in 24 hours, on 2026-12-02'
    ]
    assert story(leaf(2 * DAY), *times[-47:]) == []


def test_the_last_second_is_a_part_of_the_life() -> None:
    # As authorities make them for 90 days: from 12:00:00 to 11:59:59.
    issued = leaf(90 * DAY - timedelta(seconds=1))
    assert story(issued, 30 * DAY) == [
        '[warn] certificate "F" (a.example.org) expires in 30 days, on 2027-02-24'
    ]


def test_words_for_little_time() -> None:
    texts = [
        story(leaf(90 * DAY), left)[0].partition("expires in ")[2].partition(",")[0]
        for left in (2 * DAY, DAY + HOUR, DAY, HOUR, HOUR / 2, timedelta(0))
    ]
    assert texts == [
        "2 days",
        "1 day",
        "24 hours",
        "1 hour",
        "less than an hour",
        "less than an hour",
    ]


def test_the_remedy_knows_whether_it_is_over() -> None:
    expiry = Expiry(DEFAULT_WARNINGS)
    made = [("F", leaf(90 * DAY))]
    (soon,) = expiry.due(made, NOW + 89 * DAY)
    (over,) = expiry.due(made, NOW + 91 * DAY)
    assert soon.remedy == "clients will refuse it then: renew it"
    assert over.remedy == "clients refuse it: renew it"


def test_a_renewed_certificate_begins_anew() -> None:
    expiry = Expiry(DEFAULT_WARNINGS)
    old, new = leaf(90 * DAY), leaf(180 * DAY)
    assert len(expiry.due([("F", old)], NOW + 89 * DAY)) == 1
    assert expiry.due([("F", new)], NOW + 90 * DAY) == []
    assert len(expiry.due([("F", new)], NOW + 179 * DAY)) == 1


def test_without_thresholds_only_the_end_is_said() -> None:
    expiry = Expiry(())
    assert expiry.due([("F", leaf(DAY))], NOW) == []
    assert len(expiry.due([("F", leaf(DAY))], NOW + 2 * DAY)) == 1


def test_what_has_no_end_has_none() -> None:
    assert Expiry(DEFAULT_WARNINGS).due([("F", Leaf())], NOW) == []
