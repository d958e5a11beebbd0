// The versions that a run has published, newest first.

import { get, query } from "../api.js";
import { fill, h } from "../dom.js";
import { figure, moment, words } from "../format.js";
import { folded } from "./folded.js";
import { moreButton, table, tableRow } from "./lists.js";

const PAGE = 20;

export class VersionsSection {
  #path;
  #body = null; // once it was opened
  #box;
  #none = h("p", { class: "hint" }, "None yet.");
  #total = 0;
  /** The newest version that is counted, and the newest that is in the table. */
  #newest = 0;
  #shown = 0;
  #count = h("span", { class: "badge" });
  element = folded(["Versions published ", this.#count], (place) => this.#open(place));

  /** @param {string} path of the run in the API. */
  constructor(path) {
    this.#path = path;
  }

  /** Shows how many there are; `newest` is the last of them, 0 where there is none. */
  count(total, newest) {
    this.#total = total;
    this.#newest = newest;
    fill(this.#count, figure(total));
  }

  /** Adds one that was told of just now; a step that still uses the one before tells of nothing new. */
  add({ version, stage, step, time }) {
    if (version <= this.#newest) return;
    this.count(this.#total + 1, version);
    if (!this.#body || version <= this.#shown) return;
    this.#shown = version;
    this.#body.prepend(tableRow(row({ version, stage, step, time })));
    this.#showBox();
  }

  async #open(place) {
    const { versions, next_before } = await this.#page(null);
    this.#box = table("Newest first", ["Version", "Stage", "Step", "Published"], versions.map(row));
    this.#body = this.#box.querySelector("tbody");
    this.#shown = versions[0]?.version ?? 0;
    const more = moreButton(next_before, async (before) => {
      const page = await this.#page(before);
      this.#body.append(...page.versions.map((one) => tableRow(row(one))));
      return page.next_before;
    });
    this.#showBox();
    fill(place, this.#none, this.#box, more);
  }

  #showBox() {
    this.#none.hidden = this.#body.childNodes.length > 0;
    this.#box.hidden = !this.#none.hidden;
  }

  #page(before) {
    return get(`${this.#path}/versions?${query({ before, limit: PAGE })}`);
  }
}

const row = (one) => [one.version, words(one.stage), one.step, moment(one.time)];
