// Calls of the HTTP API. Each has a deadline; what came of it is a value, an `ApiError` or `Unreachable`.

import { AWAY, connection } from "./connection.js";

const BASE = "/labeling/api/";
const DEADLINE_MS = 30000;

/** The service refused; `reason`, `field` and `limit` are those of its error. */
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

/** No answer came, or the service or its database is away or too busy: the same call may work later. */
export class Unreachable extends Error {}

/** The session, as the service told it last; both null while nobody is signed in. */
export const session = { account: null, csrfToken: null };

let askToSignIn = null;

/** Sets what signs the same person in again when the session has ended; it ends once that is done. */
export function onSessionEnd(signIn) {
  askToSignIn = signIn;
}

export const get = (path) => call("GET", path);
export const post = (path, body = {}) => call("POST", path, body);
export const put = (path, body) => call("PUT", path, body);

/** Signs in, or learns who is signed in: both answer with the account and its token. */
export async function begin(method, path, body) {
  const told = await request(method, path, body);
  session.account = told.account;
  session.csrfToken = told.csrf_token;
}

/** A path of names that may have any character. */
export function path(...parts) {
  return parts.map(encodeURIComponent).join("/");
}

async function call(method, where, body) {
  try {
    return await request(method, where, body);
  } catch (error) {
    if (!(error instanceof ApiError) || !session.account) throw error;
    if (error.status === 401) await askToSignIn();
    else if (error.status === 403 && error.field === "csrf") await renewToken();
    else throw error;
    return await request(method, where, body);
  }
}

/** Another tab has signed in again since: same cookie, another token. */
async function renewToken() {
  const name = session.account.name;
  await begin("GET", "me");
  if (session.account.name !== name) location.reload();
}

async function request(method, where, body) {
  const answer = await send(method, where, body);
  const isLogin = where === "login";
  if (AWAY.has(answer.status) && !(isLogin && answer.status === 429)) {
    connection.failed();
    throw new Unreachable("The service is not ready.");
  }
  connection.worked();
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(answer.status, told);
  return told;
}

async function send(method, where, body) {
  try {
    return await fetch(BASE + where, {
      method,
      headers: body ? { "content-type": "application/json", "x-csrf-token": session.csrfToken ?? "" } : {},
      body: body ? JSON.stringify(body) : undefined,
      cache: "no-store",
      credentials: "same-origin",
      redirect: "error",
      signal: AbortSignal.timeout(DEADLINE_MS),
    });
  } catch {
    connection.failed();
    throw new Unreachable("The service does not answer.");
  }
}
