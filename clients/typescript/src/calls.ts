/** How calls run: one deadline each, repeated where that is safe, cancelled by a signal, each error with its class. */

import { type Duplex, Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { setTimeout } from "node:timers/promises";
import {
  create,
  type DescMessage,
  type DescMethod,
  type DescMethodBiDiStreaming,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { type ClientReadableStream, Client as GrpcClient } from "@grpc/grpc-js";
import {
  CHANNEL_OPTIONS,
  callMetadata,
  channelCredentials,
  checkTarget,
  checkTimeoutMs,
  retryDelayMs,
  type TLSOptions,
  type Token,
} from "./connection.js";
import { Cancelled, FailedPrecondition, InvalidRequest } from "./errors.js";
import { type CallFacts, fromServiceError, isServiceError } from "./wire-errors.js";

/** Options of a client. */
export interface ClientOptions {
  /** Bearer token that every call carries. */
  readonly token?: Token;
  /** Set for a server with TLS; `{}` trusts the roots that Node.js brings. */
  readonly tls?: TLSOptions;
  /** Deadline of a call that is given none, in milliseconds; 60,000 when left out. */
  readonly timeoutMs?: number;
  /** Allows a token in plaintext beyond this host. */
  readonly insecure?: boolean;
}

/** Options of one call. */
export interface CallOptions {
  /** Deadline of this call, retries included, in milliseconds; the client's when left out. */
  readonly timeoutMs?: number;
  /** Cancels the call: it ends with Cancelled, whose cause is the signal's reason. */
  readonly signal?: AbortSignal;
}

/** A call that gRPC runs. */
interface Cancellable {
  cancel(): void;
}

const DEFAULT_TIMEOUT_MS = 60_000;

/** The calls of one connection. */
export class Calls {
  readonly #target: string;
  readonly #token: Token | undefined;
  readonly #timeoutMs: number;
  readonly #repeatable: ReadonlySet<DescMethod>;
  readonly #connection: GrpcClient;
  readonly #inFlight = new Set<Cancellable>();
  #closed = false;

  /**
   * @param target host:port of the server.
   * @param options Of the client.
   * @param repeatable Unary methods that may be sent again after a failure.
   * @throws ConfigError when an option is wrong.
   */
  constructor(target: string, options: ClientOptions, repeatable: ReadonlySet<DescMethod>) {
    const { token, tls, insecure = false } = options;
    checkTarget(target, { tls: tls !== undefined, token: token !== undefined, insecure });
    this.#target = target;
    this.#token = token;
    this.#timeoutMs = checkTimeoutMs(options.timeoutMs ?? DEFAULT_TIMEOUT_MS);
    this.#repeatable = repeatable;
    this.#connection = new GrpcClient(target, channelCredentials(tls), CHANNEL_OPTIONS);
  }

  /** Closes the connection: calls in flight end with Cancelled, later ones with FailedPrecondition. */
  close(): void {
    this.#closed = true;
    for (const call of this.#inFlight) {
      call.cancel();
    }
    this.#connection.close();
  }

  /** One request, one reply. */
  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions,
  ): Promise<MessageShape<O>> {
    const call = this.#call(method, options);
    const bytes = encode(method.input, request);
    const deadline = Date.now() + call.timeoutMs;
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.#once(method, bytes, deadline, call);
      } catch (raised) {
        if (!isServiceError(raised)) {
          throw raised;
        }
        const error = fromServiceError(raised, call);
        const delayMs = this.#repeatable.has(method) ? retryDelayMs(error, tries, deadline - Date.now()) : undefined;
        if (delayMs === undefined) {
          throw error;
        }
        await pause(delayMs, call);
      }
    }
  }

  /** One request, replies as they come. The call starts when the first reply is asked for, and is never repeated. */
  async *serverStream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodServerStreaming<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions,
  ): AsyncGenerator<MessageShape<O>, void, undefined> {
    const call = this.#call(method, options);
    const stream = this.#open(call).makeServerStreamRequest(
      pathOf(method),
      asTheyAre,
      decoder(method.output),
      encode(method.input, request),
      callMetadata(this.#token),
      { deadline: Date.now() + call.timeoutMs },
    );
    yield* this.#replies(stream, call);
  }

  /** Requests as they come, replies as they come; as `serverStream`. An error of `requests` ends both sides. */
  async *bidiStream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodBiDiStreaming<I, O>,
    requests: Iterable<MessageInitShape<I>> | AsyncIterable<MessageInitShape<I>>,
    options: CallOptions,
  ): AsyncGenerator<MessageShape<O>, void, undefined> {
    const call = this.#call(method, options);
    const stream = this.#open(call).makeBidiStreamRequest<Buffer, MessageShape<O>>(
      pathOf(method),
      asTheyAre,
      decoder(method.output),
      callMetadata(this.#token),
      { deadline: Date.now() + call.timeoutMs },
    );
    const duplex = stream as unknown as Duplex; // what it is, behind gRPC's narrower type of write()
    // A failure here destroys the stream, so the reading side tells it.
    pipeline(Readable.from(encodeAll(method.input, requests)), duplex).catch(() => undefined);
    yield* this.#replies(stream, call);
  }

  /** The connection, for a call that is about to be sent. */
  #open(call: CallFacts): GrpcClient {
    if (this.#closed) {
      throw new FailedPrecondition(`${call.target}: this client is closed`, { field: "client", value: call.target });
    }
    if (call.signal?.aborted) {
      throw cancelled(call);
    }
    return this.#connection;
  }

  #call(method: DescMethod, options: CallOptions): CallFacts {
    const timeoutMs = options.timeoutMs === undefined ? this.#timeoutMs : checkTimeoutMs(options.timeoutMs);
    const service = method.parent.typeName;
    const facts = { target: this.#target, service, method: method.name, timeoutMs, signal: options.signal };
    return { ...facts, isClosed: () => this.#closed };
  }

  #once<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: Buffer,
    deadline: number,
    call: CallFacts,
  ): Promise<MessageShape<O>> {
    const [connection, metadata] = [this.#open(call), callMetadata(this.#token)];
    return new Promise((resolve, reject) => {
      const running = connection.makeUnaryRequest(
        pathOf(method),
        asTheyAre,
        decoder(method.output),
        request,
        metadata,
        { deadline },
        (error, reply) => {
          release();
          if (error !== null || reply === undefined) {
            reject(error);
          } else {
            resolve(reply);
          }
        },
      );
      const release = this.#hold(running, call.signal);
    });
  }

  async *#replies<T>(stream: ClientReadableStream<T>, call: CallFacts): AsyncGenerator<T, void, undefined> {
    const release = this.#hold(stream, call.signal);
    stream.on("error", () => undefined); // after the reader has left, nobody else hears of the cancellation
    try {
      for await (const reply of stream) {
        yield reply as T;
      }
    } catch (raised) {
      throw isServiceError(raised) ? fromServiceError(raised, call) : raised;
    } finally {
      release();
      stream.cancel(); // a caller that stops reading frees the work behind it
    }
  }

  /** Lets the signal and `close` cancel a call, until it is released. */
  #hold(call: Cancellable, signal: AbortSignal | undefined): () => void {
    const cancel = () => call.cancel();
    this.#inFlight.add(call);
    signal?.addEventListener("abort", cancel, { once: true });
    return () => {
      this.#inFlight.delete(call);
      signal?.removeEventListener("abort", cancel);
    };
  }
}

async function pause(delayMs: number, call: CallFacts): Promise<void> {
  try {
    await setTimeout(delayMs, undefined, call.signal && { signal: call.signal });
  } catch {
    throw cancelled(call);
  }
}

function cancelled(call: CallFacts): Cancelled {
  return new Cancelled(`${call.target}: ${call.method} was cancelled before it was sent`, {
    cause: call.signal?.reason,
  });
}

function pathOf(method: DescMethod): string {
  return `/${method.parent.typeName}/${method.name}`;
}

function asTheyAre(bytes: Buffer): Buffer {
  return bytes;
}

function decoder<O extends DescMessage>(schema: O): (bytes: Buffer) => MessageShape<O> {
  return (bytes) => fromBinary(schema, bytes);
}

/** @throws InvalidRequest when a field has a value that its type cannot hold. */
function encode<I extends DescMessage>(schema: I, request: MessageInitShape<I>): Buffer {
  try {
    const bytes = toBinary(schema, create(schema, request));
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  } catch (error) {
    throw new InvalidRequest(`${schema.name}: ${(error as Error).message}`, { cause: error });
  }
}

async function* encodeAll<I extends DescMessage>(
  schema: I,
  requests: Iterable<MessageInitShape<I>> | AsyncIterable<MessageInitShape<I>>,
): AsyncGenerator<Buffer, void, undefined> {
  for await (const request of requests) {
    yield encode(schema, request);
  }
}
