"""What is found as personal data and what is not; every number here is made up or from documentation."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import ConfigError
from trimtab_trainer.data.personal_data import PersonalData, excerpt, map_texts, mask

US = PersonalData(["US"])


def masked(text: str, detector: PersonalData = US) -> str:
    return mask(text, detector.find(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+x@mail.example.org.", "write to [EMAIL]."),
        ("<a_b@example.co.uk>", "<[EMAIL]>"),
        ("müller@büro.example", "[EMAIL]"),
        ("call (415) 555-2671 now", "call [PHONE] now"),
        ("415-555-2671 or 415.555.2671", "[PHONE] or [PHONE]"),
        ("+44 20 7946 0958", "[PHONE]"),
        ("tel:+442079460958", "tel:[PHONE]"),
        ("card 4111 1111 1111 1111 12/27", "card [CARD] 12/27"),
        ("4111-1111-1111-1111 123", "[CARD] 123"),
        ("5555555555554444,", "[CARD],"),
        ("3782 822463 10005", "[CARD]"),
        ("3056-930902-5904", "[CARD]"),
        ("IBAN DE89 3704 0044 0532 0130 00 OK", "IBAN [IBAN] OK"),
        ("GB82WEST12345698765432 then GB82 WEST 1234 5698 7654 32.", "[IBAN] then [IBAN]."),
        ("from 8.8.8.8:53", "from [IP]:53"),
        ("http://[2001:4860:4860::8888]/", "http://[[IP]]/"),
        ("2a00:1450:4001:081b:0000:0000:0000:200e", "[IP]"),
        ("+1 415 555 2671 4111111111111111", "[PHONE] [CARD]"),
        ("a@b.org and 8.8.4.4, a@b.org", "[EMAIL] and [IP], [EMAIL]"),
    ],
)
def test_found(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a @ b, user@localhost, @handle, x@y",
        "4111 1111 1111 1112",  # no Luhn
        "1234567890123456789012345678901234567890",
        "DE88 3704 0044 0532 0130 00",  # no mod 97
        "XX89 3704 0044 0532 0130 00",  # no such country
        "127.0.0.1 10.1.2.3 192.168.0.1 256.1.1.1 1.2.3 1.2.3.4.5",
        "std::vector a::b ::1 fe80::1 12:30:45 1:2:3:4:5:6:7:8",
        "in 1984, 2 + 2 = 4, pages 100-200, 3.14159265358979",
        "2 4 6 8 10 12 14 16 18 20 22 24 26",
        "ISBN 978-3-16-148410-0, 2024-01-15 10:30:00, $1,234,567.89",
        "Nancy Brown, 12 Main Street, born 1 May 1970",  # names, addresses and dates are not detected
    ],
)
def test_not_found(text: str) -> None:
    assert masked(text) == text


def test_a_number_right_behind_a_phone_number_hides_it() -> None:
    """A limit of the phone library, which takes digits with single spaces for one number; documented."""
    assert masked("+1 415 555 2671 2024") == "+1 415 555 2671 2024"
    assert masked("+1 415 555 2671, 2024") == "[PHONE], 2024"


def test_national_numbers_need_their_region() -> None:
    assert masked("030 901820", PersonalData(["DE"])) == "[PHONE]"
    assert masked("030 901820") == "030 901820"
    assert masked("(415) 555-2671", PersonalData()) == "(415) 555-2671"
    with pytest.raises(ConfigError, match="phone_region is 'XY'"):
        PersonalData(["US", "XY"])


def test_an_excerpt_has_the_form_only() -> None:
    text = "x" * 40 + " jane.doe@example.org and 4111 1111 1111 1111 " + "y" * 40
    findings = US.find(text)
    assert [one.kind for one in findings] == ["email", "card"]
    assert excerpt(text, findings, findings[0]) == f"…{'x' * 23} xxxx.xxx@xxxxxxx.xxx and 0000 0000 0000 0000…"
    assert excerpt("8.8.8.8", US.find("8.8.8.8"), US.find("8.8.8.8")[0]) == "0.0.0.0"


SECRETS = ["jane@example.org", "+1 415 555 2671", "4111111111111111", "DE89370400440532013000", "8.8.8.8"]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([*SECRETS, " ", ", ", "word", "é", "\n", "(", "2024"]), max_size=12))
def test_no_secret_is_in_an_excerpt(parts: list[str]) -> None:
    text = ", ".join(parts)
    findings = US.find(text)
    assert all(one.end <= other.start for one, other in zip(findings, findings[1:], strict=False))
    for finding in findings:
        shown = excerpt(text, findings, finding)
        assert not any(secret in shown for secret in SECRETS)
    assert not any(secret in mask(text, findings) for secret in SECRETS)


def test_only_texts_are_looked_at() -> None:
    row = {
        "id": "4111111111111111",
        "user": "jane@example.org",
        "messages": [{"role": "user", "content": "A"}],
        "answers": ["B", {"answer": "C", "rank": 1}],
        "labels": [{"labeler": "D"}],
        "prompt": None,
    }
    seen: dict[str, str] = {}

    def change(field: str, text: str) -> str:
        seen[field] = text
        return text.lower()

    changed = map_texts(row, change)
    assert seen == {"messages[0].content": "A", "answers[0]": "B", "answers[1].answer": "C"}
    assert changed["messages"] == [{"role": "user", "content": "a"}] and changed["answers"][1] == {
        "answer": "c",
        "rank": 1,
    }
    assert {key: changed[key] for key in ("id", "user", "labels", "prompt")} == {
        key: row[key] for key in ("id", "user", "labels", "prompt")
    }


@pytest.mark.parametrize("unit", ["a", "a@", "1 ", "1.", "A1", ":", "ab:", "(", "+1 ", "b.", "AB12 ", "1", "@", "1-"])
def test_time_grows_with_the_length_only(unit: str) -> None:
    """Patterns that backtrack would take hours for a text of this length."""
    text = unit * (50_000 // len(unit))
    begin = time.monotonic()
    US.find(f"a@{text}")
    assert time.monotonic() - begin < 15
