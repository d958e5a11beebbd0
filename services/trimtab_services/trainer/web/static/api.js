// Calls of the HTTP API. Each has a deadline; what came of it is a value, an `ApiError` or `Unreachable`.

const BASE = "/runs/api/";
const DEADLINE_MS = 30000;

/** What a service says that is away for a while. */
const AWAY = new Set([429, 502, 503, 504]);

/** The service refused; `field` is that of its error. */
export class ApiError extends Error {
  constructor(status, body) {
    super(body.message ?? `The service answered with status ${status}.`);
    this.status = status;
    this.field = body.field ?? "";
  }
}

/** No answer came, or the service is away: the same call may work later. */
export class Unreachable extends Error {}

let signInAgain = () => {};

/** Sets what is done when the session has ended. */
export function onSessionEnd(act) {
  signInAgain = act;
}

/** Where a part of the API is. */
export const address = (where) => BASE + where;

/** Asks; a session that has ended is told to `onSessionEnd` besides. */
export async function get(where) {
  try {
    return await request("GET", where);
  } catch (error) {
    if (error.status === 401) signInAgain();
    throw error;
  }
}

export const post = (where, body = {}) => request("POST", where, body);

/** A query of those values that are given. */
export function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== "");
  return new URLSearchParams(given).toString();
}

/** Asks who is signed in; for the start, where nobody may be. */
export const whoIsThere = () => request("GET", "session");

async function request(method, where, body) {
  const answer = await send(method, where, body);
  if (AWAY.has(answer.status)) throw new Unreachable("The service is not ready.");
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(answer.status, told);
  return told;
}

async function send(method, where, body) {
  try {
    return await fetch(address(where), {
      method,
      headers: body ? { "content-type": "application/json" } : {},
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
