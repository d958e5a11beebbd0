// All projects.

import { get, path, session } from "../api.js";
import { counted, fill, h } from "../dom.js";
import { moreButton } from "./lists.js";
import { KIND_NAMES } from "../tasks/texts.js";

export async function projectsPage(main) {
  const list = h("ul", { class: "cards" });
  const { projects, next_after } = await get("projects");
  list.append(...projects.map(card));
  fill(
    main,
    h(
      "div",
      { class: "row between" },
      h("h1", { tabindex: "-1" }, "Projects"),
      session.account.role === "admin" && h("a", { class: "button", href: "#/new-project" }, "New project"),
    ),
    projects.length ? list : h("p", {}, "There are no projects yet."),
    moreButton(next_after, async (after) => {
      const page = await get(`projects?after=${encodeURIComponent(after)}`);
      list.append(...page.projects.map(card));
      return page.next_after;
    }),
  );
}

function card(project) {
  return h(
    "li",
    { class: "card project" },
    h("h2", {}, h("a", { href: `#/projects/${path(project.name)}` }, project.name)),
    h("p", {}, KIND_NAMES[project.kind], project.state !== "open" && h("span", { class: "badge" }, project.state)),
    h(
      "p",
      { class: "hint" },
      `You: ${counted(project.mine.labels, "label")}, ${project.mine.skips} skipped`,
      qualificationText(project),
    ),
  );
}

/** How far the qualification is; empty where there is none. */
export function qualificationText(project) {
  const { done, wanted, agreeing, pairs, passed } = project.mine.qualification;
  if (!wanted) return "";
  if (passed === null) return ` · qualification: ${done} of ${counted(wanted, "task")} done`;
  const share = pairs ? `${agreeing} of ${pairs} pairs as the gold answers` : "no pairs compared";
  return ` · qualification ${passed ? "passed" : "not passed"} (${share})`;
}

/** Why there are no tasks for somebody who failed the qualification, and what can be done. */
export function notPassedText(project) {
  const { agreeing, pairs } = project.mine.qualification;
  const wanted = `${(100 * project.qualification_pass).toLocaleString("en")} %`;
  return (
    `You did not pass the qualification: you ordered ${agreeing} of ${pairs} pairs as the gold answers, and ${wanted} ` +
    "of them are needed. So there are no tasks for you here. A reviewer can let you try again."
  );
}
