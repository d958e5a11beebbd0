// How long a task is still this labeler's. Work renews the lease; who does nothing is asked, then the task goes on.

import { path, post } from "../api.js";
import { Unreachable } from "../http.js";

const MOST_TICK_MS = 5000;
const LEAST_TICK_MS = 200;
const SIGNS_OF_LIFE = ["keydown", "pointerdown", "wheel", "touchmove"];

export class Lease extends EventTarget {
  /** `held`, `ending` (soon, and nobody works), `over` (others may take the task) or `lost` (they did). */
  state = "held";
  /** Whether the task was taken out of the project. */
  isWithdrawn;

  #assignment;
  #leaseMs;
  #endsAt;
  #timer;
  #isAlive = false;
  #isAsking = false;
  #onSign = () => {
    this.#isAlive = true;
  };

  /**
   * @param {object} assignment leased, as the service just told it.
   * @param {number} leaseMs how long a lease lasts.
   */
  constructor(assignment, leaseMs) {
    super();
    this.#assignment = assignment.id;
    this.#leaseMs = leaseMs;
    this.isWithdrawn = assignment.is_withdrawn;
    this.#endsAt = performance.now() + assignment.lease_left_ms;
    this.#timer = setInterval(() => this.#tick(), Math.min(Math.max(leaseMs / 20, LEAST_TICK_MS), MOST_TICK_MS));
    for (const sign of SIGNS_OF_LIFE) window.addEventListener(sign, this.#onSign, { passive: true, capture: true });
  }

  /** Milliseconds that are left. */
  get leftMs() {
    return Math.max(0, this.#endsAt - performance.now());
  }

  /** Takes what the service says is left, 0 where others have the task, and whether the task is withdrawn. */
  told({ lease_left_ms, is_withdrawn }) {
    this.#endsAt = performance.now() + lease_left_ms;
    this.isWithdrawn = is_withdrawn;
    this.#become(lease_left_ms > 0 ? "held" : "lost");
    this.dispatchEvent(new Event("told"));
  }

  /** Asks for the whole time again. */
  async renew() {
    if (this.#isAsking) return;
    this.#isAsking = true;
    this.#isAlive = false;
    try {
      this.told(await post(`assignments/${path(this.#assignment)}/renew`));
    } catch (error) {
      if (error.reason === "LEASE_LOST") this.told({ lease_left_ms: 0, is_withdrawn: this.isWithdrawn });
      else if (!(error instanceof Unreachable)) this.dispatchEvent(new CustomEvent("closed", { detail: error }));
    } finally {
      this.#isAsking = false;
    }
  }

  /** Ends the watch. */
  end() {
    clearInterval(this.#timer);
    for (const sign of SIGNS_OF_LIFE) window.removeEventListener(sign, this.#onSign, { capture: true });
  }

  #tick() {
    if (this.state === "lost") return;
    const left = this.leftMs;
    if (this.#isAlive && left < this.#leaseMs / 2) this.renew();
    else if (left === 0) this.#become("over");
    else if (left < Math.min(this.#leaseMs / 5, 120000)) this.#become("ending");
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }
}
