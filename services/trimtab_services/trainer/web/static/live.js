// Follows a run: what happens comes as server-sent events, and a connection that is lost is made again where it was.

import { address, get } from "./api.js";
import { worked } from "./connection.js";
import { ApiError, Unreachable } from "./http.js";
import { notice } from "./notices.js";

const FIRST_WAIT_MS = 500;
const MOST_WAIT_MS = 15000;
const SILENCE_MS = 30000;
/** A run that has ended may be resumed. */
const LOOK_AGAIN_MS = 10000;

export class LiveRun {
  #name;
  #after;
  #on;
  #source = null;
  #timer = null;
  #watchdog = null;
  #waitMs = FIRST_WAIT_MS;
  #isOver = false;

  /**
   * @param {string} name of the run.
   * @param {number} after number of the last event that is known.
   * @param {{events: (list) => void, run: (run) => void, behind: () => Promise}} on what comes.
   */
  constructor(name, after, on) {
    this.#name = name;
    this.#after = after;
    this.#on = on;
    document.addEventListener("visibilitychange", this.#onVisibility);
    this.#open();
  }

  close() {
    this.#isOver = true;
    document.removeEventListener("visibilitychange", this.#onVisibility);
    this.#stop();
  }

  // A hidden page holds no connection: a browser has few of them for all its tabs.
  #onVisibility = () => {
    this.#stop();
    if (!document.hidden) this.#open();
  };

  #open() {
    this.#stop();
    if (this.#isOver || document.hidden) return;
    const source = new EventSource(address(`runs/${encodeURIComponent(this.#name)}/events?after=${this.#after}`));
    this.#source = source;
    this.#hears();
    const hear = (kind, act) =>
      source.addEventListener(kind, (message) => {
        if (source !== this.#source) return;
        this.#hears();
        this.#waitMs = FIRST_WAIT_MS;
        worked();
        act(message);
      });
    hear("events", (message) => {
      this.#after = Number(message.lastEventId);
      this.#on.events(JSON.parse(message.data));
    });
    hear("run", (message) => this.#on.run(JSON.parse(message.data)));
    hear("alive", () => {});
    hear("behind", async () => {
      this.#stop();
      try {
        await this.#on.behind(); // whoever has it all closes this one
      } catch (error) {
        if (!(error instanceof Unreachable)) throw error;
        this.#later(MOST_WAIT_MS);
      }
    });
    hear("ended", () => this.#later(LOOK_AGAIN_MS));
    source.addEventListener("error", () => {
      if (source === this.#source) this.#lost();
    });
  }

  #hears() {
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#lost(), SILENCE_MS);
  }

  /** The stream broke, which a browser does not explain: an ordinary call says whether the service is there. */
  async #lost() {
    this.#stop();
    try {
      await get(`runs/${encodeURIComponent(this.#name)}/versions?limit=1`);
    } catch (error) {
      if (error.status === 404) return notice("gone", "This run has been deleted.", { kind: "warning", canClose: true });
      if (error instanceof ApiError) return; // signing in begins the page anew
      if (!(error instanceof Unreachable)) throw error;
    }
    if (!this.#isOver && !this.#source) this.#later(this.#waitMs);
    this.#waitMs = Math.min(2 * this.#waitMs, MOST_WAIT_MS);
  }

  #later(waitMs) {
    this.#stop();
    this.#timer = setTimeout(() => this.#open(), waitMs);
  }

  #stop() {
    clearTimeout(this.#timer);
    clearTimeout(this.#watchdog);
    this.#source?.close();
    this.#source = null;
  }
}
