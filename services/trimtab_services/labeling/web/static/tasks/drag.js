// Drags a row of the list with mouse, pen or finger. What is under the pointer is the target: the middle of a rank ties
// with it, its edges and the gaps between ranks are places of their own.

const START_PX = 4;
const EDGE = 0.3;
const SCROLL_ZONE_PX = 60;
const SCROLL_STEP_PX = 12;

export class Drag {
  #list;
  #onDrop;
  #row = null;
  #ghost = null;
  #start = null;
  #last = null;
  #target = null;
  #frame = null;
  #stop = null;

  /**
   * @param {HTMLElement} list of ranks.
   * @param {(place: number, target: {gap?: number, tieWith?: number}) => void} onDrop called when a row is let go.
   */
  constructor(list, onDrop) {
    this.#list = list;
    this.#onDrop = onDrop;
  }

  /** Takes a press on the list: a mouse drags anywhere on a row, a finger by its handle, since it scrolls elsewhere. */
  begin(event) {
    const row = event.target.closest(".rank-row");
    const isHandle = event.target.closest(".handle");
    if (!row || event.button !== 0 || event.target.closest(".step")) return;
    if (event.pointerType !== "mouse" && !isHandle) return;
    this.#row = row;
    this.#start = this.#last = { x: event.clientX, y: event.clientY };
    const listeners = new AbortController();
    const options = { signal: listeners.signal };
    this.#stop = () => listeners.abort();
    const isOurs = (other) => other.pointerId === event.pointerId;
    window.addEventListener("pointermove", (move) => isOurs(move) && this.#moved(move), options);
    window.addEventListener("pointerup", (up) => isOurs(up) && this.#ended(true), options);
    window.addEventListener("pointercancel", (cancel) => isOurs(cancel) && this.#ended(false), options);
    window.addEventListener("keydown", (key) => this.#cancelled(key), { ...options, capture: true });
    if (event.pointerType === "mouse" && !isHandle) event.preventDefault(); // selects no text
  }

  #moved(event) {
    this.#last = { x: event.clientX, y: event.clientY };
    if (!this.#ghost) {
      if (Math.hypot(this.#last.x - this.#start.x, this.#last.y - this.#start.y) < START_PX) return;
      this.#lift();
    }
    this.#follow();
  }

  #lift() {
    const { width, left, top } = this.#row.getBoundingClientRect();
    this.#ghost = this.#row.cloneNode(true);
    this.#ghost.classList.add("ghost");
    this.#ghost.setAttribute("aria-hidden", "true");
    this.#ghost.inert = true;
    Object.assign(this.#ghost.style, { width: `${width}px`, left: `${left}px`, top: `${top}px` });
    document.body.append(this.#ghost);
    this.#row.classList.add("dragged");
    this.#list.classList.add("dragging");
    this.#frame = requestAnimationFrame(() => this.#scroll());
  }

  #follow() {
    this.#ghost.style.transform = `translate(${this.#last.x - this.#start.x}px, ${this.#last.y - this.#start.y}px)`;
    this.#mark(this.#find(this.#last.y));
  }

  /** The target at a height. */
  #find(y) {
    const ranks = [...this.#list.children];
    for (const [index, rank] of ranks.entries()) {
      const { top, bottom, height } = rank.getBoundingClientRect();
      if (y < top + EDGE * height) return { gap: index, rank, edge: "before" };
      if (y <= bottom - EDGE * height) return this.#tieOrNothing(rank);
    }
    return { gap: ranks.length, rank: ranks.at(-1), edge: "after" };
  }

  #tieOrNothing(rank) {
    const others = [...rank.querySelectorAll(".rank-row")].filter((row) => row !== this.#row);
    return others.length ? { tieWith: Number(others[0].dataset.place), rank, edge: "onto" } : null;
  }

  #mark(target) {
    this.#unmark();
    this.#target = target;
    target?.rank.classList.add(`drop-${target.edge}`);
  }

  #unmark() {
    for (const rank of this.#list.children) rank.classList.remove("drop-before", "drop-after", "drop-onto");
  }

  #scroll() {
    const { y } = this.#last;
    const step = y < SCROLL_ZONE_PX ? -SCROLL_STEP_PX : y > innerHeight - SCROLL_ZONE_PX ? SCROLL_STEP_PX : 0;
    if (step) {
      const from = this.#scroller();
      from.scrollBy(0, step);
      this.#mark(this.#find(y));
    }
    this.#frame = requestAnimationFrame(() => this.#scroll());
  }

  #scroller() {
    const panel = this.#list.closest(".order-panel");
    return panel && panel.scrollHeight > panel.clientHeight && getComputedStyle(panel).overflowY === "auto"
      ? panel
      : window;
  }

  #cancelled(event) {
    if (event.key !== "Escape" || !this.#ghost) return;
    event.preventDefault();
    event.stopPropagation();
    this.#ended(false);
  }

  #ended(isDropped) {
    this.#stop();
    cancelAnimationFrame(this.#frame);
    this.#unmark();
    this.#list.classList.remove("dragging");
    this.#row.classList.remove("dragged");
    const wasDragged = this.#ghost !== null;
    this.#ghost?.remove();
    this.#ghost = null;
    const target = this.#target;
    this.#target = null;
    if (isDropped && wasDragged && target) this.#onDrop(Number(this.#row.dataset.place), target);
  }
}
