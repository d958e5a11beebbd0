/** What a server says of itself, and the methods without a name of their own. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { NotFound, ServiceState, TrainerService, TrimtabClient, Unsupported, WeightsService } from "trimtab";
import { failure } from "./checks.js";
import { settings } from "./settings.js";

const reward = new TrimtabClient(settings.targets.reward);
const weights = new TrimtabClient(settings.targets.weights);
after(() => {
  reward.close();
  weights.close();
});

test("info", async () => {
  const info = await reward.info();
  assert.equal(info.service, "trimtab.v1.RewardService");
  assert.equal(info.state, ServiceState.SERVING);
  assert.equal(info.models[0]?.maxSequenceTokens, 256);
  assert.equal(info.limits?.maxRequestBytes, 67_108_864n);
});

test("listVersions, page by page", async () => {
  const versions: bigint[] = [];
  let pageToken = "";
  do {
    const page = await weights.listVersions({ pageSize: 2, pageToken });
    versions.push(...page.versions.map(({ version }) => version));
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  assert.deepEqual(versions.map(Number), settings.expected.versions);
});

test("call and stream reach every other method", async () => {
  const { channels } = await weights.call(WeightsService.method.listChannels, { prefix: "policy/" });
  assert.deepEqual(
    channels.map(({ name, version }) => [name, version]),
    [["policy/latest", 3n]],
  );
  const which = { case: "channel", value: "no/such" } as const;
  const error = await failure(weights.call(WeightsService.method.getManifest, { which }), NotFound);
  assert.equal(error.reason, "NOT_FOUND");
  for await (const { version } of weights.stream(WeightsService.method.watch, { channel: "policy/latest" })) {
    assert.equal(version, 3n);
    break;
  }
});

test("a service that this server does not run", async () => {
  const error = await failure(reward.call(TrainerService.method.getRun, { name: "r" }), Unsupported);
  assert.match(error.message, /this is no trimtab\.v1\.TrainerService/);
});
