/** Comparisons that several tests make. */

import assert from "node:assert/strict";
import type { TrimtabError } from "trimtab";

/** Floats of two runs of the same model. */
export function assertClose(actual: readonly number[], expected: readonly number[]): void {
  assert.equal(actual.length, expected.length);
  for (const [index, value] of actual.entries()) {
    const other = expected[index] ?? Number.NaN;
    assert.ok(Math.abs(value - other) <= 1e-5, `[${index}]: ${value} is not ${other}`);
  }
}

/** The error that a call ends with; it must be exactly of the class. */
export async function failure<E extends TrimtabError>(
  call: Promise<unknown>,
  kind: new (message: string) => E,
): Promise<E> {
  const error = await call.then(
    () => assert.fail(`expected ${kind.name}, and the call succeeded`),
    (raised: unknown) => raised,
  );
  assert.equal((error as Error).constructor, kind, String((error as Error).stack));
  return error as E;
}

/** Everything that a stream gives. */
export async function all<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const one of stream) {
    found.push(one);
  }
  return found;
}
