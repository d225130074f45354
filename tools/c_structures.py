"""Reads names and shapes of structures, unions and enumerations from preprocessed C.

Not a C parser: it knows the forms that occur in Linux's KVM headers (structures
and unions with or without a name, nested, arrays, bit fields, pointers, arrays
without a length). It reads no number; those are the compiler's affair.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = ["INTEGERS", "Field", "Parser", "Structure"]

INTEGERS = {
    "__u8": "u8", "char": "u8", "unsigned char": "u8", "__s8": "s8",
    "__u16": "u16", "__s16": "s16",
    "__u32": "u32", "__s32": "s32", "int": "s32", "unsigned int": "u32",
    "__u64": "u64", "unsigned long": "u64", "__s64": "s64", "long": "s64",
}  # fmt: skip


@dataclass
class Field:
    """One member: where the compiler finds it, and what it is."""

    name: str
    path: str
    kind: str  # u8..s64, or the name of a structure
    dims: int = 0
    flexible: bool = False
    bits: bool = False


@dataclass
class Structure:
    """A structure or union; ``origin`` is the path in C for one without a name of its own."""

    name: str
    origin: str
    fields: list[Field] = field(default_factory=list)


class Parser:
    """Reads the declarations that occur in the KVM headers; not a C parser."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = re.findall(r"\w+|[^\w\s]", text)
        self.at = 0
        self.structures: list[Structure] = []
        self.enumerators: list[str] = []

    def take(self, wanted: str = "") -> str:
        token = self.tokens[self.at]
        if wanted and token != wanted:
            around = " ".join(self.tokens[self.at - 8 : self.at + 8])
            raise SystemExit(f"gen_kvm_abi: expected {wanted!r}, found {token!r} in: {around}")
        self.at += 1
        return token

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead]

    def parse(self) -> None:
        while self.at < len(self.tokens):
            word = self.take()
            if word == "enum":
                self.enum()
            elif word == "struct":
                name = self.take()
                self.body(Structure(name, f"struct {name}"), "", f"struct {name}")
            self.take(";")

    def enum(self) -> None:
        if self.peek() != "{":
            self.take()
        self.take("{")
        while self.peek() != "}":
            self.enumerators.append(self.take())
            while self.peek() not in ",}":
                self.take()
            if self.peek() == ",":
                self.take()
        self.take("}")

    def body(self, into: Structure, prefix: str, outer: str) -> None:
        """Members up to the brace; ``prefix`` is the path from ``outer``, a named structure."""
        self.take("{")
        while self.peek() != "}":
            self.member(into, prefix, outer)
        self.take("}")
        self.structures.append(into)

    def member(self, into: Structure, prefix: str, outer: str) -> None:
        words = []
        while re.match(r"[a-zA-Z_]", self.peek()) and self.peek(1) not in ",;:[":
            words.append(self.take())
            if words[-1] in ("struct", "union") and (self.peek() == "{" or self.peek(1) == "{"):
                if self.peek() != "{":
                    self.take()
                self.aggregate(into, prefix, outer)
                return
        pointer = self.peek() == "*"
        if pointer:
            self.take("*")
        kind = "u64" if pointer else words[1] if words[0] == "struct" else INTEGERS[" ".join(words)]
        while True:
            self.declarator(into, prefix, kind)
            if self.take() == ";":
                return

    def aggregate(self, into: Structure, prefix: str, outer: str) -> None:
        """A structure or union defined in place: named, or promoted into its parent."""
        depth, end = 0, self.at
        while True:  # look ahead for the name behind the closing brace
            depth += {"{": 1, "}": -1}.get(self.tokens[end], 0)
            end += 1
            if depth == 0:
                break
        name = self.tokens[end]
        if name == ";":
            if end - self.at > 2:
                inner = Structure(into.name, "")
                self.body(inner, prefix, outer)
                self.structures.pop()  # body() put the nameless one there last
                into.fields += inner.fields
            else:
                self.at = end
        elif name.startswith("__empty_"):
            self.at = end + 1
        else:
            array = "[0]" if self.tokens[end + 1] == "[" else ""
            kind = f"{into.name}_{name}"
            path = f"{prefix}{name}"
            nested = Structure(kind, f"{outer}|{path}{array}")
            self.body(nested, f"{path}{array}.", outer)
            self.declarator(into, prefix, kind)
        self.take(";")

    def declarator(self, into: Structure, prefix: str, kind: str) -> None:
        name = self.take()
        member = Field(name, f"{prefix}{name}", kind)
        if self.peek() == ":":
            self.take(), self.take()
            member.bits = True
        while self.peek() == "[":
            self.take()
            size = []
            while self.peek() != "]":
                size.append(self.take())
            self.take("]")
            member.dims += 1
            member.flexible = size in ([], ["0"])
        into.fields.append(member)
