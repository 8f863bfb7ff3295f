# Copyright 2026 The dimple_hf team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The languages of numbers and of formats, against arithmetic, calendars and other people's parsers."""

import calendar
import datetime
import ipaddress
import itertools
import random
import uuid
from decimal import Decimal
from typing import Any

import pytest
from test_patterns_dimple import random_text

from dimple_hf.processing.char_dfa_dimple import EmptyLanguageError
from dimple_hf.processing.value_languages_dimple import FORMATS, format_dfa, number_dfa


@pytest.mark.parametrize(
    ("low", "high"), [(0, 9), (5, 1234), (-17, 23), (None, None), (1000000, 9999999), (-50, -3), (99, 101), (0, 0)]
)
def test_number_dfa_accepts_exactly_the_integers_within_bounds(low: int | None, high: int | None) -> None:
    """Against arithmetic, densely around zero and the bounds, sparsely elsewhere."""
    dfa, rng = number_dfa(low, high, is_integer=True), random.Random(0)
    values = {*range(-1500, 1500), *(rng.randint(-(10**8), 10**8) for _ in range(300))}
    values |= {bound + step for bound in (low or 0, high or 0) for step in (-1, 0, 1)}
    for value in values:
        assert dfa.accepts(str(value)) == ((low is None or value >= low) and (high is None or value <= high)), value
    assert not any(dfa.accepts(text) for text in ("", "-", "007", "+1", "1.0", "1e3"))


def test_number_dfa_needs_few_states_for_wide_bounds() -> None:
    """Prefixes that are alike share a state, or a seven-digit bound would need a million of them."""
    assert len(number_dfa(1234567, 7654321, is_integer=True).table) < 40


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.5, 2.75), (0.125, 0.25), (3.3, 3.4), (None, 7.5), (-9.25, -9)])
def test_number_dfa_accepts_exactly_the_decimals_within_bounds(low: float | None, high: float) -> None:
    """Against exact decimals, with up to four digits after the point."""
    dfa, rng = number_dfa(low, high, is_integer=False, max_digits=6), random.Random(0)
    for _ in range(3000):
        text = f"{rng.uniform((low if low is not None else -20) - 1, high + 1):.{rng.randint(0, 4)}f}"
        if Decimal(text) == 0 and text.startswith("-"):
            continue
        expected = (low is None or Decimal(text) >= Decimal(str(low))) and Decimal(text) <= Decimal(str(high))
        assert dfa.accepts(text) == expected, text
    assert not any(dfa.accepts(text) for text in (".5", "1.", "00.1", "-0.0", "1.0000000"))


def test_number_between_narrow_bounds_has_the_digits_that_it_needs() -> None:
    """One more than the most, and no other."""
    dfa = number_dfa(1.2e-6, 1.3e-6, is_integer=False, max_digits=6)
    assert [dfa.accepts(text) for text in ("0.0000012", "0.0000013", "0.0000014", "0.00000125")] == [1, 1, 0, 0]


def test_number_without_bounds_may_have_an_exponent() -> None:
    """As `json.dumps` writes small and large floats."""
    dfa = number_dfa(None, None, is_integer=False)
    assert all(dfa.accepts(text) for text in ("1e-07", "-2.5E+20", "3.141592653589793", "0"))
    assert not any(dfa.accepts(text) for text in ("1e", "1e100", "e5", "01"))


@pytest.mark.parametrize(
    ("multiple", "is_integer"),
    [(7, True), (5, False), (0.5, False), (0.25, False), (0.01, False), (0.7, False), (0.07, True)],
)
def test_multiples_are_multiples_however_they_are_divided(multiple: float, is_integer: bool) -> None:
    """Exactly, and in floating point, which is how validators divide."""
    dfa, rng = number_dfa(-100, 1000, is_integer, multiples=(multiple,)), random.Random(0)
    texts = {text for text in (random_text(dfa, rng) for _ in range(300)) if text}
    assert len(texts) > 20
    for text in texts:
        assert (Decimal(text) / Decimal(str(multiple))) % 1 == 0
        assert (float(text) / multiple).is_integer()
    assert not dfa.accepts("0.125")  # control
    if not is_integer:  # a double has no 18 digits
        wide = number_dfa(0, None, False, multiples=(3,))
        assert [wide.accepts(text) for text in ("3.0", "183838323737295771.00", "183838323737295771")] == [1, 0, 1]
    with pytest.raises(ValueError, match="at most 2000 units"):
        number_dfa(0, 1, False, multiples=(12345,))


def test_multiples_of_a_cent_are_those_that_floating_point_divides() -> None:
    """Prices are multiples of 0.01; 0.29 / 0.01 is no integer in floating point. 0.7 rounds even 21 away."""
    cents, sevenths = (number_dfa(None, None, False, multiples=(multiple,)) for multiple in (0.01, 0.7))
    assert all(map(cents.accepts, ("599.99", "99.99", "-0.5", "1234567", "1234567.25")))
    assert not any(map(cents.accepts, ("0.29", "599.999", "1234567.89")))
    assert sevenths.accepts("3.5")
    assert not sevenths.accepts("21")
    with pytest.raises(ValueError, match="must have fewer decimals"):
        number_dfa(None, None, False, multiples=(0.00013,))


def test_number_without_a_number_within_bounds_is_refused() -> None:
    """Bounds that contradict each other must not wait for the model."""
    with pytest.raises(EmptyLanguageError, match="must match something"):
        number_dfa(5, 4, is_integer=True)


def parse_duration(text: str) -> Any:
    pydantic = pytest.importorskip("pydantic")
    return pydantic.TypeAdapter(datetime.timedelta).validate_python(text)


@pytest.mark.parametrize(
    ("name", "parse"),
    [
        ("date", datetime.date.fromisoformat),
        ("time", lambda text: datetime.time.fromisoformat(text)),
        ("date-time", datetime.datetime.fromisoformat),
        ("duration", parse_duration),
        ("uuid", uuid.UUID),
        ("ipv4", ipaddress.IPv4Address),
        ("ipv6", ipaddress.IPv6Address),
        ("ipv4network", ipaddress.IPv4Network),
        ("ipv6network", ipaddress.IPv6Network),
        ("ipv6interface", ipaddress.IPv6Interface),
    ],
)
def test_format_writes_what_a_parser_reads(name: str, parse: Any) -> None:
    """Random texts of each format."""
    dfa, rng = format_dfa(FORMATS[name][0]), random.Random(0)
    texts = {text for text in (random_text(dfa, rng) for _ in range(200)) if text}
    assert len(texts) > 30
    for text in texts:
        parse(text)
    with pytest.raises(ValueError):  # noqa: PT011  # control: each parser says it in its own words
        parse("no such thing")


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [
        ("date", ["2024-02-29", "2000-02-29", "1999-12-31", "2023-11-30"],
         ["2023-02-29", "1900-02-29", "2024-11-31", "0999-01-01", "2024-1-01"]),
        ("time", ["23:59:59Z", "00:00:00.123+05:30"], ["24:00:00Z", "12:00:00", "12:60:00Z"]),
        ("date-time", ["2024-02-29T00:00:00.5Z"], ["2023-02-29T00:00:00Z", "2024-02-29 00:00:00Z"]),
        ("email", ["a@b.org", "first.last+tag@mail.example.com"], ["a", "@b.org", "a@b", ".a@b.org", "a@b..org"]),
        ("hostname", ["localhost", "www.example.com"], ["-a", "a-", "a..b", "a_b"]),
        ("uri", ["https://example.com/a?b=c#d", "mailto:a@b.org", "urn:isbn:123", "http://x:80/%20"],
         ["example", "http://a b", "http://x/%2", "://x"]),
        ("uri-reference", ["a/b", "/a", "?q", "#f", "https://x", ""], ["a b", "%", "\\"]),
        ("duration", ["P1D", "PT1H30M", "P2W", "P1Y2M3DT4H"], ["P", "PT", "1D", "P1H", "P1YT"]),
        ("json-pointer", ["", "/a/0", "/a~0b~1c"], ["a", "/~2"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
    ],
)  # fmt: skip
def test_format_accepts_these_and_not_those(name: str, valid: list[str], invalid: list[str]) -> None:
    """By hand, from the standards."""
    dfa = format_dfa(FORMATS[name][0])
    assert [dfa.accepts(text) for text in valid] == [True] * len(valid)
    assert [dfa.accepts(text) for text in invalid] == [False] * len(invalid)


def test_format_date_has_every_day_of_the_calendar() -> None:
    """That of `datetime`: all days of four years, and the ends of February over two centuries."""
    dfa, accepted = format_dfa(FORMATS["date"][0]), 0
    days = {*itertools.product((1899, 1900, 2000, 2004), range(1, 13), range(1, 32))}
    days |= {*itertools.product(range(1899, 2101), [2], range(28, 31))}
    for year, month, day in days:
        try:
            datetime.date(year, month, day)
        except ValueError:
            assert not dfa.accepts(f"{year}-{month:02}-{day:02}")
        else:
            assert dfa.accepts(f"{year}-{month:02}-{day:02}")
            accepted += 1
    num_leap_years = sum(calendar.isleap(year) for year in range(1899, 2101))
    assert accepted == 365 + 365 + 366 + 366 + 198 + num_leap_years - 2
