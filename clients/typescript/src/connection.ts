/** Connections: address, TLS, bearer token, message limits, keepalive, and when a failed call is tried again. */

import { readFileSync } from "node:fs";
import { BlockList, isIPv6 } from "node:net";
import { type ChannelCredentials, type ChannelOptions, credentials, Metadata } from "@grpc/grpc-js";
import { ConfigError, Overloaded, type TrimtabError, Unavailable } from "./errors.js";

/** TLS towards a server. */
export interface TLSOptions {
  /** PEM file of the roots; left out: those that Node.js brings. */
  readonly caFile?: string;
  /** PEM file of the client certificate, for mTLS; together with `keyFile` or not at all. */
  readonly certificateFile?: string;
  /** PEM file of the client certificate's key. */
  readonly keyFile?: string;
}

/** A bearer token, or a function that gives it: asked before every try of a call, so that it may change. */
export type Token = string | (() => string);

/** Most bytes of one message in either direction; servers have the same default. */
export const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;

const MAX_TRIES = 4;

/** As in the Python client. */
export const CHANNEL_OPTIONS: ChannelOptions = {
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
  "grpc.enable_retries": 0, // we retry ourselves, by method
  "grpc.keepalive_time_ms": 20_000, // a peer that went silent is noticed while a stream is open
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.initial_reconnect_backoff_ms": 200,
  "grpc.max_reconnect_backoff_ms": 2_000,
  "grpc.use_local_subchannel_pool": 1, // one connection a client, not one shared by all of a process
};

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet("127.0.0.0", 8);
LOOPBACK.addAddress("::1", "ipv6");

/** Whether a host is this one; brackets of an IPv6 address are allowed. */
export function isLoopback(host: string): boolean {
  const address = host.replace(/^\[|\]$/g, "");
  return address === "localhost" || LOOPBACK.check(address, isIPv6(address) ? "ipv6" : "ipv4");
}

/**
 * Refuses an address that is none, and a token in plaintext beyond this host.
 *
 * @throws ConfigError says which.
 */
export function checkTarget(target: string, guarded: { tls: boolean; token: boolean; insecure: boolean }): void {
  const colon = target.lastIndexOf(":");
  const [host, port] = [target.slice(0, Math.max(colon, 0)), target.slice(colon + 1)];
  if (host === "" || !/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65_535) {
    throw new ConfigError(`target: "${target}" is no host:port`, {
      field: "target",
      value: target,
      limit: "host:port",
    });
  }
  if (guarded.token && !guarded.tls && !guarded.insecure && !isLoopback(host)) {
    throw new ConfigError(
      `target: ${target} is not on this host and has no TLS, so the bearer token would cross the network in ` +
        "plaintext; set tls, or insecure: true",
      { field: "target", value: target, limit: "tls | a loopback address | insecure: true" },
    );
  }
}

/**
 * A deadline in milliseconds that gRPC and the timers of Node.js can hold.
 *
 * @throws ConfigError when it is not in (0, 2147483647].
 */
export function checkTimeoutMs(timeoutMs: number): number {
  const most = 2_147_483_647;
  if (!(timeoutMs > 0 && timeoutMs <= most)) {
    const limit = `more than 0, at most ${most}`;
    throw new ConfigError(`timeoutMs: ${timeoutMs} must be ${limit}`, {
      field: "timeoutMs",
      value: String(timeoutMs),
      limit,
    });
  }
  return timeoutMs;
}

/**
 * Reads the files of a TLS configuration; without one the connection is plaintext.
 *
 * @throws ConfigError when a file cannot be read, or only one of certificate and key is given.
 */
export function channelCredentials(tls: TLSOptions | undefined): ChannelCredentials {
  if (tls === undefined) {
    return credentials.createInsecure();
  }
  if ((tls.certificateFile === undefined) !== (tls.keyFile === undefined)) {
    throw new ConfigError("tls: certificateFile and keyFile belong together; only one is given", {
      field: "tls.certificateFile",
    });
  }
  return credentials.createSsl(
    readPEM("tls.caFile", tls.caFile),
    readPEM("tls.keyFile", tls.keyFile),
    readPEM("tls.certificateFile", tls.certificateFile),
  );
}

/**
 * What travels with each call.
 *
 * @throws ConfigError when the token is empty or has a character that no header can carry; it never shows the token.
 */
export function callMetadata(token: Token | undefined): Metadata {
  const metadata = new Metadata();
  if (token !== undefined) {
    const text = typeof token === "string" ? token : token();
    if (!/^[\x21-\x7e]+$/.test(text)) {
      throw new ConfigError("token: is empty or has a space, a line end or a character beyond ASCII", {
        field: "token",
        limit: "visible ASCII characters",
      });
    }
    metadata.set("authorization", `Bearer ${text}`);
  }
  return metadata;
}

/**
 * Milliseconds to wait before a call that may be repeated is tried again; undefined to give up.
 *
 * @param error Why the last try failed.
 * @param tries Tries made so far, from 1.
 * @param remainingMs What is left of the call's deadline.
 */
export function retryDelayMs(error: TrimtabError, tries: number, remainingMs: number): number | undefined {
  const transient = error instanceof Unavailable || (error instanceof Overloaded && error.retryAfterMs !== undefined);
  if (!transient || tries >= MAX_TRIES) {
    return undefined;
  }
  const jitter = 1 + Math.random() / 4;
  const delayMs = Math.max(error.retryAfterMs ?? 0, 100 * 2 ** (tries - 1)) * jitter;
  return delayMs < remainingMs ? delayMs : undefined;
}

function readPEM(option: string, path: string | undefined): Buffer | null {
  if (path === undefined) {
    return null;
  }
  try {
    return readFileSync(path);
  } catch (error) {
    throw new ConfigError(`${option}: ${(error as Error).message}`, { field: option, value: path, cause: error });
  }
}
