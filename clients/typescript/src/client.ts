/** `TrimtabClient`: the calls of one server. */

import type {
  DescMessage,
  DescMethod,
  DescMethodServerStreaming,
  DescMethodUnary,
  MessageInitShape,
  MessageShape,
} from "@bufbuild/protobuf";
import { type CallOptions, Calls, type ClientOptions } from "./calls.js";
import {
  type GenerateRequestSchema,
  type GenerateResponse,
  GenerationService,
} from "./generated/trimtab/v1/generation_pb.js";
import { type GetInfoResponse, InfoService } from "./generated/trimtab/v1/info_pb.js";
import {
  type LogProbsRequestSchema,
  type LogProbsResponse,
  ReferenceService,
} from "./generated/trimtab/v1/reference_pb.js";
import {
  type RankRequestSchema,
  type RankResponse,
  RewardService,
  type ScoreRequestSchema,
  type ScoreResponse,
  type ScoreStreamRequestSchema,
  type ScoreStreamResponse,
} from "./generated/trimtab/v1/reward_pb.js";
import { TrainerService } from "./generated/trimtab/v1/trainer_pb.js";
import {
  type ListVersionsRequestSchema,
  type ListVersionsResponse,
  WeightsService,
} from "./generated/trimtab/v1/weights_pb.js";

/** Pure computations and plain reads: a second call changes nothing. */
const REPEATABLE: ReadonlySet<DescMethod> = new Set([
  RewardService.method.score,
  RewardService.method.rank,
  ReferenceService.method.logProbs,
  WeightsService.method.getManifest,
  WeightsService.method.listVersions,
  WeightsService.method.listChannels,
  TrainerService.method.getRun,
  TrainerService.method.listRuns,
]);

/**
 * A connection to one server, by which the services that it runs can be called.
 *
 * Every call has a deadline. A failed call is repeated only where that is safe (`score`, `rank`, `logProbs`, reads):
 * after Unavailable, or after Overloaded once the server's `retryAfterMs` has passed; at most three times, inside the
 * deadline. Streams are never repeated: the caller knows which replies are missing. Errors are those of `errors.ts`.
 */
export class TrimtabClient {
  readonly #calls: Calls;

  /**
   * @param target host:port of the server's gRPC side.
   * @param options Token, TLS and default deadline.
   * @throws ConfigError when target is no host:port, an option is wrong, a file cannot be read, or a token would cross
   *   the network in plaintext.
   */
  constructor(target: string, options: ClientOptions = {}) {
    this.#calls = new Calls(target, options, REPEATABLE);
  }

  /** Closes the connection: calls in flight end with Cancelled, later ones with FailedPrecondition. */
  close(): void {
    this.#calls.close();
  }

  /** State, models and limits of the server. Not repeated: it is asked to learn how things are now. */
  info(options: CallOptions = {}): Promise<GetInfoResponse> {
    return this.#calls.unary(InfoService.method.getInfo, {}, options);
  }

  /** Rewards of a request's items, in its order. */
  score(request: MessageInitShape<typeof ScoreRequestSchema>, options: CallOptions = {}): Promise<ScoreResponse> {
    return this.#calls.unary(RewardService.method.score, request, options);
  }

  /**
   * Scores items as they come and answers each as it is done, out of order; the error of one item is in its reply. The
   * deadline is that of the whole stream.
   */
  scoreStream(
    requests:
      | Iterable<MessageInitShape<typeof ScoreStreamRequestSchema>>
      | AsyncIterable<MessageInitShape<typeof ScoreStreamRequestSchema>>,
    options: CallOptions = {},
  ): AsyncGenerator<ScoreStreamResponse, void, undefined> {
    return this.#calls.bidiStream(RewardService.method.scoreStream, requests, options);
  }

  /** The answers to one prompt, ordered by reward. */
  rank(request: MessageInitShape<typeof RankRequestSchema>, options: CallOptions = {}): Promise<RankResponse> {
    return this.#calls.unary(RewardService.method.rank, request, options);
  }

  /** Per-token log-probs of a request's sequences, in its order. */
  logProbs(
    request: MessageInitShape<typeof LogProbsRequestSchema>,
    options: CallOptions = {},
  ): Promise<LogProbsResponse> {
    return this.#calls.unary(ReferenceService.method.logProbs, request, options);
  }

  /** Completions, each the moment it ends, in any order. Leaving the loop cancels what is left. */
  generate(
    request: MessageInitShape<typeof GenerateRequestSchema>,
    options: CallOptions = {},
  ): AsyncGenerator<GenerateResponse, void, undefined> {
    return this.#calls.serverStream(GenerationService.method.generate, request, options);
  }

  /** A page of the weights service's versions, newest first. */
  listVersions(
    request: MessageInitShape<typeof ListVersionsRequestSchema> = {},
    options: CallOptions = {},
  ): Promise<ListVersionsResponse> {
    return this.#calls.unary(WeightsService.method.listVersions, request, options);
  }

  /** Any other unary method, such as `TrainerService.method.getRun`. Reads are repeated, the rest is not. */
  call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions = {},
  ): Promise<MessageShape<O>> {
    return this.#calls.unary(method, request, options);
  }

  /** Any other method that streams replies, such as `TrainerService.method.watchRun`; leaving the loop cancels it. */
  stream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodServerStreaming<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions = {},
  ): AsyncGenerator<MessageShape<O>, void, undefined> {
    return this.#calls.serverStream(method, request, options);
  }
}
