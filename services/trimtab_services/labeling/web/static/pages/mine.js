// What a labeler has done in a project, newest first; the last one can be taken back for a while.

import { get, path, post } from "../api.js";
import { fill, h } from "../dom.js";
import { notice } from "../notices.js";
import { moreButton } from "./lists.js";
import { labelSummary } from "./label_summary.js";

const SNIPPET = 160;

export async function minePage(main, name) {
  const where = `projects/${path(name)}/assignments`;
  const list = h("ol", { class: "cards plain" });
  const { assignments, next_before } = await get(where);
  list.append(...assignments.map((one, index) => card(name, one, index === 0)));
  fill(
    main,
    h("h1", { tabindex: "-1" }, "My labels"),
    h("p", {}, h("a", { href: `#/projects/${path(name)}` }, name)),
    assignments.length ? list : h("p", {}, "You have not done any task of this project yet."),
    moreButton(next_before, async (before) => {
      const page = await get(`${where}?before=${before}`);
      list.append(...page.assignments.map((one) => card(name, one, false)));
      return page.next_before;
    }),
  );
}

function card(name, one, isNewest) {
  const asked = one.prompt || one.messages.at(-1)?.content || one.label?.prompt || "";
  const address = `#/projects/${path(name)}/tasks/${one.id}`;
  const state = { leased: one.lease_left_ms ? "in work" : "not finished", submitted: "sent", skipped: "skipped" }[
    one.state
  ];
  return h(
    "li",
    { class: "card" },
    h(
      "div",
      { class: "row between" },
      h("h2", { class: "text", dir: "auto" }, asked.slice(0, SNIPPET) || `Task ${one.id}`),
      h("span", {}, [state, one.is_withdrawn && "withdrawn"].map((fact) => h("span", { class: "badge" }, fact))),
    ),
    one.skip_reason && h("p", {}, one.skip_reason),
    one.label && labelSummary(one.label, one.answers),
    one.state === "leased" && h("a", { class: "button", href: address }, "Open"),
    isNewest && one.undo_left_ms > 0 && h("button", { type: "button", onClick: () => undo(one.id, address) }, "Undo"),
  );
}

async function undo(id, address) {
  try {
    await post(`assignments/${path(id)}/undo`);
    location.hash = address;
  } catch (error) {
    notice("sent", `It could not be taken back: ${error.message}`, { kind: "error", canClose: true });
  }
}
