#!/usr/bin/env python3
"""Write ``kvmkit/engine/soft/core/unicorn_layout.h`` from Unicorn's source package.

The software CPU links against the static library in Unicorn's wheel and reads a
few of its internal structures. The wheel carries no internal headers; Unicorn's
source package of the same version does. This script compiles a probe against
those headers and commits what the C core needs: offsets, sizes and constants.

    pip download --no-deps --no-binary :all: unicorn==2.1.4   # or fetch the sdist
    tar xf unicorn-2.1.4.tar.gz
    python tools/gen_unicorn_layout.py unicorn-2.1.4

Needs gcc and cmake (for the generated configuration headers).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

OUTPUT = Path(__file__).parent.parent / "kvmkit/engine/soft/core/unicorn_layout.h"

# (name in our header, structure, member)
MEMBERS = [
    *(("UC_" + m.upper(), "struct uc_struct", m) for m in (
        "cpu", "tcg_ctx", "memory_mapping", "stop_interrupt", "snapshot_level",
        "exit_request", "invalid_error", "nested_level", "no_exit_request", "jmp_bufs",
        "stop_request", "quit_request", "exits", "use_exits", "size_recur_mem", "tcg_buffer_size",
    )),
    *(("CPU_" + m.upper(), "CPUState", m) for m in (
        "created", "stop", "stopped", "exit_request", "cflags_next_tb", "interrupt_request",
        "singlestep_enabled", "env_ptr", "icount_decr_ptr", "tb_jmp_cache", "mem_io_pc",
        "halted", "can_do_io", "exception_index", "uc", "cc", "tcg_exit_req",
    )),
    ("X86CPU_ENV", "X86CPU", "env"),
    ("X86CPU_TLB", "X86CPU", "neg.tlb"),
    ("X86CPU_ICOUNT_DECR", "X86CPU", "neg.icount_decr"),
    ("CC_TLB_FILL", "CPUClass", "tlb_fill"),
    ("CC_CPU_EXEC_INTERRUPT", "CPUClass", "cpu_exec_interrupt"),
    *(("ENV_" + m.upper(), "CPUX86State", m) for m in (
        "regs", "eip", "eflags", "cc_dst", "cc_src", "cc_src2", "cc_op", "df", "hflags", "hflags2",
        "segs", "ldt", "tr", "gdt", "idt", "cr", "a20_mask", "efer",
        "fpstt", "fpus", "fpuc", "fptags", "fpregs", "fpop", "fpip", "fpdp", "mxcsr",
        "xmm_regs", "sysenter_cs", "sysenter_esp", "sysenter_eip", "star", "lstar", "cstar",
        "fmask", "kernelgsbase", "tsc_aux", "pat", "msr_ia32_misc_enable", "error_code",
        "exception_is_int", "exception_next_eip", "dr", "old_exception", "tsc_offset", "v_tpr",
        "retaddr", "end_reset_fields", "features", "pkru", "xcr0",
    )),
    *(("SEG_" + m.upper(), "SegmentCache", m) for m in ("selector", "base", "limit", "flags")),
    *(("TLBE_" + m.upper(), "CPUTLBEntry", m) for m in
      ("addr_read", "addr_write", "addr_code", "paddr", "addend")),
    *(("TLB_" + m.upper(), "CPUTLB", m) for m in ("c", "d", "f")),
    *(("TLBD_" + m.upper(), "CPUTLBDesc", m) for m in (
        "large_page_addr", "large_page_mask", "n_used_entries", "vindex", "vtable", "viotlb",
        "iotlb",
    )),
    ("TLBF_MASK", "CPUTLBDescFast", "mask"),
    ("TLBF_TABLE", "CPUTLBDescFast", "table"),
    ("TLBC_DIRTY", "CPUTLBCommon", "dirty"),
    *(("TB_" + m.upper(), "TranslationBlock", m) for m in
      ("pc", "cs_base", "flags", "size", "cflags", "page_addr")),
    ("TB_CODE", "TranslationBlock", "tc.ptr"),
    ("TCG_CPU_ENV", "TCGContext", "cpu_env"),
    ("TCG_NB_TEMPS", "TCGContext", "nb_temps"),
    ("DB_IS_JMP", "DisasContextBase", "is_jmp"),
    ("OPS_TRANSLATE_INSN", "TranslatorOps", "translate_insn"),
    ("MR_PERMS", "MemoryRegion", "perms"),
    ("MR_PRIORITY", "MemoryRegion", "priority"),
    ("MR_RAM", "MemoryRegion", "ram"),
]  # fmt: skip

SIZES = [
    ("SIZEOF_UC", "struct uc_struct"), ("SIZEOF_ENV", "CPUX86State"), ("SIZEOF_TLB", "CPUTLB"),
    ("SIZEOF_TLBD", "CPUTLBDesc"), ("SIZEOF_TLBF", "CPUTLBDescFast"),
    ("SIZEOF_TLBE", "CPUTLBEntry"), ("SIZEOF_IOTLBE", "CPUIOTLBEntry"),
    ("SIZEOF_SEG", "SegmentCache"), ("SIZEOF_ZMM", "ZMMReg"), ("SIZEOF_FPREG", "FPReg"),
    ("SIZEOF_MR", "MemoryRegion"), ("SIZEOF_JMP_BUF", "sigjmp_buf"),
    ("SIZEOF_OPS", "TranslatorOps"),
    ("SIZEOF_FEATURE_WORD", "((CPUX86State *)0)->features[0]"),
]  # fmt: skip

CONSTANTS = [
    "NB_MMU_MODES", "CPU_TLB_ENTRY_BITS", "CPU_VTLB_SIZE", "TLB_INVALID_MASK", "TLB_NOTDIRTY",
    "TLB_MMIO", "TLB_WATCHPOINT", "TLB_DISCARD_WRITE", "TB_JMP_CACHE_SIZE",
    "CPU_INTERRUPT_HARD", "CPU_INTERRUPT_EXITTB", "CPU_INTERRUPT_NMI", "EXCP_INTERRUPT", "EXCP_HLT",
    "EXCP_DEBUG", "EXCP_HALTED", "MMU_KSMAP_IDX", "MMU_USER_IDX", "MMU_KNOSMAP_IDX",
    "HF_CPL_SHIFT", "HF_INHIBIT_IRQ_SHIFT", "HF_CS32_SHIFT", "HF_SS32_SHIFT", "HF_ADDSEG_SHIFT",
    "HF_PE_SHIFT", "HF_TF_SHIFT", "HF_MP_SHIFT", "HF_EM_SHIFT", "HF_TS_SHIFT", "HF_IOPL_SHIFT",
    "HF_LMA_SHIFT", "HF_CS64_SHIFT", "HF_OSFXSR_SHIFT", "HF_VM_SHIFT", "HF_AC_SHIFT",
    "HF_SMAP_SHIFT", "HF2_GIF_MASK", "HF2_NMI_MASK", "CC_OP_EFLAGS",
    "FEAT_1_EDX", "FEAT_1_ECX", "FEAT_7_0_EBX", "FEAT_7_0_ECX", "FEAT_8000_0001_EDX",
    "FEAT_8000_0001_ECX", "FEATURE_WORDS", "TB_EXIT_REQUESTED", "CF_PARALLEL",
    "INDEX_op_ld_i32", "INDEX_op_insn_start", "INDEX_op_set_label", "TCG_TYPE_I32",
    "TCG_COND_LT", "TCG_MAX_TEMPS", "DISAS_NEXT", "DISAS_TOO_MANY",
]  # fmt: skip


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    root = Path(sys.argv[1]).resolve()
    src = root / "src"
    match = re.search(r"^Version: (\S+)", (root / "PKG-INFO").read_text(), re.M)
    version = match[1] if match else "unknown"
    with tempfile.TemporaryDirectory() as scratch:
        build = Path(scratch)
        subprocess.run(
            ["cmake", src, "-DUNICORN_ARCH=x86", "-DCMAKE_BUILD_TYPE=Release"],
            cwd=build, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        known = CONSTANTS
        lines = [
            '#include "qemu/osdep.h"', '#include "cpu.h"', '#include "exec/exec-all.h"',
            '#include "tcg/tcg.h"', '#include "exec/translator.h"',
            '#include "exec/memory.h"', '#include "exec/cputlb.h"',
            '#include "uc_priv.h"', "#include <stdio.h>", "int main(void) {",
        ]  # fmt: skip
        for name, struct, member in MEMBERS:
            lines.append(f'printf("#define {name} 0x%zx\\n", offsetof({struct}, {member}));')
        for name, type_ in SIZES:
            lines.append(f'printf("#define {name} 0x%zx\\n", sizeof({type_}));')
        for name in known:
            lines.append(f'printf("#define K_{name} 0x%llx\\n", (unsigned long long)({name}));')
        lines.append("return 0; }")
        probe = build / "probe.c"
        probe.write_text("\n".join(lines))
        includes = [
            build, build / "x86_64-softmmu", src, src / "include", src / "qemu",
            src / "qemu/include", src / "qemu/tcg", src / "qemu/tcg/i386",
            src / "qemu/target/i386", src / "glib_compat", src / "qemu/accel/tcg",
        ]  # fmt: skip
        subprocess.run(
            ["gcc", "-w", "-DNEED_CPU_H", "-DUNICORN_HAS_X86",
             "-include", src / "qemu/x86_64.h", *[f"-I{i}" for i in includes],
             probe, "-o", build / "probe"],
            check=True,
        )  # fmt: skip
        table = subprocess.run([build / "probe"], check=True, capture_output=True, text=True).stdout
    OUTPUT.write_text(
        f"/* Generated by tools/gen_unicorn_layout.py from Unicorn {version}'s headers.\n"
        " * Offsets into its internal structures, x86-64 hosts and guests. Do not edit. */\n"
        "#ifndef UNICORN_LAYOUT_H\n#define UNICORN_LAYOUT_H\n"
        f'#define LAYOUT_VERSION "{version}"\n{table}#endif\n'
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
