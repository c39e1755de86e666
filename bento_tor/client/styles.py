"""Style sheets of strangers: kept are rules that name nothing outside. Pure, but for what `picture` does.

tinycss2, the parser of the W3C's own grammar that WeasyPrint lives on: with it a rule is judged by its tokens, where
whoever looks for `url(` in the text is fooled by an escape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tinycss2

# Only rules that group other rules. Not @import and @font-face, which load.
_GROUPS = frozenset({"media", "supports", "layer", "container"})
_FRAMES = frozenset({"keyframes", "-webkit-keyframes"})
# What loads from a string, or runs code in some browser.
_FUNCTIONS = frozenset(
    {"url", "src", "image", "image-set", "-webkit-image-set", "cross-fade", "-webkit-cross-fade"}
    | {"element", "-moz-element", "expression", "paint", "attr"}
)
_PROPERTIES = frozenset({"behavior", "-moz-binding", "src"})
# As an address of a picture, or None where there is none.
FindPicture = Callable[[str], str | None]


def clean_sheet(text: str, picture: FindPicture) -> str:
    """A style sheet that loads nothing, for inside a <style> element; empty where it cannot be judged."""
    try:
        rules = tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True)
        return _inert("".join(_rule(rule, picture) for rule in rules))
    except RecursionError:
        return ""


def clean_declarations(text: str, picture: FindPicture) -> str:
    """The same for what stands in a `style` attribute."""
    try:
        return _inert(_declarations(tinycss2.parse_blocks_contents(text), picture))
    except RecursionError:
        return ""


def _inert(css: str) -> str:
    # The end of the <style> element is found before any CSS is read: no "<" may be left, in a string or elsewhere.
    return css.replace("<", "\\3c ")


def _rule(rule: Any, picture: FindPicture) -> str:
    if rule.type == "qualified-rule":
        selector = tinycss2.serialize(rule.prelude)
        return f"{selector}{{{_declarations(tinycss2.parse_blocks_contents(rule.content), picture)}}}\n"
    if rule.type != "at-rule" or rule.content is None:
        return ""
    word = rule.lower_at_keyword
    if word not in _GROUPS | _FRAMES or _loads(rule.prelude):
        return ""
    inner = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
    return f"@{word}{tinycss2.serialize(rule.prelude)}{{{''.join(_rule(each, picture) for each in inner)}}}\n"


def _declarations(nodes: list[Any], picture: FindPicture) -> str:
    kept = []
    for node in nodes:
        if node.type == "declaration" and node.lower_name not in _PROPERTIES:
            value = _value(node.value, picture)
            if value is not None:
                kept.append(f"{tinycss2.serialize_identifier(node.name)}:{value}{'!important' * node.important}")
        elif node.type in ("qualified-rule", "at-rule"):
            kept.append(_rule(node, picture))
    return ";".join(kept)


def _value(tokens: list[Any], picture: FindPicture) -> str | None:
    """A value with its pictures put in; None where it would load something."""
    found = []
    for token in tokens:
        maybe_url = _maybe_url(token)
        if maybe_url is not None:
            address = picture(maybe_url)
            if address is None:
                return None
            found.append(f'url("{address}")')
        elif _loads([token]):
            return None
        else:
            found.append(tinycss2.serialize([token]))
    return "".join(found)


def _maybe_url(token: Any) -> str | None:
    if token.type == "url":
        return str(token.value)
    if token.type == "function" and token.lower_name == "url":
        strings = [each.value for each in token.arguments if each.type == "string"]
        return str(strings[0]) if strings else ""
    return None


def _loads(tokens: list[Any]) -> bool:
    for token in tokens:
        if token.type in ("url", "error") or (token.type == "function" and token.lower_name in _FUNCTIONS):
            return True
        inner = token.arguments if token.type == "function" else getattr(token, "content", None)
        if inner and _loads(inner):
            return True
    return False
