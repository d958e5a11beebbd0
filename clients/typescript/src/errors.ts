/**
 * Every error that a call can end with, and the one table that joins reason, gRPC code and class. The names are those
 * of `trimtab.errors` in Python. The tree:
 *
 *     TrimtabError
 *     ├── InvalidRequest          a field of a request is wrong; sending it again cannot help
 *     │   └── SequenceTooLong     more tokens than the model or the service takes
 *     ├── FailedPrecondition      the state of the service forbids it now
 *     │   ├── VersionUnavailable  the replica does not serve the model version that was asked for
 *     │   ├── VersionConflict     compare-and-swap on a channel failed: somebody published in between
 *     │   ├── LeaseHeld           another writer holds the lease
 *     │   └── Mismatch            two parts disagree and must not work together
 *     ├── NotFound                no such version, channel, blob, model or run
 *     ├── Overloaded              the queue is full; `retryAfterMs` says when to come back
 *     ├── Unavailable             draining, waiting for a version, or not reachable
 *     ├── DeadlineExceeded        the deadline passed, or the work could not have met it
 *     ├── Cancelled               the caller's AbortSignal, or the work was stopped on request
 *     ├── Unauthenticated         no token, or one that is not known
 *     ├── PermissionDenied        the token lacks the scope
 *     ├── CorruptData             bytes do not have the digest that names them
 *     ├── Unsupported             the service, or the engine behind it, cannot do this
 *     ├── InternalError           a fault of the service itself; its log has the trace
 *     └── ConfigError             an option of the client or of a call is wrong (local, never crosses the wire)
 */

import { status } from "@grpc/grpc-js";
import type { Reason } from "./generated/trimtab/v1/errors_pb.js";

/** Why a call failed: the names of `trimtab.v1.Reason` without their prefix. */
export type ReasonName = Exclude<keyof typeof Reason, "UNSPECIFIED">;

/** What an error tells beside its message. */
export interface ErrorFacts {
  /** Why; each class has a default. */
  readonly reason?: ReasonName | undefined;
  /** Path of the offending field or option, such as `prompts[3].token_ids`. */
  readonly field?: string | undefined;
  /** What was found there. */
  readonly value?: string | undefined;
  /** What is allowed. */
  readonly limit?: string | undefined;
  /** Further facts, such as `served_version`. */
  readonly metadata?: Readonly<Record<string, string>> | undefined;
  /** Milliseconds after which a retry can succeed. */
  readonly retryAfterMs?: number | undefined;
  /** What it was made from: gRPC's own error, or the reason of an aborted signal. */
  readonly cause?: unknown;
}

/** The root of the tree. Texts are empty where there is nothing to tell. */
export class TrimtabError extends Error {
  static readonly defaultReason: ReasonName = "INTERNAL";

  readonly reason: ReasonName;
  readonly field: string;
  readonly value: string;
  readonly limit: string;
  readonly metadata: Readonly<Record<string, string>>;
  /** Milliseconds after which a retry can succeed; undefined when retrying cannot help or is unknown. */
  readonly retryAfterMs: number | undefined;

  constructor(message: string, facts: ErrorFacts = {}) {
    super(message, { cause: facts.cause });
    this.name = new.target.name;
    this.reason = facts.reason ?? new.target.defaultReason;
    this.field = facts.field ?? "";
    this.value = facts.value ?? "";
    this.limit = facts.limit ?? "";
    this.metadata = facts.metadata ?? {};
    this.retryAfterMs = facts.retryAfterMs;
  }
}

/** A field of a request is wrong; sending the same request again cannot help. */
export class InvalidRequest extends TrimtabError {
  static override readonly defaultReason: ReasonName = "FIELD_INVALID";
}

/** More tokens than the model or the service takes; `value` measured, `limit` allowed. */
export class SequenceTooLong extends InvalidRequest {
  static override readonly defaultReason: ReasonName = "SEQUENCE_TOO_LONG";
}

/** The state of the service, or of this client, forbids the call now. */
export class FailedPrecondition extends TrimtabError {
  static override readonly defaultReason: ReasonName = "RUN_STATE";
}

/** The replica does not serve the version asked for; metadata `served_version` says which it serves. */
export class VersionUnavailable extends FailedPrecondition {
  static override readonly defaultReason: ReasonName = "VERSION_UNAVAILABLE";
}

/** `expectedPreviousVersion` is not the channel's version: somebody published in between. */
export class VersionConflict extends FailedPrecondition {
  static override readonly defaultReason: ReasonName = "VERSION_CONFLICT";
}

/** Another writer holds the lease; metadata `holder` names it. */
export class LeaseHeld extends FailedPrecondition {
  static override readonly defaultReason: ReasonName = "LEASE_HELD";
}

/** Two parts that must agree do not, such as tokenizer digests. */
export class Mismatch extends FailedPrecondition {
  static override readonly defaultReason: ReasonName = "MISMATCH";
}

/** No such version, channel, blob, model or run. */
export class NotFound extends TrimtabError {
  static override readonly defaultReason: ReasonName = "NOT_FOUND";
}

/** The bounded queue is full; `retryAfterMs` says when to come back. */
export class Overloaded extends TrimtabError {
  static override readonly defaultReason: ReasonName = "QUEUE_FULL";
}

/** The service drains, waits for a version, or cannot be reached. */
export class Unavailable extends TrimtabError {
  static override readonly defaultReason: ReasonName = "UNREACHABLE";
}

/** The deadline passed, or the work could not have met it and was refused. */
export class DeadlineExceeded extends TrimtabError {
  static override readonly defaultReason: ReasonName = "DEADLINE_EXCEEDED";
}

/** The caller's AbortSignal, whose reason is the `cause`, or the work was stopped on request. */
export class Cancelled extends TrimtabError {
  static override readonly defaultReason: ReasonName = "CANCELLED";
}

/** No token, or one that the service does not know. */
export class Unauthenticated extends TrimtabError {
  static override readonly defaultReason: ReasonName = "TOKEN_MISSING";
}

/** The token is known but lacks the scope; `limit` names the scope. */
export class PermissionDenied extends TrimtabError {
  static override readonly defaultReason: ReasonName = "SCOPE_MISSING";
}

/** Bytes do not have the digest that names them. */
export class CorruptData extends TrimtabError {
  static override readonly defaultReason: ReasonName = "DIGEST_MISMATCH";
}

/** The service, or the engine behind it, cannot do what was asked; the message says why. */
export class Unsupported extends TrimtabError {
  static override readonly defaultReason: ReasonName = "UNSUPPORTED";
}

/** A fault of the service itself; its log has the trace under the same request id. */
export class InternalError extends TrimtabError {}

/** An option of the client or of a call is wrong; names the option, the value and what is allowed. */
export class ConfigError extends TrimtabError {
  static override readonly defaultReason: ReasonName = "FIELD_INVALID";
}

/** Reason -> gRPC status code and the class that a caller gets. The compiler demands a line for every reason. */
export const REASONS: Readonly<Record<ReasonName, readonly [status, typeof TrimtabError]>> = {
  FIELD_INVALID: [status.INVALID_ARGUMENT, InvalidRequest],
  FIELD_MISSING: [status.INVALID_ARGUMENT, InvalidRequest],
  EMPTY_PROMPT: [status.INVALID_ARGUMENT, InvalidRequest],
  SEQUENCE_TOO_LONG: [status.INVALID_ARGUMENT, SequenceTooLong],
  TOKEN_ID_OUT_OF_RANGE: [status.INVALID_ARGUMENT, InvalidRequest],
  TOO_MANY_ITEMS: [status.INVALID_ARGUMENT, InvalidRequest],
  DUPLICATE_ID: [status.INVALID_ARGUMENT, InvalidRequest],
  VERSION_UNAVAILABLE: [status.FAILED_PRECONDITION, VersionUnavailable],
  VERSION_CONFLICT: [status.FAILED_PRECONDITION, VersionConflict],
  BLOB_MISSING: [status.FAILED_PRECONDITION, FailedPrecondition],
  BASE_MISSING: [status.FAILED_PRECONDITION, FailedPrecondition],
  LEASE_HELD: [status.FAILED_PRECONDITION, LeaseHeld],
  LEASE_LOST: [status.FAILED_PRECONDITION, LeaseHeld],
  MISMATCH: [status.FAILED_PRECONDITION, Mismatch],
  RUN_STATE: [status.FAILED_PRECONDITION, FailedPrecondition],
  NOT_FOUND: [status.NOT_FOUND, NotFound],
  QUEUE_FULL: [status.RESOURCE_EXHAUSTED, Overloaded],
  QUOTA_EXCEEDED: [status.RESOURCE_EXHAUSTED, Overloaded],
  DRAINING: [status.UNAVAILABLE, Unavailable],
  WAITING_FOR_VERSION: [status.UNAVAILABLE, Unavailable],
  UNREACHABLE: [status.UNAVAILABLE, Unavailable],
  DEADLINE_EXCEEDED: [status.DEADLINE_EXCEEDED, DeadlineExceeded],
  DEADLINE_UNMEETABLE: [status.DEADLINE_EXCEEDED, DeadlineExceeded],
  CANCELLED: [status.CANCELLED, Cancelled],
  TOKEN_MISSING: [status.UNAUTHENTICATED, Unauthenticated],
  TOKEN_UNKNOWN: [status.UNAUTHENTICATED, Unauthenticated],
  SCOPE_MISSING: [status.PERMISSION_DENIED, PermissionDenied],
  DIGEST_MISMATCH: [status.DATA_LOSS, CorruptData],
  NOT_FINITE: [status.INTERNAL, InternalError],
  UNSUPPORTED: [status.UNIMPLEMENTED, Unsupported],
  INTERNAL: [status.INTERNAL, InternalError],
};
