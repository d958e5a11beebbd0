"""Model folders out of a bucket: whole or not at all, and a model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.errors import ConfigError
from trimtab_models.buckets import download_folder
from trimtab_models.loading import load_policy
from trimtab_trainer.miniature.tokenizer import save_base

from .s3 import S3


@pytest.fixture
def url(s3: S3, tmp_path: Path) -> str:
    """Of a model in a bucket, beside which lies what nobody should read."""
    save_base(tmp_path / "base", seed=1, width=32)
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"pickled")
    url = s3.store()
    s3.outside.put(f"{tmp_path}/base/", url, recursive=True)
    return url


def test_the_command_brings_a_model_that_loads(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trimtab", "weights", "download", url, str(tmp_path / "model")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"{tmp_path}/model: 0.")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()
    assert not (tmp_path / "model" / "pytorch_model.bin").exists()
    load_policy(tmp_path / "model")
    assert download_folder(url, tmp_path / "model") > 0  # again, over the one that is there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda url: url + "/nothing", "needs config.json and .safetensors files to be a model; there is no file"),
        (lambda url: url.rpartition("/")[0], "there is no file"),
        (lambda url: "s3://no-such-bucket/model", "there is no file"),
        (lambda url: "nowhere://bucket/model", "Protocol not known: nowhere"),
        (lambda url: "/models/base", "is no URL of an object store"),
    ],
)
def test_what_is_no_model_is_refused_and_leaves_nothing(url: str, tmp_path: Path, change: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        download_folder(change(url), tmp_path / "model")  # type: ignore[operator]
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def test_a_store_that_fails_leaves_the_old_model(s3: S3, url: str, tmp_path: Path) -> None:
    download_folder(url, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    s3.fail("GET", "model.safetensors")
    with pytest.raises(ConfigError, match=f"url: {url}: "):
        download_folder(url, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"base", "model"}
