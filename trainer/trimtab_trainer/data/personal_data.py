"""Personal data by stated patterns, with their checksums: what is found, shown without itself, masked.

| kind | pattern | checked by |
| --- | --- | --- |
| email | local part, @, at least two labels of a domain | - |
| iban | country, two digits, 11 to 30 letters and digits, also in groups | mod 97, the country's form (python-stdnum) |
| card | 13 to 19 digits from 2, 3, 4, 5 or 6 on; also as 4-4-4-4, 4-6-4 and 4-6-5 | Luhn (python-stdnum) |
| ip | IPv4 and IPv6 | the standard library; only addresses that are routed worldwide |
| phone | with + and country code, or as written in one of the regions | the country's number plan (phonenumbers) |

Names, postal addresses, dates of birth and numbers of passports, social security and the like are not detected; nor is
anything in other fields than a row's texts, such as the user or the labeler. A phone number in groups is missed where
another number follows it with no more than a space between.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import phonenumbers
from stdnum import iban, luhn

from trimtab.errors import ConfigError

__all__ = ["DETECTED", "NOT_DETECTED", "Finding", "PersonalData", "map_texts"]

DETECTED = ("email", "iban", "card", "ip", "phone")
NOT_DETECTED = (
    "names",
    "postal addresses",
    "dates of birth",
    "numbers of passports, identity cards and social security",
    "anything in fields other than the texts of a row, such as user, labeler and id",
)

TEXT_FIELDS = frozenset(
    ("prompt", "messages", "context", "completion", "completions", "answers", "chosen", "rejected", "text")
)
"""Where a row's texts are; everything below them is looked at, but the `role` of a turn."""

# Bounded and anchored by what may not stand before them: no text makes them slower than its length.
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])(?=([A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}))")
_CARD = re.compile(
    r"(?<![0-9])(?:[2-6][0-9]{12,18}|[2-6][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}"
    r"|3[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5})(?![0-9])"
)
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_DIGITS = re.compile(r"[0-9](?:[\s().+/-]{0,3}[0-9]){6}")  # every number plan has at least seven
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_SHORTEST_IBAN = 15
_CONTEXT = 24


@dataclass(frozen=True)
class Finding:
    """Where in a text something was found: characters `start` to `end`, the last one not included."""

    kind: str
    start: int
    end: int


class PersonalData:
    """Finds and masks.

    Args:
        regions: countries (ISO 3166-1, such as US) whose phone numbers are found also without their country code.

    Raises:
        ConfigError: no such region.
    """

    def __init__(self, regions: Sequence[str] = ()) -> None:
        unknown = sorted(set(regions) - phonenumbers.SUPPORTED_REGIONS)
        if unknown:
            limit = "two letters of a country, such as US"
            raise ConfigError(
                f"phone_region is {unknown[0]!r}; allowed: {limit}", field="phone_region", value=unknown[0], limit=limit
            )
        self._regions = tuple(regions) or (None,)

    def find(self, text: str) -> list[Finding]:
        """What is in a text, in its order; of two that overlap the one whose kind stands first in the table above."""
        taken = _without_overlaps(text, _checked_patterns(text))
        if _DIGITS.search(text):
            # Hidden, or the digits of a card would be read as the last ones of the phone number before it.
            hidden = _replace(text, taken, lambda finding: "|" * (finding.end - finding.start))
            taken = _without_overlaps(text, [*taken, *self._phones(hidden)])
        return taken

    def _phones(self, text: str) -> Iterator[Finding]:
        for region in self._regions:
            matcher = phonenumbers.PhoneNumberMatcher(
                text, region, leniency=phonenumbers.Leniency.STRICT_GROUPING, max_tries=len(text)
            )
            for match in matcher:
                yield Finding("phone", match.start, match.end)


def mask(text: str, findings: Sequence[Finding]) -> str:
    """The text with [EMAIL], [PHONE] and so on in the place of what was found."""
    return _replace(text, findings, lambda finding: f"[{finding.kind.upper()}]")


def excerpt(text: str, findings: Sequence[Finding], shown: Finding) -> str:
    """A finding with a few characters around it, for a person to judge.

    Of every finding only the form is there, x for a letter and 0 for a digit: `write to xxx@xxxxx.xxx today`.
    """
    formless = _replace(text, findings, lambda finding: _form(text[finding.start : finding.end]))  # of the same length
    start, end = max(0, shown.start - _CONTEXT), shown.end + _CONTEXT
    return f"{'…' if start else ''}{formless[start:end]}{'…' if end < len(text) else ''}"


def map_texts(row: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """A row whose texts went through `change(field, text)`; `field` is a path such as `messages[0].content`."""

    def walk(path: str, value: Any) -> Any:
        if isinstance(value, str):
            return change(path, value)
        if isinstance(value, Mapping):
            return {key: one if key == "role" else walk(f"{path}.{key}", one) for key, one in value.items()}
        if isinstance(value, list):
            return [walk(f"{path}[{place}]", one) for place, one in enumerate(value)]
        return value

    return {key: walk(key, value) if key in TEXT_FIELDS else value for key, value in row.items()}


def _checked_patterns(text: str) -> Iterator[Finding]:
    """Everything but phone numbers, the kinds in their order."""
    if "@" in text:
        yield from (Finding("email", *match.span()) for match in _EMAIL.finditer(text))
    yield from _ibans(text)
    for match in _CARD.finditer(text):
        if luhn.is_valid(re.sub("[ -]", "", match[0])):
            yield Finding("card", *match.span())
    yield from (Finding("ip", *match.span()) for match in _IPV4.finditer(text) if _is_global(match[0]))
    if "::" in text or text.count(":") >= 7:
        yield from (Finding("ip", *match.span()) for match in _IPV6.finditer(text) if _is_global(match[0]))


def _without_overlaps(text: str, findings: Iterable[Finding]) -> list[Finding]:
    """Those that overlap none before them, in the order of the text."""
    covered = bytearray(len(text))
    taken = []
    for finding in findings:
        if not any(covered[finding.start : finding.end]):
            covered[finding.start : finding.end] = b"\1" * (finding.end - finding.start)
            taken.append(finding)
    return sorted(taken, key=lambda finding: finding.start)


def _ibans(text: str) -> Iterator[Finding]:
    """The longest valid beginning of each candidate: words in capitals may follow a number in groups."""
    for match in _IBAN.finditer(text):
        for length in range(len(match[1]), _SHORTEST_IBAN - 1, -1):
            end = match.start() + length
            whole = text[end - 1].isalnum() and not text[end : end + 1].isalnum()
            if whole and iban.is_valid(match[1][:length].replace("-", " ")):
                yield Finding("iban", match.start(), end)
                break


def _is_global(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address in _GLOBAL_UNICAST and address.is_global if address.version == 6 else address.is_global


def _form(secret: str) -> str:
    return "".join("0" if mark.isdigit() else "x" if mark.isalpha() else mark for mark in secret)


def _replace(text: str, findings: Sequence[Finding], put: Callable[[Finding], str]) -> str:
    parts, place = [], 0
    for finding in findings:
        parts += [text[place : finding.start], put(finding)]
        place = finding.end
    return "".join([*parts, text[place:]])
