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
"""The languages of JSON's values: numbers within bounds, and the formats of strings."""

import math
from bisect import bisect_left
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import numpy as np

from .char_dfa_dimple import CharDFA, CharNFA
from .patterns_dimple import pattern_dfa

#: Digits before the point, and after it, of numbers whose bounds do not give them.
MAX_DIGITS = 18

#: Largest `multipleOf`, in units of its last decimal.
MAX_MULTIPLE = 2000

#: Digits, of those before the point and after it together, of multiples that are tried one by one.
MAX_TRIED_DIGITS = 5

_YEAR = r"[12]\d\d\d"
_LEAP_YEAR = r"(?:[12]\d(?:0[48]|[2468][048]|[13579][26])|(?:1[26]|2[048])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_H16 = "[0-9a-fA-F]{1,4}"
_IPV6 = "|".join(
    (
        rf"(?:{_H16}:){{7}}{_H16}",
        *(rf"(?:{_H16}:){{1,{7 - n}}}(?::{_H16}){{1,{n}}}" for n in range(1, 7)),
        rf"(?:{_H16}:){{1,7}}:",
        rf":(?::{_H16}){{1,7}}",
        "::",
    )
)
_LABEL = "[A-Za-z0-9]{1,24}(?:-[A-Za-z0-9]{1,8}){0,3}"
_TLD = "(?:[A-Za-z]{2,3}|info|name|site|online|email|cloud|tech|store|company|agency)"
_HOST = rf"(?:{_LABEL}\.)*[A-Za-z][A-Za-z0-9]{{0,24}}(?:-[A-Za-z0-9]{{1,8}}){{0,3}}"
_ATOM = "[A-Za-z0-9_+-]{1,24}"
_EMAIL = rf"{_ATOM}(?:\.{_ATOM}){{0,1}}@(?:{_LABEL}\.){{1,3}}{_TLD}"
_PCHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_SEGMENT_NC = r"(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})+"
_AUTHORITY = (
    r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*(?::[1-9]\d{0,3})?"
)
_TAIL = rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?"
_URI = rf"(?:[A-Za-z][A-Za-z0-9+.-]*:(?://{_AUTHORITY}(?:/{_PCHAR}*)*|{_PCHAR}+(?:/{_PCHAR}*)*){_TAIL})"
_URI_REFERENCE = rf"(?:{_URI}|(?:/?{_SEGMENT_NC}(?:/{_PCHAR}*)*|/)?{_TAIL})"
_HTTP_URL = (
    rf"https?://(?:{_LABEL}\.){{1,3}}{_TLD}(?:/(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{{2}})*)*(?:\?[A-Za-z0-9=&_.-]*)?"
)
_DATES = r"(?:\d{1,4}Y(?:\d{1,4}M(?:\d{1,4}D)?)?|\d{1,4}M(?:\d{1,4}D)?|\d{1,4}D)"
_TIMES = r"T(?:\d{1,4}H(?:\d{1,4}M(?:\d{1,4}S)?)?|\d{1,4}M(?:\d{1,4}S)?|\d{1,4}S)"
_POINTER = "(?:/(?:[^~/]|~[01])*)*"

#: Formats: name -> pattern of the whole string, and its most characters where the pattern does not bound it.
FORMATS: dict[str, tuple[str, int | None]] = {
    "date": (_DATE, None),
    "time": (_TIME, None),
    "date-time": (f"{_DATE}T{_TIME}", None),
    "duration": (rf"P(?:{_DATES}(?:{_TIMES})?|{_TIMES}|\d{{1,4}}W)", None),
    "uuid": ("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", None),
    "uuid4": ("[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}", None),
    "email": (_EMAIL, 254),
    "idn-email": (_EMAIL, 254),
    "hostname": (_HOST, 253),
    "idn-hostname": (_HOST, 253),
    "ipv4": (_IPV4, None),
    "ipv6": (_IPV6, None),
    "uri": (_URI, None),
    "iri": (_URI, None),
    "uri-reference": (_URI_REFERENCE, None),
    "iri-reference": (_URI_REFERENCE, None),
    "uri-template": (rf"(?:{_PCHAR}|/|\{{[A-Za-z0-9_]+\}})*", None),
    "json-pointer": (_POINTER, None),
    "relative-json-pointer": (rf"(?:0|[1-9]\d{{0,8}})(?:#|{_POINTER})", None),
    "regex": ("[A-Za-z0-9 _,;:-]*", None),
    "byte": ("(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", None),
    "base64url": ("(?:[A-Za-z0-9_-]{4})*", None),
    "ipv4network": (rf"{_IPV4}/32", None),
    "ipv4interface": (rf"{_IPV4}/(?:3[0-2]|[12]\d|\d)", None),
    "ipv6network": (rf"(?:{_IPV6})/128", None),
    "ipv6interface": (rf"(?:{_IPV6})/(?:12[0-8]|1[01]\d|[1-9]?\d)", None),
    "ipvanyaddress": (rf"{_IPV4}|{_IPV6}", None),
    "ipvanynetwork": (rf"{_IPV4}/32|(?:{_IPV6})/128", None),
    "ipvanyinterface": (rf"{_IPV4}/(?:3[0-2]|[12]\d|\d)", None),
    "color": ("#[0-9a-fA-F]{6}", None),
}

#: What a pydantic class reads from these formats is narrower than the format.
PYDANTIC_FORMATS: dict[str, tuple[str, int | None]] = {
    "uri": (_HTTP_URL, 2000),
    "json-string": (r"(?:\d{1,4}|true|false|null)", None),
    "base64": (FORMATS["byte"][0], None),
    "name-email": (rf"[A-Za-z]{{1,12}} <{_EMAIL}>", None),
}


@lru_cache(maxsize=512)
def format_dfa(pattern: str) -> CharDFA:
    """The texts of one of the patterns of formats."""
    return pattern_dfa(pattern)[0]


@lru_cache(maxsize=512)
def number_dfa(
    low: float | int | None,
    high: float | int | None,
    is_integer: bool,
    max_digits: int = MAX_DIGITS,
    multiples: tuple[float | int, ...] = (),
) -> CharDFA:
    """
    Numbers in JSON's spelling.

    Args:
        low, high (`float` or `int`, *optional*):
            Inclusive bounds.
        is_integer (`bool`):
            Whether they have no fraction.
        max_digits (`int`):
            Most digits before the point, and after it, where the bounds do not need more.
        multiples (`tuple[float | int]`, *optional*):
            What they must be multiples of.

    Returns:
        `CharDFA`

    Raises:
        EmptyLanguageError: If there is none.
        ValueError: If a multiple is not supported.
    """
    if low is None and high is None and not multiples:
        digits = rf"-?(?:0|[1-9]\d{{0,{max_digits - 1}}})"
        rest = "" if is_integer else rf"(?:\.\d{{1,{max_digits}}})?(?:[eE][+-]?\d{{1,2}})?"
        return pattern_dfa(digits + rest)[0]
    bounds = [exact(bound) for bound in (low, high) if bound is not None]
    counts = [len(str(abs(int(bound)))) for bound in bounds]
    if max(counts, default=0) > 400:
        raise ValueError("bounds must have at most 400 digits")
    int_digits = max(counts) if len(counts) == 2 else max([max_digits, *(count + 1 for count in counts)])
    frac_digits = 0 if is_integer else max_digits
    if len(bounds) == 2 and not is_integer:  # so narrow that only longer fractions lie between
        while frac_digits < 400 and math.ceil(bounds[0] * 10**frac_digits) > bounds[1] * 10**frac_digits:
            frac_digits += 1
    nfa = CharNFA()
    dfa = CharDFA.from_nfa(nfa, nfa.either(_decimals(nfa, low, high, int_digits, frac_digits)))
    for multiple in multiples:
        dfa = dfa.intersect(_multiples_dfa(exact(multiple), is_integer))
    if multiples and not is_integer:  # read as a double, which holds so many digits exactly
        dfa = dfa.intersect(pattern_dfa(r"-?\d+|-?\d{1,12}\.\d+")[0])
    return dfa


def exact(number: float | int) -> Fraction:
    """
    The number as it is written. Reading a decimal rounds it monotonically, so a decimal within bounds that are taken
    so is within them when it has been read, too.
    """
    return Fraction(str(number))


def _char(nfa: CharNFA, char: str, target: int) -> int:
    return nfa.char(((ord(char), ord(char)),), target)


def _decimals(
    nfa: CharNFA, low: float | int | None, high: float | int | None, int_digits: int, frac_digits: int
) -> list[int]:
    """The states that decimals within inclusive bounds begin in, without exponent and without leading zeros."""
    unit = Fraction(1, 10**frac_digits)
    largest = 10**int_digits - unit
    bottom = -largest if low is None else max(exact(low), -largest)
    top = largest if high is None else min(exact(high), largest)
    starts = []
    if top >= 0:
        starts.append(_Decimals(nfa, max(bottom, Fraction(0)), top, int_digits, frac_digits).start())
    if bottom < 0:  # not -0, nor -0.0
        start = _Decimals(nfa, max(-top, unit), -bottom, int_digits, frac_digits).start()
        starts.append(_char(nfa, "-", start))
    return starts


class _Decimals:
    """
    The numbers from `low` to `high`, both at least 0, digit by digit.

    After some digits of the integer part it is known, for each number of digits still to come, whether all numbers
    that begin so are within the bounds, none, or some. As long as it is never "some", states that agree in this are
    one state; prefixes of a bound, of which there are few, keep their value.
    """

    def __init__(self, nfa: CharNFA, low: Fraction, high: Fraction, int_digits: int, frac_digits: int):
        self.nfa, self.low, self.high = nfa, low, high
        self.int_digits, self.frac_digits = int_digits, frac_digits
        # The bounds, and one before each number of further digits, in units of the last digit.
        self.low_units = math.ceil(low * 10**frac_digits)
        self.high_units = math.floor(high * 10**frac_digits)
        self.powers = [10 ** (frac_digits + count) for count in range(int_digits + 1)]
        self.states: dict[Any, int] = {}

    def start(self) -> int:
        start = self.nfa.state()
        if self.int_digits:
            for digit in range(1, 10):
                self._add_digit(start, digit, self._integer(digit, 1))
        self._add_digit(start, 0, self._integer(0, self.int_digits))  # no digit may follow a leading zero
        return start

    def _add_digit(self, state: int, digit: int, target: int | None) -> None:
        if target is not None:
            self.nfa.edges[state].append((((48 + digit, 48 + digit),), target))

    def _status(self, first: Fraction, last: Fraction) -> str:
        if self.low <= first and last <= self.high:
            return "all"
        return "none" if last < self.low or first > self.high else "some"

    def _integer(self, value: int, num_digits: int) -> int | None:
        """The state after an integer part that begins with `value`; `None` if nothing within the bounds does."""
        # With more digits to come the numbers grow, so each comparison with a bound changes at one number of digits.
        left, power, low, high = range(self.int_digits - num_digits + 1), self.powers, self.low_units, self.high_units
        begins = bisect_left(left, True, key=lambda k: (value + 1) * power[k] > low)
        ends = bisect_left(left, True, key=lambda k: value * power[k] > high)
        all_from = bisect_left(left, True, key=lambda k: value * power[k] >= low)
        all_until = bisect_left(left, True, key=lambda k: (value + 1) * power[k] > high + 1)
        if begins >= ends:
            return None
        is_whole = (begins, ends) == (all_from, all_until)
        key = ("integer", num_digits, (begins, ends) if is_whole else value)
        if key not in self.states:
            self.states[key] = state = self.nfa.state()
            if self.low <= value <= self.high:
                self.nfa.free[state].append(self.nfa.end)
            if self.frac_digits and begins == 0:
                point = self.nfa.state()
                for digit in range(10):
                    self._add_digit(point, digit, self._fraction(value * 10 + digit, 1))
                self.nfa.edges[state].append((((46, 46),), point))
            for digit in range(10 if num_digits < self.int_digits else 0):
                self._add_digit(state, digit, self._integer(value * 10 + digit, num_digits + 1))
        return self.states[key]

    def _fraction(self, value: int, num_digits: int) -> int | None:
        """The same after `num_digits` digits after the point; `value` counts units of the last one."""
        scale, unit = 10**num_digits, Fraction(1, 10**self.frac_digits)
        status = self._status(Fraction(value, scale), Fraction(value + 1, scale) - unit)
        if status == "none":
            return None
        key = ("fraction", num_digits, value if status == "some" else status)
        if key not in self.states:
            self.states[key] = state = self.nfa.state()
            if self.low <= Fraction(value, scale) <= self.high:
                self.nfa.free[state].append(self.nfa.end)
            for digit in range(10 if num_digits < self.frac_digits else 0):
                self._add_digit(state, digit, self._fraction(value * 10 + digit, num_digits + 1))
        return self.states[key]


def _multiples_dfa(multiple: Fraction, is_integer: bool) -> CharDFA:
    """
    Multiples of a decimal, digit by digit, of which floating-point division says so, too: 0.29 / 0.01 is no integer.
    In small numbers each fraction is tried. Beyond them come integers and the fractions that floating point holds
    exactly (.5, .25, .75 and so on), unless the multiple itself is rounded so much that even those may fail.
    """
    decimals = next((n for n in range(7) if (multiple * 10**n).denominator == 1), None)
    if decimals is None or multiple <= 0 or multiple * 10**decimals > MAX_MULTIPLE:
        raise ValueError(f"'multipleOf' must be a decimal of at most {MAX_MULTIPLE} units (got {float(multiple)})")
    nfa = CharNFA()
    starts = []
    rounding = abs(Fraction(float(multiple)) - multiple) / multiple
    if rounding <= Fraction(1, 2**54):  # the quotient, rounded once more, is still the nearest integer
        starts.append(_exact_multiples(nfa, multiple, decimals, is_integer))
    if 0 < decimals < MAX_TRIED_DIGITS - 1:
        starts.append(_small_multiples(nfa, multiple, decimals, is_integer))
    if not starts:
        raise ValueError(f"'multipleOf' must have fewer decimals (got {float(multiple)})")
    start = nfa.either((*starts, *(_char(nfa, "-", one) for one in starts)))
    return CharDFA.from_nfa(nfa, start)


def _small_multiples(nfa: CharNFA, multiple: Fraction, decimals: int, is_integer: bool) -> int:
    """The state before multiples of few digits, of which each is divided."""
    scale = 10**decimals
    num_digits = max(MAX_TRIED_DIGITS - decimals, 1)
    units = np.arange(scale * 10**num_digits)
    quotients = units / scale / float(multiple)
    is_multiple = (units % int(multiple * scale) == 0) & (quotients == np.floor(quotients))
    rows = is_multiple.reshape(-1, scale)
    states: dict[object, int] = {}  # by what may follow

    def shared(edges: dict[str, int], may_end: bool) -> int:
        key = (tuple(edges.items()), may_end)
        if key not in states:
            states[key] = state = nfa.state()
            nfa.edges[state] += [(((ord(char), ord(char)),), target) for char, target in edges.items()]
            nfa.free[state] += [nfa.end] if may_end else []
        return states[key]

    @cache
    def fraction(allowed: bytes, is_begun: bool) -> int | None:
        """The state before the digits of a fraction, of which `allowed` has a byte for each."""
        if not any(allowed):
            return None
        size = len(allowed) // 10
        edges = {
            str(digit): fraction(allowed[digit * size : (digit + 1) * size], True) for digit in range(10 * (size > 0))
        }
        return shared({char: state for char, state in edges.items() if state is not None}, is_begun and allowed[0] > 0)

    def integer(value: int, left: int) -> int:
        """The state after the digits of `value`, where as many as `left` may follow."""
        point = None if is_integer else fraction(rows[value].tobytes(), False)
        edges = {} if point is None else {".": point}
        for digit in range(10 if left and value else 0):
            edges[str(digit)] = integer(10 * value + digit, left - 1)
        return shared(edges, bool(rows[value, 0]))

    return shared({str(digit): integer(digit, num_digits - 1) for digit in range(10)}, False)


def _exact_multiples(nfa: CharNFA, multiple: Fraction, decimals: int, is_integer: bool) -> int:
    """The state before integers, and fractions that floating point holds exactly."""
    size = int(multiple * 10**decimals)
    whole = [nfa.state() for _ in range(size)]
    # The integer part, in units of the last decimal.
    for rest, state in enumerate(whole):
        for digit in range(10):
            following = whole[(rest * 10 + digit * 10**decimals) % size]
            nfa.edges[state].append((((48 + digit, 48 + digit),), following))
        if rest == 0:
            nfa.free[state].append(nfa.end)
    if not is_integer:  # 1000.0
        tail = _char(nfa, ".", nfa.repeat(lambda target: _char(nfa, "0", target), 1, 2, nfa.end))
        nfa.free[whole[0]].append(tail)
    if not is_integer and decimals:
        for count in range(1, min(decimals, 4) + 1):
            for numerator in range(1, 2**count):
                fraction = Fraction(numerator, 2**count) * 10**decimals
                text = f"{numerator / 2**count}"[2:]
                if fraction.denominator == 1 and len(text) <= decimals:
                    target = nfa.end
                    for char in reversed(text):
                        target = _char(nfa, char, target)
                    for rest, state in enumerate(whole):
                        if (rest + int(fraction)) % size == 0:
                            nfa.free[state].append(_char(nfa, ".", target))
    return whole[0]
