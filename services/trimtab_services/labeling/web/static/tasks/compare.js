// Compares two answers, without a word on where they come from.

import { freshId, h } from "../dom.js";
import { AnswerCard, answerName, judgements, restoreJudgements } from "./answer_card.js";
import { areEqual, contradictions } from "./ranking.js";

const CHOICES = [
  { key: "A", text: "A is better", ranking: [[0], [1]] },
  { key: "=", text: "About the same", ranking: [[0, 1]] },
  { key: "B", text: "B is better", ranking: [[1], [0]] },
];

export class CompareEditor {
  element;
  keys = [
    [
      "Compare",
      [
        [["A"], "Answer A is better"],
        [["B"], "Answer B is better"],
        [["="], "About the same"],
      ],
    ],
  ];

  #cards;
  #radios;

  constructor(task, project, onChange) {
    const name = freshId("choice");
    this.#cards = task.answers.map((_, place) => new AnswerCard(place, task, project.flags, onChange));
    this.#radios = CHOICES.map(() => h("input", { type: "radio", name, onChange }));
    const choices = CHOICES.map(({ key, text }, index) =>
      h(
        "label",
        { class: "segment" },
        this.#radios[index],
        h("span", {}, text, h("kbd", { "aria-hidden": "true" }, key)),
      ),
    );
    this.element = h(
      "div",
      { class: "compare-editor" },
      h(
        "section",
        { class: "answers two", "aria-labelledby": "answers-title" },
        h("h2", { id: "answers-title" }, "Answers"),
        this.#cards.map((card) => card.element),
      ),
      h(
        "fieldset",
        { class: "card verdict" },
        h("legend", {}, "Which answer is better?"),
        h("span", { class: "segments" }, choices),
      ),
    );
  }

  draft() {
    const chosen = this.#chosen();
    return { ...(chosen ? { ranking: chosen.ranking } : {}), ...judgements(this.#cards) };
  }

  restore(label) {
    CHOICES.forEach(({ ranking }, index) => {
      this.#radios[index].checked = areEqual(ranking, label.ranking ?? []);
    });
    restoreJudgements(this.#cards, label);
  }

  problem() {
    const open = this.#cards.map((card) => card.problem()).find(Boolean);
    if (open) return open;
    return this.#chosen() ? null : { message: "Say which answer is better.", at: this.#radios[0] };
  }

  doubt() {
    const ratings = this.#cards.map((card) => card.rating);
    const [first] = contradictions(this.#chosen().ranking, ratings);
    if (!first) return null;
    const [better, other] = first.map(answerName);
    return [`You said that ${better} is better, but rated it lower than ${other}. Send anyway?`];
  }

  label() {
    return { ranking: this.#chosen().ranking, ...judgements(this.#cards) };
  }

  /** Takes A, B and =. */
  key(key) {
    const index = CHOICES.findIndex((choice) => choice.key === key.toUpperCase());
    if (index < 0) return false;
    this.#radios[index].focus();
    this.#radios[index].click();
    return true;
  }

  #chosen() {
    return CHOICES[this.#radios.findIndex((radio) => radio.checked)] ?? null;
  }
}
