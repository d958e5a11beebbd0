// Modal dialogs: the browser keeps the focus inside and gives it back; Escape closes.

import { field, freshId, h } from "./dom.js";
import { setShortcutsOn, shortcutsAreOn } from "./shortcuts.js";

/**
 * Asks; returns the value of the button that was pressed, null after Escape.
 *
 * @param {string} title one line.
 * @param {Array<Node>} content below it.
 * @param {Array<[string, string, string?]>} buttons label, value, class; a form that is not valid sends "cancel" only.
 */
export function ask(title, content, buttons) {
  const id = freshId("dialog");
  const dialog = h(
    "dialog",
    { "aria-labelledby": id },
    h(
      "form",
      { method: "dialog" },
      h("h2", { id }, title),
      content,
      h(
        "div",
        { class: "row end" },
        buttons.map(([label, value, kind = ""]) =>
          h("button", { value, class: kind, formnovalidate: value === "cancel" }, label),
        ),
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue || null);
    });
  });
}

const REASONS = [
  "I do not understand the task",
  "I do not know enough to judge",
  "It is in a language that I do not read well",
  "It upsets me",
  "The task is broken",
];

/** Why a task is skipped; null when it is not. */
export async function askReason() {
  const details = h("textarea", { rows: "2", maxlength: "400" });
  const name = freshId("reason");
  const choices = [...REASONS, "Another reason"].map((reason, index) =>
    h(
      "label",
      { class: "choice" },
      h("input", { type: "radio", name, value: reason, required: true, autofocus: index === 0 }),
      reason,
    ),
  );
  const content = [
    h("p", {}, "You will not get this task again; somebody else will."),
    h("fieldset", {}, h("legend", {}, "Why?"), choices),
    field("More, if you like", details),
  ];
  const pressed = await ask("Skip this task", content, [
    ["Cancel", "cancel", "quiet"],
    ["Skip", "skip", "primary"],
  ]);
  if (pressed !== "skip") return null;
  const chosen = choices.map((choice) => choice.firstChild).find((input) => input.checked).value;
  return details.value.trim() ? `${chosen}: ${details.value.trim()}` : chosen;
}

/** Shows the keys of the page. */
export async function showHelp(sections) {
  const toggle = h("input", { type: "checkbox" });
  toggle.checked = shortcutsAreOn();
  toggle.addEventListener("change", () => setShortcutsOn(toggle.checked));
  const tables = sections.map(([title, keys]) => [
    h("h3", {}, title),
    h(
      "dl",
      { class: "keys" },
      keys.map(([names, meaning]) => [h("dt", {}, keyNames(names)), h("dd", {}, meaning)]),
    ),
  ]);
  const choice = h("label", { class: "choice" }, toggle, "Single keys work (?, and the letters of a task)");
  await ask("Keys", [tables, choice], [["Close", "cancel", "primary"]]);
}

function keyNames(names) {
  return names.flatMap((name, index) => [index ? " " : null, h("kbd", {}, name)]);
}
