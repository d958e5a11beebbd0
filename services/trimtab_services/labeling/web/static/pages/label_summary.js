// A label in a few lines.

import { h } from "../dom.js";
import { answerName } from "../tasks/answer_card.js";
import { longText } from "../tasks/texts.js";

const SNIPPET = 120;

/**
 * @param {object} label as the service has it.
 * @param {string[]} answers in the order that the label counts them.
 */
export function labelSummary(label, answers) {
  if (label.completion !== undefined) return written(label);
  return h(
    "ol",
    { class: "summary" },
    label.ranking.map((group) =>
      h(
        "li",
        {},
        group.length > 1 && h("span", { class: "badge" }, "tied"),
        group.map((place) => answer(place, label, answers)),
      ),
    ),
  );
}

function written(label) {
  return h(
    "div",
    {},
    label.prompt && h("div", {}, h("h3", {}, "Prompt"), longText(label.prompt)),
    h("h3", {}, "Answer"),
    longText(label.completion),
  );
}

function answer(place, label, answers) {
  const rating = label.ratings[place];
  const yes = Object.entries(label.flags[place] ?? {})
    .filter(([, value]) => value)
    .map(([name]) => name.replaceAll("_", " "));
  return h(
    "div",
    {},
    h("strong", {}, answerName(place)),
    rating && h("span", { class: "badge" }, `${rating} of 7`),
    yes.map((name) => h("span", { class: "badge" }, name)),
    h("div", { class: "snippet", dir: "auto" }, answers[place].slice(0, SNIPPET)),
  );
}
