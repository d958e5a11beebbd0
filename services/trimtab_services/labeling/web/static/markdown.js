// Instructions: nodes out of the tree that the service made of the Markdown. What is not listed here is not built.

import { h } from "./dom.js";

const TAGS = new Set(
  "a blockquote br code em h3 h4 h5 h6 hr li ol p pre s strong table tbody td th thead tr ul".split(" "),
);
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const ALIGNMENTS = new Set(["left", "center", "right"]);

/** Nodes of a list of texts and elements. */
export function markdown(nodes) {
  return nodes.map(build);
}

function build(node) {
  if (typeof node === "string") return document.createTextNode(node);
  if (!TAGS.has(node.tag)) return document.createTextNode("");
  const element = h(node.tag, attributes(node), markdown(node.children));
  if (ALIGNMENTS.has(node.align)) element.style.textAlign = node.align;
  return node.tag === "table"
    ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, element)
    : element;
}

function attributes(node) {
  if (node.tag === "pre") return { tabindex: "0" };
  if (node.tag === "ol") return { start: node.start };
  if (node.tag === "a" && isWebAddress(node.href)) {
    return { href: node.href, target: "_blank", rel: "noopener noreferrer" };
  }
  return {};
}

function isWebAddress(href) {
  try {
    return SCHEMES.has(new URL(href).protocol);
  } catch {
    return false;
  }
}
