// Lists that come page by page, and tables.

import { freshId, h } from "../dom.js";

/**
 * A button that loads the next page of a list; null where there is none.
 *
 * @param {*} next where the next page begins; null for no more.
 * @param {(next) => Promise<*>} load shows it, and says where the one after begins.
 */
export function moreButton(next, load) {
  if (next === null) return null;
  const button = h("button", { type: "button" }, "Show more");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      next = await load(next);
    } finally {
      button.disabled = false;
    }
    if (next === null) button.remove();
  });
  return h("p", {}, button);
}

/** A table under its title; on a small screen it scrolls in its own box. */
export function table(title, heads, rows) {
  const id = freshId("table");
  return h(
    "section",
    { class: "card" },
    h("h2", { id }, title),
    h(
      "div",
      { class: "scroll", role: "region", "aria-labelledby": id, tabindex: "0" },
      h(
        "table",
        { "aria-labelledby": id },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            heads.map((head) => h("th", { scope: "col" }, head)),
          ),
        ),
        h("tbody", {}, rows.map(tableRow)),
      ),
    ),
  );
}

/** A row of such a table; its first cell names it. */
export function tableRow(cells) {
  return h(
    "tr",
    {},
    cells.map((cell, index) => (index ? h("td", {}, cell) : h("th", { scope: "row" }, cell))),
  );
}
