// One answer: its text, its rating from 1 to 7, and the questions on it.

import { freshId, h } from "../dom.js";
import { Flags } from "./flags.js";
import { longText } from "./texts.js";

const RATINGS = [1, 2, 3, 4, 5, 6, 7];

/** `Answer A` for place 0. */
export const answerName = (place) => `Answer ${String.fromCharCode(65 + place)}`;

export class AnswerCard {
  element;
  #flags;
  #rank = h("span", { class: "badge" });
  #radios = [];
  #rating = null;

  /**
   * @param {number} place of the answer on the page.
   * @param {object} task that it is of.
   * @param {string[]} flagNames of the project.
   * @param {() => void} onChange called after each change.
   */
  constructor(place, task, flagNames, onChange) {
    const name = answerName(place);
    const titleId = freshId("answer");
    this.#flags = new Flags(flagNames, name, onChange);
    if (task.wants_ratings) this.#rating = this.#ratingOf(name, onChange);
    this.element = h(
      "article",
      { class: "card answer", "aria-labelledby": titleId, "data-place": place },
      h("div", { class: "row between" }, h("h3", { id: titleId }, name), this.#rank),
      longText(task.answers[place]),
      this.#rating,
      this.#flags.element,
    );
  }

  /** Number, or null while there is none. */
  get rating() {
    const index = this.#radios.findIndex((radio) => radio.checked);
    return index < 0 ? null : RATINGS[index];
  }

  get flags() {
    return this.#flags.value;
  }

  /** Shows what was given before. */
  restore(rating, flags) {
    this.#radios.forEach((radio, index) => {
      radio.checked = RATINGS[index] === rating;
    });
    this.#flags.value = flags ?? {};
  }

  /** Says where the answer stands. */
  showRank(text) {
    this.#rank.textContent = text;
  }

  /** What is missing, and where; null when nothing is. */
  problem() {
    if (!this.#rating || this.rating !== null) return null;
    return { message: `Rate ${this.element.querySelector("h3").textContent} from 1 to 7.`, at: this.#radios[0] };
  }

  #ratingOf(name, onChange) {
    const group = freshId("rating");
    const options = RATINGS.map((value) => {
      const radio = h("input", { type: "radio", name: group, value, onChange });
      this.#radios.push(radio);
      const meaning = { 1: "worst", 7: "best" }[value];
      return h(
        "label",
        { class: "segment" },
        radio,
        h("span", {}, value, meaning && h("span", { class: "visually-hidden" }, `, ${meaning}`)),
      );
    });
    return h(
      "fieldset",
      { class: "rating" },
      h("legend", {}, "Quality", h("span", { class: "visually-hidden" }, ` of ${name}`)),
      h("span", { class: "end-label", "aria-hidden": "true" }, "worst"),
      h("span", { class: "segments" }, options),
      h("span", { class: "end-label", "aria-hidden": "true" }, "best"),
    );
  }
}

/** Ratings and flags of all cards as a label has them; of a draft, open ratings are null. */
export function judgements(cards) {
  return {
    ratings: cards.some((card) => card.rating !== null) ? cards.map((card) => card.rating) : [],
    flags: cards.map((card) => card.flags),
  };
}

/** Shows them again. */
export function restoreJudgements(cards, label) {
  cards.forEach((card, place) => card.restore(label.ratings?.[place] ?? null, label.flags?.[place]));
}
