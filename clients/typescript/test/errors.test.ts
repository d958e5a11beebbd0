/** One table of reasons, the same as Python's, and nothing of an error is lost on the wire. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { status } from "@grpc/grpc-js";
import { fromItemError, InvalidRequest, Overloaded, REASONS, Reason, scoreItem, TrimtabClient } from "trimtab";
import { failure } from "./checks.js";
import { settings } from "./settings.js";

const told = new TrimtabClient(settings.targets.told);
after(() => told.close());

test("the table is Python's", () => {
  const table = Object.entries(REASONS).map(([reason, [code, kind]]) => [reason, [status[code], kind.name]]);
  assert.deepEqual(Object.fromEntries(table), settings.expected.reasons);
});

test("every reason comes as its class, with all that was told", async () => {
  for (const [reason, [, kind]] of Object.entries(REASONS)) {
    const error = await failure(told.score({ model: reason }, { timeoutMs: 1_000 }), kind);
    assert.deepEqual(
      [error.reason, error.message, error.field, error.value, error.limit, error.retryAfterMs],
      [reason, "items[3].text: é 1 is above 0\nnext line", "items[3].text", "é 1", "0", 1_250],
    );
    assert.deepEqual([error.metadata.served_version, error.name], ["7", kind.name]);
  }
});

test("a reason of a newer server keeps the class of its code", async () => {
  const error = await failure(told.score({ model: "FROM_THE_FUTURE" }), Overloaded);
  assert.deepEqual([error.message, error.limit, error.retryAfterMs], ["too much", "3", undefined]);
});

test("a reason of a newer server in the error of one item", () => {
  const reason = 9_999 as Reason;
  const error = fromItemError({
    $typeName: "trimtab.v1.ItemError",
    reason,
    message: "m",
    field: "f",
    value: "",
    limit: "",
  });
  assert.deepEqual([error.name, error.reason, error.message, error.field], ["InternalError", "INTERNAL", "m", "f"]);
  assert.equal(Reason.FIELD_INVALID, 1);
});

test("a value that its field cannot hold is refused before it is sent", async () => {
  const error = await failure(told.score({ items: [scoreItem({ tokenIds: [1.5] })] }), InvalidRequest);
  assert.equal(error.reason, "FIELD_INVALID");
  assert.match(error.message, /^ScoreRequest: .*ids.*1\.5/);
});
