"""The policy in training, published after each update beside whatever the trainer does next.

The weights are copied at once, rounded to the dtype that is served; what changed since the last version is found, sent
and committed in a thread of its own.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.weights import Publication
from trimtab_trainer.distributed import snapshot
from trimtab_trainer.services import Services

__all__ = ["PolicyPublisher", "publication_figures"]


class PolicyPublisher:
    """Publishes one policy; close it when its stage ends, which waits for what is under way.

    Args:
        services: where to.
        policy: the model in training.
        tokenizer: of the policy.
        serving_dtype: what published weights are rounded to; None: the model's own dtype.
    """

    def __init__(
        self,
        services: Services,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        serving_dtype: str | None,
    ) -> None:
        self._services = services
        self._publisher = services.model_publisher(policy, tokenizer, serving_dtype=serving_dtype)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publication")

    def __enter__(self) -> PolicyPublisher:
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown()

    def publish(self, *, step: int, name: str) -> Future[Publication]:
        """Publishes the policy as it is now; the future has the version.

        Args:
            step: optimizer steps of the policy.
            name: of this state of the policy within the run's stage: a resumed run gets the number that it had.

        Raises (from the future):
            TrimtabError: as `Services.publish_snapshot`.
        """
        weights = snapshot(self._publisher)
        return self._thread.submit(self._services.publish_snapshot, self._publisher, weights, step=step, name=name)


def publication_figures(publication: Publication) -> dict[str, float]:
    """What a publication took, for an iteration's metrics. The share of a model that was sent is that of its bytes."""
    return {
        "publication_share": publication.payload_bytes / publication.dense_bytes,
        "seconds_publication_encode": publication.encode_seconds,
        "seconds_publication_upload": publication.upload_seconds,
    }
