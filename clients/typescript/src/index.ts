/**
 * Trimtab's client for Node.js: call the services of a deployment from TypeScript.
 *
 * ```ts
 * import { scoreItem, TrimtabClient } from "trimtab";
 *
 * const client = new TrimtabClient("127.0.0.1:50051"); // a reward service's gRPC address
 * const { scores } = await client.score({
 *   items: [scoreItem({ prompt: "What is a trim tab?", completion: "A small surface." })],
 * });
 * ```
 */

export type { CallOptions, ClientOptions } from "./calls.js";
export { TrimtabClient } from "./client.js";
export type { TLSOptions, Token } from "./connection.js";
export * from "./errors.js";
export * from "./generated/trimtab/v1/errors_pb.js";
export * from "./generated/trimtab/v1/generation_pb.js";
export * from "./generated/trimtab/v1/info_pb.js";
export * from "./generated/trimtab/v1/reference_pb.js";
export * from "./generated/trimtab/v1/reward_pb.js";
export * from "./generated/trimtab/v1/trainer_pb.js";
export * from "./generated/trimtab/v1/types_pb.js";
export * from "./generated/trimtab/v1/weights_pb.js";
export { type ChatTurn, type PromptLike, prompt, type ScoreItemLike, scoreItem } from "./inputs.js";
export { fromItemError } from "./wire-errors.js";
