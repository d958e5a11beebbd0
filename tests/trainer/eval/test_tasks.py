"""The alignment tax: figures of documents, the process of lm-eval, and its own numbers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from real_data import real
from running import running
from tiny_models import make_policy, make_tokenizer
from trimtab.errors import ConfigError, DataError, DeadlineExceeded, InternalError, Unavailable
from trimtab_models.loading import load_policy, save_model
from trimtab_models.tokenizer import load_tokenizer
from trimtab_trainer.eval.contestants import Connection, Contestant
from trimtab_trainer.eval.tasks import lm_eval as driver
from trimtab_trainer.eval.tasks.command import command
from trimtab_trainer.eval.tasks.figures import check_rows, document_figures, document_texts, parse_tasks, task_figures
from trimtab_trainer.eval.tasks.lm_eval import Front, LmEval, Work, find_lm_eval, front_of, run_lm_eval

ROOT = Path(__file__).parents[3]


def lambada_rows(seed: int, count: int = 40) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {"doc_id": doc, "acc": int(rng.random() < 0.5), "perplexity": float(-rng.exponential(2.0))}
        for doc in range(count)
    ]


def figures_of(task: str, rows: list[dict[str, Any]], baseline: Any = None, samples: int = 200) -> dict[str, Any]:
    texts = document_texts(task, rows)
    return task_figures(task, document_figures(task, rows), baseline, texts, samples=samples, seed=0)


class TestFigures:
    def test_values_are_those_of_lm_eval(self) -> None:
        rows = lambada_rows(0)
        figures = figures_of("lambada", rows)
        assert figures["acc"]["value"] == pytest.approx(sum(row["acc"] for row in rows) / 40)
        mean = sum(row["perplexity"] for row in rows) / 40
        assert figures["perplexity"]["value"] == pytest.approx(np.exp(-mean))
        assert figures["perplexity"]["low"] < figures["perplexity"]["value"] < figures["perplexity"]["high"]
        assert figures["acc"]["documents"] == 40

    def test_the_interval_of_a_difference_is_paired(self) -> None:
        """A model that is better by the same amount on every document: the difference is certain, its value is not."""
        rows = lambada_rows(1)
        better = [{**row, "acc": row["acc"] + 0.25} for row in rows]
        base = document_figures("lambada", rows)
        figures = figures_of("lambada", better, base)
        assert [figures["acc"]["delta"][key] for key in ("value", "low", "high")] == pytest.approx([0.25] * 3)
        assert figures["acc"]["high"] - figures["acc"]["low"] > 0.1

    def test_the_interval_is_that_of_scipy(self) -> None:
        from scipy.stats import bootstrap

        rows = lambada_rows(2, count=300)
        figures = figures_of("lambada", rows, samples=4000)
        values = np.array([row["perplexity"] for row in rows])
        found = bootstrap(
            (values,), lambda x, axis: np.exp(-x.mean(axis)), n_resamples=4000, method="percentile", rng=1
        ).confidence_interval
        assert figures["perplexity"]["low"] == pytest.approx(found.low, rel=0.02)
        assert figures["perplexity"]["high"] == pytest.approx(found.high, rel=0.02)

    def test_what_a_metric_says_nothing_of_counts_nowhere(self) -> None:
        names = ("f1", "exact", "HasAns_f1", "HasAns_exact", "NoAns_exact")
        rows = [
            dict.fromkeys(names, 1.0) | {"doc_id": 0, "NoAns_exact": None},
            dict.fromkeys(names, 0.0) | {"doc_id": 1, "HasAns_f1": None, "HasAns_exact": None},
        ]
        figures = figures_of("squad_v2", [row | {"doc": {"context": "a"}} for row in rows])
        assert figures["HasAns_f1"]["value"] == 1.0 and figures["HasAns_f1"]["documents"] == 1
        assert figures["NoAns_exact"]["value"] == 0.0 and figures["f1"]["value"] == 0.5

    def test_questions_on_one_text_are_one_draw(self) -> None:
        """Ten questions on each of 30 passages, all answered alike: no surer than 30 questions."""
        rng = np.random.default_rng(0)
        answers = [float(rng.random() < 0.5) for _ in range(30)]
        rows = [
            {"doc_id": 10 * number + more, "f1": f1, "em": f1, "doc": {"passage": f"text {number}"}}
            for number, f1 in enumerate(answers)
            for more in range(10)
        ]
        together = figures_of("drop", rows, samples=2000)["f1"]
        alone = figures_of("drop", rows[::10], samples=2000)["f1"]
        assert (together["documents"], together["texts"]) == (300, 30)
        assert (together["low"], together["high"]) == pytest.approx((alone["low"], alone["high"]))
        few = figures_of("drop", rows[:40])["f1"]
        assert (few["texts"], few["low"]) == (4, None)

    def test_few_documents_have_no_interval(self) -> None:
        rows = lambada_rows(0, count=4)
        figures = figures_of("lambada", rows, document_figures("lambada", rows))
        for figure in (figures["acc"], figures["perplexity"], figures["acc"]["delta"]):
            assert (figure["low"], figure["high"]) == (None, None)

    def test_other_documents_than_the_baseline(self) -> None:
        base = document_figures("lambada", lambada_rows(0, count=39))
        with pytest.raises(DataError, match="of other documents"):
            figures_of("lambada", lambada_rows(0), base)

    def test_a_document_without_its_metric(self) -> None:
        with pytest.raises(DataError, match="a document has no perplexity"):
            document_figures("lambada", [{"doc_id": 0, "acc": 1}])


class TestInputs:
    def test_tasks(self, tmp_path: Path) -> None:
        file = tmp_path / "rows.jsonl"
        file.write_text("{}\n")
        assert parse_tasks([f"drop={file}"]) == {"drop": file}
        for texts, message in (
            (["mmlu=x"], "NAME one of hellaswag, lambada, squad_v2, drop"),
            ([f"drop={file}", f"drop={file}"], "named twice"),
            (["drop=/no/such"], "/no/such: no such file"),
        ):
            with pytest.raises(ConfigError, match=message):
                parse_tasks(texts)

    def test_a_row_without_a_field(self, tmp_path: Path) -> None:
        file = tmp_path / "rows.jsonl"
        file.write_text('{"text": "a b"}\n{"context": "a"}\n')
        with pytest.raises(DataError, match=r"rows.jsonl:2: text is missing"):
            check_rows("lambada", file)


def test_the_folder_of_samples_is_made_after_every_check(llama_folder: Path, tmp_path: Path) -> None:
    file, samples = tmp_path / "rows.jsonl", tmp_path / "samples"
    file.write_text('{"text": "a b"}\n')
    arguments = [
        *("--model", f"base={llama_folder}", "--task", f"lambada={file}", "--lm-eval-python", "/bin/false"),
        *("--samples-dir", str(samples)),
    ]
    with pytest.raises(ConfigError, match="has lm-eval none"):
        CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert not samples.exists()
    samples.mkdir()
    with pytest.raises(ConfigError, match="samples-dir: .*samples is there already"):
        CliRunner().invoke(command, arguments, catch_exceptions=False)


def squad_module() -> Any:
    path = Path(driver.__file__).parent / "lm_eval_tasks" / "squad_v2.py"
    spec = importlib.util.spec_from_file_location("squad_v2_of_lm_eval", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestSquad:
    @pytest.mark.parametrize(
        ("golds", "answer", "exact", "f1"),
        [
            (["the Eiffel Tower"], " Eiffel tower.", 1.0, 1.0),
            (["big red dog", "dog"], "red dog", 0.0, 0.8),
            (["4 July 1776"], "July", 0.0, 0.5),
            (["dog"], "", 0.0, 0.0),
            ([], "unanswerable", 0.0, 0.0),
            ([], " The.", 1.0, 1.0),
        ],
    )
    def test_the_official_formulas(self, golds: list[str], answer: str, exact: float, f1: float) -> None:
        found = squad_module().process_results({"answers": {"text": golds}}, [answer])
        assert (found["exact"], found["f1"]) == (exact, pytest.approx(f1))
        assert (found["HasAns_exact"] is None) == (not golds) and (found["NoAns_exact"] is None) == bool(golds)


def fake_python(folder: Path, script: str) -> str:
    """An interpreter of another environment that does what a script says."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


class TestProcess:
    def test_lm_eval_that_is_missing(self) -> None:
        with pytest.raises(ConfigError, match=r"pip install 'lm-eval\[api\]=="):
            find_lm_eval(sys.executable if not importlib.util.find_spec("lm_eval") else "/bin/false")
        with pytest.raises(ConfigError, match="lm-eval-python: /no/such: No such file"):
            find_lm_eval("/no/such")

    def test_another_version(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"has lm-eval 0\.3\.0; .*lm-eval\[api\]==0\.4\.13"):
            find_lm_eval(fake_python(tmp_path, """echo '["/x", "0.3.0"]'"""))

    def _run(self, tmp_path: Path, script: str, **changes: Any) -> None:
        work = Work({"lambada": tmp_path / "rows"}, None, 8, 1, 10.0, 20.0)
        front = Front("http://127.0.0.1:1", "policy", 256, {})
        folder = tmp_path / "work"
        folder.mkdir()
        lm_eval = LmEval(fake_python(tmp_path, script), tmp_path, "0.4.13")
        work = Work(**{**vars(work), **changes})
        run_lm_eval(lm_eval, front, tmp_path, work, Connection(10.0), folder)

    def test_one_that_fails_tells_its_last_words(self, tmp_path: Path) -> None:
        with pytest.raises(InternalError, match="exit code 3; its last words:\nline 9\n(.*\n)*line 20") as error:
            self._run(tmp_path, "for i in $(seq 20); do echo line $i; done; exit 3")
        assert "line 8\n" not in str(error.value)

    def test_one_that_takes_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(DeadlineExceeded, match=r"--time-limit 0\.5 s; its last words:\nworking"):
            self._run(tmp_path, "echo working; exec sleep 60", time_limit_s=0.5)

    def test_one_that_writes_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(InternalError, match="wrote 0 files for lambada; its last words:\nbye"):
            self._run(tmp_path, "echo bye")

    def test_it_has_no_hub(self, tmp_path: Path) -> None:
        with pytest.raises(InternalError, match="hub 1 datasets 1"):
            self._run(tmp_path, "echo hub $HF_HUB_OFFLINE datasets $HF_DATASETS_OFFLINE; exit 1")

    def test_answers_that_leave_no_room(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="255 leaves a prompt no room; the model takes 256"):
            self._run(tmp_path, "exit 1", max_answer_tokens=255)


def test_a_front_by_its_service_and_by_its_url(llama_folder: Path) -> None:
    with running("generation", model_folder=llama_folder) as server:
        with front_of(Contestant("a", server.target), Connection(30.0)) as by_service:
            pass
        with front_of(Contestant("a", f"{by_service.url}/v1"), Connection(30.0)) as by_url:
            pass
    assert (by_service.model, by_service.max_tokens) == ("policy", 256)
    assert (by_url.url, by_url.model, by_url.max_tokens) == (by_service.url, "policy", 256)
    with pytest.raises(Unavailable, match="a: http://127.0.0.1:1: no generation service answers there"):
        with front_of(Contestant("a", "http://127.0.0.1:1"), Connection(5.0)):
            pass


DROP = {
    "query_id": "q",
    "passage": "The ship has 12 rudders.",
    "question": "How many rudders has the ship?",
    "answer": {"number": "12", "date": {"day": "", "month": "", "year": ""}, "spans": []},
    "validated_answers": {"number": ["12"], "date": [{"day": "", "month": "", "year": ""}], "spans": [[]]},
}


def lm_eval_python() -> Path:
    """The interpreter of an environment with lm-eval, the one of the generation service's tests."""
    packages = ["lm-eval[api]==0.4.13", "transformers>=5.16,<6"]
    folder = ROOT / ".venv-foreign-clients" / "lm-eval"
    done, python = folder / "installed.json", folder / "bin" / "python"
    if not done.exists() or json.loads(done.read_text()) != packages:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, timeout=1500)
        done.write_text(json.dumps(packages))
    return python


@pytest.mark.slow  # it installs packages
@pytest.mark.timeout(2400)
def test_lm_eval_itself(tmp_path: Path) -> None:
    """Its figures are those of the model itself, computed by transformers, and those that it tells."""
    tasks = [f"--task={name}={real(f'eval/{name}.jsonl')}" for name in ("hellaswag", "lambada", "squad_v2")]
    tokenizer = make_tokenizer(template=False)
    for name, seed in (("base", 0), ("tuned", 1)):
        model = make_policy("llama", len(tokenizer), seed=seed)
        model.config.max_position_embeddings = 4096
        save_model(model, tokenizer, tmp_path / name)
    (tmp_path / "drop.jsonl").write_text(json.dumps(DROP) + "\n")
    done = CliRunner().invoke(
        command,
        [
            *("--model", f"base={tmp_path / 'base'}", "--model", f"tuned={tmp_path / 'tuned'}"),
            *(*tasks, f"--task=drop={tmp_path / 'drop.jsonl'}", "--limit", "6", "--max-answer-tokens", "8"),
            *("--lm-eval-python", str(lm_eval_python()), "--samples-dir", str(tmp_path / "samples")),
            *("--out", str(tmp_path / "out")),
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "tasks.json").read_text())
    for model in ("base", "tuned"):
        (results,) = (tmp_path / "samples" / model).rglob("results_*.json")
        told = json.loads(results.read_text())["results"]
        for task, by_model in found["figures"]["tasks"].items():
            for metric, figure in by_model[model].items():
                assert figure["value"] == pytest.approx(told[f"trimtab_{task}"][f"{metric},none"])
        accuracy, perplexity = direct_lambada(tmp_path / model, 6)
        of_model = found["figures"]["tasks"]["lambada"][model]
        assert of_model["acc"]["value"] == accuracy
        assert np.log(of_model["perplexity"]["value"]) == pytest.approx(np.log(perplexity), abs=1e-2)
    assert found["figures"]["cut_documents"]["base"] == dict.fromkeys(("hellaswag", "lambada", "squad_v2", "drop"), 0)


def direct_lambada(folder: Path, count: int) -> tuple[float, float]:
    tokenizer, model = load_tokenizer(folder), load_policy(folder)
    hits, sums = [], []
    for line in real("eval/lambada.jsonl").read_text().splitlines()[:count]:
        text = json.loads(line)["text"]
        ids, start = tokenizer(text)["input_ids"], len(tokenizer(text.rpartition(" ")[0])["input_ids"])
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
        sums.append(sum(logprobs[i - 1, ids[i]].item() for i in range(start, len(ids))))
        hits.append(all(int(logprobs[i - 1].argmax()) == ids[i] for i in range(start, len(ids))))
    return float(np.mean(hits)), float(np.exp(-np.mean(sums)))
