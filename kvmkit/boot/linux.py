"""From an opened kernel to a boot plan.

A bzImage's compressed kernel is unpacked here, on the host, and started at its
own 64-bit entry (startup_64), as its decompressor would do after its work
(Linux ``arch/x86/boot/compressed/head_64.S``). That means no KASLR: physical
and virtual addresses are the linked ones, and ``/proc/kallsyms`` of the guest
agrees with its System.map. ``unpack=False`` starts the bzImage by its own
64-bit entry instead; the guest then does the work, and may use KASLR.
"""

from __future__ import annotations

import os

from kvmkit.boot import entry, pvh, zero_page
from kvmkit.boot.cache import fetch
from kvmkit.boot.elf import Elf, parse_elf
from kvmkit.boot.extents import Extent
from kvmkit.boot.image import KernelImage
from kvmkit.boot.initrd import Initrd, open_initrds, place_initrd
from kvmkit.boot.memory_map import Range, memory_map, usable
from kvmkit.boot.placement import PlacedKernel, place_bzimage, place_elf
from kvmkit.boot.plan import BootPlan, Load, LoaderAddresses
from kvmkit.boot.setup_header import SetupHeader
from kvmkit.engine.cpu import flat_long_mode, flat_protected_mode
from kvmkit.errors import BadKernel, KvmkitError, UsageError
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["plan_linux"]

HIGH_MEMORY = 1 << 20
"""Initrds go above the first MiB, which holds the loader's own structures."""

KERNEL_ALIGNMENT = 2 << 20
"""x86-64 Linux maps itself by 2 MiB pages; CONFIG_PHYSICAL_ALIGN is a multiple of that."""

PVH_CMDLINE_SIZE = 2047
PVH_INITRD_MAX = 0xFFFF_FFFF
SEED_MAX = 1024
GDT_SIZE = 32
PAGE = 4096


class _Machine(Record):
    """What a plan is made for."""

    memory: list[tuple[int, int, int]]
    free: list[Range]
    acpi_rsdp: int
    addresses: LoaderAddresses


def plan_linux(
    image: KernelImage,
    *,
    initrds: Sequence[Path] = (),
    command_line: str = "",
    ram: Sequence[Range],
    acpi_rsdp: int = 0,
    addresses: LoaderAddresses,
    cache: Path | None = None,
    seed: bytes | None = None,
    unpack: bool = True,
) -> BootPlan:
    """Lay out a kernel, its initrds and command line in ``ram`` (address, bytes).

    ``acpi_rsdp`` is the RSDP's address or 0, ``seed`` random bytes for the guest's random number
    generator (1 KiB at most are used), ``cache`` a directory for unpacked kernels. Raises
    BadKernel, BadInitrd, NotEnoughMemory, and UsageError for a command line that does not fit.
    """
    machine = _Machine(
        memory_map(ram, addresses.reserved),
        usable(ram, (*addresses.reserved, *_own(addresses))),
        acpi_rsdp,
        addresses,
    )
    initrd = open_initrds(initrds)
    try:
        header = image.header
        if header is not None and image.kind == "bzImage" and _unpacks_itself(header, unpack):
            kernel = place_bzimage(image, header, machine.free)
            return _plan_64(kernel, header, machine, initrd, command_line, seed, image.version)
        elf, data, extents = _kernel_elf(image, cache)
        if image.kind == "pvh" or not _has_entry_64(elf, header):
            if elf.pvh_entry is None:
                raise BadKernel(*_no_entry(image, elf))
            kernel = place_elf(elf, data, extents, machine.free, elf.pvh_entry)
            return _plan_pvh(kernel, machine, initrd, command_line, image.version)
        step = _alignment(header) if elf.is_linux_64 else 0
        kernel = place_elf(elf, data, extents, machine.free, elf.entry, step=step)
        header = header or zero_page.synthetic_header(kernel.start, kernel.end)
        return _plan_64(kernel, header, machine, initrd, command_line, seed, image.version)
    except BadKernel as error:
        raise BadKernel(f"{image.path}: {error}", error.hint) from None


def _own(at: LoaderAddresses) -> tuple[Range, ...]:
    """What the loader itself writes to, or the kernel's first instructions: no place for it."""
    return (
        (at.gdt, GDT_SIZE),
        (at.boot_params, zero_page.SIZE),
        (at.start_info, PAGE),
        (at.page_tables, entry.PAGE_TABLE_PAGES * PAGE),
        (at.stack - PAGE, PAGE),
        (at.command_line, at.command_line_max),
    )


def _unpacks_itself(header: SetupHeader, unpack: bool) -> bool:
    return not unpack or not header.payload_length


def _kernel_elf(
    image: KernelImage, cache: Path | None
) -> tuple[Elf, memoryview, Sequence[Extent] | None]:
    if image.elf is not None:
        return image.elf, image.data, None
    if not image.payload:
        raise BadKernel("the bzImage says nothing about a compressed kernel in it")
    data, extents = fetch(image.payload, image.status, cache)
    if bytes(data[:4]) != b"\x7fELF":
        raise BadKernel("the kernel unpacks to something that is no ELF file")
    return parse_elf(data), data, extents


def _has_entry_64(elf: Elf, header: SetupHeader | None) -> bool:
    # A bzImage says itself that it is Linux; then any entry with code behind it will do.
    return elf.is_linux_64 or (header is not None and elf.bits == 64 and elf.has_code(elf.entry))


def _no_entry(image: KernelImage, elf: Elf) -> tuple[str, str]:
    if image.kind == "pvh":
        return "the kernel has no PVH entry (Linux: CONFIG_PVH)", "Start it without asking for PVH."
    if elf.bits == 32:
        return (
            "the kernel is 32-bit only and has no PVH entry",
            "A 64-bit kernel is needed (CONFIG_64BIT).",
        )
    return "the kernel has no entry point in its code", "Copy or build it again."


def _alignment(header: SetupHeader | None) -> int:
    """Which physical addresses the kernel runs at: multiples of this; 0 if only its own."""
    if header is None:
        return KERNEL_ALIGNMENT
    usable_alignment = header.alignment % KERNEL_ALIGNMENT == 0
    return header.alignment if header.relocatable and usable_alignment else 0


def _plan_64(
    kernel: PlacedKernel,
    header: SetupHeader,
    machine: _Machine,
    initrd: Initrd | None,
    command_line: str,
    seed: bytes | None,
    version: str,
) -> BootPlan:
    """Linux's 64-bit boot protocol (``boot.rst``): boot_params in RSI."""
    at = machine.addresses
    text = _command_line(command_line, header.cmdline_size, at)
    loads = [
        Load(at.gdt, entry.gdt(64)),
        Load(at.page_tables, entry.identity_map(at.page_tables)),
        Load(at.command_line, text),
    ]
    setup_data = 0
    if seed and header.protocol >= 0x209:
        setup_data = at.start_info
        loads.append(Load(setup_data, zero_page.rng_seed_data(seed[:SEED_MAX])))
    ramdisk, initrd_loads, zero = _place(
        kernel, machine, initrd, header.init_size, header.initrd_addr_max, header.above_4g
    )
    page = zero_page.boot_params(
        header,
        memory=machine.memory,
        command_line=at.command_line,
        ramdisk=ramdisk,
        acpi_rsdp=machine.acpi_rsdp,
        setup_data=setup_data,
    )
    loads.append(Load(at.boot_params, page))
    cpu = flat_long_mode(kernel.entry, cr3=at.page_tables, gdt=at.gdt, stack=at.stack)
    return BootPlan(
        (*loads, *kernel.loads, *initrd_loads),
        cpu.with_gprs(rsi=at.boot_params),
        kernel.zero + zero,
        version,
    )


def _plan_pvh(
    kernel: PlacedKernel,
    machine: _Machine,
    initrd: Initrd | None,
    command_line: str,
    version: str,
) -> BootPlan:
    """Xen's PVH entry (``docs/misc/pvh.pandoc``): 32-bit, no paging, start_info in EBX."""
    at = machine.addresses
    text = _command_line(command_line, PVH_CMDLINE_SIZE, at)
    ramdisk, initrd_loads, zero = _place(kernel, machine, initrd, 0, PVH_INITRD_MAX, False)
    info = pvh.start_info(
        at.start_info,
        memory=machine.memory,
        command_line=at.command_line,
        ramdisk=ramdisk,
        acpi_rsdp=machine.acpi_rsdp,
    )
    loads = (
        Load(at.gdt, entry.gdt(32)),
        Load(at.start_info, info),
        Load(at.command_line, text),
    )
    cpu = flat_protected_mode(kernel.entry, gdt=at.gdt)
    return BootPlan(
        (*loads, *kernel.loads, *initrd_loads),
        cpu.with_gprs(rbx=at.start_info),
        kernel.zero + zero,
        version,
    )


def _place(
    kernel: PlacedKernel,
    machine: _Machine,
    initrd: Initrd | None,
    init_size: int,
    limit: int,
    above_4g: bool,
) -> tuple[Range | None, tuple[Load, ...], tuple[Range, ...]]:
    """The initrd's range, loads and padding.

    What a kernel needs from its start on is init_size, which counts the decompressor's work
    space; an unpacked kernel does without, so that space is given up before the boot is.
    """
    if initrd is None:
        return None, (), ()
    ends = sorted({kernel.end, max(kernel.end, kernel.start + init_size)}, reverse=True)
    for end in ends:
        taken = [(0, HIGH_MEMORY), (kernel.start, end - kernel.start)]
        try:
            address = place_initrd(
                initrd, usable(machine.free, taken), limit=limit, above_4g=above_4g
            )
        except KvmkitError:
            if end == ends[-1]:
                raise
            continue
        return (address, initrd.size), initrd.loads(address), initrd.gaps(address)
    raise AssertionError("unreachable")


def _command_line(text: str, limit: int, addresses: LoaderAddresses) -> bytes:
    """The command line with its NUL. ``limit`` counts without it, as cmdline_size does."""
    data = os.fsencode(text)
    limit = min(limit, addresses.command_line_max - 1)
    if len(data) > limit:
        raise UsageError(
            f"the kernel command line has {len(data)} bytes, this kernel takes {limit}",
            "Shorten it, or pass settings in the initrd.",
        )
    if b"\0" in data:
        raise UsageError("the kernel command line contains a NUL character")
    return data + b"\0"
