// Tables whose rows are shown as blocks on a phone. Their roles are said, because blocks take them away.

import { h } from "../dom.js";

/** A table that a screen reader calls `label`; `body` takes its rows. */
export function stackedTable(label, heads) {
  const body = h("tbody", { role: "rowgroup" });
  const head = h(
    "tr",
    { role: "row" },
    heads.map((name) => h("th", { scope: "col", role: "columnheader" }, name)),
  );
  const element = h(
    "div",
    { class: "card scroll", role: "region", "aria-label": label, tabindex: "0" },
    h(
      "table",
      { class: "stacked", role: "table", "aria-label": label },
      h("thead", { role: "rowgroup" }, head),
      body,
    ),
  );
  return { element, body };
}

/** The cell that names a row. */
export const rowHead = (...content) => h("th", { scope: "row", role: "rowheader" }, content);

/** A cell under a head. */
export const cell = (head, ...content) => h("td", { role: "cell", "data-label": head }, content);

/** A cell that shares its line with its neighbours on a phone. */
export const shortCell = (head, ...content) => {
  const made = cell(head, content);
  made.className = "short";
  return made;
};

/** A row of cells. */
export const row = (...cells) => h("tr", { role: "row" }, cells);
