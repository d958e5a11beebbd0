/** Deadlines, retries and cancellation, on whole and on broken connections. */

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, test } from "node:test";
import {
  Cancelled,
  type ClientOptions,
  ConfigError,
  DeadlineExceeded,
  FailedPrecondition,
  Overloaded,
  scoreItem,
  TrimtabClient,
  Unavailable,
} from "trimtab";
import { all, failure } from "./checks.js";
import { Link } from "./links.js";
import { settings } from "./settings.js";

const REQUEST = { items: [scoreItem({ tokenIds: [5, 6] })] };
const { targets } = settings;
/** Requests that never come. */
const never = { [Symbol.asyncIterator]: () => ({ next: () => new Promise<never>(() => undefined) }) };
const told = new TrimtabClient(targets.told);
after(() => told.close());

/** Fails the first `times` calls with `reason`, then answers. */
function failing(reason: string, times: number) {
  return { requestId: randomUUID(), model: `${reason}*${times}` };
}

/** How often the server has heard of a request, this question included. */
async function tries(request: { requestId: string }): Promise<number> {
  const reply = await told.score({ requestId: request.requestId, model: "*0" });
  return Number(reply.served?.version);
}

test("Unavailable is tried again until it succeeds", async () => {
  const request = failing("DRAINING", 2);
  const began = performance.now();
  const reply = await told.score(request);
  assert.equal(reply.served?.version, 3n);
  assert.ok(performance.now() - began >= 2 * 1_250, "not before the time that the server named");
});

test("after four tries the last error is told", async () => {
  const request = failing("QUEUE_FULL", 100);
  await failure(told.score(request), Overloaded);
  assert.equal(await tries(request), 5);
});

test("no try is begun that the deadline would end", async () => {
  const request = failing("QUEUE_FULL", 100);
  await failure(told.score(request, { timeoutMs: 1_000 }), Overloaded);
  assert.equal(await tries(request), 2);
});

test("what cannot help is not tried again", async () => {
  for (const reason of ["FIELD_INVALID", "INTERNAL", "NOT_FOUND", "DEADLINE_UNMEETABLE", "FULL_WITHOUT_RETRY"]) {
    const request = failing(reason, 1);
    await assert.rejects(told.score(request));
    assert.equal(await tries(request), 2, reason);
  }
});

test("a signal ends the wait between two tries", async () => {
  const request = failing("QUEUE_FULL", 100);
  const began = performance.now();
  await failure(told.score(request, { signal: AbortSignal.timeout(300) }), Cancelled);
  assert.ok(performance.now() - began < 1_250, "before the time that the server named");
  assert.equal(await tries(request), 2);
});

test("a signal ends a call in flight, and one that is aborted before sends nothing", async (t) => {
  const link = await Link.silent();
  t.after(() => link.close());
  const client = new TrimtabClient(link.target);
  t.after(() => client.close());
  const error = await failure(client.score(REQUEST, { signal: AbortSignal.timeout(100) }), Cancelled);
  assert.equal((error.cause as Error).name, "TimeoutError");
  const request = failing("QUEUE_FULL", 100);
  await failure(told.score(request, { signal: AbortSignal.abort() }), Cancelled);
  assert.equal(await tries(request), 1);
});

test("every call has a deadline: the client's, or its own", async (t) => {
  const link = await Link.silent();
  t.after(() => link.close());
  const client = new TrimtabClient(link.target, { timeoutMs: 200 });
  t.after(() => client.close());
  const began = performance.now();
  const error = await failure(client.info(), DeadlineExceeded);
  assert.equal(error.message, `${link.target}: GetInfo was not done within 200 ms`);
  await failure(client.score(REQUEST, { timeoutMs: 100 }), DeadlineExceeded);
  await failure(all(client.generate({}, { timeoutMs: 100 })), DeadlineExceeded);
  await failure(all(client.scoreStream([], { timeoutMs: 100 })), DeadlineExceeded);
  assert.ok(performance.now() - began < 10_000);
});

test("the deadline of a stream holds while its requests are awaited", async (t) => {
  const client = new TrimtabClient(targets.reward);
  t.after(() => client.close());
  await failure(all(client.scoreStream(never, { timeoutMs: 200 })), DeadlineExceeded);
});

test("a cut connection is Unavailable, and made anew for a call that may be repeated", async (t) => {
  const link = await Link.flaky(targets.reward, 1);
  t.after(() => link.close());
  const client = new TrimtabClient(link.target);
  t.after(() => client.close());
  const { scores } = await client.score(REQUEST);
  assert.equal(scores.length, 1);
  assert.equal(link.connections, 2);
});

test("a call that may not be repeated tells of the cut at once", async (t) => {
  const link = await Link.flaky(targets.reward, 1);
  t.after(() => link.close());
  const client = new TrimtabClient(link.target);
  t.after(() => client.close());
  const error = await failure(client.info(), Unavailable);
  assert.deepEqual([error.reason, error.value], ["UNREACHABLE", link.target]);
});

test("a call that its server's end cut off is sent again", async () => {
  const request = failing("SERVER_ENDS", 1);
  const reply = await told.score(request);
  assert.equal(reply.served?.version, 2n);
  const error = await failure(told.score(failing("SERVER_ENDS", 100), { timeoutMs: 200 }), Unavailable);
  assert.equal(error.message, `${targets.told}: ended during Score`);
});

test("nobody listens", async (t) => {
  const link = await Link.silent();
  link.close();
  const client = new TrimtabClient(link.target);
  t.after(() => client.close());
  const error = await failure(client.score(REQUEST), Unavailable);
  assert.ok(error.message.startsWith(`${link.target}: cannot be reached: `), error.message);
});

test("a closed client", async () => {
  const client = new TrimtabClient(targets.reward);
  const [inFlight, waiting] = [client.score(REQUEST), all(client.scoreStream(never))];
  client.close();
  await failure(inFlight, Cancelled);
  await failure(waiting, Cancelled);
  const error = await failure(client.score(REQUEST), FailedPrecondition);
  assert.match(error.message, /this client is closed/);
  await failure(all(client.generate({})), FailedPrecondition);
});

test("options that are wrong", async () => {
  const wrong: [string, ClientOptions, string][] = [
    ["reward", {}, "target"],
    [":50051", {}, "target"],
    ["reward:0", {}, "target"],
    ["reward:65536", {}, "target"],
    ["reward:50051", { token: "t" }, "target"],
    ["127.0.0.1:50051", { timeoutMs: 0 }, "timeoutMs"],
    ["127.0.0.1:50051", { timeoutMs: Number.NaN }, "timeoutMs"],
    ["127.0.0.1:50051", { timeoutMs: 2 ** 31 }, "timeoutMs"],
  ];
  for (const [target, options, field] of wrong) {
    assert.throws(
      () => new TrimtabClient(target, options),
      (error) => error instanceof ConfigError && error.field === field,
      `${target} ${JSON.stringify(options)}`,
    );
  }
  await failure(told.info({ timeoutMs: -1 }), ConfigError);
  for (const target of ["localhost:1", "127.8.8.8:1", "[::1]:1"]) {
    new TrimtabClient(target, { token: "t" }).close();
  }
  new TrimtabClient("reward:50051", { token: "t", insecure: true }).close();
});
