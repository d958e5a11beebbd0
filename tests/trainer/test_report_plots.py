"""Plots of reports: what a reader sees of an interval."""

from __future__ import annotations

import re

from trimtab_trainer.report_plots import Line, calibration_plot, draw


def paths(svg: str, group: str) -> list[str]:
    """The shapes of every group of that kind; nothing is drawn by an empty one."""
    found = re.findall(rf'<g id="{group}_\d+">(.*?)</g>', svg, re.DOTALL)
    return [shape for body in found for shape in re.findall(r'<path d="M[^>]*>', body)]


def test_intervals_of_dots_are_bars_and_of_a_line_a_band() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]
    some = [(0.5, 1.5), None, (2.5, 3.5)]
    plain, bars, band = (
        draw("t", "x", [Line("a", points, dots=dots, intervals=intervals)])
        for dots, intervals in ((True, ()), (True, some), (False, [(low, low + 1) for low, _ in points]))
    )
    assert plain is not None and bars is not None and band is not None
    assert not paths(plain.svg, "LineCollection") and len(paths(bars.svg, "LineCollection")) == 2
    assert "PolyCollection" in band.svg and "PolyCollection" not in plain.svg
    both = draw("t", "x", [Line("a", points[:1], dots=True, intervals=some[:1], x_intervals=[(-1.0, 1.0)])])
    assert both is not None and len(paths(both.svg, "LineCollection")) == 2


def test_calibration_has_a_band_where_bins_have_intervals() -> None:
    bins = [{"predicted": p, "observed": p, "pairs": 9} for p in (0.6, 0.7, 0.8)]
    without = calibration_plot(bins)
    found = calibration_plot([{**one, "low": one["observed"] - 0.1, "high": one["observed"] + 0.1} for one in bins])
    assert without is not None and found is not None
    assert "PolyCollection" not in without.svg and "PolyCollection" in found.svg
