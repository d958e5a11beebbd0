/** Prompts and items in their short forms, as the messages that the calls take. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ScoreItemSchema } from "./generated/trimtab/v1/reward_pb.js";
import type { PromptSchema } from "./generated/trimtab/v1/types_pb.js";

/** One turn of a conversation. */
export interface ChatTurn {
  readonly role: "system" | "user" | "assistant";
  readonly content: string;
}

/** Text, a conversation, or token ids in the service's own vocabulary. */
export type PromptLike = string | readonly ChatTurn[] | readonly number[];

/** A prompt with its completion, a conversation that ends in an assistant turn, or a whole sequence of token ids. */
export type ScoreItemLike = { readonly itemId?: string } & (
  | { readonly prompt: PromptLike; readonly completion: string | readonly number[] }
  | { readonly messages: readonly ChatTurn[] }
  | { readonly tokenIds: readonly number[] }
);

/** What a completion continues. */
export function prompt(input: PromptLike): MessageInitShape<typeof PromptSchema> {
  if (typeof input === "string") {
    return { form: { case: "text", value: input } };
  }
  if (isConversation(input)) {
    return { form: { case: "messages", value: { messages: [...input] } } };
  }
  return { form: { case: "tokenIds", value: { ids: [...input] } } };
}

/** One thing to score. */
export function scoreItem(item: ScoreItemLike): MessageInitShape<typeof ScoreItemSchema> {
  const itemId = item.itemId ?? "";
  if ("messages" in item) {
    return { itemId, input: { case: "messages", value: { messages: [...item.messages] } } };
  }
  if ("tokenIds" in item) {
    return { itemId, input: { case: "tokenIds", value: { ids: [...item.tokenIds] } } };
  }
  const { completion } = item;
  return {
    itemId,
    input: {
      case: "pair",
      value: {
        prompt: prompt(item.prompt),
        completion:
          typeof completion === "string"
            ? { case: "text", value: completion }
            : { case: "tokenIds", value: { ids: [...completion] } },
      },
    },
  };
}

function isConversation(input: readonly ChatTurn[] | readonly number[]): input is readonly ChatTurn[] {
  return typeof input[0] === "object";
}
