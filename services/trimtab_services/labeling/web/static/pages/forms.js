// A form that sends, and says what was wrong or that it worked.

import { announce } from "../announce.js";
import { fill, h } from "../dom.js";

/**
 * @param {Node[]} content fields.
 * @param {string} label of its button.
 * @param {() => Promise<string>} send does it; returns what is said when it worked.
 */
export function form(content, label, send) {
  const outcome = h("p", { class: "outcome", role: "status" });
  const button = h("button", { class: "primary" }, label);
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      tell(outcome, await send(), false);
    } catch (error) {
      tell(outcome, error.message, true);
    } finally {
      button.disabled = false;
    }
  };
  return h("form", { onSubmit: submit }, content, h("div", { class: "row" }, button, outcome));
}

function tell(outcome, text, isProblem) {
  outcome.className = isProblem ? "outcome problem" : "outcome";
  fill(outcome, text);
  if (isProblem) announce(text, { isUrgent: true });
}

/** A choice of one of several. */
export function select(options, chosen) {
  return h(
    "select",
    {},
    options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)),
  );
}

/** A yes or no. */
export function check(label, isOn) {
  const input = h("input", { type: "checkbox", checked: isOn });
  return { input, element: h("label", { class: "choice" }, input, label) };
}
