"""The configuration of engine `tgi` fails first, and says key, value and what is allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import ConfigError
from trimtab_services.generation.config import GenerationConfig
from trimtab_services.runtime.config import load_config

URL = "http://127.0.0.1:8080"


def load(folder: Path, *, url: str = URL, tgi: dict[str, Any] | None = None, **settings: Any) -> GenerationConfig:
    remote = {"url": url, "tokenizer_folder": folder, **(tgi or {})}
    return load_config(GenerationConfig, "generation", None, {"engine": "tgi", "tgi": remote, **settings}, {})


def test_a_remote_server_is_all_that_it_takes(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.remote.url == URL and config.remote.timeout_s == 600
    assert load(tmp_path, dtype="float32", deterministic=False).engine == "tgi"  # what is so anyway may be said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_folder": "/m"}, "model_folder: /m is not allowed with engine 'tgi': the remote server has the model"),
        ({"weights": {"address": "a:1", "channel": "c"}}, "TGI cannot change its weights, so no channel"),
        ({"cache_directory": "/c"}, "cache_directory: /c is not allowed"),
        ({"dtype": "bfloat16"}, "dtype: bfloat16 is not allowed with engine 'tgi'"),
        ({"device": "cuda:0"}, "device: cuda:0 is not allowed"),
        ({"deterministic": True}, "deterministic: True is not allowed with engine 'tgi'"),
        ({"kv_on_swap": "keep"}, "kv_on_swap: keep is not allowed with engine 'tgi'"),
        ({"prefill_chunk_tokens": 8}, "prefill_chunk_tokens: 8 is not allowed"),
        ({"slots": 101}, "slots: 101 is too many for engine 'tgi'; allowed: 1..100"),
        ({"url": "tgi:80"}, "tgi.url"),
        ({"url": "http://"}, "tgi.url"),
        ({"url": "http://tgi/?a=b"}, "tgi.url"),
        ({"url": "http://user:secret@tgi"}, "tgi.url"),
        ({"url": "http://tgi:99999"}, "tgi.url"),
        ({"url": "http://:80"}, "tgi.url"),
        ({"tgi": {"tokenizer_folder": "/nowhere"}}, "key 'tgi.tokenizer_folder' has value '/nowhere'"),
        ({"tgi": {"token_file": "/nowhere"}}, "key 'tgi.token_file' has value '/nowhere'"),
        ({"tgi": {"timeout_s": 0}}, "tgi.timeout_s"),
        ({"tgi": {"other": 1}}, "unknown key 'tgi.other'; allowed: timeout_s, token_file, tokenizer_folder, url"),
    ],
)
def test_what_means_nothing_for_a_remote_server_is_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as found:
        load(tmp_path, **settings)
    assert words in found.value.message


def test_engine_and_section_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tgi\.url: is missing"):
        load_config(GenerationConfig, "generation", None, {"engine": "tgi"}, {})
    with pytest.raises(ConfigError, match="tgi: means nothing for engine 'transformers'"):
        load(tmp_path, engine="transformers", model_folder=tmp_path)
    with pytest.raises(ConfigError, match="exactly one of `model_folder` and `weights`"):
        load_config(GenerationConfig, "generation", None, {}, {})
    with pytest.raises(ConfigError, match="not set with engine 'transformers'"):
        _ = GenerationConfig(model_folder=tmp_path).remote


def test_no_token_crosses_the_network_in_plaintext(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret")
    with pytest.raises(ConfigError, match=r"tgi\.token_file: its token would cross the network"):
        load(tmp_path, url="http://tgi:80", tgi={"token_file": file})
    for url, settings in ((URL, {}), ("https://tgi", {}), ("http://tgi:80", {"insecure": True})):
        assert load(tmp_path, url=url, tgi={"token_file": file}, **settings).remote.token_file == file


def test_a_wrong_configuration_ends_the_process_before_anything_heavy_is_imported() -> None:
    script = (
        "import sys\n"
        "from trimtab_services.generation.main import serve\n"
        "code = serve(None, {'engine': 'tgi', 'tgi.url': 'http://127.0.0.1:1'})\n"
        "heavy = sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))\n"
        "print(code, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "2 []" and "key 'tgi.tokenizer_folder' is missing" in done.stderr
