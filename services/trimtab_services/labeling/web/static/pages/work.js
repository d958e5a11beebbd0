// The page on which a task is done: what it asks, its editor, and a bar to send, skip, and see what is saved.

import { announce } from "../announce.js";
import { get, path, post } from "../api.js";
import { connection } from "../connection.js";
import { ask, askReason, showHelp } from "../dialogs.js";
import { fill, h } from "../dom.js";
import { Unreachable } from "../http.js";
import { forgetTask, keepTask, keptTask } from "../kept.js";
import { notice, withdraw } from "../notices.js";
import { isOnItsWay, sendLeftovers, sendOut } from "../outbox.js";
import { isSingleKey } from "../shortcuts.js";
import { Draft, leftBehind } from "../task_state/draft.js";
import { Lease } from "../task_state/lease.js";
import { Stopwatch } from "../task_state/stopwatch.js";
import { CompareEditor } from "../tasks/compare.js";
import { DemonstrateEditor } from "../tasks/demonstrate.js";
import { RankEditor } from "../tasks/rank.js";
import { KIND_NAMES, promptOf } from "../tasks/texts.js";
import { notPassedText } from "./projects.js";
import { TaskNotices } from "./work_notices.js";
import { WorkBar } from "./work_bar.js";

const EDITORS = { demonstrate: DemonstrateEditor, rank: RankEditor, compare: CompareEditor };
const GENERAL_KEYS = [
  [["Ctrl", "Enter"], "Send the label"],
  [["?"], "Show this list"],
];

let undoTimer = null;

/** Shows a task of a project: the one with a number, or the next one. Returns what leaves the page. */
export async function workPage(main, projectName, assignmentId = null) {
  const page = new WorkPage(main, projectName);
  try {
    await page.open(assignmentId);
  } catch (error) {
    page.leave();
    throw error;
  }
  return () => page.leave();
}

class WorkPage {
  #main;
  #projectName;
  #project = null;
  #task = null;
  #editor = null;
  #parts = null;
  #isBusy = false;
  #onKey = (event) => this.#key(event);

  constructor(main, projectName) {
    this.#main = main;
    this.#projectName = projectName;
    window.addEventListener("keydown", this.#onKey);
  }

  async open(assignmentId) {
    await sendLeftovers();
    try {
      await this.#load(assignmentId);
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      const kept = await keptTask(this.#projectName, assignmentId);
      if (!kept || (await isOnItsWay(kept.task.id))) throw error;
      this.#project = kept.project;
      await this.#show(kept.task);
    }
  }

  async #load(assignmentId) {
    this.#project = await get(`projects/${path(this.#projectName)}`);
    if (assignmentId !== null) return await this.#showNew(await get(`assignments/${path(assignmentId)}`));
    await this.#next();
  }

  leave() {
    window.removeEventListener("keydown", this.#onKey);
    return this.#put(this.#parts);
  }

  async #next() {
    let given;
    try {
      given = (await post(`projects/${path(this.#projectName)}/next`)).assignment;
    } catch (error) {
      if (error.status !== 409) throw error;
      if (error.field !== "qualification") return this.#showNothing(error.message);
      this.#project = await get(`projects/${path(this.#projectName)}`);
      return this.#showNothing(notPassedText(this.#project));
    }
    if (given) return await this.#showNew(given);
    await forgetTask(this.#projectName);
    this.#showNothing("There is no task for you now. Come back later, or look at another project.");
  }

  /** Shows a task as the service told it, and keeps it for a page that is loaded without a connection. */
  async #showNew(task) {
    await keepTask(this.#project, task);
    await this.#show(task);
  }

  /** Lets go of a task that is not finished: what is not saved yet goes on being saved. */
  async #put(parts) {
    if (!parts) return;
    this.#stop(parts);
    await parts.draft.save();
    await parts.draft.end({ isSent: false });
  }

  #stop({ lease, stopwatch, notices }) {
    lease.end();
    stopwatch.end();
    notices.end();
    this.#parts = null;
  }

  #showNothing(text) {
    this.#task = null;
    fill(
      this.#main,
      h("h1", { tabindex: "-1" }, this.#projectName),
      h("p", {}, text),
      h("p", {}, h("a", { href: "#/" }, "All projects")),
    );
    this.#focusTitle(text);
  }

  async #show(task) {
    this.#task = task;
    if (task.state !== "leased") return this.#showNothing(`This task is ${task.state} already.`);
    const left = await leftBehind(task);
    if (!this.#main.isConnected) return; // another page is shown by now, perhaps of this same task
    this.#editor = new EDITORS[task.kind](task, this.#project, () => this.#parts.draft.changed());
    const stopwatch = new Stopwatch(task.draft?.content.active_ms ?? 0);
    const draft = new Draft(task, () => ({ label: this.#editor.draft(), active_ms: stopwatch.activeMs }));
    const lease = new Lease(task, this.#project.lease_ms);
    this.#keepUpToDate(task, draft, lease);
    const bar = new WorkBar({ draft, lease, stopwatch, onSubmit: () => this.#submit(), onSkip: () => this.#skip() });
    const notices = new TaskNotices({
      draft,
      lease,
      reload: () => get(`assignments/${path(task.id)}`),
      read: () => this.#editor.draft(),
      restore: (label) => this.#editor.restore(label),
      next: () => this.#giveUp(),
    });
    this.#parts = { draft, lease, stopwatch, notices, bar };
    this.#build(task, bar);
    this.#restore(task, left, notices);
    this.#focusTitle(`${KIND_NAMES[task.kind]}. Task loaded.`);
  }

  /** What is kept of the task stays as the service has it. */
  #keepUpToDate(task, draft, lease) {
    let saved = task.draft;
    let isDue = false;
    const keep = () => {
      if (isDue) return;
      isDue = true;
      queueMicrotask(() => {
        isDue = false; // a draft that is saved tells of the lease, too
        const told = { lease_left_ms: lease.leftMs, is_withdrawn: lease.isWithdrawn };
        if (this.#task === task) keepTask(this.#project, { ...task, draft: saved, ...told });
      });
    };
    draft.addEventListener("saved", ({ detail }) => {
      saved = detail;
      keep();
    });
    lease.addEventListener("told", keep);
  }

  #build(task, bar) {
    const body = h("div", { class: `task task-${task.kind}` }, promptOf(task), this.#editor.element);
    const title = h(
      "div",
      { class: "row between" },
      h("h1", { tabindex: "-1" }, KIND_NAMES[task.kind]),
      h(
        "span",
        { class: "row" },
        h("a", { href: `#/projects/${path(this.#projectName)}` }, "Instructions"),
        h("button", { type: "button", class: "quiet", onClick: () => this.#help() }, "Keys ", h("kbd", {}, "?")),
      ),
    );
    fill(this.#main, title, body, bar.element);
  }

  /** Shows what was done before: the service's draft, or what this browser kept that follows it. */
  #restore(task, left, notices) {
    if (task.draft?.content.label) this.#editor.restore(task.draft.content.label);
    if (left.next) {
      this.#editor.restore(left.next.pending.content.label);
      this.#parts.draft.goOn(left.next);
    }
    for (const record of left.others) notices.offer(record);
  }

  #focusTitle(text) {
    window.scrollTo(0, 0);
    this.#main.querySelector("h1").focus({ preventScroll: true });
    announce(text);
  }

  async #submit() {
    if (this.#isBusy) return;
    const problem = this.#editor.problem();
    if (problem) return this.#parts.bar.showProblem(problem);
    const doubt = this.#editor.doubt();
    if (
      doubt &&
      (await ask(
        "Send this label?",
        doubt.map((sentence) => h("p", {}, sentence)),
        [
          ["Cancel", "cancel", "quiet"],
          ["Send", "send", "primary"],
        ],
      )) !== "send"
    )
      return;
    await this.#send("submit", { label: this.#editor.label(), active_ms: this.#parts.stopwatch.activeMs });
  }

  async #skip() {
    if (this.#isBusy) return;
    const reason = await askReason();
    if (reason) await this.#send("skip", { reason });
  }

  async #send(action, body) {
    const parts = this.#parts;
    this.#setBusy(true);
    parts.bar.showProblem(null);
    try {
      if (action === "skip") await parts.draft.save(); // it comes back where the skip is taken back
      parts.draft.pause();
      const done = await sendOut(this.#task.id, action, body, () => parts.bar.showWaiting());
      await parts.draft.end({ isSent: action === "submit" || !done.undo_left_ms });
      if (this.#parts === parts) this.#stop(parts);
      this.#offerUndo(done);
    } catch (error) {
      this.#setBusy(false);
      return this.#refused(parts, error);
    }
    this.#setBusy(false);
    // whoever went to another page meanwhile stays there
    if (this.#main.contains(parts.bar.element)) await this.#goOn();
  }

  #refused(parts, error) {
    if (!("reason" in error)) throw error;
    if (error.reason === "LEASE_LOST") return parts.notices.late(error);
    if (error.status === 409) return parts.notices.closed(error);
    parts.draft.resume();
    parts.bar.showProblem({ message: error.message, at: null });
  }

  /** Leaves a task that is no longer to be had. */
  async #giveUp() {
    const parts = this.#parts;
    if (parts.draft.state === "closed") {
      this.#stop(parts);
      await parts.draft.end({ isSent: true });
    } else this.#put(parts);
    await this.#goOn();
  }

  /** The next task; the address no longer names this one. */
  async #goOn() {
    const address = `#/projects/${path(this.#projectName)}/work`;
    if (location.hash !== address) {
      location.hash = address;
      return;
    }
    try {
      await this.#next();
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      this.#showNothing("The next task is shown as soon as the service answers.");
      await connection.whenUp();
      if (this.#main.isConnected) await this.#goOn();
    }
  }

  #offerUndo(done) {
    const what = done.state === "skipped" ? "Skipped." : "Your label was sent.";
    if (!done.undo_left_ms) return notice("sent", what, { kind: "good", canClose: true });
    notice("sent", what, { kind: "good", actions: [["Undo", () => this.#undo(done)]], canClose: true });
    clearTimeout(undoTimer);
    undoTimer = setTimeout(() => withdraw("sent"), done.undo_left_ms);
  }

  async #undo(done) {
    try {
      await post(`assignments/${path(done.id)}/undo`);
      withdraw("sent");
      location.hash = `#/projects/${path(done.project)}/tasks/${path(done.id)}`;
    } catch (error) {
      notice("sent", `It could not be taken back: ${error.message}`, { kind: "error", canClose: true });
    }
  }

  #setBusy(isBusy) {
    this.#isBusy = isBusy;
    const body = this.#main.querySelector(".task");
    if (body) body.inert = isBusy;
    this.#parts?.bar.setBusy(isBusy);
  }

  #help() {
    return showHelp([["Anywhere", GENERAL_KEYS], ...(this.#editor?.keys ?? [])]);
  }

  #key(event) {
    if (
      event.key === "Enter" &&
      (event.ctrlKey || event.metaKey) &&
      this.#parts &&
      !document.querySelector("dialog[open]")
    ) {
      event.preventDefault();
      this.#submit();
    } else if (isSingleKey(event) && event.key === "?") {
      event.preventDefault();
      this.#help();
    } else if (isSingleKey(event) && this.#parts && !this.#isBusy && this.#editor.key(event.key)) {
      event.preventDefault();
    }
  }
}
