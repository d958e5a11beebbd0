"""The stubs in the package are those that the protos give."""

import filecmp
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # the first time it installs the proto tools; `make stubs-fresh` runs it
@pytest.mark.timeout(600)
def test_stubs_are_fresh(tmp_path: Path) -> None:
    done = subprocess.run([ROOT / "protos/generate.sh", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    inference = "trimtab_services/reward/fronts/inference"
    scaler = "trimtab_services/trainer/externalscaler"
    for made, kept in (
        (tmp_path / "trimtab/v1", ROOT / "clients/python/trimtab/v1"),
        (tmp_path / inference, ROOT / "services" / inference),
        (tmp_path / scaler, ROOT / "services" / scaler),
    ):
        names = {path.name for path in made.iterdir()}
        assert names and names == {path.name for path in kept.glob("*_pb2*.py*")}
        _, different, failed = filecmp.cmpfiles(made, kept, names, shallow=False)
        assert not different and not failed, f"stale: {different or failed}; `make protos` makes them anew"
