// What a run was told to do, and what its process wrote.

import { get, query } from "../api.js";
import { repeatedly } from "../connection.js";
import { fill, h } from "../dom.js";
import { figure } from "../format.js";
import { folded } from "./folded.js";

const TITLE = "Output of the process";
const EVERY_MS = 2000;
const ENDED_EVERY_MS = 10000;
/** Twice what the service sends at once. */
const MOST_BYTES = 128 * 1024;
/** So near its end the text goes on with what comes. */
const NEAR_PX = 8;

/** The run spec. */
export function specSection({ spec_yaml, directory }) {
  return folded("Spec", async (place) =>
    fill(place, h("p", { class: "hint" }, `Folder: ${directory}`), box("Spec", spec_yaml)),
  );
}

/** The end of the process's output, as it comes. */
export class OutputSection {
  element = folded(TITLE, (place) => this.#open(place));
  #path;
  #hasEnded;
  #place = null;
  #text = box(TITLE, "");
  #note = h("p", { class: "hint" });
  #pieces = []; // [text node, its bytes]
  #end = 0;
  #stop = () => {};
  #isClosed = false;

  /**
   * @param {string} path of the run in the API.
   * @param {() => boolean} hasEnded whether the run has: then little comes.
   */
  constructor(path, hasEnded) {
    this.#path = path;
    this.#hasEnded = hasEnded;
  }

  close() {
    this.#isClosed = true;
    this.#stop();
  }

  async #open(place) {
    this.#place = place;
    await this.#load();
    if (this.#isClosed) return;
    this.#stop = repeatedly(
      async () => {
        if (place.closest("details").open) await this.#load();
      },
      () => (this.#hasEnded() ? ENDED_EVERY_MS : EVERY_MS),
    );
  }

  async #load() {
    const { output } = await get(`${this.#path}/output?${query({ after: this.#end })}`);
    if (output === null) return fill(this.#place, h("p", { class: "hint" }, "There is none on the volume of this service."));
    if (!this.#text.isConnected) fill(this.#place, this.#note, this.#text);
    const isAtEnd = this.#text.scrollTop + this.#text.clientHeight >= this.#text.scrollHeight - NEAR_PX;
    if (output.begin !== this.#end) {
      this.#pieces = [];
      fill(this.#text);
    }
    this.#end = output.end;
    if (output.text) this.#add(output.text, output.end - output.begin);
    const shown = this.#shownBytes();
    fill(this.#note, shown < output.size ? `the last ${figure(shown)} of ${figure(output.size)} bytes` : "all of it");
    if (isAtEnd) this.#text.scrollTop = this.#text.scrollHeight;
  }

  /** Adds a piece, and takes the oldest away while there is too much. */
  #add(text, bytes) {
    const piece = document.createTextNode(text);
    this.#text.append(piece);
    this.#pieces.push([piece, bytes]);
    while (this.#shownBytes() > MOST_BYTES) {
      const [oldest] = this.#pieces.shift();
      oldest.remove();
    }
  }

  #shownBytes() {
    return this.#pieces.reduce((sum, [, bytes]) => sum + bytes, 0);
  }
}

function box(label, text) {
  return h("pre", { class: "file", tabindex: "0", role: "region", "aria-label": label }, text);
}
