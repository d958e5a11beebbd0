"""Ways into the reward service beside its own gRPC: what other systems speak. All of them ask `reward.models`.

- `routes`: every HTTP route with its scope, and the gRPC servicer.
- `scores`: `/v1/score`, `/v1/rank`, `/v1/models`. `bodies`: what may be asked and what is answered, field by field.
- `openapi`: `/openapi.json`, made from `bodies`.
- `openrlhf`: `/get_reward`, as OpenRLHF's trainer asks a remote reward model.
- `whole_texts`: prompt and completion in one text.
- `inference_protocol`: the Open Inference Protocol: which tensors a reward model takes and gives. `tensors`: bytes and
  lists to tensors and back. `inference_rest`, `inference_grpc`: what carries them.
- `inference`: stubs of the protocol, made from `protos/inference`.

None of them knows a tokenizer, a model or the scheduler.
"""
