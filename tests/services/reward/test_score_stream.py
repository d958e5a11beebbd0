"""The stream of items over gRPC against a real server: what it takes off the caller's quota."""

from __future__ import annotations

from pathlib import Path

from running import client, running
from trimtab.v1 import errors_pb2, reward_pb2, types_pb2


def requests(count: int) -> list[reward_pb2.ScoreStreamRequest]:
    token_ids = types_pb2.TokenIds(ids=[5, 6])
    return [
        reward_pb2.ScoreStreamRequest(item=reward_pb2.ScoreItem(item_id=str(number), token_ids=token_ids))
        for number in range(count)
    ]


def test_every_item_of_a_stream_is_a_request_of_the_quota(reward_folder: Path) -> None:
    quota = {"requests_per_s": 0.1, "burst_s": 60.0}
    with running("reward", model_folder=reward_folder, quota=quota) as server, client(server) as own:
        answers = {answer.score.item_id: answer.score for answer in own.score_stream(iter(requests(9)))}
    assert set(answers) == {str(number) for number in range(9)}  # none is lost, and the stream goes on
    refused = [score.error for score in answers.values() if score.HasField("error")]
    assert [error.reason for error in refused] == [errors_pb2.REASON_QUOTA_EXCEEDED] * 3
    assert {error.field for error in refused} == {"quota.requests_per_s"}
    assert all("come back in" in error.message for error in refused)
