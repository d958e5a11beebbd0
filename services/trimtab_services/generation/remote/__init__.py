"""Engine `tgi`: the policy is served elsewhere, by text-generation-inference (TGI) or what speaks its API.

TGI cannot change its weights, so such a replica serves evaluation, baselines and labeling, and never a training run:
its version is 0 for ever, and a request that pins one is refused.

- `policy`: what the rest of the service asks: names, limits, checks, and whether the remote server answers.
- `host`: takes sequences, asks for each of them, a bounded number at a time, until its deadline.
- `client`: one request to the remote server, and what its answers and errors mean.
- `answers`: what the remote server tells: of itself, of a token, of a completion.
- `prompts`: TGI reads text only; finds the text that it reads as given token ids.

Log-probs are those that the remote server tells. A TGI server tells them as they are after top-p and top-k; where both
are off, that is what this service promises.
"""
