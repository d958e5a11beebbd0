// A part of a page that is asked for when it is opened first.

import { fill, h } from "../dom.js";

/**
 * A section under its title, folded.
 *
 * @param {string|Node} title
 * @param {(place: Element) => Promise<void>} show fills the place, at the first opening.
 */
export function folded(title, show) {
  const place = h("div", {}, h("p", { class: "hint" }, "Loading…"));
  let isShown = false;
  const onToggle = async () => {
    if (!details.open || isShown) return;
    isShown = true;
    try {
      await show(place);
    } catch (error) {
      isShown = false;
      fill(place, h("p", { class: "problem" }, error.message));
    }
  };
  const details = h("details", { class: "folded", onToggle }, h("summary", {}, h("h2", {}, title)), place);
  return h("section", { class: "card" }, details);
}
