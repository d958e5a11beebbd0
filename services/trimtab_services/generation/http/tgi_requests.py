"""What may be asked of the TGI front, field by field; the reference is the public API of text-generation-inference."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from trimtab.errors import InvalidRequest, Reason, Unsupported
from trimtab.types import SamplingParams
from trimtab.types.shared import INT32_END, MAX_TEMPERATURE, MIN_TOP_P, Text
from trimtab_models.tokenizer import encode_document, leading_ids
from trimtab_services.generation.http.bodies import Body, StopStrings, neutral, parse
from trimtab_services.generation.http.sampling import Asked
from trimtab_services.generation.http.text import token_text

__all__ = ["GenerateRequest", "TokenizeRequest", "generate_request"]

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "repetition_penalty": (1,),
    "frequency_penalty": (0,),
    "typical_p": (1,),
    "truncate": (),
    "watermark": (False,),
    "top_n_tokens": (0,),
    "grammar": (),
    "adapter_id": (),
}


class Parameters(Body):
    """How to sample, and what to tell of it.

    Sampling begins, as in TGI, with `do_sample` or any of `temperature` other than 1, `top_k`, `top_p`; else the
    likeliest token is taken.
    """

    max_new_tokens: int = Field(default=100, ge=1, lt=INT32_END)
    do_sample: bool = False
    temperature: float | None = Field(default=None, ge=0, le=MAX_TEMPERATURE)
    top_k: int | None = Field(default=None, ge=1, lt=INT32_END)
    top_p: float | None = Field(default=None, ge=MIN_TOP_P, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    stop: StopStrings = []
    details: bool = False
    decoder_input_details: bool = False
    return_full_text: bool = False

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn; else the likeliest is taken."""
        warped = self.temperature not in (None, 1) or self.top_k is not None or self.top_p not in (None, 1)
        return self.do_sample or warped

    def sampling(self) -> SamplingParams:
        """The same in the service's own words."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return SamplingParams(
            temperature=temperature if self.samples else 0.0,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            max_new_tokens=self.max_new_tokens,
            stop_strings=tuple(self.stop),
        )


class GenerateRequest(Body):
    """`POST /generate`, `/generate_stream` and `/`."""

    inputs: Text
    parameters: Parameters = Parameters()
    stream: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> GenerateRequest:
        if self.inputs == "":
            raise InvalidRequest("inputs: must not be empty", reason=Reason.EMPTY_PROMPT, field="inputs")
        return self

    def check_stream(self) -> None:
        """Refuses what a stream cannot tell.

        Raises:
            Unsupported: `decoder_input_details`.
        """
        if self.parameters.decoder_input_details:
            raise Unsupported(
                "parameters.decoder_input_details: not supported in a stream; it may be left out or be false",
                field="parameters.decoder_input_details",
                value=True,
                limit="false",
            )

    def asked(self, tokenizer: PreTrainedTokenizerBase) -> Asked:
        """What is to be sampled; text is continued as it is, without a chat template."""
        prompt = tuple(encode_document(tokenizer, self.inputs)[:-1])  # a document whose end is yet to come
        sampling, seed = self.parameters.sampling(), self.parameters.seed
        if seed is None:
            return Asked([prompt], ["inputs"], "max_new_tokens", sampling)
        return Asked([prompt], ["inputs"], "max_new_tokens", sampling, seed=seed)


class TokenizeRequest(Body):
    """`POST /tokenize`."""

    inputs: Text
    add_special_tokens: bool = True
    parameters: Any = None  # as clients of TGI send it along; says nothing of how text is cut

    def rows(self, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """The tokens, each with the characters that it stands for."""
        found = tokenizer(self.inputs, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        leading = [(token_id, (0, 0)) for token_id in leading_ids(tokenizer)] if self.add_special_tokens else []
        return [
            {
                "id": token_id,
                "text": self.inputs[start:stop] or token_text(tokenizer, token_id),
                "start": start,
                "stop": stop,
            }
            for token_id, (start, stop) in [*leading, *zip(found["input_ids"], found["offset_mapping"], strict=True)]
        ]


def generate_request(body: dict[str, Any]) -> GenerateRequest:
    """Checks a body.

    Raises:
        InvalidRequest: names the field, its value and what is allowed.
        Unsupported: a field that cannot be honoured.
    """
    parameters = body.get("parameters")
    if isinstance(parameters, dict):
        body = {**body, "parameters": neutral(parameters, _NEUTRAL, "parameters.")}
    return parse(GenerateRequest, body)
