// Answers of a run's models to the same prompts, side by side, with search.

import { announce } from "../announce.js";
import { get, query } from "../api.js";
import { counted, fill, h } from "../dom.js";
import { words } from "../format.js";
import { folded } from "./folded.js";
import { moreButton } from "./lists.js";

const PAGE = 10;
const PAUSE_MS = 250;

/** The section; null where the run has none. */
export function samplesSection(path, hasSamples) {
  return hasSamples ? folded("Samples", async (place) => await show(place, path)) : null;
}

async function show(place, path) {
  const list = h("div");
  const count = h("p", { class: "hint" });
  const search = h("input", { type: "search", "aria-label": "Search prompts and answers", autocomplete: "off" });
  search.placeholder = "Search prompts and answers";
  let asked = 0;
  const find = async () => {
    asked += 1;
    const mine = asked;
    const ask = (after) => get(`${path}/samples?${query({ query: search.value, after, limit: PAGE })}`);
    const first = await ask(null);
    if (mine !== asked) return; // something else was typed since
    const noun = search.value ? "prompt found" : "prompt";
    fill(count, search.value && first.found !== 1 ? `${first.found} prompts found` : counted(first.found, noun));
    if (search.value) announce(count.textContent);
    const more = moreButton(first.next_after, async (after) => {
      const page = await ask(after);
      list.lastChild.before(...page.samples.map((one) => sample(one, page.models)));
      return page.next_after;
    });
    fill(list, first.samples.map((one) => sample(one, first.models)), more ?? h("span"));
  };
  let timer = null;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(find, PAUSE_MS);
  });
  await find();
  fill(place, search, count, list);
}

function sample({ prompt, answers }, models) {
  return h(
    "article",
    { class: "sample", "aria-label": "Prompt and answers" },
    h("pre", { class: "prompt", tabindex: "0", role: "region", "aria-label": "Prompt" }, prompt),
    models.filter((model) => answers[model]).map((model) => answer(model, answers[model])),
  );
}

function answer(model, { completion, ended, figures }) {
  const told = Object.entries(figures).map(([name, value]) => `${name} ${Number(value.toFixed(2))}`);
  if (!ended) told.push("not ended");
  return h(
    "div",
    { class: "answer" },
    h("p", {}, h("b", {}, words(model)), " ", h("span", { class: "hint" }, told.join(" · "))),
    h("pre", { tabindex: "0", role: "region", "aria-label": `Answer of ${words(model)}` }, completion),
  );
}
