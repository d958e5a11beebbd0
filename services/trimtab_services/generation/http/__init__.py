"""HTTP fronts of the generation service: OpenAI's API and that of text-generation-inference (TGI).

Both sample through `..completions`, on the same engine, limits, deadlines and tokens as the gRPC call.

- `routes`: every route, with its scope.
- `openai`, `tgi`: what each route does. `openai_requests`, `tgi_requests`: what may be asked, field by field.
  `openai_answers`, `tgi_answers`: what is answered, streams included.
- `sampling`: from prompts to completions with their text, whole or token by token.
- `scoring`: log-probs of given tokens, computed between two steps of the engine.
- `text`: tokens to text, whole characters at a time and never with a stop string.
- `answering`: around every route: the deadline, callers that go away, errors in the front's own shape, event streams.
- `bodies`: JSON bodies, and the types of their fields.
"""
