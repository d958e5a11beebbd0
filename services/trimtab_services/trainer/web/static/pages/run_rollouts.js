// A few rollouts of each step, newest first, as the run tells of them.

import { get, query } from "../api.js";
import { fill, h } from "../dom.js";
import { figure, words } from "../format.js";
import { Unreachable } from "../http.js";
import { folded } from "./folded.js";
import { sampleOf } from "./run_samples.js";

/** As many as the service keeps. */
const MOST = 40;

export class RolloutsSection {
  element;
  #path;
  #list = null; // once it was opened
  #newest = 0;
  #isLoading = false;
  #isBehind = false;

  /**
   * @param {string} path of the run in the API.
   * @param {number} count of those that the run has told of.
   */
  constructor(path, count) {
    this.#path = path;
    this.element = folded("Rollouts", (place) => this.#open(place));
    this.element.hidden = count === 0;
  }

  /** Some have come. */
  async renew() {
    this.element.hidden = false;
    this.#isBehind = true;
    if (!this.#list) return;
    try {
      await this.#catchUp();
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error; // the next ones bring these along
    }
  }

  async #open(place) {
    this.#list ??= h("div");
    this.#isBehind = true;
    await this.#catchUp();
    fill(place, h("p", { class: "hint" }, "A few of each step, newest first."), this.#list);
  }

  async #catchUp() {
    if (this.#isLoading) return;
    this.#isLoading = true;
    try {
      while (this.#isBehind) await this.#load();
    } finally {
      this.#isLoading = false;
    }
  }

  async #load() {
    this.#isBehind = false;
    const { rollouts } = await get(`${this.#path}/rollouts?${query({ after: this.#newest })}`);
    for (const one of rollouts) {
      this.#newest = one.sequence;
      this.#list.prepend(rolloutOf(one));
    }
    while (this.#list.childNodes.length > MOST) this.#list.lastChild.remove();
  }
}

function rolloutOf({ stage, step, prompt, completion, reward, ended }) {
  const title = `${words(stage)}, step ${figure(step)}`;
  return sampleOf(prompt, [[title, { completion, ended, figures: { reward } }]]);
}
