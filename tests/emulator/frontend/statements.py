"""PTX text to statements: functions, blocks, labels and instructions with their source lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_LINE_DIRECTIVES = (".version", ".target", ".address_size", ".file", ".loc")
_LABEL = re.compile(r"([A-Za-z_$][\w$]*)\s*:(?!:)")
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"')
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_MARK = re.compile(r'[;{}]|"[^"]*"')


class PtxError(Exception):
    """PTX that the emulator does not understand, with the line and the text at fault."""

    def __init__(self, line: int, text: str, why: str) -> None:
        super().__init__(f"PTX line {line}: {why}: {text.strip()[:200]}")
        self.line = line


@dataclass(frozen=True)
class Statement:
    """One piece of a function body.

    kind: "instruction", "directive", "label", "open" or "close" (a block).
    """

    kind: str
    text: str
    line: int
    source: str = ""


@dataclass
class FunctionText:
    """A function: its header up to the brace, and its body."""

    header: str
    line: int
    is_entry: bool
    body: list[Statement] = field(default_factory=list)


@dataclass
class ModuleText:
    """A whole PTX file."""

    functions: list[FunctionText] = field(default_factory=list)
    directives: list[Statement] = field(default_factory=list)


def _blank_comments(text: str) -> str:
    """Comments become blanks, newlines stay, so that lines keep their numbers."""
    return _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match.group(0)), text)


class _Splitter:
    """Walks the text line by line and collects what ends in `;`, `{`, `}` or `:`."""

    def __init__(self) -> None:
        self.module = ModuleText()
        self.function: FunctionText | None = None
        self.depth = 0  # of blocks inside the function
        self.pending = ""
        self.pending_line = 0
        self.operand_depth = 0
        self.skip_depth = 0  # inside a .section block
        self.files: dict[str, str] = {}
        self.source = ""

    def line_directive(self, text: str) -> None:
        if match := _LOC.match(text):
            file = self.files.get(match.group(1), "")
            self.source = f"{file.rsplit('/', 1)[-1]}:{match.group(2)}" if file else ""

    def add(self, kind: str, text: str, line: int) -> None:
        if self.function is not None:
            self.function.body.append(Statement(kind, text, line, self.source))
        elif kind == "directive":
            self.module.directives.append(Statement(kind, text, line))
        elif kind != "label":
            raise PtxError(line, text, "statement outside a function")

    def statement(self, text: str, line: int) -> None:
        text = text.strip()
        while match := _LABEL.match(text):
            self.add("label", match.group(1), line)
            text = text[match.end() :].strip()
        if text:
            self.add("directive" if text.startswith(".") else "instruction", text, line)

    def take_labels(self) -> None:
        """Labels end at their colon, so that a .loc line or a block may follow them."""
        while self.function is not None and (match := _LABEL.match(self.pending.strip())):
            self.add("label", match.group(1), self.pending_line)
            self.pending = self.pending.strip()[match.end() :]

    def open_brace(self, line: int) -> None:
        self.take_labels()
        head = self.pending.strip()
        if self.operand_depth or (head and self.function is not None):
            self.operand_depth += 1
            self.pending += "{"
            return
        if head.startswith(".section"):
            self.skip_depth = 1
        elif re.search(r"\.(entry|func)\b", head):
            self.function = FunctionText(head, self.pending_line, ".entry" in head)
            self.module.functions.append(self.function)
            self.depth = 1
        elif "=" in head:
            self.operand_depth += 1
            self.pending += "{"
            return
        elif not head and self.function is not None:
            self.depth += 1
            self.add("open", "", line)
        else:
            raise PtxError(line, head, "unexpected {")
        self.pending = ""

    def close_brace(self, line: int) -> None:
        if self.operand_depth:
            self.operand_depth -= 1
            self.pending += "}"
            return
        if self.pending.strip():
            self.statement(self.pending, self.pending_line)
            self.pending = ""
        if self.function is None:
            raise PtxError(line, "}", "unexpected }")
        self.depth -= 1
        if self.depth == 0:
            self.function = None
        else:
            self.add("close", "", line)

    def feed(self, text: str, line: int) -> None:
        at = 0
        for match in _MARK.finditer(text):
            mark = match.group(0)
            if mark.startswith('"'):
                continue
            if self.skip_depth:
                self.skip_depth += {"{": 1, "}": -1}.get(mark, 0)
                at = match.end()
                continue
            piece = text[at : match.start()]
            if not self.pending.strip():
                self.pending, self.pending_line = "", line
            self.pending += piece
            at = match.end()
            if mark == "{":
                self.open_brace(line)
            elif mark == "}":
                self.close_brace(line)
            elif self.operand_depth:
                raise PtxError(line, self.pending, "; inside braces")
            else:
                self.statement(self.pending, self.pending_line)
                self.pending = ""
        if not self.skip_depth and (rest := text[at:].strip()):
            if not self.pending.strip():
                self.pending, self.pending_line = "", line
            self.pending += f"{rest} "
            self.take_labels()


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_blank_comments(text).split("\n"), 1):
        stripped = line.split("//")[0].strip() if "//" in line else line.strip()
        if stripped:
            yield number, stripped


def split_module(text: str) -> ModuleText:
    """Split PTX into functions and module-level directives; PtxError where braces do not match."""
    splitter = _Splitter()
    # nvcc lists its files at the end, after the .loc lines that refer to them.
    splitter.files = dict(_FILE.findall(text))
    number = 0
    for number, line in _lines(text):
        if line.startswith(_LINE_DIRECTIVES) and not splitter.pending.strip():
            splitter.line_directive(line)
        else:
            splitter.feed(line, number)
    if splitter.function is not None or splitter.pending.strip():
        raise PtxError(number, splitter.pending, "the text ends inside a function or statement")
    return splitter.module
