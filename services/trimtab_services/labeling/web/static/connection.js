// Whether the service answers. While it does not, it is asked again and again, and who waits is told when it does.

import { AWAY } from "./http.js";
import { notice, withdraw } from "./notices.js";

const ASKED = "/labeling/api/me";
const DEADLINE_MS = 15000;
const FIRST_WAIT_MS = 1000;
const MOST_WAIT_MS = 15000;

class Connection extends EventTarget {
  isUp = true;
  #waitMs = FIRST_WAIT_MS;
  #timer = null;

  constructor() {
    super();
    window.addEventListener("online", () => this.#askSoon(0));
  }

  /** Notes that an answer came. */
  worked() {
    if (this.isUp) return;
    this.isUp = true;
    this.#waitMs = FIRST_WAIT_MS;
    clearTimeout(this.#timer);
    this.#timer = null;
    withdraw("connection");
    notice("reconnected", "The connection is back.", { kind: "good", canClose: true });
    setTimeout(() => withdraw("reconnected"), 6000);
    this.dispatchEvent(new Event("up"));
  }

  /** Notes that none came. */
  failed() {
    if (this.isUp) {
      this.isUp = false;
      withdraw("reconnected");
      notice(
        "connection",
        "There is no connection to the service. Go on: what you do is kept in this browser and sent when it is back.",
        { kind: "warning" },
      );
    }
    this.#askSoon(this.#waitMs);
  }

  /** Ends when the service answers again, or at once. */
  async whenUp() {
    if (!this.isUp) await new Promise((resolve) => this.addEventListener("up", resolve, { once: true }));
  }

  #askSoon(waitMs) {
    if (this.isUp) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), waitMs);
  }

  async #ask() {
    try {
      const answer = await fetch(ASKED, { cache: "no-store", signal: AbortSignal.timeout(DEADLINE_MS) });
      if (!AWAY.has(answer.status)) return this.worked();
    } catch {
      // still away
    }
    this.#waitMs = Math.min(2 * this.#waitMs, MOST_WAIT_MS);
    this.#askSoon(this.#waitMs);
  }
}

export const connection = new Connection();
