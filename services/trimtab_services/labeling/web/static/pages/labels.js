// For reviewers: everybody's labels.

import { get, path, post, session } from "../api.js";
import { field, fill, h } from "../dom.js";
import { longText } from "../tasks/texts.js";
import { moreButton } from "./lists.js";
import { labelSummary } from "./label_summary.js";

const SNIPPET = 120;

export async function labelsPage(main, name) {
  const where = `projects/${path(name)}`;
  const results = h("div", { "aria-live": "polite" });
  const labeler = h("input", { type: "text", autocapitalize: "none", spellcheck: "false" });
  const search = async (event) => {
    event?.preventDefault();
    await show(results, name, `${where}/labels?labeler=${encodeURIComponent(labeler.value.trim())}`);
  };
  fill(
    main,
    h("h1", { tabindex: "-1" }, `All labels: ${name}`),
    h(
      "p",
      { class: "row" },
      h("a", { href: `#/${where}` }, "Project"),
      h("a", { href: `#/${where}/review` }, "Agreement"),
    ),
    h("form", { class: "row bottom", onSubmit: search }, field("Only of labeler", labeler), h("button", {}, "Show")),
    results,
  );
  await search();
}

async function show(results, name, address) {
  const list = h("ol", { class: "cards plain" });
  const shown = new EventTarget(); // tells the cards of a task, by its key, whether it is withdrawn
  const { labels, next_after } = await get(address);
  list.append(...labels.map((one) => card(name, one, shown)));
  fill(
    results,
    labels.length ? list : h("p", {}, "There are no labels."),
    moreButton(next_after, async (after) => {
      const page = await get(`${address}&after=${after}`);
      list.append(...page.labels.map((one) => card(name, one, shown)));
      return page.next_after;
    }),
  );
}

function card(name, one, shown) {
  const { task } = one;
  const asked = task.prompt || task.messages?.at(-1)?.content || one.label?.prompt || one.task_key;
  const facts = [
    one.labeler,
    one.group,
    one.is_qualification && "qualification",
    one.state === "skipped" && "skipped",
  ].filter(Boolean);
  const withdrawn = h("span", { class: "badge" }, one.is_withdrawn && "withdrawn");
  shown.addEventListener(one.task_key, ({ detail }) => {
    one.is_withdrawn = detail;
    fill(withdrawn, detail && "withdrawn");
  });
  const spent = one.active_ms === null ? one.seconds : one.active_ms / 1000;
  return h(
    "li",
    { class: "card" },
    h(
      "details",
      {},
      h(
        "summary",
        {},
        h("span", { class: "snippet", dir: "auto" }, asked.slice(0, SNIPPET)),
        " ",
        facts.map((fact) => h("span", { class: "badge" }, fact)),
        withdrawn,
      ),
      h("h3", {}, "Prompt"),
      longText(asked),
      one.skip_reason && h("p", {}, `Skipped: ${one.skip_reason}`),
      one.label && labelSummary(one.label, task.answers ?? []),
      h("p", { class: "hint" }, `Task ${one.task_key} · ${Math.round(spent)} s of work`),
      session.account.role === "admin" && withdrawal(name, one, shown),
    ),
  );
}

/** Takes the task out of the project, or puts it back. */
function withdrawal(name, one, shown) {
  const outcome = h("p", { class: "outcome", role: "status" });
  const button = h("button", { type: "button" });
  const texts = () => {
    button.textContent = one.is_withdrawn ? "Put the task back" : "Withdraw the task";
  };
  shown.addEventListener(one.task_key, () => {
    texts();
    fill(outcome);
  });
  button.addEventListener("click", async () => {
    const restore = one.is_withdrawn;
    try {
      await post(`projects/${path(name)}/withdraw`, { task_keys: [one.task_key], restore });
      shown.dispatchEvent(new CustomEvent(one.task_key, { detail: !restore }));
      fill(
        outcome,
        restore ? "The task is back, with its labels." : "The task is withdrawn: no longer given out or exported.",
      );
    } catch (error) {
      fill(outcome, error.message);
    }
  });
  texts();
  return h("div", { class: "row" }, button, outcome);
}
