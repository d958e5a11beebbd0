"""lm-eval (EleutherAI's evaluation harness) as a process of its own against a generation service's HTTP front.

Nothing is fetched from a hub: data come from local files, the tokenizer from a local folder. The tasks are templates in
`lm_eval_tasks`, which are copied to a working folder together with the name of their file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from trimtab.channel import TLSConfig
from trimtab.errors import ConfigError, DeadlineExceeded, InternalError, Unavailable
from trimtab_trainer.eval.contestants import Connection, Contestant, served

__all__ = ["Front", "LmEval", "Work", "find_lm_eval", "front_of", "run_lm_eval"]

VERSION = "0.4.13"
"""The one whose interfaces and sample files are known."""

_TEMPLATES = Path(__file__).parent / "lm_eval_tasks"
_LAST_LINES = 12
_PROBE = (
    "import json, sys, lm_eval, importlib.metadata as m; print(json.dumps([lm_eval.__path__[0], m.version('lm_eval')]))"
)


@dataclass(frozen=True)
class LmEval:
    """Where lm-eval is: the interpreter that has it, its package's folder, its version."""

    python: str
    folder: Path
    version: str


@dataclass(frozen=True)
class Front:
    """A generation service's HTTP front.

    Attributes:
        url: up to the port.
        model: name that requests carry.
        max_tokens: of prompt and completion together.
        described: which model it is, for the settings of findings.
    """

    url: str
    model: str
    max_tokens: int
    described: Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """What lm-eval is to do.

    Attributes:
        tasks: files by task.
        limit: documents of each task, from the start; None for all.
        max_answer_tokens: most tokens of a generated answer.
        concurrency: requests at a time.
        request_s: seconds that a request gets.
        time_limit_s: seconds that the process gets.
    """

    tasks: Mapping[str, Path]
    limit: int | None
    max_answer_tokens: int
    concurrency: int
    request_s: float
    time_limit_s: float


def find_lm_eval(python: str | None) -> LmEval:
    """Looks for lm-eval.

    Args:
        python: an interpreter of another environment that has it; None is this one.

    Raises:
        ConfigError: it is not there, or it is another version; the message says what to install.
    """
    python = python or sys.executable
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=120, check=False)
    except OSError as error:
        raise ConfigError(f"lm-eval-python: {python}: {error.strerror}", field="lm-eval-python", value=python) from None
    try:
        folder, version = json.loads(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else ("", "none")
    except (ValueError, IndexError):
        folder, version = "", "none"
    if version != VERSION:
        raise ConfigError(
            f"{python} has lm-eval {version}; there, or into an environment of its own that --lm-eval-python names: "
            f"pip install 'lm-eval[api]=={VERSION}' 'transformers>=5.16,<6'",
            field="lm-eval-python",
            value=version,
            limit=VERSION,
        )
    return LmEval(python, Path(folder), version)


@contextmanager
def front_of(contestant: Contestant, connection: Connection) -> Iterator[Front]:
    """The HTTP front of a contestant: of a service started on its folder, of a service at host:port, or at a URL.

    Raises:
        ConfigError: it wants client certificates, which lm-eval has not.
        Unavailable: it does not serve, or has no HTTP front.
    """
    if connection.tls is not None and connection.tls.key_file is not None:
        raise ConfigError("key-file: lm-eval cannot show a client certificate", field="key-file")
    if contestant.place.startswith(("http://", "https://")):
        yield _front_at(contestant, connection)
        return
    with served("generation", contestant, connection) as model:
        if not model.info.http_url:
            raise Unavailable(f"{contestant.name}: {contestant.place} has no HTTP front")
        of_model = model.info.models[0]
        yield Front(model.info.http_url, of_model.served.name, of_model.max_sequence_tokens, model.described())


def run_lm_eval(
    lm_eval: LmEval, front: Front, tokenizer: Path, work: Work, connection: Connection, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Runs the tasks; returns lm-eval's rows of every document by task.

    Args:
        lm_eval: where it is.
        front: of the model.
        tokenizer: folder of the model's tokenizer.
        work: what is to be done.
        connection: its token and authorities.
        folder: an empty one, for everything that is written.

    Raises:
        ConfigError: an answer would leave no room for a prompt.
        DeadlineExceeded: the time limit has passed.
        InternalError: lm-eval failed; the message has its last words.
    """
    if work.max_answer_tokens >= front.max_tokens - 1:
        raise ConfigError(
            f"max-answer-tokens: {work.max_answer_tokens} leaves a prompt no room; the model takes {front.max_tokens}",
            field="max-answer-tokens",
            value=work.max_answer_tokens,
            limit=front.max_tokens - 2,
        )
    tasks, out, log = folder / "tasks", folder / "out", folder / "log"
    _write_tasks(work.tasks, lm_eval, tasks)
    command = [
        *(lm_eval.python, "-m", "lm_eval", "--model", "local-completions"),
        *("--model_args", json.dumps(_model_args(front, tokenizer, work, connection))),
        *("--tasks", ",".join(f"trimtab_{name}" for name in work.tasks), "--include_path", str(tasks)),
        *("--output_path", str(out), "--log_samples", "--batch_size", "1"),
        *(("--limit", str(work.limit)) if work.limit is not None else ()),
    ]
    environment = {**os.environ, **_offline(folder), **_credentials(connection)}
    with log.open("wb") as written:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                timeout=work.time_limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DeadlineExceeded(
                f"lm-eval was ended after --time-limit {work.time_limit_s:g} s; its last words:\n{_last_words(log)}"
            ) from None
    if done.returncode != 0:
        raise InternalError(f"lm-eval ended with exit code {done.returncode}; its last words:\n{_last_words(log)}")
    return {name: _samples(out, name, log) for name in work.tasks}


def _write_tasks(tasks: Mapping[str, Path], lm_eval: LmEval, folder: Path) -> None:
    shutil.copytree(_TEMPLATES, folder, ignore=shutil.ignore_patterns("__pycache__", "*.yaml"))
    for name, file in tasks.items():
        template = (_TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8").replace("LM_EVAL", str(lm_eval.folder))
        data = json.dumps({"data_files": {"test": str(file.resolve())}})  # JSON is YAML
        (folder / f"{name}.yaml").write_text(f"{template}dataset_kwargs: {data}\n", encoding="utf-8")


def _model_args(front: Front, tokenizer: Path, work: Work, connection: Connection) -> dict[str, Any]:
    args: dict[str, Any] = {
        "model": front.model,
        "base_url": f"{front.url}/v1/completions",
        "tokenizer": str(tokenizer.resolve()),
        "tokenizer_backend": "huggingface",
        "max_length": front.max_tokens,
        "max_gen_toks": work.max_answer_tokens,
        "num_concurrent": work.concurrency,
        "max_retries": 3,
        "timeout": int(work.request_s),
    }
    if connection.tls is not None and connection.tls.ca_file is not None:
        args["ca_cert_path"] = str(connection.tls.ca_file)
    return args


def _offline(folder: Path) -> dict[str, str]:
    """No hub, no cache of another run, no code of this process."""
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "PYTHONPATH": "",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _credentials(connection: Connection) -> dict[str, str]:
    """The token, which lm-eval sends as OpenAI's key, and authorities for its HTTP clients."""
    found = {"OPENAI_API_KEY": connection.token.value() if connection.token is not None else "none"}
    if connection.tls is not None and connection.tls.ca_file is not None:
        found |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(connection.tls.ca_file))
    return found


def _samples(out: Path, name: str, log: Path) -> list[dict[str, Any]]:
    files = list(out.rglob(f"samples_trimtab_{name}_*.jsonl"))
    if len(files) != 1:
        raise InternalError(f"lm-eval wrote {len(files)} files for {name}; its last words:\n{_last_words(log)}")
    with files[0].open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(lines[-_LAST_LINES:]) or "it said nothing"


def _front_at(contestant: Contestant, connection: Connection) -> Front:
    url = contestant.place.rstrip("/").removesuffix("/v1")
    try:
        with httpx.Client(
            base_url=url, headers=_header(connection), verify=_verify(connection.tls), timeout=connection.timeout_s
        ) as client:
            listed = client.get("/v1/models").raise_for_status()
            info = client.get("/info").raise_for_status()
            model, most = listed.json()["data"][0]["id"], int(info.json()["max_total_tokens"])
    except (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
        raise Unavailable(f"{contestant.name}: {url}: no generation service answers there: {error}") from None
    described = {"place": url, "model": model, "weights_digest": info.json().get("model_sha")}
    return Front(url, model, most, described)


def _header(connection: Connection) -> dict[str, str]:
    return {"Authorization": f"Bearer {connection.token.value()}"} if connection.token is not None else {}


def _verify(tls: TLSConfig | None) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(tls.ca_file)) if tls is not None and tls.ca_file is not None else True
