/** Generation: the same draws as in Python, freed slots, full queues. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import {
  Cancelled,
  type Completion,
  FinishReason,
  fromItemError,
  InvalidRequest,
  Overloaded,
  prompt,
  TrimtabClient,
  VersionUnavailable,
} from "trimtab";
import { all, assertClose, failure } from "./checks.js";
import { settings } from "./settings.js";

const { expected, targets, tokenIds } = settings;
const client = new TrimtabClient(targets.generation);
after(() => client.close());

/** One prompt, many tokens: some seconds of work. */
function longWork(numSamples = 2) {
  return {
    prompts: [{ promptId: "long", prompt: prompt(tokenIds), numSamples }],
    sampling: { maxNewTokens: 240, ignoreEos: true },
  };
}

async function idle(): Promise<void> {
  const until = Date.now() + 10_000;
  for (;;) {
    const { load } = await client.info();
    if (load?.runningItems === 0n && load.waitingItems === 0n) {
      return;
    }
    assert.ok(Date.now() < until, `still at work: ${load?.runningItems} run, ${load?.waitingItems} wait`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

test("generate draws what it draws for Python, all 64 bits of the seed counted", async () => {
  const request = {
    prompts: [{ promptId: "p", prompt: prompt(settings.prompt), seed: BigInt(settings.seed), numSamples: 2 }],
    sampling: { maxNewTokens: 8, temperature: 0.9 },
    returnText: true,
  };
  const completions: Completion[] = [];
  for await (const { promptId, result } of client.generate(request)) {
    assert.equal(promptId, "p");
    assert.ok(result.case === "completion");
    completions[result.value.sampleIndex] = result.value;
  }
  assert.equal(completions.length, expected.completions.length);
  for (const [index, wanted] of expected.completions.entries()) {
    const completion = completions[index];
    assert.ok(completion);
    assert.deepEqual(completion.tokenIds, wanted.tokenIds);
    assertClose(completion.logprobs, wanted.logprobs);
    assert.equal(completion.text, wanted.text);
    assert.ok([FinishReason.STOP, FinishReason.LENGTH].includes(completion.finishReason));
    assert.equal(completion.versionSpans[0]?.version, 0n);
  }
});

test("a bad prompt: the whole request, or its item alone", async () => {
  const prompts = [
    { promptId: "bad", prompt: prompt([5, 400]) },
    { promptId: "good", prompt: prompt([5, 6]) },
  ];
  const sampling = { maxNewTokens: 3 };
  const error = await failure(all(client.generate({ prompts, sampling })), InvalidRequest);
  assert.deepEqual([error.reason, error.field], ["TOKEN_ID_OUT_OF_RANGE", "prompts[0].prompt.token_ids[1]"]);
  const replies = await all(client.generate({ prompts, sampling, perItemErrors: true }));
  const results = new Map(replies.map(({ promptId, result }) => [promptId, result]));
  const [bad, good] = [results.get("bad"), results.get("good")];
  assert.ok(bad?.case === "error");
  assert.equal(fromItemError(bad.value).reason, "TOKEN_ID_OUT_OF_RANGE");
  assert.equal(good?.case, "completion");
});

test("a version that the replica does not serve", async () => {
  const version = { requirement: { case: "exactly", value: 3n } } as const;
  const error = await failure(all(client.generate({ ...longWork(), version })), VersionUnavailable);
  assert.deepEqual([error.reason, error.metadata.served_version], ["VERSION_UNAVAILABLE", "0"]);
});

test("leaving the loop frees the slots", async () => {
  const short = { promptId: "short", prompt: prompt(tokenIds), maxNewTokens: 2 };
  const { prompts, sampling } = longWork();
  for await (const { promptId } of client.generate({ prompts: [short, ...prompts], sampling })) {
    assert.equal(promptId, "short");
    break;
  }
  await idle();
});

test("an aborted signal frees the slots and is the cause", async () => {
  const controller = new AbortController();
  const reason = new Error("the user has left");
  setTimeout(() => controller.abort(reason), 50);
  const error = await failure(all(client.generate(longWork(), { signal: controller.signal })), Cancelled);
  assert.equal(error.cause, reason);
  await idle();
});

test("a full queue says when to come back", async () => {
  const held = client.generate(longWork());
  const first = held.next();
  const error = await failure(all(client.generate(longWork())), Overloaded);
  assert.equal(error.reason, "QUEUE_FULL");
  assert.ok((error.retryAfterMs ?? 0) > 0);
  assert.ok(!(await first).done);
  await held.return();
  await idle();
});
