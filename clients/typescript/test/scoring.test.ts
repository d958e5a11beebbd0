/** Rewards, rankings and log-probs are those that the Python client gets from the same servers. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import {
  fromItemError,
  NotFound,
  prompt,
  type ScoreStreamResponse,
  SequenceTooLong,
  scoreItem,
  TrimtabClient,
  TruncationSide,
} from "trimtab";
import { all, assertClose, failure } from "./checks.js";
import { settings } from "./settings.js";

const { answers, expected, targets, tokenIds } = settings;
const reward = new TrimtabClient(targets.reward);
const reference = new TrimtabClient(targets.reference);
after(() => {
  reward.close();
  reference.close();
});

const items = answers.map((completion, index) =>
  scoreItem({ itemId: `item-${index}`, prompt: settings.prompt, completion }),
);
const tooLong = scoreItem({ itemId: "long", tokenIds: Array.from({ length: 300 }, () => 7) });

test("score", async () => {
  const { scores, served, timing } = await reward.score({ items });
  assertClose(
    scores.map((score) => score.reward),
    expected.rewards,
  );
  assert.deepEqual(
    scores.map((score) => score.itemId),
    ["item-0", "item-1", "item-2"],
  );
  assert.equal(served?.version, 0n);
  assert.ok((timing?.computeMs ?? 0) > 0);
});

test("score of token ids and of a conversation", async () => {
  const conversation = [
    { role: "user", content: "hello" },
    { role: "assistant", content: "good day" },
  ] as const;
  const pair = scoreItem({ prompt: [conversation[0]], completion: "good day" });
  const whole = scoreItem({ messages: conversation });
  const ids = scoreItem({ tokenIds });
  const split = scoreItem({ prompt: tokenIds.slice(0, 2), completion: tokenIds.slice(2) });
  const { scores } = await reward.score({ items: [pair, whole, ids, split] });
  const rewards = scores.map((score) => score.reward);
  assertClose([rewards[0] ?? 0, rewards[2] ?? 0], [rewards[1] ?? 1, rewards[3] ?? 1]);
  assert.ok(Math.abs((rewards[0] ?? 0) - (rewards[2] ?? 0)) > 1e-3, `all alike: ${rewards}`);
});

test("too long is an error with both numbers, unless cutting is allowed", async () => {
  const error = await failure(reward.score({ items: [...items, tooLong] }), SequenceTooLong);
  assert.deepEqual(
    [error.reason, error.field, error.value, error.limit],
    ["SEQUENCE_TOO_LONG", "items[3].token_ids", "300", "256"],
  );
  const { scores } = await reward.score({ items: [tooLong], truncation: TruncationSide.LEFT });
  assert.deepEqual([scores[0]?.tokenCount, scores[0]?.truncatedTokenCount], [256, 44]);
});

test("errors of single items", async () => {
  const { scores } = await reward.score({ items: [tooLong, ...items], perItemErrors: true });
  assert.ok(scores[0]?.error);
  const error = fromItemError(scores[0].error);
  assert.ok(error instanceof SequenceTooLong);
  assert.deepEqual([error.reason, error.value, error.limit], ["SEQUENCE_TOO_LONG", "300", "256"]);
  assertClose(
    scores.slice(1).map((score) => score.reward),
    expected.rewards,
  );
});

test("scoreStream answers by id and goes on after a bad item", async () => {
  async function* requests() {
    for (const item of [...items, tooLong]) {
      yield { item };
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
  const replies = new Map<string, ScoreStreamResponse>();
  for await (const reply of reward.scoreStream(requests())) {
    replies.set(reply.score?.itemId ?? "", reply);
  }
  assertClose(
    items.map((_, index) => replies.get(`item-${index}`)?.score?.reward ?? Number.NaN),
    expected.rewards,
  );
  const error = replies.get("long")?.score?.error;
  assert.ok(error && fromItemError(error) instanceof SequenceTooLong);
});

test("scoreStream of more items than fit into any buffer", async () => {
  const count = 3_000;
  const requests = Array.from({ length: count }, (_, index) => ({
    item: scoreItem({ itemId: String(index), tokenIds: [5, 6, index % 300] }),
  }));
  const replies = await all(reward.scoreStream(requests));
  assert.equal(new Set(replies.map((reply) => reply.score?.itemId)).size, count);
});

test("an error of the requests ends scoreStream with that error", async () => {
  const broken = new RangeError("the file ended early");
  async function* requests() {
    yield { item: scoreItem({ itemId: "a", tokenIds }) };
    throw broken;
  }
  await assert.rejects(all(reward.scoreStream(requests())), (error) => error === broken);
});

test("leaving scoreStream closes the requests", async () => {
  let closed = false;
  async function* requests() {
    try {
      for (let index = 0; ; index += 1) {
        yield { item: scoreItem({ itemId: String(index), tokenIds }) };
      }
    } finally {
      closed = true;
    }
  }
  for await (const reply of reward.scoreStream(requests())) {
    assert.ok(reply.score);
    break;
  }
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.ok(closed);
});

test("rank", async () => {
  const reply = await reward.rank({ prompt: prompt(settings.prompt), answers: [...answers] });
  assert.deepEqual(reply.order, expected.order);
  assertClose(reply.pairwiseProbabilities, expected.probabilities);
  assertClose(
    reply.scores.map((score) => score.reward),
    expected.rewards,
  );
});

test("logProbs", async () => {
  const options = { temperature: 0.7, entropy: true, topN: 2 };
  const { results } = await reference.logProbs({ items: [{ tokenIds: [...tokenIds], startIndex: 2 }], options });
  const [result] = results;
  assert.ok(result);
  assertClose(result.logprobs, expected.logprobs);
  assert.equal(result.entropies.length, expected.logprobs.length);
  assert.deepEqual(
    result.topTokens.map((top) => top.tokenIds.length),
    expected.logprobs.map(() => 2),
  );
});

test("an unknown model", async () => {
  const error = await failure(reward.score({ items, model: "no-such-model" }), NotFound);
  assert.deepEqual([error.reason, error.field, error.value], ["NOT_FOUND", "model", "no-such-model"]);
});
