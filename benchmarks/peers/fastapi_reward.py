"""A reward server as users write them: FastAPI, tokenise, pad, minibatches of 16, all in the request's handler.

The shape of OpenRLHF's `serve_rm`: `POST /get_reward {"query": [...]}` answers `{"rewards": [...]}`; while a request is
computed the event loop stands still, and requests do not share batches. Takes one JSON text: `folder`, `port`.
"""

import json
import sys

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH = 16


def main() -> None:
    given = json.loads(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(given["folder"])
    tokenizer.padding_side = "right"
    model = AutoModelForSequenceClassification.from_pretrained(given["folder"], dtype=torch.float32).eval()
    app = FastAPI()

    @torch.inference_mode()
    def score(texts: list[str]) -> list[float]:
        rewards: list[float] = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt")
            mask = batch["attention_mask"]
            hidden = model.model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).last_hidden_state
            rewards += model.score(hidden[torch.arange(len(mask)), mask.sum(1) - 1]).squeeze(-1).tolist()
        return rewards

    @app.post("/get_reward")
    async def get_reward(request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse({"rewards": score(body["query"])})

    uvicorn.run(app, host="127.0.0.1", port=given["port"], log_level="warning")


main()
