// Time spent on a task: the page is in front, and there was a sign of life within the last minute.

const TICK_MS = 1000;
const IDLE_MS = 60000;
const SIGNS_OF_LIFE = ["keydown", "pointerdown", "pointermove", "wheel", "touchmove"];

export class Stopwatch {
  #activeMs;
  #lastTick = performance.now();
  #lastSign = performance.now();
  #timer;
  #onSign = () => {
    this.#lastSign = performance.now();
  };

  /** @param {number} activeMs what was spent before. */
  constructor(activeMs) {
    this.#activeMs = activeMs;
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
    for (const sign of SIGNS_OF_LIFE) window.addEventListener(sign, this.#onSign, { passive: true, capture: true });
  }

  /** Milliseconds so far. */
  get activeMs() {
    this.#tick();
    return Math.round(this.#activeMs);
  }

  /** Ends the watch. */
  end() {
    clearInterval(this.#timer);
    for (const sign of SIGNS_OF_LIFE) window.removeEventListener(sign, this.#onSign, { capture: true });
  }

  #tick() {
    const now = performance.now();
    const isActive = document.visibilityState === "visible" && now - this.#lastSign < IDLE_MS;
    // a machine that slept wakes with a long step, in which nobody worked
    if (isActive) this.#activeMs += Math.min(now - this.#lastTick, 2 * TICK_MS);
    this.#lastTick = now;
  }
}
