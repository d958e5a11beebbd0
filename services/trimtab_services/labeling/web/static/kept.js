// Who is signed in and the task at hand, kept in this browser for a page that is loaded without a connection. It is what
// the service gave this person alone: signing out, the end of the session and another person who signs in take it away.

import { session } from "./api.js";
import { canLoadOffline } from "./offline.js";
import { forget, forgetAll, keep, records } from "./store.js";

const TABLE = "kept";
const SESSION = "session";
const keyOf = (projectName) => `task/${projectName}`;

/** Keeps who is signed in, for as long as the session lasts without a request. */
export async function keepSession() {
  if (!canLoadOffline) return;
  const { account, idleMs } = session;
  const before = await find(SESSION);
  if (before?.account.name !== account.name) await forgetAll(TABLE);
  await keep(TABLE, { key: SESSION, account, idleMs, endsAt: Date.now() + idleMs });
}

/** Goes on as who was signed in; whether there was a session that has not surely ended. The service is asked later. */
export async function goOnAsKept() {
  const kept = await find(SESSION);
  if (!kept || kept.endsAt < Date.now()) return false;
  session.account = kept.account;
  session.idleMs = kept.idleMs;
  return true;
}

/** Keeps a task as the service has just told it, in place of the one before of its project. */
export async function keepTask(project, task) {
  if (!canLoadOffline) return;
  await keepSession();
  await keep(TABLE, { key: keyOf(project.name), project, task, toldAt: Date.now() });
}

/** The task of a project that was at hand last, `{project, task}`; null where there is none, or not that number. */
export async function keptTask(projectName, id) {
  const kept = await find(keyOf(projectName));
  if (!kept || (id !== null && String(kept.task.id) !== id)) return null;
  const { project, task, toldAt } = kept;
  return { project, task: { ...task, lease_left_ms: Math.max(0, task.lease_left_ms - (Date.now() - toldAt)) } };
}

/** Forgets the task of a project: there is no other. */
export async function forgetTask(projectName) {
  if (canLoadOffline) await forget(TABLE, keyOf(projectName));
}

/** Forgets the session with all that was told in it. */
export async function forgetSession() {
  if (canLoadOffline) await forgetAll(TABLE);
}

async function find(key) {
  return canLoadOffline ? (await records(TABLE)).find((record) => record.key === key) : undefined;
}
