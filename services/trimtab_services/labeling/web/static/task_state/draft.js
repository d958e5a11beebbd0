// What a labeler has typed: kept in the browser at once and at the service soon, each state once.
//
// A draft that is on its way has an id and is sent, unchanged, until the service has it; a change made meanwhile goes
// into the next one. The service takes a draft only over the one that it was made from, which is how another tab shows.

import { path, put, session } from "../api.js";
import { connection } from "../connection.js";
import { randomId } from "../dom.js";
import { ApiError, Unreachable } from "../http.js";
import { forget, keep, records } from "../store.js";

const LOCAL_MS = 250;
const REMOTE_MS = 1500;

export class Draft extends EventTarget {
  /** `saved`, `changed`, `waiting`, `conflict`, `refused` (too long, say) or `closed` (sent by another tab). */
  state = "saved";
  /** The error behind `conflict`, `refused` and `closed`. */
  error = null;

  #assignment;
  #read;
  #known;
  #key;
  #pending = null;
  #isDirty = false;
  #localTimer = null;
  #remoteTimer = null;
  #sending = null;
  #isOver = false;
  #isPaused = false;
  #onUp = () => this.save();
  #onHide = () => this.#keepLocally();

  /**
   * @param {object} assignment that it is a draft of.
   * @param {() => object} read what is to be kept now.
   */
  constructor(assignment, read) {
    super();
    this.#assignment = assignment.id;
    this.#read = read;
    this.#known = assignment.draft?.draft_id ?? "";
    this.#key = `${session.account.name}/${assignment.id}/${randomId()}`;
    connection.addEventListener("up", this.#onUp);
    document.addEventListener("visibilitychange", this.#onHide);
    window.addEventListener("pagehide", this.#onHide);
  }

  /** Notes a change. */
  changed() {
    this.#isDirty = true;
    if (this.state === "saved") this.#become("changed");
    clearTimeout(this.#localTimer);
    this.#localTimer = setTimeout(() => this.#keepLocally(), LOCAL_MS);
    this.#remoteTimer ??= setTimeout(() => this.save(), REMOTE_MS);
  }

  /** Goes on from what an earlier page kept, and this one shows: first what was on its way then, if it did not come. */
  async goOn({ key, on_its_way }) {
    if (on_its_way?.base_draft_id === this.#known) this.#pending = on_its_way;
    this.changed();
    await this.#keepLocally({ inPlaceOf: key });
    await this.save();
  }

  /** Sends what is not saved yet; ends when that has come to something. */
  async save() {
    clearTimeout(this.#remoteTimer);
    this.#remoteTimer = null;
    this.#sending ??= this.#sendAll().finally(() => {
      this.#sending = null;
    });
    await this.#sending;
  }

  /** Goes on from what is here, over the draft of another tab. */
  async overwrite() {
    this.#known = this.error.limit;
    this.#pending = null;
    this.#isDirty = true;
    this.#become("changed");
    await this.save();
  }

  /** Goes on from the draft that the service has, null for none, and the page shows now. */
  async adopt(draft) {
    this.#known = draft?.draft_id ?? "";
    this.#pending = null;
    this.#isDirty = false;
    await forget("drafts", this.#key);
    this.#become("saved");
    this.dispatchEvent(new CustomEvent("saved", { detail: draft }));
  }

  /** Sends nothing more while the label is on its way: it has all of it, and the service refuses a draft after it. */
  pause() {
    this.#isPaused = true;
    clearTimeout(this.#remoteTimer);
    this.#remoteTimer = null;
  }

  /** Goes on: the label was not taken. */
  resume() {
    this.#isPaused = false;
    this.changed();
  }

  /** Ends; with `isSent` what is kept in the browser has served. */
  async end({ isSent }) {
    if (!isSent) await this.#keepLocally();
    this.#isOver = true;
    clearTimeout(this.#localTimer);
    clearTimeout(this.#remoteTimer);
    connection.removeEventListener("up", this.#onUp);
    document.removeEventListener("visibilitychange", this.#onHide);
    window.removeEventListener("pagehide", this.#onHide);
    if (isSent) await forget("drafts", this.#key);
  }

  async #sendAll() {
    while (this.#isWorthSending() && (await this.#sendOne()));
  }

  #isWorthSending() {
    if (this.#isOver || this.#isPaused || this.state === "conflict" || this.state === "closed") return false;
    return this.#pending !== null || this.#isDirty;
  }

  /** Whether it is saved. */
  async #sendOne() {
    this.#take();
    const sent = this.#pending;
    try {
      const answer = await put(`assignments/${path(this.#assignment)}/draft`, sent);
      this.#known = sent.draft_id;
      this.#pending = null;
      this.#become(this.#isDirty ? "changed" : "saved");
      this.dispatchEvent(new CustomEvent("lease", { detail: answer }));
      this.dispatchEvent(new CustomEvent("saved", { detail: sent }));
      if (!this.#isDirty) await forget("drafts", this.#key);
      return true;
    } catch (error) {
      await this.#keepLocally();
      this.#failed(error);
      return false;
    }
  }

  #failed(error) {
    if (this.#isOver || this.#isPaused) return;
    if (error instanceof Unreachable) return this.#become("waiting");
    if (!(error instanceof ApiError)) throw error;
    this.error = error;
    if (error.reason === "VERSION_CONFLICT") return this.#become("conflict");
    if (error.status === 409) return this.#become("closed");
    // what the service will never take is not sent again: the next change makes another draft
    this.#pending = null;
    this.#become("refused");
  }

  /** Makes what is here now the next to be sent, unless one is on its way. */
  #take() {
    if (this.#pending) return;
    this.#pending = { draft_id: randomId(), base_draft_id: this.#known, content: this.#read() };
    this.#isDirty = false;
  }

  async #keepLocally({ inPlaceOf = null } = {}) {
    if (this.#isOver || (!this.#pending && !this.#isDirty && this.state === "saved")) return;
    const pending = { draft_id: randomId(), base_draft_id: this.#known, content: this.#read() };
    const { name } = session.account;
    const record = { key: this.#key, account: name, assignment: this.#assignment, on_its_way: this.#pending, pending };
    await keep("drafts", record, inPlaceOf);
  }

  #become(state) {
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }
}

/**
 * What earlier pages of this browser kept of a task and the service may not have.
 *
 * @returns {{next: object|null, others: Array<object>}} `next` follows the service's draft and takes its place; `others`
 *   were made from another one.
 */
export async function leftBehind(assignment) {
  const known = assignment.draft?.draft_id ?? "";
  const mine = (await records("drafts")).filter(
    (record) => record.account === session.account.name && record.assignment === assignment.id,
  );
  const follows = (record) => record.pending.base_draft_id === known || record.on_its_way?.draft_id === known;
  const isThere = (record) => JSON.stringify(record.pending.content) === JSON.stringify(assignment.draft?.content);
  const open = mine.filter((record) => !isThere(record));
  const next = open.filter(follows).at(-1) ?? null;
  const labelOf = (record) => JSON.stringify(record.pending.content.label);
  const others = open.filter((record) => !next || labelOf(record) !== labelOf(next));
  const needed = new Set([next, ...others]);
  await Promise.all(mine.filter((record) => !needed.has(record)).map((record) => forget("drafts", record.key)));
  return { next, others };
}

/** Forgets what an earlier page kept. */
export const forgetLeft = (record) => forget("drafts", record.key);
