// Labels and skips on their way. Each is in the store before it is sent and until its answer has come, so that a
// connection that drops or a page that is closed loses none; the service takes the same `submission_id` once.

import { path, post, session } from "./api.js";
import { connection } from "./connection.js";
import { randomId } from "./dom.js";
import { Unreachable } from "./http.js";
import { notice } from "./notices.js";
import { forget, keep, records } from "./store.js";

/**
 * Sends a label or a skip for as long as it takes.
 *
 * @param {number} assignment its number.
 * @param {"submit"|"skip"} action what to do.
 * @param {object} body without its id.
 * @param {() => void} onWait called when it has to wait for the connection.
 * @returns the assignment as it stands; throws `ApiError` where the service refuses: it is no longer sent, and the page
 *   still has the draft.
 */
export async function sendOut(assignment, action, body, onWait) {
  const submission_id = randomId();
  const item = {
    key: submission_id,
    account: session.account.name,
    assignment,
    action,
    body: { ...body, submission_id },
  };
  await keep("outbox", item);
  for (;;) {
    try {
      return await deliver(item);
    } catch (error) {
      if (!(error instanceof Unreachable)) {
        await forget("outbox", item.key);
        throw error;
      }
      onWait();
      await connection.whenUp();
    }
  }
}

/** Whether a label or a skip of an assignment waits to be sent. */
export async function isOnItsWay(assignment) {
  return (await mine()).some((item) => item.assignment === assignment);
}

let sending = null;

/** Sends what an earlier page left, once each; what the service refuses becomes a draft of its task again. */
export function sendLeftovers() {
  sending ??= sendAll().finally(() => {
    sending = null;
  });
  return sending;
}

async function sendAll() {
  for (const item of await mine()) {
    try {
      await deliver(item);
      notice("leftovers", "A label that waited in this browser has been sent.", { kind: "good", canClose: true });
    } catch (error) {
      if (error instanceof Unreachable) {
        return notice("leftovers", "A label waits in this browser. It is sent as soon as the connection is back.");
      }
      if (item.action === "submit") await keepAsDraft(item); // first: who closes the page in between loses nothing
      await forget("outbox", item.key);
      notice("leftovers", `A label that waited in this browser was not taken: ${error.message}`, {
        kind: "error",
        canClose: true,
      });
    }
  }
}

async function mine() {
  return (await records("outbox")).filter((item) => item.account === session.account.name);
}

async function deliver(item) {
  const answer = await post(`assignments/${path(item.assignment)}/${item.action}`, item.body);
  await forget("outbox", item.key);
  return answer;
}

async function keepAsDraft(item) {
  const { account, assignment, body } = item;
  const pending = { draft_id: body.submission_id, base_draft_id: "", content: { label: body.label } };
  await keep("drafts", { key: `${account}/${assignment}/${item.key}`, account, assignment, pending });
}
