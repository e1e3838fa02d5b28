"""Markdown documents as data: the commands they show, their links, anchors and tables."""

import re
from collections.abc import Iterator

_BLOCK = re.compile(r"```(?:sh|console)\n(.*?)```", re.DOTALL)
_FENCED = re.compile(r"```.*?```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"(?m)^#{1,6} +(.+?) *$")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def commands(text: str) -> list[str]:
    """The commands of the `sh` and `console` blocks, each once, without prompts and comments."""
    return list(dict.fromkeys(command for block in _BLOCK.findall(text) for command in _in(block)))


def _in(block: str) -> Iterator[str]:
    for line in block.replace("\\\n", " ").splitlines():
        command = line.removeprefix("$ ").split("  #")[0].strip()
        if command and not command.startswith("#"):
            yield re.sub(r" +# .*$", "", command)


def links(text: str) -> list[str]:
    """The targets of links into this project, each once: paths, anchors or both."""
    targets = dict.fromkeys(_LINK.findall(_FENCED.sub("", text)))
    return [target for target in targets if not _ELSEWHERE.match(target)]


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them: lower case, hyphens, no punctuation."""
    titles = (title.lower() for title in _HEADING.findall(_FENCED.sub("", text)))
    return {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}


def rows(text: str) -> list[list[str]]:
    """The rows of every table by cell, headings and rules left out."""
    lines = _FENCED.sub("", text).splitlines()
    found = []
    for number, line in enumerate(lines):
        ahead = lines[number + 1] if number + 1 < len(lines) else ""
        if line.startswith("|") and not _is_rule(line) and not _is_rule(ahead):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            found.append([cell.strip() for cell in cells])
    return found


def _is_rule(line: str) -> bool:
    return re.fullmatch(r"\|[-:| ]+\|?", line.strip()) is not None


def quoted(text: str) -> list[str]:
    """What stands in backticks outside blocks."""
    return re.findall(r"`([^`\n]+)`", _FENCED.sub("", text))
