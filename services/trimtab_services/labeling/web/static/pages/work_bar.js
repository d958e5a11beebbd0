// The bar below a task: what is saved, how much time is left, and the two ways to end it.

import { fill, h } from "../dom.js";

const DRAFT_TEXTS = {
  saved: "Saved",
  changed: "Saving…",
  waiting: "Kept in this browser until the connection is back",
  conflict: "Not saved: another tab has saved a draft",
  refused: "Kept in this browser only",
  closed: "Not saved: the task was sent already",
};
const TICK_MS = 1000;

export class WorkBar {
  element;
  #status = h("span", { class: "draft-state", "data-state": "saved" });
  #clock = h("span", { class: "hint" });
  #problem = h("p", { class: "problem", role: "alert" });
  #submit;
  #skip;
  #parts;
  #isWaiting = false;

  constructor({ draft, lease, stopwatch, onSubmit, onSkip }) {
    this.#parts = { draft, lease, stopwatch };
    this.#submit = h("button", { type: "button", class: "primary", onClick: onSubmit }, "Send label");
    this.#skip = h("button", { type: "button", class: "quiet", onClick: onSkip }, "Skip…");
    this.element = h(
      "div",
      { class: "bar", role: "region", "aria-label": "Send or skip" },
      this.#problem,
      h(
        "div",
        { class: "bar-row" },
        h("div", { class: "states" }, this.#status, this.#clock),
        h("div", { class: "row" }, this.#skip, this.#submit),
      ),
    );
    draft.addEventListener("state", () => this.#showState());
    this.#showState();
    this.#tick();
  }

  /** Shows what is missing and goes there; null takes it away. */
  showProblem(problem) {
    fill(this.#problem, problem?.message ?? "");
    if (!problem?.at) return;
    for (let around = problem.at.closest("details"); around; around = around.parentElement.closest("details"))
      around.open = true;
    problem.at.focus();
    problem.at.scrollIntoView({ block: "center" });
  }

  /** Says that the label waits for the connection. */
  showWaiting() {
    this.#isWaiting = true;
    this.#showState();
  }

  setBusy(isBusy) {
    this.#isWaiting &&= isBusy;
    this.#submit.disabled = isBusy;
    this.#skip.disabled = isBusy;
    this.#submit.textContent = isBusy ? "Sending…" : "Send label";
    this.#showState();
  }

  #showState() {
    const { state, error } = this.#parts.draft;
    this.#status.dataset.state = this.#isWaiting ? "waiting" : state;
    const text = DRAFT_TEXTS[state] + (state === "refused" ? `: ${error.message}` : "");
    this.#status.textContent = this.#isWaiting ? "Goes out when the connection is back" : text;
  }

  #tick() {
    const { lease, stopwatch } = this.#parts;
    const spent = Math.floor(stopwatch.activeMs / 60000);
    const left = lease.state === "held" ? `${Math.ceil(lease.leftMs / 60000)} min left` : "";
    this.#clock.textContent = [`${spent} min spent`, left].filter(Boolean).join(" · ");
    // the bar goes with its task
    setTimeout(() => (this.element.isConnected ? this.#tick() : null), TICK_MS);
  }
}
