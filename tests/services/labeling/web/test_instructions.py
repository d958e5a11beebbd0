"""Markdown as a tree: known elements only, and markup stays text."""

from __future__ import annotations

from typing import Any

from trimtab_services.labeling.web import instructions_tree


def element(tag: str, *children: Any, **attributes: Any) -> dict[str, Any]:
    return {"tag": tag, "children": list(children), **attributes}


def test_elements_of_markdown() -> None:
    assert instructions_tree("# A *b*\n\ntext `c`  \nnext\nline") == [
        element("h3", "A ", element("em", "b")),
        element("p", "text ", element("code", "c"), element("br"), "next", "\n", "line"),
    ]
    assert instructions_tree("3. one\n4. two\n\n---\n\n    code") == [
        element("ol", element("li", "one"), element("li", "two"), start=3),
        element("hr"),
        element("pre", element("code", "code\n")),
    ]
    table = instructions_tree("| a |\n| -: |\n| ~~b~~ |")
    assert table == [
        element(
            "table",
            element("thead", element("tr", element("th", "a", align="right"))),
            element("tbody", element("tr", element("td", element("s", "b"), align="right"))),
        )
    ]
    assert instructions_tree("") == []


def test_markup_and_dangerous_addresses_are_text() -> None:
    scheme = "[a](javascript:alert(1))"
    for text in ("<script>alert(1)</script>", "a <b onclick=x>b</b>", scheme, "[a](data:text/html,x)"):
        (paragraph,) = instructions_tree(text)
        assert isinstance(paragraph, dict)
        assert "".join(paragraph["children"]) == text  # texts only, or this fails
    assert instructions_tree("[a](https://example.com) ![b](https://example.com/b.png)") == [
        element(
            "p",
            element("a", "a", href="https://example.com"),
            " ",
            element("a", "b", href="https://example.com/b.png"),
        )
    ]
