/** Errors as they cross the wire: a gRPC status with details, or the error of one item, to the class of its reason. */

import { fromBinary } from "@bufbuild/protobuf";
import { anyUnpack, durationMs } from "@bufbuild/protobuf/wkt";
import { type ServiceError, status } from "@grpc/grpc-js";
import {
  Cancelled,
  DeadlineExceeded,
  InternalError,
  InvalidRequest,
  REASONS,
  type ReasonName,
  type TrimtabError,
  Unavailable,
  Unsupported,
} from "./errors.js";
import { type ErrorInfo, ErrorInfoSchema, RetryInfoSchema } from "./generated/google/rpc/error_details_pb.js";
import { StatusSchema } from "./generated/google/rpc/status_pb.js";
import { type ItemError, Reason } from "./generated/trimtab/v1/errors_pb.js";

/** `google.rpc.ErrorInfo.domain` of every error that a Trimtab service returns. */
export const DOMAIN = "trimtab";

/** One call, as messages tell of it. */
export interface CallFacts {
  /** Address that was called. */
  readonly target: string;
  /** Full name of the service, such as `trimtab.v1.RewardService`. */
  readonly service: string;
  /** Name of the method, such as `Score`. */
  readonly method: string;
  /** The deadline it had, in milliseconds. */
  readonly timeoutMs: number;
  /** What could have cancelled it. */
  readonly signal: AbortSignal | undefined;
  /** Whether its client has been closed by now. */
  readonly isClosed: () => boolean;
}

/** Whether gRPC raised it: a status of the server, or of the connection to it. */
export function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "details" in error && "metadata" in error;
}

/**
 * The error behind a failed call.
 *
 * @returns The error that the server raised; for failures that no server reported (no connection, deadline) one that
 *   names target, method and deadline.
 */
export function fromServiceError(error: ServiceError, call: CallFacts): TrimtabError {
  return fromDetails(error) ?? fromCode(error, call);
}

/** The error of one item of a reply, as the class that the same reason raises. */
export function fromItemError(error: ItemError): TrimtabError {
  const name = Reason[error.reason];
  const reason = name !== undefined && isReasonName(name) ? name : "INTERNAL"; // a newer server's reason
  return new REASONS[reason][1](error.message, {
    reason,
    field: error.field,
    value: error.value,
    limit: error.limit,
  });
}

function fromDetails(error: ServiceError): TrimtabError | undefined {
  const [packed] = error.metadata.get("grpc-status-details-bin");
  if (packed === undefined || typeof packed === "string") {
    return undefined;
  }
  const { message, details } = fromBinary(StatusSchema, packed);
  const info = details.map((detail) => anyUnpack(detail, ErrorInfoSchema)).find((found) => found !== undefined);
  if (info?.domain !== DOMAIN) {
    return undefined;
  }
  const retry = details.map((detail) => anyUnpack(detail, RetryInfoSchema)).find((found) => found !== undefined);
  const reason = reasonOf(info, error.code);
  const { field, value, limit, ...metadata } = info.metadata;
  const retryAfterMs = retry?.retryDelay && durationMs(retry.retryDelay);
  return new REASONS[reason][1](message, { reason, field, value, limit, metadata, retryAfterMs, cause: error });
}

/** The reason that the server named; a newer server's keeps the class of its code. */
function reasonOf(info: ErrorInfo, code: status): ReasonName {
  if (isReasonName(info.reason)) {
    return info.reason;
  }
  const known = Object.entries(REASONS).find(([, [itsCode]]) => itsCode === code);
  return known === undefined ? "INTERNAL" : (known[0] as ReasonName);
}

function isReasonName(name: string): name is ReasonName {
  return Object.hasOwn(REASONS, name);
}

function fromCode(error: ServiceError, call: CallFacts): TrimtabError {
  const { target, method, timeoutMs } = call;
  switch (error.code) {
    case status.DEADLINE_EXCEEDED:
      return new DeadlineExceeded(`${target}: ${method} was not done within ${timeoutMs} ms`, {
        field: "timeoutMs",
        value: String(timeoutMs),
        cause: error,
      });
    case status.UNAVAILABLE:
      return new Unavailable(`${target}: cannot be reached: ${error.details}`, {
        field: "target",
        value: target,
        cause: error,
      });
    case status.CANCELLED:
      if (call.signal?.aborted || call.isClosed()) {
        return new Cancelled(`${target}: ${method} was cancelled: ${error.details}`, {
          cause: call.signal?.aborted ? call.signal.reason : error,
        });
      }
      // gRPC's answer to the calls in flight of a server that ends.
      return new Unavailable(`${target}: ended during ${method}`, { field: "target", value: target, cause: error });
    case status.UNIMPLEMENTED:
      return new Unsupported(`${target}: this is no ${call.service}, or an older one`, {
        field: "target",
        value: target,
        cause: error,
      });
    case status.RESOURCE_EXHAUSTED: // a message beyond the limit of either side
    case status.OUT_OF_RANGE:
    case status.INVALID_ARGUMENT:
      return new InvalidRequest(`${target}: ${method}: ${error.details}`, { cause: error });
    default:
      return new InternalError(`${target}: ${method} failed with ${status[error.code]}: ${error.details}`, {
        cause: error,
      });
  }
}
