"""How long a run may be silent, by where its work is and whether it goes on after a disruption."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from trimtab_services.trainer.launchers import Place
from trimtab_services.trainer.launchers.local import LocalWork
from trimtab_services.trainer.silence import Silence

START = "it did not report within 10 s (start_timeout_s)"
AGAIN = "it did not begin again within 100 s (launcher.reschedule_timeout_s) after it was disrupted"


@dataclass
class Watched:
    """A work that is moved from place to place, at the times that the test says."""

    goes_on: bool
    now: float = 0.0

    def __post_init__(self) -> None:
        work = LocalWork("run", Path("run"), pid=0, goes_on=self.goes_on, place=Place.SOUGHT)
        self._silence = Silence(work, start_timeout_s=10.0, reschedule_timeout_s=100.0, clock=lambda: self.now)

    def at(self, now: float, place: Place) -> str:
        self.now = now
        self._silence.work = replace(self._silence.work, place=place)
        return self._silence.is_too_long()


def test_a_first_start_without_a_place_ends_soon() -> None:
    run = Watched(goes_on=False)
    assert [run.at(now, Place.SOUGHT) for now in (0, 9, 10, 11)] == ["", "", "", START]


def test_what_a_first_start_does_in_its_place_counts_from_there_on() -> None:
    run = Watched(goes_on=False)
    assert [run.at(now, Place.SOUGHT) for now in (0, 9)] == ["", ""]
    assert [run.at(now, Place.PREPARING) for now in (9.5, 19)] == ["", ""]
    assert run.at(20, Place.HELD) == START


def test_after_a_disruption_a_place_may_take_long() -> None:
    run = Watched(goes_on=True)
    assert [run.at(now, Place.SOUGHT) for now in (0, 40)] == ["", ""]
    assert [run.at(now, Place.PREPARING) for now in (50, 99)] == ["", ""]  # a lost node holds the volume
    assert [run.at(now, Place.HELD) for now in (99.5, 109, 110)] == ["", "", START]


@pytest.mark.parametrize("place", [Place.SOUGHT, Place.PREPARING])
def test_after_a_disruption_a_place_may_not_take_for_ever(place: Place) -> None:
    run = Watched(goes_on=True)
    assert [run.at(now, place) for now in (0, 100, 101)] == ["", "", AGAIN]


@pytest.mark.parametrize("goes_on", [False, True])
def test_time_in_a_queue_does_not_count(goes_on: bool) -> None:
    run = Watched(goes_on=goes_on)
    assert [run.at(now, Place.QUEUED) for now in (0, 10_000)] == ["", ""]
    assert [run.at(now, Place.HELD) for now in (10_001, 10_011)] == ["", ""]
    assert run.at(10_012, Place.QUEUED) == ""  # suspended again
    assert [run.at(now, Place.HELD) for now in (20_000, 20_011)] == ["", START]


def test_a_work_that_goes_back_and_forth_gets_no_new_time() -> None:
    run = Watched(goes_on=True)
    assert [run.at(now, place) for now, place in ((0, Place.HELD), (5, Place.PREPARING), (9, Place.HELD))] == [""] * 3
    assert run.at(11, Place.HELD) == START
