// For admins: who changed what.

import { get } from "../api.js";
import { counted, fill, h } from "../dom.js";
import { moreButton, table, tableRow } from "./lists.js";

const SHORT = 200;

export async function auditPage(main) {
  const { events, next_after } = await get("audit");
  const box = table("Changes, oldest first", ["Number", "Time", "Who", "What", "On what", "Facts"], events.map(row));
  const body = box.querySelector("tbody");
  fill(
    main,
    h("h1", { tabindex: "-1" }, "Audit"),
    box,
    moreButton(next_after, async (after) => {
      const page = await get(`audit?after=${after}`);
      body.append(...page.events.map((event) => tableRow(row(event))));
      return page.next_after;
    }),
  );
}

function row(event) {
  const time = new Date(1000 * event.time);
  return [
    event.sequence,
    h("time", { datetime: time.toISOString() }, time.toLocaleString()),
    event.actor,
    event.action,
    event.subject,
    facts(JSON.stringify(event.detail)),
  ];
}

/** Long ones, such as the instructions of a project, are folded. */
function facts(text) {
  const code = h("code", { class: "text" }, text);
  return text.length <= SHORT ? code : h("details", {}, h("summary", {}, counted(text.length, "character")), code);
}
