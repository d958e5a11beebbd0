"""Markdown as a tree of a few known elements: `{"tag", "children"}` and strings, which a page makes nodes of.

There is no HTML on the way: markup in the Markdown is text, and there are no attributes but the address of a link, the
first number of a list and the alignment of a cell.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

__all__ = ["Node", "instructions_tree"]

Node = str | dict[str, Any]
"""A text, or an element: `tag`, `children`, and where it applies `href`, `start` or `align`."""

_LEAST_LEVEL, _MOST_LEVEL = 3, 6
"""Of headings: the page has the first two levels itself."""
_markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
_WITHOUT_ELEMENT = {"inline", "root"}


@lru_cache(maxsize=64)
def instructions_tree(markdown: str) -> list[Node]:
    """The tree of a Markdown text; CommonMark with tables and strikethrough. Not to be changed: it is kept."""
    return _children(SyntaxTreeNode(_markdown.parse(markdown)))


def _children(parent: SyntaxTreeNode) -> list[Node]:
    return [node for child in parent.children for node in _nodes(child)]


def _nodes(node: SyntaxTreeNode) -> list[Node]:
    match node.type:
        case "text" | "text_special":
            return [node.content]
        case "softbreak":
            return ["\n"]
        case "hardbreak":
            return [_element("br", [])]
        case "hr":
            return [_element("hr", [])]
        case "code_inline":
            return [_element("code", [node.content])]
        case "fence" | "code_block":
            return [_element("pre", [_element("code", [node.content])])]
        case "image":  # a page loads nothing from elsewhere
            return [_element("a", [node.content or str(node.attrs["src"])], href=node.attrs["src"])]
        case "link":
            return [_element("a", _children(node), href=node.attrs["href"])]
        case "heading":
            level = min(int(node.tag[1:]) + _LEAST_LEVEL - 1, _MOST_LEVEL)
            return [_element(f"h{level}", _children(node))]
        case "paragraph" if node.hidden:  # of a list without blank lines
            return _children(node)
        case kind if kind in _WITHOUT_ELEMENT:
            return _children(node)
        case _:
            style = str(node.attrs.get("style", ""))
            return [
                _element(
                    node.tag, _children(node), start=node.attrs.get("start"), align=style.removeprefix("text-align:")
                )
            ]


def _element(tag: str, children: list[Node], **attributes: object) -> Node:
    return {"tag": tag, "children": children, **{name: value for name, value in attributes.items() if value}}
