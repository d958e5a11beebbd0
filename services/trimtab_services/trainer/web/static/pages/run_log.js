// What a run told, newest first.

import { get, query } from "../api.js";
import { counted, fill, h } from "../dom.js";
import { figure, moment, words } from "../format.js";
import { moreButton } from "./lists.js";

const PAGE = 30;
/** Lines that come while somebody looks push the oldest out; "Show more" has them. */
const MOST_LIVE = 500;

export class LogSection {
  /** Warnings and errors so far. */
  warnings = 0;
  /** Number of the newest event that is shown. */
  #newest = 0;
  #path;
  #list = h("ol", { class: "log", reversed: true });
  #more = h("div");
  #count = h("span", { class: "badge state-warning" });
  #only = h("input", { type: "checkbox", onChange: () => this.load(this.warnings) });
  element = h(
    "section",
    { class: "card" },
    h(
      "div",
      { class: "row between" },
      h("div", { class: "row" }, h("h2", {}, "Log"), this.#count),
      h("label", { class: "choice" }, this.#only, "Warnings and errors only"),
    ),
    this.#list,
    this.#more,
  );

  /** @param {string} path of the run in the API. */
  constructor(path) {
    this.#path = path;
  }

  /** Shows the newest lines. */
  async load(warnings) {
    this.#showCount(warnings);
    const page = await this.#page(null);
    this.#newest = Math.max(this.#newest, page.entries[0]?.sequence ?? 0);
    fill(this.#list, page.entries.map(line), page.entries.length === 0 && h("li", { class: "hint" }, "Nothing yet."));
    fill(
      this.#more,
      moreButton(page.next_before, async (before) => {
        const older = await this.#page(before);
        this.#list.append(...older.entries.map(line));
        return older.next_before;
      }),
    );
  }

  /** Adds a line that has just come. */
  add(entry) {
    if (entry.severity !== "info") this.#showCount(this.warnings + 1);
    else if (this.#only.checked) return;
    if (entry.sequence <= this.#newest) return; // the page that was asked for had it
    this.#newest = entry.sequence;
    this.#list.querySelector(".hint:only-child")?.remove();
    this.#list.prepend(line(entry));
    if (this.#list.childNodes.length > MOST_LIVE) this.load(this.warnings);
  }

  #page(before) {
    return get(`${this.#path}/log?${query({ before, limit: PAGE, warnings: this.#only.checked ? 1 : null })}`);
  }

  #showCount(warnings) {
    this.warnings = warnings;
    fill(this.#count, warnings ? counted(warnings, "problem") : "");
  }
}

function line(entry) {
  const figures = Object.entries(entry.figures);
  return h(
    "li",
    { class: entry.severity },
    h(
      "p",
      { class: "hint" },
      moment(entry.time),
      entry.stage && h("span", { class: "badge" }, words(entry.stage)),
      entry.severity !== "info" && h("strong", { class: `severity ${entry.severity}` }, entry.severity),
    ),
    h("p", { class: "text" }, entry.text),
    figures.length > 0 &&
      h(
        "details",
        {},
        h("summary", {}, counted(figures.length, "figure")),
        h(
          "dl",
          { class: "figures" },
          figures.map(([name, value]) => h("div", {}, h("dt", {}, words(name)), h("dd", {}, figure(value)))),
        ),
      ),
  );
}
