"""The batches of rollouts that PPO has under way: by policies up to `max_lag` iterations old, trained on in order.

The batch of iteration k begins the moment that the policy of iteration k - max_lag is committed. At 0, sampling and
update take turns; above, generation always has work, and no policy older than `max_lag` iterations samples a token. A
new policy takes over in the middle of completions, whose spans say which one sampled what (PipelineRL, Piche et al.
2025).

With `deterministic: true` each batch is of one version instead, and a version is published only once no batch is under
way any more: what a policy samples then follows from the run's seed alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from typing import TypeVar

import numpy as np

from trimtab.errors import FailedPrecondition, NotFound
from trimtab.types import SamplingParams, VersionRequirement
from trimtab.weights import Publication
from trimtab_trainer.config import PPOConfig
from trimtab_trainer.context import StageContext, StageStopped
from trimtab_trainer.optimization import shuffled
from trimtab_trainer.prompts import PromptExample
from trimtab_trainer.rollouts import Rollout, RolloutPrompt
from trimtab_trainer.services import Services

__all__ = ["RolloutPipeline"]

A = TypeVar("A")
B = TypeVar("B")


class RolloutPipeline:
    """Gives out the prompts of each iteration; which ones and with which seeds follows from the run's seed alone.

    Args:
        context: of the stage.
        config: of the stage.
        services: where to.
        prompts: to train on.
    """

    def __init__(
        self, context: StageContext, config: PPOConfig, services: Services, prompts: Sequence[PromptExample]
    ) -> None:
        self._config = config
        self._services = services
        self._prompts = prompts
        self._seed = context.seed(config.seed)
        self._replays = context.spec.deterministic
        self._orders = context.orders
        self._sampling = SamplingParams(
            temperature=config.sampling.temperature, max_new_tokens=config.sampling.max_new_tokens
        )
        self._pending: deque[Future[list[Rollout]]] = deque()
        self._sampled_at: dict[int, int] = {}

    @property
    def sampled_at(self) -> Mapping[int, int]:
        """By version, the iteration whose policy it was, of all that may sample a batch that is not trained on yet."""
        return self._sampled_at

    def knows(self, rollouts: Sequence[Rollout]) -> bool:
        """Whether each token of a batch is of a version in `sampled_at`."""
        return all(span.version in self._sampled_at for rollout in rollouts for span in rollout.version_spans)

    def newest(self, iteration: int) -> int | None:
        """The version of an iteration's policy, once it is known; nothing is sampled by it before."""
        return next((version for version, number in self._sampled_at.items() if number == iteration), None)

    @property
    def recent_versions(self) -> list[int]:
        """Versions of the last `max_lag` policies, the oldest first: what a resumed run begins with (`start`)."""
        return list(self._sampled_at)[-self._config.max_lag :] if self._config.max_lag else []

    def start(self, iteration: int, version: int, recent: Sequence[int]) -> None:
        """Starts every batch that the first policy, or the policy of a resumed run, allows.

        Args:
            iteration: to train next.
            version: of its policy.
            recent: `recent_versions` of the run that is resumed. With `deterministic: true` they sample again what they
                had sampled when it was left; else the present policy does.

        Raises:
            FailedPrecondition: a version of `recent` is not in the store any more.
            StageStopped: a stop was asked for meanwhile.
            TrimtabError: the replicas do not come to serve it.
        """
        ahead = iteration + self._config.max_lag
        if self._replays and recent:
            first = iteration - len(recent)
            for number, old in enumerate(recent, start=first):
                self.policy_is(old, number)
            for batch in range(iteration, ahead):
                self._replay(batch, recent[max(0, batch - self._config.max_lag - first)])
            self._services.point_policy_to(version)
            iteration = ahead
        for batch in range(iteration, ahead + 1):
            self._pending.append(self.submit(batch, version))

    def policy_is(self, version: int, iteration: int) -> None:
        """Notes under which version the policy of an iteration was published."""
        self._sampled_at.pop(version, None)
        self._sampled_at[version] = iteration
        for old in list(self._sampled_at)[: -(self._config.max_lag + 1)]:
            del self._sampled_at[old]

    def submit_after(self, iteration: int, publishing: Future[Publication]) -> None:
        """Starts the batch that the policy of an iteration allows, the moment that it is committed."""
        batch = iteration + self._config.max_lag
        self._pending.append(_followed_by(publishing, lambda publication: self.submit(batch, publication.version)))

    def next(self) -> Future[list[Rollout]]:
        """The oldest batch, to be trained on now."""
        return self._pending.popleft()

    def settle(self) -> None:
        """Waits, before a new version is published, for what must end on the one before; less where a stop is asked."""
        if self._replays:
            self._wait()

    def cancel(self) -> None:
        """Gives up what is under way."""
        while self._pending:
            self._pending.pop().cancel()

    def submit(self, iteration: int, version: int) -> Future[list[Rollout]]:
        """Starts the batch of an iteration on a version that is there; past the last iteration there are none."""
        if iteration >= self._config.iterations:
            none: Future[list[Rollout]] = Future()
            none.set_result([])
            return none
        stays = self._replays or not self._config.max_lag
        wanted = VersionRequirement(exactly=version) if stays else VersionRequirement(at_least=version)
        return self._services.rollouts.submit(self._batch(iteration), self._sampling, wanted, score=True)

    def _replay(self, iteration: int, version: int) -> None:
        try:
            self._services.point_policy_to(version)
        except NotFound as error:
            raise FailedPrecondition(
                f"ppo.max_lag: {self._config.max_lag}: version {version}, which sampled what was under way, is not in "
                "the store any more, so that the run cannot go on exactly; let the store keep more versions "
                "(`keep_versions`), or go on without `deterministic`",
                field="ppo.max_lag",
                value=self._config.max_lag,
            ) from error
        self._services.wait_policy(version)
        self._pending.append(self.submit(iteration, version))
        self._wait()
        if self._orders.stop_asked:
            raise StageStopped("the stage was asked to stop before it went on; its checkpoint stands")

    def _wait(self) -> None:
        while wait(self._pending, timeout=0.5).not_done and not self._orders.stop_asked:
            pass

    def _batch(self, iteration: int) -> list[RolloutPrompt]:
        size, total = self._config.prompts_per_iteration, len(self._prompts)
        chosen = []
        for number in range(iteration * size, (iteration + 1) * size):
            epoch, position = divmod(number, total)
            index = shuffled(total, seed=self._seed, epoch=epoch, name="ppo/prompts")[position]
            seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1, np.uint64)[0])
            chosen.append(
                RolloutPrompt(str(number), self._prompts[index].token_ids, seed, self._config.samples_per_prompt)
            )
        return chosen


def _followed_by(first: Future[A], then: Callable[[A], Future[B]]) -> Future[B]:
    """A future of what `then` starts once the first one has its result; the first one's error is its own, too."""
    both: Future[B] = Future()

    def pass_on(second: Future[B]) -> None:
        if not both.set_running_or_notify_cancel():
            return
        error = CancelledError() if second.cancelled() else second.exception()
        if error is not None:
            both.set_exception(error)
        else:
            both.set_result(second.result())

    def start(done: Future[A]) -> None:
        if both.cancelled():
            return
        try:
            second = then(done.result())
            second.add_done_callback(pass_on)
            both.add_done_callback(lambda ended: second.cancel() if ended.cancelled() else None)
        except BaseException as error:
            if both.set_running_or_notify_cancel():
                both.set_exception(error)

    first.add_done_callback(start)
    return both
