/** TLS, mTLS and tokens; every refusal is one clear error. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type ClientOptions,
  ConfigError,
  PermissionDenied,
  type ScoreResponse,
  scoreItem,
  TrimtabClient,
  Unauthenticated,
  Unavailable,
} from "trimtab";
import { failure } from "./checks.js";
import { settings } from "./settings.js";

const { files, targets, tokens } = settings;
const TLS = { caFile: files.ca };

async function score(target: string, options: ClientOptions): Promise<ScoreResponse> {
  const client = new TrimtabClient(target, { timeoutMs: 5_000, ...options });
  try {
    return await client.score({ items: [scoreItem({ tokenIds: [5, 6] })] });
  } finally {
    client.close();
  }
}

test("TLS and a token", async () => {
  const { scores } = await score(targets.guarded, { tls: TLS, token: tokens.score });
  assert.equal(scores.length, 1);
});

test("a token that changes is asked for before each call", async () => {
  const given = ["wrong", tokens.score];
  const client = new TrimtabClient(targets.guarded, { tls: TLS, token: () => given.shift() ?? "" });
  await failure(client.info(), Unauthenticated);
  assert.equal((await client.info()).service, "trimtab.v1.RewardService");
  client.close();
});

test("no token, a wrong one, and one without the scope", async () => {
  const missing = await failure(score(targets.guarded, { tls: TLS }), Unauthenticated);
  assert.equal(missing.reason, "TOKEN_MISSING");
  const unknown = await failure(score(targets.guarded, { tls: TLS, token: "wrong" }), Unauthenticated);
  assert.equal(unknown.reason, "TOKEN_UNKNOWN");
  const denied = await failure(score(targets.guarded, { tls: TLS, token: tokens.runs }), PermissionDenied);
  assert.deepEqual([denied.reason, denied.limit], ["SCOPE_MISSING", "score"]);
});

test("a token that no header can carry is refused without being shown", async () => {
  const secret = "secret-with-an-end\n";
  const error = await failure(score(targets.guarded, { tls: TLS, token: secret }), ConfigError);
  assert.equal(error.field, "token");
  assert.ok(!error.message.includes("secret-with"));
});

test("mutual TLS", async () => {
  const tls = { ...TLS, certificateFile: files.certificate, keyFile: files.key };
  assert.equal((await score(targets.mutual, { tls })).scores.length, 1);
});

test("a failed handshake is Unavailable", async () => {
  const token = tokens.score;
  const refused: [string, ClientOptions][] = [
    [targets.mutual, { tls: TLS }], // no certificate
    [targets.guarded, { tls: { caFile: files.certificate }, token }], // another root
    [targets.guarded, { token }], // plaintext towards TLS
    [targets.reward, { tls: TLS }], // TLS towards plaintext
  ];
  for (const [target, options] of refused) {
    const error = await failure(score(target, options), Unavailable);
    assert.ok(error.message.startsWith(`${target}: cannot be reached`), error.message);
  }
});

test("files that are wrong", () => {
  const wrong: [ClientOptions["tls"], string][] = [
    [{ caFile: "/no/such/file.pem" }, "tls.caFile"],
    [{ certificateFile: files.certificate }, "tls.certificateFile"],
    [{ keyFile: files.key }, "tls.certificateFile"],
  ];
  for (const [tls, field] of wrong) {
    assert.throws(
      () => new TrimtabClient(targets.guarded, { tls: tls ?? {} }),
      (error) => error instanceof ConfigError && error.field === field,
    );
  }
});
