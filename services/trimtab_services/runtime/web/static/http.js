// Calls of an HTTP API. Each has a deadline; what came of it is a value, an `ApiError` or `Unreachable`.

const DEADLINE_MS = 30000;

/** What a service says that is away for a while: too busy, or without its database. */
export const AWAY = new Set([429, 502, 503, 504]);

/** The service refused; `reason`, `field`, `value` and `limit` are those of its error. */
export class ApiError extends Error {
  constructor(status, body) {
    super(body.message ?? `The service answered with status ${status}.`);
    this.status = status;
    this.reason = body.reason ?? "";
    this.field = body.field ?? "";
    this.value = body.value ?? null;
    this.limit = body.limit ?? null;
  }
}

/** No answer came, or the service is away: the same call may work later. */
export class Unreachable extends Error {}

/**
 * Asks once.
 *
 * @param {string} method of HTTP.
 * @param {string} address of the call.
 * @param {object} [body] sent as JSON.
 * @param {{headers?: object, isAway?: (status: number) => boolean}} options headers besides; statuses that are no answer.
 */
export async function ask(method, address, body, { headers = {}, isAway = (status) => AWAY.has(status) } = {}) {
  const answer = await send(method, address, body, headers);
  if (isAway(answer.status)) throw new Unreachable("The service is not ready.");
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(answer.status, told);
  return told;
}

async function send(method, address, body, headers) {
  try {
    return await fetch(address, {
      method,
      headers: body ? { "content-type": "application/json", ...headers } : {},
      body: body ? JSON.stringify(body) : undefined,
      cache: "no-store",
      credentials: "same-origin",
      redirect: "error",
      signal: AbortSignal.timeout(DEADLINE_MS),
    });
  } catch {
    throw new Unreachable("The service does not answer.");
  }
}
