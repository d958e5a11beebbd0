// Calls of the HTTP API, and what ends with the session.

import { failed, worked } from "./connection.js";
import { Unreachable, ask } from "./http.js";

const BASE = "/runs/api/";

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
  try {
    const told = await ask(method, address(where), body);
    worked();
    return told;
  } catch (error) {
    if (error instanceof Unreachable) failed();
    else worked();
    throw error;
  }
}
