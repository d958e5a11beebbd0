// Which part of the page is shown. Its name is in the address after `#`.

import { fill, h } from "./dom.js";
import { ApiError, Unreachable } from "./http.js";
import { notice } from "./notices.js";

export class Router {
  #main = document.getElementById("main");
  #pages;
  #home;
  #titleOf;
  #untilBack;
  #isOn = false;
  #shown = 0;
  #leave = null;

  /**
   * @param {Array<[RegExp, Function, Function]>} pages pattern, page, title. A page gets a place and the groups of the
   *   pattern; it may return what leaves it.
   * @param {object} parts `home` is the text of the link to the first page, `titleOf(title)` that of the window;
   *   `untilBack()` ends when a service that does not answer is worth another try.
   */
  constructor(pages, { home, titleOf, untilBack }) {
    this.#pages = pages;
    this.#home = home;
    this.#titleOf = titleOf;
    this.#untilBack = untilBack;
    document.getElementById("skip-link").addEventListener("click", (event) => {
      event.preventDefault(); // the address names the page, not a place on it
      this.#main.focus();
    });
    window.addEventListener("hashchange", () => this.#isOn && this.show());
    window.addEventListener("unhandledrejection", ({ reason }) => {
      if (reason?.status === 401) return; // signing in has begun
      const text = reason instanceof Error ? reason.message : "unknown";
      notice("fault", `That did not work: ${text}`, { kind: "error", canClose: true });
    });
  }

  /** Shows the part that the address names, now and whenever it changes. */
  async show() {
    this.close();
    this.#isOn = true;
    const mine = this.#shown;
    const [page, title, groups] = this.#match(location.hash.replace(/^#\/?/, ""));
    document.title = this.#titleOf(title);
    // each page gets a place of its own: one that comes late fills nothing that is shown
    const place = h("div", { class: "page" }, h("p", { class: "hint" }, "Loading…"));
    fill(this.#main, place);
    try {
      const leave = await page(place, ...groups);
      if (mine !== this.#shown) return leave?.();
      this.#leave = leave;
      if (!place.contains(document.activeElement)) place.querySelector("h1").focus({ preventScroll: true });
    } catch (error) {
      if (mine === this.#shown) await this.#failed(error);
    }
  }

  /** Leaves the part that is shown, and shows none until it is told to; ends when that has come to something. */
  close() {
    const leave = this.#leave;
    this.#isOn = false;
    this.#leave = null;
    this.#shown += 1;
    return leave?.();
  }

  /** Says that the service does not answer; ends when it is worth another try. */
  async wait() {
    fill(
      this.#main,
      h("h1", {}, "Waiting for the service"),
      h("p", {}, "This page is shown as soon as the service answers."),
    );
    await this.#untilBack();
  }

  /** Shows an error in place of a part. */
  fail(error) {
    if (!(error instanceof ApiError)) throw error;
    fill(this.#main, h("h1", {}, "That did not work"), h("p", {}, error.message), this.#wayHome());
  }

  async #failed(error) {
    if (!(error instanceof Unreachable)) return this.fail(error);
    const mine = this.#shown;
    await this.wait();
    if (mine === this.#shown) await this.show();
  }

  #match(address) {
    for (const [pattern, page, title] of this.#pages) {
      const found = pattern.exec(address);
      if (!found) continue;
      const groups = found.slice(1).map(decodeURIComponent);
      return [page, title(...groups), groups];
    }
    const notFound = (place) => fill(place, h("h1", { tabindex: "-1" }, "There is no such page"), this.#wayHome());
    return [notFound, "Not found", []];
  }

  #wayHome() {
    return h("p", {}, h("a", { href: "#/" }, this.#home));
  }
}
