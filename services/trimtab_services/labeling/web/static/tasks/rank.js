// Ranks four to nine answers: they are read in one place, each with its rating and questions, and ordered in another.

import { counted, h } from "../dom.js";
import { AnswerCard, answerName, judgements, restoreJudgements } from "./answer_card.js";
import { contradictions, inPageOrder, isWhole, rankOf } from "./ranking.js";
import { KEYS, Sortable } from "./sortable.js";

export class RankEditor {
  element;
  keys = [["In the order", KEYS]];

  #cards;
  #order;
  #isTouched = false;

  constructor(task, project, onChange) {
    this.#cards = task.answers.map((_, place) => new AnswerCard(place, task, project.flags, onChange));
    this.#order = new Sortable(task.answers, answerName, () => {
      this.#isTouched = true;
      this.#showRanks();
      onChange();
    });
    this.#order.show(inPageOrder(task.answers.length));
    this.#showRanks();
    this.element = h(
      "div",
      { class: "rank-editor" },
      h(
        "section",
        { class: "answers", "aria-labelledby": "answers-title" },
        h("h2", { id: "answers-title" }, "Answers"),
        this.#cards.map((card) => card.element),
      ),
      h(
        "section",
        { class: "card order-panel", "aria-labelledby": "order-title" },
        h("h2", { id: "order-title" }, "Your order, best first"),
        this.#order.element,
      ),
    );
  }

  /** What a draft keeps. */
  draft() {
    return { ranking: this.#order.groups, is_ordered: this.#isTouched, ...judgements(this.#cards) };
  }

  restore(label) {
    if (isWhole(label.ranking ?? [], this.#cards.length)) this.#order.show(label.ranking);
    this.#isTouched = label.is_ordered ?? true;
    restoreJudgements(this.#cards, label);
    this.#showRanks();
  }

  /** What is missing, and where; null when nothing is. */
  problem() {
    return this.#cards.map((card) => card.problem()).find(Boolean) ?? null;
  }

  /** What a labeler should say yes to before the label is sent, a sentence each; null when nothing. */
  doubt() {
    const doubts = [];
    if (!this.#isTouched)
      doubts.push("You have not moved any answer: the order is that in which they were shown. Send it?");
    const [first, ...others] = contradictions(
      this.#order.groups,
      this.#cards.map((card) => card.rating),
    );
    if (first) {
      const [above, below] = first.map(answerName);
      const more = others.length ? ` The same goes for ${counted(others.length, "other pair")}.` : "";
      doubts.push(`You ranked ${above} above ${below}, but rated it lower.${more} Send anyway?`);
    }
    return doubts.length ? doubts : null;
  }

  label() {
    return { ranking: this.#order.groups, ...judgements(this.#cards) };
  }

  /** Takes no single keys. */
  key() {
    return false;
  }

  #showRanks() {
    this.#cards.forEach((card, place) => {
      const rank = rankOf(this.#order.groups, place);
      card.showRank(`Rank ${rank + 1}${this.#order.groups[rank].length > 1 ? ", tied" : ""}`);
    });
  }
}
