// All runs, newest first, as they go on.

import { get, query } from "../api.js";
import { repeatedly } from "../connection.js";
import { fill, h } from "../dom.js";
import { moment, stateBadge, steps, timeLeft, words } from "../format.js";
import { moreButton } from "./lists.js";
import { cell, row, rowHead, stackedTable } from "./stacked.js";

const EVERY_MS = 3000;
const LONG_LIST_EVERY_MS = 15000;
const LONG_LIST = 200;
const PAGE = 50;
const MOST_LOOKED_AT = 1000;
const HEADS = ["Run", "State", "Stage", "Step", "Time left", "Started"];

export async function runsPage(place) {
  const list = new RunList();
  const first = await get(`runs?${query({ limit: PAGE })}`);
  list.show(first.runs);
  const more = moreButton(first.next_before, async (before) => {
    const page = await get(`runs?${query({ before, limit: PAGE })}`);
    list.show(page.runs, { atEnd: true });
    return page.next_before;
  });
  fill(place, h("h1", { tabindex: "-1" }, "Runs"), list.element, more);
  return repeatedly(
    async () => list.renew((await get(`runs?${query({ limit: list.lookedAt })}`)).runs),
    () => (list.length > LONG_LIST ? LONG_LIST_EVERY_MS : EVERY_MS),
  );
}

class RunList {
  #rows = new Map(); // by name: what is shown, and as what
  #none = h("p", {}, "There are no runs yet. ", h("code", {}, "trimtab runs start NAME SPEC"), " starts one.");
  #table = stackedTable("Runs", HEADS);
  element = h("div", { class: "runs" }, this.#none, this.#table.element);

  get length() {
    return this.#rows.size;
  }

  /** How many of the newest are looked at again. */
  get lookedAt() {
    return Math.min(Math.max(PAGE, this.length), MOST_LOOKED_AT);
  }

  /** Shows runs as they are now; new ones stand at the top, or at the end. Rows that did not change are left alone. */
  show(runs, { atEnd = false } = {}) {
    const fresh = runs.filter((run) => !this.#rows.has(run.name)).map((run) => this.#newRow(run));
    if (atEnd) this.#table.body.append(...fresh);
    else this.#table.body.prepend(...fresh);
    for (const run of runs) this.#update(run);
    this.#none.hidden = this.length > 0;
    this.#table.element.hidden = this.length === 0;
  }

  /** Shows the newest runs as they are now, and takes those away that are not there any more. */
  renew(runs) {
    const names = new Set(runs.map((run) => run.name));
    const oldest = runs.length < this.lookedAt ? -Infinity : runs.at(-1).create_time;
    const known = [...this.#rows.values()].map(({ createTime }) => createTime);
    const least = known.length > 0 ? Math.min(...known) : -Infinity; // "Show more" has those before it
    for (const [name, { element, createTime }] of this.#rows) {
      if (names.has(name) || createTime <= oldest) continue; // older ones were not asked for
      element.remove();
      this.#rows.delete(name);
    }
    this.show(runs.filter((run) => this.#rows.has(run.name) || run.create_time >= least));
  }

  #newRow(run) {
    const head = rowHead(h("a", { href: `#/runs/${encodeURIComponent(run.name)}` }, run.name));
    const element = row(head);
    this.#rows.set(run.name, { element, head, shown: "", createTime: run.create_time });
    return element;
  }

  #update(run) {
    const known = this.#rows.get(run.name);
    const told = JSON.stringify(run);
    if (told === known.shown) return;
    known.shown = told;
    const { element, head } = known;
    while (head.childNodes.length > 1) head.lastChild.remove(); // the link keeps the focus that it may have
    if (run.error) head.append(h("p", { class: "problem clamped" }, run.error));
    while (element.childNodes.length > 1) element.lastChild.remove();
    element.append(
      cell("State", stateBadge(run.state)),
      cell("Stage", words(run.stage)),
      cell("Step", progress(run), steps(run)),
      cell("Time left", timeLeft(run)),
      cell("Started", moment(run.create_time)),
    );
  }
}

/** A bar for the eye; the text beside it says the same. */
function progress(run) {
  if (run.has_ended || !run.total_steps) return null;
  return h("progress", { max: run.total_steps, value: run.step, "aria-hidden": "true" });
}
