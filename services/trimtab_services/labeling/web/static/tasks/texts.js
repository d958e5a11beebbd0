// Texts of tasks as they are: never markup, in the direction of their script, and whole.

import { h } from "../dom.js";

const SHOWN_AT_ONCE = 20000;

export const KIND_NAMES = {
  demonstrate: "Write the ideal answer",
  rank: "Rank the answers",
  compare: "Compare two answers",
};

const ROLES = { system: "System", user: "User", assistant: "Assistant", tool: "Tool" };

/** How many characters a text has, as the service counts them: most emoji are one. */
export const charactersOf = (text) => [...text].length;

/** A text; a very long one in two steps, so that the page stays quick. */
export function longText(text) {
  const shown = h("div", { class: "text", dir: "auto" }, text.slice(0, SHOWN_AT_ONCE));
  if (text.length <= SHOWN_AT_ONCE) return shown;
  const rest = charactersOf(text.slice(SHOWN_AT_ONCE)).toLocaleString("en");
  const more = h(
    "button",
    {
      type: "button",
      onClick: () => {
        shown.textContent = text;
        shown.tabIndex = -1;
        shown.focus({ preventScroll: true });
        more.remove();
      },
    },
    `Show the other ${rest} characters`,
  );
  return h("div", {}, shown, more);
}

/** What a task asks; null where the labeler writes it. */
export function promptOf(task) {
  if (task.writes_prompt && !task.context) return null;
  return h(
    "section",
    { class: "card prompt", "aria-labelledby": "prompt-title" },
    h(
      "div",
      { class: "row between" },
      h("h2", { id: "prompt-title" }, "Prompt"),
      task.category && h("span", { class: "badge" }, task.category),
    ),
    task.context && h("div", { class: "context" }, h("h3", {}, "Context"), longText(task.context)),
    task.prompt && longText(task.prompt),
    task.messages.length > 0 &&
      h(
        "ol",
        { class: "turns" },
        task.messages.map((turn) =>
          h("li", { class: `turn ${turn.role}` }, h("h3", {}, ROLES[turn.role] ?? turn.role), longText(turn.content)),
        ),
      ),
  );
}
