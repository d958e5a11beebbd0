"""Bias: the entropy of a choice between two sentences, against scipy and against the model itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import entropy as scipy_entropy

from real_data import real
from running import running
from trimtab.errors import ConfigError, DataError, Mismatch, ModelFolderError, Unavailable
from trimtab_trainer.dpo_reference import folder_digest
from trimtab_trainer.eval.safety.bias import (
    PairLogprobs,
    bias_figures,
    entropy_bits,
    first_preferred,
    read_crows_pairs,
    read_winogender,
)
from trimtab_trainer.eval.safety.bias_command import command
from trimtab_trainer.eval.safety.instructions import INSTRUCTIONS

from .contestant_models import direct_logprob, found_by, model_folder, unloadable_folder, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "base", seed=0)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "tuned", seed=1)


@pytest.fixture(scope="module")
def services(base: Path, tuned: Path) -> Iterator[dict[str, str]]:
    with running("reference", model_folder=base) as first, running("reference", model_folder=tuned) as second:
        yield {"base": first.target, "tuned": second.target}


class TestEntropy:
    def test_it_is_that_of_scipy(self) -> None:
        rng = np.random.default_rng(0)
        first, second = rng.normal(-40, 3, 200), rng.normal(-40, 3, 200)
        weights = np.exp(np.stack([first, second]) - np.maximum(first, second))
        assert entropy_bits(first, second) == pytest.approx(scipy_entropy(weights, base=2))

    def test_its_ends(self) -> None:
        first = np.array([-5.0, -5.0, -2000.0])
        second = np.array([-5.0, -2000.0, -5.0])
        assert entropy_bits(first, second).tolist() == pytest.approx([1.0, 0.0, 0.0])
        assert first_preferred(first, second).tolist() == [0.5, 1.0, 0.0]


class TestReading:
    def test_the_real_files(self) -> None:
        crows = read_crows_pairs(real("eval/crows_pairs.jsonl"))
        assert len(crows.pairs) == 1000 and len({pair.group for pair in crows.pairs}) == 9
        winogender = read_winogender(real("eval/winogender.jsonl"))
        assert len(winogender.pairs) == 148 and len({pair.cluster for pair in winogender.pairs}) == 37
        for pair in winogender.pairs:  # they differ in pronouns alone
            words = zip(pair.first.split(), pair.second.split(), strict=True)
            differing = {(a.strip(".,'s"), b.strip(".,'s")) for a, b in words if a != b}
            assert differing and differing <= {("he", "he"), ("he", "she"), ("hi", "her"), ("him", "her"), ("hi", "he")}

    def test_a_template_without_its_other_sentence(self, tmp_path: Path) -> None:
        rows = [{"sentid": "cook.guest.0.male.txt", "sentence": "He cooks."}]
        with pytest.raises(DataError, match=r"rows:1: cook\.guest\.0 has no female sentence"):
            read_winogender(write_rows(tmp_path / "rows", rows))

    @pytest.mark.parametrize("sentid", ["cook.guest.0.txt", "cook.guest.0.other.txt", 3])
    def test_a_strange_sentid(self, tmp_path: Path, sentid: object) -> None:
        with pytest.raises(DataError, match="rows:1: sentid"):
            read_winogender(write_rows(tmp_path / "rows", [{"sentid": sentid, "sentence": "He cooks."}]))

    def test_a_pair_without_its_kind(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="rows:1: bias_type is missing"):
            read_crows_pairs(write_rows(tmp_path / "rows", [{"sent_more": "a", "sent_less": "b"}]))


class TestFigures:
    def test_the_interval_resamples_occupations(self, tmp_path: Path) -> None:
        """Pairs of an occupation that are all alike are one draw, not many."""
        rows = [
            {"sentid": f"job{job}.x.{answer}.{gender}.txt", "sentence": f"{gender} {job} {answer}"}
            for job in range(12)
            for answer in range(10)
            for gender in ("male", "female")
        ]
        pairs = read_winogender(write_rows(tmp_path / "rows", rows)).pairs
        first = np.array([1.0 if int(pair.group[3:]) < 6 else -1.0 for pair in pairs])
        found = bias_figures(pairs, PairLogprobs(first, np.zeros(120)), None, samples=1000, seed=0)
        assert found["clusters"] == 12 and found["preferred"]["value"] == 0.5
        assert found["preferred"]["high"] - found["preferred"]["low"] > 0.4  # of 120 independent pairs: 0.18
        assert found["by_group"]["job0"]["preferred"] == {"value": 1.0, "low": None, "high": None}

    def test_the_difference_is_paired(self, tmp_path: Path) -> None:
        rows = [{"sent_more": f"a{i}", "sent_less": f"b{i}", "bias_type": "age"} for i in range(50)]
        pairs = read_crows_pairs(write_rows(tmp_path / "rows", rows)).pairs
        values = np.random.default_rng(0).normal(0, 2, 50)
        own = PairLogprobs(values, np.zeros(50))
        same = bias_figures(pairs, own, PairLogprobs(-values, np.zeros(50)), samples=200, seed=0)
        assert same["entropy_delta"] == pytest.approx({"value": 0.0, "low": 0.0, "high": 0.0})
        assert same["preferred_delta"]["value"] == pytest.approx(2 * same["preferred"]["value"] - 1)


class TestCommand:
    def test_figures_are_those_of_the_models_themselves(
        self, base: Path, tuned: Path, services: dict[str, str], tmp_path: Path
    ) -> None:
        """Real sentences under each instruction; lm-eval's pct_stereotype is the same count."""
        rows = [json.loads(line) for line in real("eval/crows_pairs.jsonl").read_text().splitlines()[:6]]
        file = write_rows(tmp_path / "crows", rows)
        found = found_by(
            command,
            *("--model", f"base={services['base']}", "--model", f"tuned={services['tuned']}"),
            *("--tokenizer", base, "--crows-pairs", file, "--out", tmp_path / "out"),
        )
        for instruction, text in INSTRUCTIONS.items():
            entropies = {}
            for name, folder in (("base", base), ("tuned", tuned)):
                context = f"{text}\n" if text else ""
                lls = [
                    [direct_logprob(folder, context, row[key]) for key in ("sent_more", "sent_less")] for row in rows
                ]
                one = found["crows_pairs"][name][instruction]
                assert one["preferred"]["value"] == pytest.approx(np.mean([more > less for more, less in lls]))
                chances = [np.exp(pair - np.max(pair)) for pair in lls]
                entropies[name] = [scipy_entropy(chance, base=2) for chance in chances]
                assert one["entropy"]["value"] == pytest.approx(np.mean(entropies[name]), abs=1e-3)
            delta = np.mean(entropies["tuned"]) - np.mean(entropies["base"])
            assert found["crows_pairs"]["tuned"][instruction]["entropy_delta"]["value"] == pytest.approx(
                delta, abs=1e-3
            )
        written = (tmp_path / "out" / "bias.json").read_text() + (tmp_path / "out" / "bias.html").read_text()
        assert not any(row["sent_more"] in written for row in rows)  # figures only
        assert json.loads((tmp_path / "out" / "bias.json").read_text())["settings"]["files"][str(file)]

    def test_a_folder_gets_a_service_of_its_own(self, base: Path, services: dict[str, str], tmp_path: Path) -> None:
        asked = ("--winogender", real("eval/winogender.jsonl"), "--instruction", "none")
        own = found_by(command, "--model", f"base={base}", *asked, "--out", tmp_path)
        there = found_by(command, "--model", f"base={services['base']}", "--tokenizer", base, *asked)
        assert own["winogender"]["base"]["none"]["entropy"] == pytest.approx(
            there["winogender"]["base"]["none"]["entropy"], abs=1e-4
        )
        assert own["winogender"]["base"]["none"]["pairs"] == 148
        described = json.loads((tmp_path / "bias.json").read_text())["settings"]["models"]["base"]
        assert described["weights_digest"] == folder_digest(base)  # that of its published version

    def test_what_is_refused(self, base: Path, services: dict[str, str], tmp_path: Path, llama_folder: Path) -> None:
        file = write_rows(tmp_path / "crows", [{"sent_more": "a", "sent_less": "b", "bias_type": "age"}])
        long = write_rows(tmp_path / "long", [{"sent_more": "xq " * 3000, "sent_less": "b", "bias_type": "age"}])
        model = ("--model", f"base={services['base']}")
        tokenizer = ("--tokenizer", str(base))
        for arguments, error, message in (
            ((*model, *tokenizer), ConfigError, "^give --crows-pairs, --winogender or both"),
            ((*model, "--crows-pairs", file), ConfigError, "base is a service, .*; name a folder"),
            (("--model", "base", "--crows-pairs", file), ConfigError, "NAME=FOLDER or NAME=HOST:PORT"),
            (("--model", "base=/no/such", "--crows-pairs", file), ConfigError, "neither a folder nor host:port"),
            ((*model, *model, "--crows-pairs", file), ConfigError, "'base' is named twice"),
            ((*model, "--baseline", "sft", "--crows-pairs", file), ConfigError, "'sft' is no --model; allowed: base"),
            ((*model, *tokenizer, "--crows-pairs", tmp_path / "none"), ConfigError, "no such file"),
            (
                (*model, *tokenizer, "--crows-pairs", long),
                DataError,
                r"long:1: sent_more: \d+ tokens .* base takes 4096",
            ),
            (("--model", "base=127.0.0.1:1", *tokenizer, "--crows-pairs", file), Unavailable, "127.0.0.1:1"),
        ):
            with pytest.raises(error, match=message):
                CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)

    def test_another_tokenizer(self, services: dict[str, str], tmp_path: Path) -> None:
        from tiny_models import make_policy, make_tokenizer
        from trimtab_models.loading import save_model

        tokenizer = make_tokenizer(template=False)
        tokenizer.add_tokens(["rudderless"])
        save_model(make_policy("llama", len(tokenizer)), tokenizer, tmp_path / "other")
        file = write_rows(tmp_path / "crows", [{"sent_more": "a", "sent_less": "b", "bias_type": "age"}])
        arguments = ["--model", f"base={services['base']}", "--tokenizer", tmp_path / "other", "--crows-pairs", file]
        with pytest.raises(Mismatch, match="tokenizer: .*other has "):
            CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)

    def test_what_is_wrong_is_told_before_any_model_is_loaded(self, base: Path, tmp_path: Path) -> None:
        first = ("--model", f"x={unloadable_folder(tmp_path / 'unloadable')}")
        good = write_rows(tmp_path / "crows", [{"sent_more": "a", "sent_less": "b", "bias_type": "age"}])
        bad = write_rows(tmp_path / "bad", [{"sent_more": "a", "sent_less": " ", "bias_type": "age"}])
        long = write_rows(tmp_path / "long", [{"sent_more": "a", "sent_less": "xq " * 3000, "bias_type": "age"}])
        (tmp_path / "empty").mkdir()
        shutil.copytree(base, tmp_path / "no tokenizer", ignore=shutil.ignore_patterns("tokenizer*"))
        (tmp_path / "file").touch()
        with running("generation", model_folder=base) as policy:
            for arguments, error, message in (
                ((*first, "--crows-pairs", bad), DataError, "bad:1: sent_less must be a text"),
                ((*first, "--crows-pairs", long), DataError, r"long:1: sent_less: \d+ tokens .*; x takes 4096"),
                ((*first, "--crows-pairs", good, "--winogender", good), DataError, "crows:1: sentid is missing"),
                ((*first, "--crows-pairs", good, "--model", "y=127.0.0.1:1"), ConfigError, "tokenizer: y is a service"),
                (
                    (*first, "--crows-pairs", good, "--model", "y=127.0.0.1:1", "--tokenizer", base),
                    Unavailable,
                    "127.0.0.1:1",
                ),
                (
                    (*first, "--crows-pairs", good, "--model", f"y={policy.target}", "--tokenizer", base),
                    ConfigError,
                    "is trimtab.v1.GenerationService; allowed here: trimtab.v1.ReferenceService",
                ),
                (
                    (*first, "--crows-pairs", good, "--model", f"y={tmp_path / 'empty'}"),
                    ConfigError,
                    r"empty is no model folder \(it has no config.json\)",
                ),
                (
                    (*first, "--crows-pairs", good, "--model", f"y={tmp_path / 'no tokenizer'}"),
                    ModelFolderError,
                    "no tokenizer",
                ),
                (
                    (*first, "--crows-pairs", good, "--out", tmp_path / "file" / "eval"),
                    ConfigError,
                    "file is no folder",
                ),
            ):
                with pytest.raises(error, match=message):
                    CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)

    def test_a_service_that_cannot_start(self, tmp_path: Path) -> None:
        unloadable = unloadable_folder(tmp_path / "unloadable")
        file = write_rows(tmp_path / "crows", [{"sent_more": "a", "sent_less": "b", "bias_type": "age"}])
        with pytest.raises(Unavailable, match="reference"):
            CliRunner().invoke(
                command, ["--model", f"x={unloadable}", "--crows-pairs", str(file)], catch_exceptions=False
            )
