"""Every warning and every error of the source is on the page about messages, and no other."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.docs.named_tests import ROOT

SOURCE = ROOT / "src" / "pyncette"
PAGE = (ROOT / "docs" / "how-to" / "troubleshooting.md").read_text()

# What is raised there is shown as the end of another message, which the page has.
PART_OF_OTHERS = (
    *(
        "conversion.py",
        "migrate/legacy.py",
        "schedule/rule_grammar.py",
        "schedule/text.py",
        "schedule/inherited.py",
    ),
    *("redis/layout.py", "schedule/cron.py", "schedule/zone.py", "store/record.py"),
)
FOR_OTHERS = ("testing/suite/",)
LEVELS = {"warning", "error", "critical", "exception"}
REFUSED = {"ValueError", "TypeError", "AttributeError"}
VARIABLE = "\0"
NAMED = "…"


class Message(NamedTuple):
    where: str
    kind: str
    text: str


def text_of(node: ast.expr) -> list[str]:
    """The texts that an expression may be, with a mark where it varies; none if all varies."""
    match node:
        case ast.Constant(value=str(text)):
            return [re.sub(r"%(?:[.\d]*[a-z]|\(\w+\)s)", VARIABLE, text)]
        case ast.JoinedStr(values=values):
            parts = [
                value.value if isinstance(value, ast.Constant) else VARIABLE for value in values
            ]
            return ["".join(map(str, parts))]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [
                before + after
                for before in text_of(left) or [VARIABLE]
                for after in text_of(right) or [VARIABLE]
            ]
        case ast.IfExp(body=body, orelse=other):
            return [*text_of(body), *text_of(other)]
    return []


def messages() -> Iterator[Message]:
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name in PART_OF_OTHERS or name.startswith(FOR_OTHERS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (found := said_by(node)) is not None:
                kind, argument = found
                for text in text_of(argument):
                    if text.strip(VARIABLE + " :."):
                        yield Message(f"{name}:{node.lineno}", kind, text)


def said_by(call: ast.Call) -> tuple[str, ast.expr] | None:
    """The kind of message that a call gives, and the expression of its text."""
    match call:
        case ast.Call(func=ast.Attribute(value=ast.Name("logger"), attr=level), args=[text, *_]):
            return (level, text) if level in LEVELS else None
        case ast.Call(func=ast.Name("log_exception"), args=[_, _, _, text, *_]):
            return "log_exception", text
        case ast.Call(func=ast.Name(name), args=[text, *_]):
            public = not name.startswith("_") and name != "AssertionError"
            is_error = name.endswith(("Error", "Exception", "UnreadableHere", "NewerFormat"))
            return (name, text) if public and is_error else None
        case ast.Call(
            func=ast.Attribute(value=ast.Call(func=ast.Name("super")), attr="__init__"),
            args=[text, *_],
        ):
            return "super", text
    return None


def entries(page: str) -> list[str]:
    """The messages that a part of the page explains: code, in the lines before a definition."""
    lines = page.splitlines()
    return [
        code
        for line, after in itertools.pairwise(lines)
        if after.startswith(":   ")
        for code in re.findall(r"`([^`]+)`", line)
    ]


def pattern_of(entry: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in entry.split(NAMED)), re.S)


GENERAL = PAGE.partition("\n## Values that are refused\n")[2].partition("\n## ")[0]
SPECIFIC = PAGE.replace(GENERAL, "")


def unanswered(message: Message) -> bool:
    own = [entry for entry in entries(SPECIFIC) if len(entry.replace(NAMED, "").strip(": ")) > 5]
    fitting = [*own, *entries(GENERAL)] if message.kind in REFUSED else own
    return not any(pattern_of(entry).fullmatch(message.text) for entry in fitting)


def test_every_warning_and_error_of_the_source_is_explained() -> None:
    every = list(messages())
    assert len(every) > 350
    missing = [message for message in every if unanswered(message)]
    assert not missing, "add to docs/how-to/troubleshooting.md:\n" + "\n".join(
        f"{where} {kind}: {text.replace(VARIABLE, NAMED)}" for where, kind, text in missing
    )


def test_every_message_on_the_page_is_in_the_source() -> None:
    # Messages that are put together, or that helpers make, are looked for by their longest part.
    source = re.sub(
        r'"\s*\n\s*f?"',
        "",
        "".join(path.read_text() for path in sorted(SOURCE.rglob("*.py"))),
    )
    texts = [message.text for message in messages()]
    for entry in entries(PAGE):
        if any(pattern_of(entry).fullmatch(text) for text in texts):
            continue
        longest = max(entry.split(NAMED), key=len).strip()
        assert longest, entry
        assert longest in source, entry
