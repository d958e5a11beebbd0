// Notices above the page. One of each name at a time; they stay until they are taken away or their reason has gone.

import { announce } from "./announce.js";
import { fill, h } from "./dom.js";

/**
 * Shows a notice in place of the one with the same name.
 *
 * @param {string} name of the notice.
 * @param {string} text one or two sentences.
 * @param {{kind?: "info"|"warning"|"error"|"good", actions?: Array<[string, () => void]>, canClose?: boolean}} options
 */
export function notice(name, text, { kind = "info", actions = [], canClose = false } = {}) {
  const shown = find(name) ?? document.getElementById("notices").appendChild(h("div", { "data-name": name }));
  if (shown.dataset.text === text && shown.childElementCount) return;
  shown.dataset.text = text;
  shown.className = `notice ${kind}`;
  const buttons = actions.map(([label, act]) => h("button", { type: "button", onClick: act }, label));
  if (canClose) buttons.push(h("button", { type: "button", class: "quiet", onClick: () => withdraw(name) }, "Close"));
  fill(shown, h("p", {}, text), buttons.length > 0 && h("div", { class: "row" }, buttons));
  announce(text, { isUrgent: kind === "error" || kind === "warning" });
}

/** Takes a notice away. */
export function withdraw(...names) {
  for (const name of names) find(name)?.remove();
}

function find(name) {
  return document.querySelector(`#notices > [data-name="${name}"]`);
}
