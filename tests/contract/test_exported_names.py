"""The names that the package promises: adding one is a decision, losing one breaks somebody."""

import inspect
from importlib import metadata

import trimtab
from trimtab import AsyncClient, Client, convert, errors, types

EXPORTED = """
AsyncClient ChatMessage Client Completion FinishReason GenerateRequest GenerateResult GenerationPrompt ItemLogProbs
ItemScore LogProbsItem LogProbsOptions LogProbsRequest LogProbsResult Priority RankRequest RankResult SamplingParams
ScoreItem ScoreRequest ScoreResult ServedModel ServiceInfo ServiceState TLSConfig Token TrimtabError TruncationSide
VersionRequirement VersionSpan
""".split()


def test_exported_names() -> None:
    assert sorted(trimtab.__all__) == sorted(EXPORTED)


def test_the_version_is_that_of_the_distribution() -> None:
    assert trimtab.__version__ == metadata.version("trimtab")


def test_every_promised_name_is_there_and_documented() -> None:
    for module in (trimtab, convert, errors, types):
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            made = getattr(module, name)
            if inspect.isclass(made) or inspect.isfunction(made):
                assert made.__doc__, name


def test_both_clients_have_the_same_surface() -> None:
    def surface(client: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_")
        }

    assert surface(Client) == surface(AsyncClient)
    assert list(inspect.signature(Client).parameters) == list(inspect.signature(AsyncClient).parameters)
