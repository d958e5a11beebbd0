// Calls of the HTTP API, and the session that they belong to.

import { connection } from "./connection.js";
import { AWAY, ApiError, Unreachable, ask } from "./http.js";

const BASE = "/labeling/api/";

/** The session, as the service told it last; null while nobody is signed in. `idleMs` it lasts without a request. */
export const session = { account: null, csrfToken: null, idleMs: 0 };

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
  session.idleMs = told.idle_ms;
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

/** Another tab has signed in again since: same cookie, another token. Or the page was loaded without a connection. */
async function renewToken() {
  const name = session.account.name;
  await begin("GET", "me");
  if (session.account.name === name) return;
  location.reload();
  await new Promise(() => {}); // nothing more of what another person began
}

async function request(method, where, body) {
  const isAway = (status) => AWAY.has(status) && !(where === "login" && status === 429);
  const headers = { "x-csrf-token": session.csrfToken ?? "" };
  try {
    const told = await ask(method, BASE + where, body, { headers, isAway });
    connection.worked();
    return told;
  } catch (error) {
    if (error instanceof Unreachable) connection.failed();
    else connection.worked();
    throw error;
  }
}
