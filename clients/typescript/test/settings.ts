/** What tests/clients/test_typescript.py hands over: addresses, what to ask there, and what Python was answered. */

export interface Completion {
  readonly tokenIds: readonly number[];
  readonly logprobs: readonly number[];
  readonly text: string;
}

export interface Settings {
  /** Addresses. `told` fails as it is told; `guarded` wants a token, `mutual` a client certificate, both over TLS. */
  readonly targets: Readonly<
    Record<"reward" | "reference" | "generation" | "weights" | "told" | "guarded" | "mutual", string>
  >;
  /** PEM files and tokens. */
  readonly files: Readonly<Record<"ca" | "certificate" | "key", string>>;
  readonly tokens: Readonly<Record<"score" | "runs", string>>;
  readonly prompt: string;
  readonly answers: readonly string[];
  readonly tokenIds: readonly number[];
  /** Seed of the generation: beyond what a number holds exactly, so it travels as text. */
  readonly seed: string;
  /** What the Python client was answered. */
  readonly expected: {
    readonly rewards: readonly number[];
    readonly order: readonly number[];
    readonly probabilities: readonly number[];
    readonly logprobs: readonly number[];
    readonly completions: readonly Completion[];
    readonly versions: readonly number[];
    /** Reason -> name of the gRPC code and of the class. */
    readonly reasons: Readonly<Record<string, readonly [string, string]>>;
  };
}

const text = process.env.TRIMTAB_TEST;
if (text === undefined) {
  throw new Error("TRIMTAB_TEST is not set: tests/clients/test_typescript.py starts the servers and runs these tests");
}

export const settings = JSON.parse(text) as Settings;
