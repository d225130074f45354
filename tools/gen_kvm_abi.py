#!/usr/bin/env python3
"""Generates kvmkit's KVM interface from the kernel's own headers.

Sources: ``linux/kvm.h``, ``linux/kvm_para.h``, ``asm/kvm.h`` and
``asm/kvm_para.h`` as Debian's ``linux-libc-dev`` installs them. The compiler is
the authority for every number: this program reads only *names* from the
preprocessed headers, writes a C program that prints each constant and each
``offsetof``, runs it, and formats what it says.

    python3 tools/gen_kvm_abi.py            writes abi.py, structs.py and run_structs.py in
                                            kvmkit/engine/kvm
    python3 tools/gen_kvm_abi.py --check    exit status 1 if they would change

What belongs to other architectures (s390, PowerPC, Arm, MIPS, RISC-V) is left out.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from c_structures import INTEGERS, Field, Parser, Structure

__all__ = ["generate", "headers_version", "main"]

HEADERS = ("asm/kvm.h", "linux/kvm.h", "asm/kvm_para.h", "linux/kvm_para.h")
OUTPUT = Path(__file__).resolve().parent.parent / "kvmkit" / "engine" / "kvm"
PROLOGUE = "#include <errno.h>\n#include <linux/kvm.h>\n#include <linux/kvm_para.h>\n"
# Kernel-internal helpers that a few of the macros use.
HELPERS = (
    "#define GENMASK(h, l) (((2ULL << (h)) - 1) & ~((1ULL << (l)) - 1))\n#define PAGE_SIZE 4096\n"
)

FOREIGN = re.compile(
    r"s390|ppc|(?<![a-z])arm(?![a-z])|arm64|mips|riscv|papr|spapr|xics|xive|ia64|booke|(?<![a-z])osi"
    r"|flic|mpic|_hv$|^kvm_pv_(?!eoi|reason)|pv_cmd|_dcr|^dcr$|_epr|^epr$|allocate_rma|_sw_tlb"
    r"|dirty_tlb|config_tlb|vz$|_te$",
    re.IGNORECASE,
)

# The structures that kvmkit's engine uses, and those nested in them: a file of their own, since
# each costs every start 8 us.
RUN_STRUCTURES = (
    "kvm_clear_dirty_log", "kvm_clock_data", "kvm_coalesced_mmio_zone", "kvm_debugregs",
    "kvm_dirty_log", "kvm_enable_cap", "kvm_fpu", "kvm_guest_debug", "kvm_ioeventfd",
    "kvm_irq_level", "kvm_irq_routing", "kvm_irqchip", "kvm_irqfd", "kvm_lapic_state", "kvm_msi",
    "kvm_msr_filter", "kvm_pit_config", "kvm_pit_state2", "kvm_regs", "kvm_run",
    "kvm_signal_mask", "kvm_sregs", "kvm_translation", "kvm_userspace_memory_region",
    "kvm_vcpu_events", "kvm_xcrs",
)  # fmt: skip


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"gen_kvm_abi: {' '.join(command)}:\n{done.stderr}")
    return str(done.stdout)


def preprocess() -> tuple[list[tuple[str, str, str]], str]:
    """The macros (header, name, body) in order, and the declarations of the KVM headers."""
    with tempfile.NamedTemporaryFile("w", suffix=".c") as source:
        source.write(PROLOGUE)
        source.flush()
        text = run("gcc", "-E", "-dD", source.name)
    macros: dict[str, tuple[str, str, str]] = {}
    declarations: list[str] = []
    header = ""
    for line in text.splitlines():
        if marker := re.match(r'# \d+ "([^"]+)"', line):
            header = next((h for h in HEADERS if marker[1].endswith("/" + h)), "")
        elif not header:
            continue
        elif define := re.match(r"#define (\w+)(\(?)(.*)", line):
            if not define[2] and define[3].strip() and not define[1].startswith("_"):
                macros[define[1]] = (header, define[1], define[3].strip())
        elif not line.startswith("#"):
            declarations.append(line)
    return [m for m in macros.values() if not FOREIGN.search(m[1])], "\n".join(declarations)


def compile_and_run(statements: list[str]) -> list[str | None]:
    """What each printf statement prints; None for one that does not compile."""
    alive = dict(enumerate(statements))
    with tempfile.TemporaryDirectory() as scratch:
        source, program = Path(scratch, "probe.c"), Path(scratch, "probe")
        head = (
            PROLOGUE + HELPERS + "#include <stddef.h>\n#include <stdio.h>\n#include <string.h>\n"
            "int main(void) {\n"
        )
        for _ in range(5):
            order = list(alive)
            source.write_text(head + "".join(alive[n] + "\n" for n in order) + "return 0; }\n")
            done = subprocess.run(
                ["gcc", "-w", "-O0", str(source), "-o", str(program)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                break
            first = head.count("\n") + 1
            bad = {int(n) - first for n in re.findall(r"probe\.c:(\d+):\d+: error", done.stderr)}
            if not bad:
                raise SystemExit(f"gen_kvm_abi: {done.stderr}")
            for n in bad:
                del alive[order[n]]
        lines = run(str(program)).splitlines()
    printed = dict(zip(alive, lines, strict=True))
    return [printed.get(n) for n in range(len(statements))]


def constants(names: list[str]) -> dict[str, int | str]:
    """The value of each name the compiler can evaluate; a string for a string literal."""
    statements = [
        f"{{ __typeof__(({n})+0) v = ({n}); _Generic(({n}),"
        ' char*: printf("s\\n"), const char*: printf("s\\n"),'
        f' default: ((__typeof__(({n})+0))-1 > 0 ? printf("%llu\\n", (unsigned long long)v)'
        f' : printf("%lld\\n", (long long)v))); }}'
        for n in names
    ]
    return {
        n: value if value == "s" else int(value)
        for n, value in zip(names, compile_and_run(statements), strict=True)
        if value is not None
    }


@dataclass
class Layout:
    """What the compiler says of a structure: its size and a line of Python per member."""

    structure: Structure
    size: int
    lines: list[str]


def type_of(origin: str, path: str = "") -> str:
    """A C expression of the member's type, for sizeof."""
    base, _, inner = origin.partition("|")
    whole = ".".join(p for p in (inner, path) if p)
    return f"(({base} *)0)->{whole}" if whole else base


def layouts(structures: list[Structure]) -> list[Layout]:
    known = [s for s in structures if not FOREIGN.search(s.name)]
    for structure in known:
        structure.fields = [
            f for f in structure.fields if not FOREIGN.search(f.name) and not FOREIGN.search(f.kind)
        ]
    statements: list[str] = []
    for s in known:
        base, _, inner = s.origin.partition("|")
        start = f"offsetof({base}, {inner})" if inner else "0"
        statements.append(f'printf("%zu\\n", sizeof({type_of(s.origin)}));')
        for f in s.fields:
            whole = f"(({base} *)0)->{f.path}"
            if f.bits:  # set the field and look which bits changed
                statements.append(
                    f"{{ {base} x; unsigned char *p = (void *)&x; size_t i, first = 0, n = 0;"
                    f" memset(&x, 0, sizeof x); x.{f.path} = ~0ULL;"
                    " for (i = 0; i < sizeof x * 8; i++)"
                    " if (p[i / 8] >> (i % 8) & 1) { if (!n++) first = i; }"
                    f' printf("%zu %zu %zu\\n", first / 8 - ({start}), first % 8, n); }}'
                )
                continue
            sizes = [
                f"sizeof({whole}{'[0]' * n})" if n or not f.flexible else "(size_t)0"
                for n in range(f.dims + 1)
            ]
            statements.append(
                f'printf("%zu{" %zu" * len(sizes)}\\n",'
                f" offsetof({base}, {f.path}) - ({start}), {', '.join(sizes)});"
            )
    printed = iter(compile_and_run(statements))
    names = {s.name for s in known}
    result = []
    for s in known:
        size = next(printed)
        facts = [(f, next(printed)) for f in s.fields]
        if size is None:
            raise SystemExit(f"gen_kvm_abi: the compiler does not know {s.origin}")
        lines = [member_line(f, [int(n) for n in fact.split()], names) for f, fact in facts if fact]
        result.append(Layout(s, int(size), lines))
    return result


def member_line(member: Field, numbers: list[int], structures: set[str]) -> str:
    """``cs = Nested(kvm_segment, 0)`` and its like."""
    offset, *sizes = numbers
    record = member.kind in structures
    if not record and member.kind not in INTEGERS.values():
        raise SystemExit(f"gen_kvm_abi: {member.name} is of unknown type {member.kind}")
    if member.bits:
        shift, width = sizes
        call = f"Bits({offset}, {shift}, {width})"
    elif member.dims == 0:
        call = f"Nested({member.kind}, {offset})" if record else f"{member.kind}({offset})"
    elif member.flexible:
        call = (
            f"Rest({member.kind}, {offset})"
            if record
            else f'Numbers("{member.kind}", {offset}, None)'
        )
    elif member.dims == 1:
        count = sizes[0] // sizes[1]
        call = (
            f"Nesteds({member.kind}, {offset}, {count})"
            if record
            else f'Numbers("{member.kind}", {offset}, {count})'
        )
    else:
        call = f'Rows("{member.kind}", {offset}, {sizes[0] // sizes[1]}, {sizes[1] // sizes[2]})'
    return f"{member.name} = {call}"


def exit_reasons(macros: list[tuple[str, str, str]]) -> list[str]:
    """KVM_EXIT_UNKNOWN and the names that count up from it; the others are sub-codes."""
    found = [m for m in macros if m[1].startswith("KVM_EXIT_") and m[2].isdecimal()]
    names: list[str] = []
    for _, name, value in found[[m[1] for m in found].index("KVM_EXIT_UNKNOWN") :]:
        if int(value) < len(names):
            break
        names.append(name)
    return names


def headers_version() -> str | None:
    """The Debian package version of the installed headers; None where that cannot be told."""
    try:
        done = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", "linux-libc-dev"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def generate() -> dict[str, str]:
    """File name to text, from the headers installed here."""
    macros, declarations = preprocess()
    parser = Parser(declarations)
    parser.parse()
    macro_names = {m[1] for m in macros}
    enumerators = [e for e in parser.enumerators if e not in macro_names and not FOREIGN.search(e)]
    values = constants([m[1] for m in macros] + enumerators)
    version = headers_version() or "unknown"
    return {
        "abi.py": abi_text(macros, enumerators, values, version),
        **structs_texts(layouts(parser.structures), version),
    }


def abi_text(
    macros: list[tuple[str, str, str]],
    enumerators: list[str],
    values: dict[str, int | str],
    version: str,
) -> str:
    body = {m[1]: m[2] for m in macros}
    reasons = exit_reasons(macros)
    numbers = [n for n in body if n in values]
    ioctls = [n for n in numbers if re.match(r"_IO[RW]*\(|__KVM_DEPRECATED", body[n])]
    capabilities = [n for n in numbers if n.startswith("KVM_CAP_")]
    sections: list[tuple[str, list[str]]] = [
        ("ioctls", ioctls),
        ("capabilities: the argument of KVM_CHECK_EXTENSION and KVM_ENABLE_CAP", capabilities),
        ("exit reasons: kvm_run.exit_reason", reasons),
    ]
    placed = {n for _, names in sections for n in names}
    for header in HEADERS:
        names = [m[1] for m in macros if m[0] == header and m[1] in values and m[1] not in placed]
        sections.append((f"{header}: the rest", names))
    sections.append(("enumerations", [e for e in enumerators if e in values]))
    lines = [
        '"""KVM\'s numbers for x86: ioctls, capabilities, exit reasons, paravirtual CPUID, MSRs.',
        "",
        f"Generated by tools/gen_kvm_abi.py from linux-libc-dev {version}; do not edit.",
        "Their meaning is in Linux ``Documentation/virt/kvm/api.rst`` and ``virt/kvm/x86/``.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "TYPE_CHECKING = False",
        "if TYPE_CHECKING:",
        "    from typing import Final",
    ]
    for title, names in sections:
        lines += ["", f"# {title}"]
        for name in names:
            value = values[name]
            if isinstance(value, str):
                lines.append(f"{name}: Final = b{body[name]}")
            else:
                shown = f"0x{value:X}" if value > 255 and name not in capabilities else str(value)
                lines.append(f"{name}: Final = {shown}")
    lines += ["", "EXIT_REASONS: Final = {"]
    lines += [f'    {name}: "{name}",' for name in reasons]
    lines += ["}", '"""The name of each exit reason."""', "", "IOCTLS: Final = {"]
    for name in ioctls:
        argument = re.search(r",\s*0x\w+,\s*(?:struct )?([\w ]+)\)", body[name])
        shown_type = argument[1] if argument else ""
        lines.append(f'    "{name}": ({name}, "{shown_type}"),')
    lines += [
        "}",
        '"""Every ioctl by name: its number, and the C type its number encodes the size of."""',
        "",
    ]
    return "\n".join(lines)


def structs_texts(found: list[Layout], version: str) -> dict[str, str]:
    """``run_structs.py`` with :data:`RUN_STRUCTURES`, and ``structs.py`` with all."""
    needed: set[str] = set()
    todo = list(RUN_STRUCTURES)
    inside = {one.structure.name: nested(one) for one in found}
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            todo += inside[name]
    first = [one for one in found if one.structure.name in needed]
    others = [one for one in found if one.structure.name not in needed]
    return {
        "run_structs.py": structs_text(
            "Those of KVM's structures that kvmkit's engine uses; ``structs`` has all.",
            first,
            version,
            [],
        ),
        "structs.py": structs_text(
            "KVM's structures for x86, under their C names, as views over a buffer.",
            others,
            version,
            sorted(needed),
        ),
    }


def nested(one: Layout) -> list[str]:
    """The structures a structure has as members."""
    return [name for line in one.lines for name in re.findall(r"= \w+\((kvm\w*)", line)]


def structs_text(title: str, found: list[Layout], version: str, imported: list[str]) -> str:
    kinds = {kind for one in found for line in one.lines for kind in re.findall(r"= (\w+)\(", line)}
    lines = [
        f'"""{title}',
        "",
        f"Generated by tools/gen_kvm_abi.py from linux-libc-dev {version}; do not edit.",
        "A structure without a name in C is called after the member it is: ``kvm_run_io``.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "from kvmkit.engine.kvm.record import (",
        *(
            f"    {kind},"
            for kind in sorted(
                [*kinds, "Record"],
                key=lambda k: (k.islower(), re.sub(r"\d+", lambda n: f"{n[0]:>2}", k)),
            )
        ),
        ")",
    ]
    if imported:
        everything = sorted([*imported, *(one.structure.name for one in found)])
        lines += ["from kvmkit.engine.kvm.run_structs import ("]
        lines += [f"    {name}," for name in imported]
        lines += [")", "", "__all__ = ["]
        lines += [f'    "{name}",' for name in everything]
        lines += ["]"]
    for one in found:
        lines += [
            "",
            "",
            f"class {one.structure.name}(Record):",
            "    __slots__ = ()",
            f"    SIZE = {one.size}",
        ]
        lines += [
            f"    {line}{'  # noqa: E741' if line.startswith('l =') else ''}" for line in one.lines
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the files, or with ``--check`` compare them."""
    parser = argparse.ArgumentParser(
        description="Generate kvmkit's KVM interface from the installed headers."
    )
    parser.add_argument(
        "--check", action="store_true", help="only say whether the committed files are current"
    )
    options = parser.parse_args()
    stale = 0
    for name, text in generate().items():
        target = OUTPUT / name
        if options.check:
            if not target.exists() or target.read_text() != text:
                print(f"{target} is not what the installed headers say", file=sys.stderr)
                stale = 1
        else:
            target.write_text(text)
            print(f"{os.path.relpath(target)}: {text.count(chr(10))} lines")
    return stale


if __name__ == "__main__":
    sys.exit(main())
