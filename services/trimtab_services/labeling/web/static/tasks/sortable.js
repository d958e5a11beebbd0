// The list in which answers are ordered: with the pointer, with buttons, and with the keyboard alone.

import { announce } from "../announce.js";
import { fill, freshId, h } from "../dom.js";
import { Drag } from "./drag.js";
import { areEqual, joined, moved, placedAt, rankOf, tied } from "./ranking.js";

const SNIPPET = 90;

export const KEYS = [
  [["Space"], "Pick the answer up, or put it down"],
  [["↑", "↓"], "Move it up or down; out of a tie first. Not picked up: go to the answer above or below"],
  [["T"], "Tie it with the one above"],
  [["Shift", "T"], "Tie it with the one below"],
  [["Esc"], "Put it back where it was"],
];

export class Sortable {
  element;
  groups = [];

  #names;
  #onChange;
  #list = h("ol", { class: "ranks", "aria-label": "Your order, best first" });
  #rows = new Map();
  #held = null;
  #before = null;

  /**
   * @param {string[]} texts of the answers, by place.
   * @param {(place: number) => string} name of an answer.
   * @param {() => void} onChange called after each change by the labeler.
   */
  constructor(texts, name, onChange) {
    this.#names = texts.map((_, place) => name(place));
    this.#onChange = onChange;
    const hint = h(
      "p",
      { class: "hint", id: freshId("hint") },
      "Drag an answer to its rank, or onto another one to tie them. With the keyboard: ",
      h("kbd", {}, "Space"),
      " picks up, arrows move, ",
      h("kbd", {}, "T"),
      " ties with the one above, ",
      h("kbd", {}, "Space"),
      " drops.",
    );
    texts.forEach((text, place) => this.#rows.set(place, this.#row(text, place, hint.id)));
    this.element = h("div", { class: "sortable" }, hint, this.#list);
    const drag = new Drag(this.#list, (place, target) => this.#dropped(place, target));
    this.#list.addEventListener("pointerdown", (event) => drag.begin(event));
  }

  /** Shows an order. */
  show(groups) {
    this.groups = groups;
    const focused = document.activeElement;
    fill(
      this.#list,
      groups.map((group) => this.#group(group)),
    );
    if (focused && this.#list.contains(focused)) focused.focus();
  }

  #group(group) {
    const rank = rankOf(this.groups, group[0]) + 1;
    const isTie = group.length > 1;
    return h(
      "li",
      { class: isTie ? "rank tie" : "rank", "data-rank": rank - 1 },
      h("span", { class: "rank-number", "aria-hidden": "true" }, rank, isTie && h("small", {}, "tie")),
      h(
        "ul",
        { class: "rank-rows", "aria-label": isTie ? `Rank ${rank}, tied` : `Rank ${rank}` },
        group.map((place) => this.#shown(place)),
      ),
    );
  }

  #shown(place) {
    const row = this.#rows.get(place);
    row.handle.setAttribute("aria-label", `${this.#names[place]}, ${this.#where(place)}`);
    row.handle.setAttribute("aria-pressed", String(this.#held === place));
    row.element.classList.toggle("held", this.#held === place);
    return row.element;
  }

  #row(text, place, hintId) {
    const handle = h(
      "button",
      {
        type: "button",
        class: "handle",
        "aria-describedby": hintId,
        onKeydown: (event) => this.#key(event, place),
        onKeyup: (event) => event.key === " " && event.preventDefault(), // some browsers make a click of it
        onBlur: () => this.#left(place),
        onClick: (event) => event.detail === 0 && this.#toggle(place), // of a screen reader, which sends no key
      },
      h("span", { class: "grip", "aria-hidden": "true" }, "⠿"),
      h("strong", {}, this.#names[place].replace("Answer ", "")),
    );
    const step = (label, sign, change) =>
      h(
        "button",
        {
          type: "button",
          class: "step",
          tabindex: "-1",
          "aria-label": `${label}: ${this.#names[place]}`,
          title: label,
          onClick: () => this.#change(place, change),
        },
        sign,
      );
    const element = h(
      "li",
      { class: "rank-row", "data-place": place },
      handle,
      h("span", { class: "snippet", dir: "auto" }, text.slice(0, SNIPPET)),
      h(
        "span",
        { class: "steps" },
        step("Tie with the one above", "=", (groups) => tied(groups, place, -1)),
        step("Move up", "↑", (groups) => moved(groups, place, -1)),
        step("Move down", "↓", (groups) => moved(groups, place, 1)),
      ),
    );
    return { element, handle };
  }

  #key(event, place) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.key === " " || event.key === "Enter") this.#toggle(place);
    else if (this.#held === null && step) this.#goTo(place, step);
    else if (this.#held === null) return;
    else if (step) this.#change(place, (groups) => moved(groups, place, step));
    else if (event.key === "t") this.#change(place, (groups) => tied(groups, place, -1));
    else if (event.key === "T") this.#change(place, (groups) => tied(groups, place, 1));
    else if (event.key === "Escape") this.#putBack(place);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #toggle(place) {
    if (this.#held === place) return this.#drop(place);
    this.#held = place;
    this.#before = this.groups;
    this.#shown(place);
    announce(`${this.#names[place]} picked up, ${this.#where(place)}.`, { isUrgent: true });
  }

  #drop(place) {
    this.#held = null;
    this.#shown(place);
    announce(`${this.#names[place]} dropped, ${this.#where(place)}.`, { isUrgent: true });
  }

  #putBack(place) {
    const isChanged = !areEqual(this.groups, this.#before);
    this.#held = null;
    this.show(this.#before);
    announce(`${this.#names[place]} put back, ${this.#where(place)}.`, { isUrgent: true });
    if (isChanged) this.#onChange();
  }

  /** Puts down what is held when the focus goes elsewhere; not when a row is only moved in the document. */
  #left(place) {
    setTimeout(() => {
      if (this.#held === place && document.activeElement !== this.#rows.get(place).handle) this.#drop(place);
    });
  }

  #goTo(place, step) {
    const order = this.groups.flat();
    this.#rows.get(order[order.indexOf(place) + step] ?? place).handle.focus();
  }

  #dropped(place, target) {
    const change =
      target.tieWith !== undefined
        ? (groups) => joined(groups, place, target.tieWith)
        : (groups) => placedAt(groups, place, target.gap);
    this.#change(place, change);
  }

  #change(place, change) {
    const next = change(this.groups);
    if (areEqual(next, this.groups))
      return announce(`${this.#names[place]} stays, ${this.#where(place)}.`, { isUrgent: true });
    this.show(next);
    announce(`${this.#names[place]}: ${this.#where(place)}.`, { isUrgent: true });
    this.#onChange();
  }

  #where(place) {
    const rank = rankOf(this.groups, place);
    const others = this.groups[rank].filter((one) => one !== place).map((one) => this.#names[one]);
    const tie = others.length ? `, tied with ${others.join(", ")}` : "";
    return `rank ${rank + 1} of ${this.groups.length}${tie}`;
  }
}
