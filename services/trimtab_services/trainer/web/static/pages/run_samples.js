// Answers of a run's models to the same prompts, side by side, with search.

import { announce } from "../announce.js";
import { get, query } from "../api.js";
import { repeatedly } from "../connection.js";
import { counted, fill, h } from "../dom.js";
import { words } from "../format.js";
import { folded } from "./folded.js";
import { moreButton } from "./lists.js";

const EVERY_MS = 10000;
const PAGE = 10;
const PAUSE_MS = 250;

export class SamplesSection {
  element = folded("Samples", (place) => this.#open(place));
  #path;
  #models = "";
  #find = null; // once it was opened
  #stop;

  /** @param {string} path of the run in the API. */
  constructor(path) {
    this.#path = path;
    this.element.hidden = true;
    this.#stop = repeatedly(() => this.load(), () => EVERY_MS);
  }

  /** Shows whether there are any, and those of a model that has been evaluated since. */
  async load() {
    const { models } = await get(`${this.#path}/models`);
    if (this.#models === models.join()) return;
    this.#models = models.join();
    this.element.hidden = models.length === 0;
    await this.#find?.();
  }

  close() {
    this.#stop();
  }

  async #open(place) {
    this.#find = await show(place, this.#path);
  }
}

/** Fills a place; returns what looks again. */
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
  return find;
}

function sample({ prompt, answers }, models) {
  return sampleOf(
    prompt,
    models.filter((model) => answers[model]).map((model) => [words(model), answers[model]]),
  );
}

/** A prompt with answers, each `[title, {completion, ended, figures}]`. */
export function sampleOf(prompt, answers) {
  return h(
    "article",
    { class: "sample", "aria-label": "Prompt and answers" },
    h("pre", { class: "prompt", tabindex: "0", role: "region", "aria-label": "Prompt" }, prompt),
    answers.map(([title, one]) => answer(title, one)),
  );
}

function answer(title, { completion, ended, figures }) {
  const told = Object.entries(figures).map(([name, value]) => `${name} ${Number(value.toFixed(2))}`);
  if (!ended) told.push("not ended");
  return h(
    "div",
    { class: "answer" },
    h("p", {}, h("b", {}, title), " ", h("span", { class: "hint" }, told.join(" · "))),
    h("pre", { tabindex: "0", role: "region", "aria-label": `Answer: ${title}` }, completion),
  );
}
