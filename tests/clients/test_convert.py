"""Records and messages: every record survives the wire, and a refusal names the path of the field."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import convert
from trimtab.errors import REASONS, InternalError, InvalidRequest, Reason
from trimtab.types import (
    ChatMessage,
    Completion,
    FinishReason,
    GenerateRequest,
    GenerateResult,
    GenerationPrompt,
    ItemLogProbs,
    ItemScore,
    LogProbsItem,
    LogProbsOptions,
    LogProbsRequest,
    LogProbsResult,
    Priority,
    RankRequest,
    RankResult,
    SamplingParams,
    ScoreItem,
    ScoreRequest,
    ScoreResult,
    ServedModel,
    ServiceState,
    TruncationSide,
    VersionRequirement,
    VersionSpan,
)
from trimtab.v1 import errors_pb2, generation_pb2, info_pb2, reference_pb2, reward_pb2, types_pb2

few = settings(max_examples=40, deadline=None)

INT32, INT64 = 2**31 - 1, 2**63 - 1
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SOME_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
IDS = st.lists(st.integers(0, INT32), min_size=1, max_size=6).map(tuple)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROLES = st.sampled_from(["system", "user", "assistant"])
TURNS = st.lists(st.builds(ChatMessage, role=ROLES, content=SOME_TEXT), max_size=3)
ASKING = st.builds(lambda t, c: (*t, ChatMessage(role="user", content=c)), TURNS, SOME_TEXT)
ANSWERED = st.builds(lambda t, c: (*t, ChatMessage(role="assistant", content=c)), TURNS.filter(bool), SOME_TEXT)
PROMPTS = st.one_of(SOME_TEXT, IDS, ASKING)
VERSIONS = st.one_of(
    st.just(VersionRequirement()),
    st.builds(VersionRequirement, exactly=st.integers(0, INT64)),
    st.builds(VersionRequirement, at_least=st.integers(0, INT64)),
)
SAMPLING = st.builds(
    SamplingParams,
    temperature=st.one_of(st.just(0.0), st.floats(2**-19, 100, width=32)),
    top_p=st.floats(2**-90, 1, width=32),
    top_k=st.integers(0, INT32),
    min_new_tokens=st.integers(0, 5),
    max_new_tokens=st.integers(5, INT32),
    stop_token_ids=st.one_of(st.just(()), IDS),
    stop_strings=st.lists(SOME_TEXT, max_size=16).map(tuple),
    ignore_eos=st.booleans(),
)
SERVED = st.builds(
    ServedModel,
    name=TEXT,
    version=st.integers(0, INT64),
    weights_digest=TEXT,
    tokenizer_digest=TEXT,
    chat_template_digest=TEXT,
)
TIMES = {"queue_ms": st.floats(0, 1e9), "compute_ms": st.floats(0, 1e9)}
COMMON = {"model": TEXT, "version": VERSIONS, "priority": st.sampled_from(Priority), "request_id": TEXT}


@st.composite
def arrays(draw, size: int | None = None) -> np.ndarray:
    count = draw(st.integers(1, 5)) if size is None else size
    return np.array(draw(st.lists(FLOAT32, min_size=count, max_size=count)), dtype=np.float32)


def unique(items, key: str):
    return st.lists(items, min_size=1, max_size=4, unique_by=lambda item: getattr(item, key)).map(tuple)


def through(message):
    """As bytes and back: what the wire does."""
    return type(message).FromString(message.SerializeToString())


def same(left: object, right: object) -> bool:
    """Equality of replies, whose arrays have none of their own."""
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, Exception):
        names = ("message", "reason", "field", "value", "limit")
        return type(left) is type(right) and all(getattr(left, n) == getattr(right, n) for n in names)
    if isinstance(left, tuple):
        return isinstance(right, tuple) and len(left) == len(right) and all(map(same, left, right))
    if hasattr(left, "__dataclass_fields__"):
        return type(left) is type(right) and all(
            same(getattr(left, n), getattr(right, n)) for n in left.__dataclass_fields__
        )
    return left == right


# Requests


@few
@given(PROMPTS)
def test_prompt(prompt) -> None:
    assert convert.prompt_from_message(through(convert.prompt_to_message(prompt))) == prompt


@few
@given(SAMPLING)
def test_sampling(sampling: SamplingParams) -> None:
    assert convert.sampling_from_message(through(convert.sampling_to_message(sampling))) == sampling


@few
@given(VERSIONS)
def test_version(version: VersionRequirement) -> None:
    assert convert.version_from_message(through(convert.version_to_message(version))) == version


GENERATION_PROMPTS = st.builds(
    GenerationPrompt,
    prompt_id=SOME_TEXT,
    prompt=PROMPTS,
    seed=st.integers(0, 2**64 - 1),
    num_samples=st.integers(1, INT32),
    first_sample_index=st.integers(0, INT32),
    max_new_tokens=st.integers(0, INT32),
)


@few
@given(
    st.builds(
        GenerateRequest,
        prompts=unique(GENERATION_PROMPTS, "prompt_id"),
        sampling=SAMPLING,
        max_wait_ms=st.integers(0, INT64),
        return_text=st.booleans(),
        per_item_errors=st.booleans(),
        **COMMON,
    )
)
def test_generate_request(request_: GenerateRequest) -> None:
    message = through(convert.generate_request_to_message(request_))
    assert convert.generate_request_from_message(message) == request_


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1])
def test_all_64_bits_of_a_seed_travel(seed: int) -> None:
    request = GenerateRequest(prompts=(GenerationPrompt(prompt_id="a", prompt="b", seed=seed),))
    message = through(convert.generate_request_to_message(request))
    assert convert.generate_request_from_message(message).prompts[0].seed == seed


SCORE_ITEMS = st.one_of(
    st.builds(ScoreItem, item_id=SOME_TEXT, prompt=PROMPTS, completion=st.one_of(SOME_TEXT, IDS)),
    st.builds(ScoreItem, item_id=SOME_TEXT, messages=ANSWERED),
    st.builds(ScoreItem, item_id=SOME_TEXT, token_ids=IDS),
)


@few
@given(
    st.builds(
        ScoreRequest,
        items=unique(SCORE_ITEMS, "item_id"),
        truncation=st.sampled_from(TruncationSide),
        per_item_errors=st.booleans(),
        **COMMON,
    )
)
def test_score_request(request_: ScoreRequest) -> None:
    assert convert.score_request_from_message(through(convert.score_request_to_message(request_))) == request_


@few
@given(
    st.builds(
        RankRequest,
        prompt=PROMPTS,
        answers=st.lists(SOME_TEXT, min_size=2, max_size=9).map(tuple),
        truncation=st.sampled_from(TruncationSide),
        **COMMON,
    )
)
def test_rank_request(request_: RankRequest) -> None:
    assert convert.rank_request_from_message(through(convert.rank_request_to_message(request_))) == request_


LOGPROBS_ITEMS = st.lists(st.integers(0, INT32), min_size=2, max_size=6).flatmap(
    lambda ids: st.builds(
        LogProbsItem, item_id=SOME_TEXT, token_ids=st.just(tuple(ids)), start_index=st.integers(1, len(ids) - 1)
    )
)
OPTIONS = st.builds(
    LogProbsOptions,
    temperature=st.floats(2**-19, 100, width=32),
    entropy=st.booleans(),
    top_n=st.integers(0, 20),
)


@few
@given(
    st.builds(
        LogProbsRequest,
        items=unique(LOGPROBS_ITEMS, "item_id"),
        options=OPTIONS,
        per_item_errors=st.booleans(),
        **COMMON,
    )
)
def test_logprobs_request(request_: LogProbsRequest) -> None:
    assert convert.logprobs_request_from_message(through(convert.logprobs_request_to_message(request_))) == request_


def test_what_is_not_set_has_its_default() -> None:
    sampling = convert.sampling_from_message(types_pb2.SamplingParams())
    assert sampling == SamplingParams()
    assert convert.sampling_from_message(types_pb2.SamplingParams(temperature=0)).temperature == 0
    assert convert.version_from_message(types_pb2.VersionRequirement()) == VersionRequirement()
    assert convert.version_from_message(types_pb2.VersionRequirement(exactly=0)) == VersionRequirement(exactly=0)
    assert convert.priority_from_message(0) is Priority.ROLLOUT
    assert convert.truncation_from_message(0) is TruncationSide.NONE
    item = convert.logprobs_item_from_message(reference_pb2.LogProbsItem(token_ids=[1, 2]))
    assert item.start_index == 1
    assert convert.logprobs_options_from_message(reference_pb2.LogProbsOptions()) == LogProbsOptions()


# Replies

ERRORS = st.builds(
    lambda reason, message, field, value, limit: REASONS[reason][1](
        message, reason=reason, field=field, value=value or None, limit=limit or None
    ),
    st.sampled_from(Reason),
    SOME_TEXT,
    TEXT,
    TEXT,
    TEXT,
)


@few
@given(ERRORS)
def test_item_error(error) -> None:
    assert same(convert.item_error_from_message(through(convert.item_error_to_message(error))), error)


COMPLETIONS = st.integers(1, 5).flatmap(
    lambda count: st.builds(
        Completion,
        sample_index=st.integers(0, INT32),
        token_ids=st.lists(st.integers(0, INT32), min_size=count, max_size=count).map(tuple),
        logprobs=arrays(count),
        finish_reason=st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]),
        version_spans=st.lists(
            st.builds(
                VersionSpan,
                start_token=st.integers(0, INT32),
                end_token=st.integers(0, INT32),
                version=st.integers(0, INT64),
                kv_kept=st.booleans(),
            ),
            max_size=3,
        ).map(tuple),
        text=TEXT,
        prompt_token_count=st.integers(0, INT32),
        **TIMES,
    )
)


@few
@given(
    st.one_of(
        st.builds(GenerateResult, prompt_id=TEXT, served=SERVED, completion=COMPLETIONS),
        st.builds(GenerateResult, prompt_id=TEXT, served=SERVED, error=ERRORS),
    )
)
def test_generate_result(result: GenerateResult) -> None:
    assert same(convert.generate_result_from_message(through(convert.generate_result_to_message(result))), result)


SCORES = st.builds(
    ItemScore,
    reward=FLOAT32,
    token_count=st.integers(0, INT32),
    truncated_token_count=st.integers(0, INT32),
    item_id=TEXT,
    error=st.none() | ERRORS,
)


@few
@given(st.builds(ScoreResult, scores=st.lists(SCORES, max_size=4).map(tuple), served=SERVED, **TIMES))
def test_score_result(result: ScoreResult) -> None:
    assert same(convert.score_result_from_message(through(convert.score_result_to_message(result))), result)


@few
@given(st.data(), st.integers(2, 4))
def test_rank_result(data, count: int) -> None:
    result = data.draw(
        st.builds(
            RankResult,
            scores=st.lists(SCORES, min_size=count, max_size=count).map(tuple),
            order=st.permutations(range(count)).map(tuple),
            pairwise_probabilities=arrays(count * count).map(lambda flat: flat.reshape(count, count)),
            served=SERVED,
            **TIMES,
        )
    )
    assert same(convert.rank_result_from_message(through(convert.rank_result_to_message(result))), result)


TOP_TOKENS = st.integers(1, 3).flatmap(
    lambda n: st.tuples(st.lists(st.integers(0, INT32), min_size=n, max_size=n).map(tuple), arrays(n))
)


@few
@given(
    st.builds(
        LogProbsResult,
        results=st.lists(
            st.builds(
                ItemLogProbs,
                logprobs=arrays(),
                entropies=st.none() | arrays(),
                top_tokens=st.lists(TOP_TOKENS, max_size=3).map(tuple),
                item_id=TEXT,
                error=st.none() | ERRORS,
            ),
            max_size=3,
        ).map(tuple),
        served=SERVED,
        **TIMES,
    )
)
def test_logprobs_result(result: LogProbsResult) -> None:
    assert same(convert.logprobs_result_from_message(through(convert.logprobs_result_to_message(result))), result)


def test_info() -> None:
    message = info_pb2.GetInfoResponse(
        service="trimtab.v1.RewardService",
        replica="a",
        state=info_pb2.SERVICE_STATE_WAITING_FOR_VERSION,
        state_reason="channel reward/latest has no version",
        models=[info_pb2.ModelInfo(served=types_pb2.ServedModel(name="m", version=3), eos_token_ids=[1, 7])],
        limits=info_pb2.Limits(max_items_per_request=4, max_queue_tokens=2**40),
        load=info_pb2.Load(waiting_items=2, tokens_per_second=1.5),
        threads=2,
        deterministic=True,
    )
    info = convert.info_from_message(through(message))
    assert info.state is ServiceState.WAITING_FOR_VERSION and info.deterministic and info.threads == 2
    assert info.models[0].served == ServedModel(name="m", version=3) and info.models[0].eos_token_ids == (1, 7)
    assert info.limits.max_items_per_request == 4 and info.limits.max_queue_tokens == 2**40
    assert info.load.waiting_items == 2 and info.load.tokens_per_second == 1.5


# Refusals: the message names the path of the field

PROMPT = types_pb2.Prompt(text="hello")
GOOD = generation_pb2.GenerationPrompt(prompt_id="good", prompt=PROMPT)


def generate(**fields) -> generation_pb2.GenerateRequest:
    others = [generation_pb2.GenerationPrompt(prompt_id=str(n), prompt=PROMPT) for n in range(3)]
    bad = generation_pb2.GenerationPrompt(**({"prompt_id": "bad", "prompt": PROMPT} | fields))
    return generation_pb2.GenerateRequest(prompts=[*others, bad])


@pytest.mark.parametrize(
    ("message", "field", "reason"),
    [
        (generate(prompt_id=""), "prompts[3].prompt_id", Reason.FIELD_INVALID),
        (generate(prompt_id="1"), "prompts[3].prompt_id", Reason.DUPLICATE_ID),
        (generate(num_samples=-1), "prompts[3].num_samples", Reason.FIELD_INVALID),
        (generate(first_sample_index=-1), "prompts[3].first_sample_index", Reason.FIELD_INVALID),
        (generate(max_new_tokens=-1), "prompts[3].max_new_tokens", Reason.FIELD_INVALID),
        (generate(prompt=types_pb2.Prompt()), "prompts[3].prompt", Reason.FIELD_MISSING),
        (generate(prompt=types_pb2.Prompt(text="")), "prompts[3].prompt", Reason.EMPTY_PROMPT),
        (
            generate(prompt=types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=[1, -1]))),
            "prompts[3].prompt.token_ids[1]",
            Reason.FIELD_INVALID,
        ),
        (
            generate(
                prompt=types_pb2.Prompt(
                    messages=types_pb2.ChatMessages(messages=[types_pb2.ChatMessage(role="robot", content="x")])
                )
            ),
            "prompts[3].messages[0].role",
            Reason.FIELD_INVALID,
        ),
        (generation_pb2.GenerateRequest(), "prompts", Reason.FIELD_INVALID),
        (generation_pb2.GenerateRequest(prompts=[GOOD], max_wait_ms=-1), "max_wait_ms", Reason.FIELD_INVALID),
        (generation_pb2.GenerateRequest(prompts=[GOOD], priority=9), "priority", Reason.FIELD_INVALID),
        (
            generation_pb2.GenerateRequest(prompts=[GOOD], sampling=types_pb2.SamplingParams(temperature=-1)),
            "sampling.temperature",
            Reason.FIELD_INVALID,
        ),
        (
            generation_pb2.GenerateRequest(prompts=[GOOD], sampling=types_pb2.SamplingParams(temperature=float("nan"))),
            "sampling.temperature",
            Reason.FIELD_INVALID,
        ),
        (
            generation_pb2.GenerateRequest(
                prompts=[GOOD], sampling=types_pb2.SamplingParams(min_new_tokens=5, max_new_tokens=4)
            ),
            "sampling.min_new_tokens",
            Reason.FIELD_INVALID,
        ),
        (
            generation_pb2.GenerateRequest(prompts=[GOOD], version=types_pb2.VersionRequirement(exactly=-3)),
            "version.exactly",
            Reason.FIELD_INVALID,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_generation(message, field: str, reason: Reason) -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert.generate_request_from_message(message)
    assert caught.value.field == field and caught.value.reason is reason
    assert caught.value.message.startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (reward_pb2.ScoreItem(), "items[0].input"),
        (reward_pb2.ScoreItem(pair=reward_pb2.PromptCompletion(prompt=PROMPT)), "items[0].pair.completion"),
        (reward_pb2.ScoreItem(pair=reward_pb2.PromptCompletion(prompt=PROMPT, text="")), "items[0].completion"),
        (reward_pb2.ScoreItem(token_ids=types_pb2.TokenIds()), "items[0].token_ids"),
        (reward_pb2.ScoreItem(messages=types_pb2.ChatMessages()), "items[0].messages"),
    ],
)
def test_refused_score(item: reward_pb2.ScoreItem, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert.score_request_from_message(reward_pb2.ScoreRequest(items=[item]))
    assert caught.value.field == field


def test_refused_logprobs() -> None:
    items = [reference_pb2.LogProbsItem(token_ids=[1, 2]), reference_pb2.LogProbsItem(token_ids=[1, 2], start_index=2)]
    with pytest.raises(InvalidRequest, match=r"^items\[1\].start_index: 2 is not below") as caught:
        convert.logprobs_request_from_message(reference_pb2.LogProbsRequest(items=items))
    assert (caught.value.value, caught.value.limit) == ("2", "1")
    options = reference_pb2.LogProbsOptions(top_n=21)
    with pytest.raises(InvalidRequest) as caught:
        convert.logprobs_request_from_message(reference_pb2.LogProbsRequest(items=items[:1], options=options))
    assert (caught.value.field, caught.value.limit) == ("options.top_n", "20")


@pytest.mark.parametrize(
    "make",
    [
        lambda: SamplingParams(max_new_tokens=2**31),
        lambda: SamplingParams(top_k=2**31),
        lambda: SamplingParams(temperature=1e-30),
        lambda: LogProbsOptions(temperature=1e-50),
        lambda: VersionRequirement(exactly=2**63),
        lambda: GenerationPrompt(prompt_id="a", prompt="b", seed=2**64),
        lambda: GenerationPrompt(prompt_id="a", prompt="b", num_samples=2**31),
        lambda: GenerationPrompt(prompt_id="a", prompt="half a pair \ud800"),
        lambda: ChatMessage(role="user", content="\udfff"),
    ],
)
def test_what_the_wire_cannot_carry_is_refused_by_the_record(make) -> None:
    with pytest.raises(InvalidRequest):
        make()


def test_a_newer_server() -> None:
    reply = errors_pb2.ItemError(message="new kind", reason=999)  # type: ignore[arg-type]
    assert convert.item_error_from_message(through(reply)).reason is Reason.INTERNAL
    with pytest.raises(InternalError, match="the server's reply: state: 99 is no known value"):
        convert.info_from_message(info_pb2.GetInfoResponse(state=99))  # type: ignore[arg-type]
    with pytest.raises(InternalError, match="finish_reason: 0 is no known value"):
        convert.generate_result_from_message(generation_pb2.GenerateResponse(prompt_id="a"))
    with pytest.raises(InternalError, match="pairwise_probabilities: 3 for 2 scores"):
        convert.rank_result_from_message(
            reward_pb2.RankResponse(scores=[reward_pb2.ItemScore()] * 2, pairwise_probabilities=[1, 2, 3])
        )
