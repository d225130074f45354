"""User-level instructions to compare with the host's processor, by the feature they need.

``$M`` is 64 bytes of memory, the registers are random; R14 and R15 are taken.
The mask of a line holds the flags that the SDM (vol. 2) defines after it.
"""

from __future__ import annotations

__all__ = ["GROUPS", "Case"]

CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
ALL = CF | PF | AF | ZF | SF | OF
LOGIC = ALL & ~AF
SIZES = {"al": "bl", "ax": "bx", "eax": "ebx", "rax": "rbx"}
MEMORY = {"al": "byte", "ax": "word", "eax": "dword", "rax": "qword"}
COUNT = {"al": 7, "ax": 15, "eax": 255, "rax": 255}

Case = tuple[str, int]
"""Source and the mask of defined flags."""


def _arithmetic() -> list[Case]:
    cases: list[Case] = []
    for a, b in SIZES.items():
        m = f"{MEMORY[a]} ptr [$M]"
        for op in ("add", "adc", "sub", "sbb", "cmp"):
            cases += [(f"{op} {a}, {b}", ALL), (f"{op} {a}, {m}", ALL), (f"{op} {m}, {a}", ALL),
                      (f"{op} {a}, -5", ALL), (f"{op} {m}, 0x71", ALL)]  # fmt: skip
        for op in ("and", "or", "xor", "test"):
            cases += [(f"{op} {a}, {b}", LOGIC), (f"{op} {m}, {a}", LOGIC),
                      (f"{op} {m}, 0x71", LOGIC)]  # fmt: skip
        cases += [(f"{op} {x}", ALL) for op in ("inc", "dec", "neg", "not") for x in (a, m)]
        # Unicorn clears the upper half of RAX after a 32-bit CMPXCHG that stored; none looks
        half = "mov eax, eax; " if a == "eax" else ""
        cases += [(f"{half}{op} {x}, {b}", ALL) for op in ("xadd", "cmpxchg") for x in (a, m)]
        cases += [(f"{half}lock {op} {m}, {b}", ALL) for op in ("add", "xadd", "cmpxchg", "sbb")]
        cases += [(f"xchg {m}, {b}", ALL), (f"cmp {a}, {m}; sete cl; setl dl; setbe bl", ALL)]
    cases += [(f"{op} {a}, {b}", ALL) for op in ("movsx", "movzx")
              for a, b in (("ax", "bl"), ("eax", "bl"), ("rax", "bl"), ("eax", "bx"),
                           ("rax", "bx"))]  # fmt: skip
    cases += [(s, ALL) for s in (
        "movsxd rax, ebx", "cbw", "cwde", "cdqe", "cwd", "cdq", "cqo", "bswap eax", "bswap rax",
        "lea eax, [rbx + 4*rcx - 9]", "lea rax, [ebx + 8*edx + 7]", "lahf", "sahf", "cmc", "stc",
        "clc", "mov ah, bl", "mov bl, dh", "add ah, bh", "adc dh, ch",
        "push rax; push bx; pop cx; pop rdx", "enter 32, 0; leave", "push -3; pop rbx",
        "cmpxchg8b [$M]", "lock cmpxchg8b [$M]",
        "mov eax, [$M]; mov edx, [$M+4]; cmpxchg8b [$M]",
        "xchg rax, rbx", "xchg eax, ebx", "xchg al, bh", "jrcxz 1f; inc rax; 1:", "nop",
    )]  # fmt: skip
    cases += [(f"cmov{c} rax, rbx; cmov{c} ecx, edx; cmov{c} si, di", ALL)
              for c in ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge",
                        "le", "g")]  # fmt: skip
    cases += [(f"set{c} al; set{c} byte ptr [$M]", ALL)
              for c in ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge",
                        "le", "g")]  # fmt: skip
    return cases


def _multiply() -> list[Case]:
    cases: list[Case] = []
    for a, b in SIZES.items():
        cases += [(f"mul {b}", CF | OF), (f"imul {b}", CF | OF)]
        if a != "al":
            cases += [(f"imul {a}, {b}", CF | OF), (f"imul {a}, {b}, -77", CF | OF)]
    cases += [
        ("movzx eax, ax; or bl, 1; xor ah, ah; div bl", 0),
        ("xor edx, edx; or bx, 1; div bx", 0),
        ("xor edx, edx; or ebx, 1; div ebx", 0),
        ("xor edx, edx; or rbx, 1; div rbx", 0),
        ("or rbx, 1; xor edx, edx; bts rbx, 62; btr rbx, 63; mov rdx, rbx; shr rdx; div rbx", 0),
        ("or bl, 1; btr ax, 15; movsx ax, al; and bl, 0x7f; idiv bl", 0),
        ("cwd; or bx, 1; btr bx, 15; idiv bx", 0),
        ("cdq; or ebx, 1; btr ebx, 31; idiv ebx", 0),
        ("cqo; or rbx, 1; btr rbx, 63; idiv rbx", 0),
        ("btr rax, 63; cqo; neg rbx; bts rbx, 62; btr rbx, 5; idiv rbx", 0),
    ]
    return cases


def _shifts() -> list[Case]:
    cases: list[Case] = []
    for a in SIZES:
        m = f"{MEMORY[a]} ptr [$M]"
        limit = f"and cl, {COUNT[a]}; "
        if COUNT[a] != 255:
            limit = f"and cl, {COUNT[a]}; test al, al; "
        for op in ("shl", "shr", "sar"):
            cases += [(f"{op} {x}, 1", LOGIC) for x in (a, m)]
            cases += [(f"{limit}{op} {a}, cl", LOGIC & ~OF), (f"{op} {m}, 3", LOGIC & ~OF)]
        for op in ("rol", "ror", "rcl", "rcr"):
            cases += [(f"{op} {x}, 1", ALL) for x in (a, m)]
            cases += [(f"{op} {a}, cl", ALL & ~OF), (f"{op} {m}, 5", ALL & ~OF)]
        if a != "al":
            b, m = SIZES[a], f"{MEMORY[a]} ptr [$M]"
            for op in ("shld", "shrd"):
                cases += [(f"{limit}{op} {a}, {b}, cl", LOGIC & ~OF),
                          (f"{op} {m}, {b}, 7", LOGIC & ~OF),
                          (f"{op} {a}, {b}, 1", LOGIC)]  # fmt: skip
    return cases


def _bits() -> list[Case]:
    cases: list[Case] = []
    for a in ("ax", "eax", "rax"):
        b = SIZES[a]
        for op in ("bt", "bts", "btr", "btc"):
            cases += [(f"{op} {a}, {b}", CF | ZF), (f"{op} {a}, 11", CF | ZF),
                      (f"{op} {MEMORY[a]} ptr [$M], 13", CF | ZF),
                      (f"and {b}, 0x7f; {op} {MEMORY[a]} ptr [$M+16], {b}", CF | ZF)]  # fmt: skip
        cases += [(f"bts {b}, 13; {op} {a}, {b}", ZF) for op in ("bsf", "bsr")]
    return cases


def _two(ops: str, a: str, b: str, mask: int) -> list[Case]:
    return [(f"{op} {a}, {b}", mask) for op in ops.split()]


def _strings() -> list[Case]:
    cases: list[Case] = []
    at = "lea rsi, [$M+24]; lea rdi, [$M+36]; "
    end = "; cld; pushfq; sub rsi, r15; sub rdi, r15; popfq"
    for direction in ("cld", "std"):
        for suffix in "bwdq":
            for op in ("movs", "stos", "lods"):
                cases.append((f"{at}{direction}; {op}{suffix}{end}", ALL))
                cases.append((f"{at}mov ecx, 3; {direction}; rep {op}{suffix}{end}", ALL))
            for op in ("cmps", "scas"):
                cases.append((f"{at}{direction}; {op}{suffix}{end}", ALL))
                for rep in ("repe", "repne"):
                    cases.append((f"{at}mov ecx, 3; {direction}; {rep} {op}{suffix}{end}", ALL))
    cases.append((f"{at}xor ecx, ecx; rep movsb; repe cmpsb{end}", ALL))
    # overlapping: each element is read after the one before was written
    cases.append(("lea rsi, [$M]; lea rdi, [$M+1]; mov ecx, 20; rep movsb" + end, ALL))
    return cases


def _sse(ops: str, *, memory: bool = True) -> list[Case]:
    cases = _two(ops, "xmm0", "xmm1", ALL)
    return cases + (_two(ops, "xmm0", "[$M]", ALL) if memory else [])


def _immediate(ops: str, values: tuple[int, ...]) -> list[Case]:
    return [(f"{op} xmm0, xmm1, {n}", ALL) for op in ops.split() for n in values]


def _convert(*sources: str) -> list[Case]:
    return [(source, ALL) for source in sources]


_SSE = _sse(
    "addps addss subps subss mulps mulss divps divss sqrtps sqrtss minps minss maxps maxss "
    "andps andnps orps xorps unpcklps unpckhps cmpeqps cmpltps cmpleps cmpunordps cmpneqps "
    "cmpnltps cmpnleps cmpordps cmpltss cmpeqss ucomiss comiss"
) + _immediate("shufps", (0x00, 0x1B, 0xE4, 0x93)) + _convert(
    "movss xmm0, xmm1", "movss xmm0, [$M]", "movups xmm0, [$M+3]", "movups [$M+5], xmm1",
    "movlps xmm0, [$M]", "movhps xmm0, [$M]", "movlps [$M], xmm1", "movhps [$M], xmm1",
    "movhlps xmm0, xmm1", "movlhps xmm0, xmm1", "movmskps eax, xmm1", "cvtsi2ss xmm0, ebx",
    "cvtsi2ss xmm0, rbx", "cvtss2si eax, xmm1", "cvttss2si eax, xmm1", "cvtss2si rax, xmm1",
    "cvttss2si rax, xmm1", "sfence; lfence; mfence", "prefetcht0 [$M]",
)  # fmt: skip

_SSE2 = _sse(
    "addpd addsd subpd subsd mulpd mulsd divpd divsd sqrtpd sqrtsd minpd minsd maxpd maxsd "
    "andpd andnpd orpd xorpd unpcklpd unpckhpd cmpltpd cmplepd cmpunordpd cmpneqpd cmpeqsd "
    "cmpnltsd ucomisd comisd cvtdq2pd cvtdq2ps cvtpd2dq cvtpd2ps cvtps2dq cvtps2pd cvttpd2dq "
    "cvttps2dq cvtsd2ss cvtss2sd "
    "paddb paddw paddd paddq paddsb paddsw paddusb paddusw psubb psubw psubd psubq psubsb psubsw "
    "psubusb psubusw pmullw pmulhw pmulhuw pmuludq pmaddwd pavgb pavgw psadbw pminub pmaxub "
    "pminsw pmaxsw pand pandn por pxor pcmpeqb pcmpeqw pcmpeqd pcmpgtb pcmpgtw pcmpgtd packsswb "
    "packssdw packuswb punpcklbw punpcklwd punpckldq punpcklqdq punpckhbw punpckhwd punpckhdq "
    "punpckhqdq psllw pslld psllq psrlw psrld psrlq psraw psrad"
) + _immediate("pshufd pshuflw pshufhw", (0x00, 0x1B, 0xE4, 0x93)) + _immediate(
    "shufpd", (0, 1, 2, 3)
) + [(f"{op} xmm0, {n}", ALL) for n in (0, 1, 5, 15, 16, 33, 64)
     for op in ("psllw", "pslld", "psllq", "psrlw", "psrld", "psrlq", "psraw", "psrad", "pslldq",
                "psrldq")] + [
    (f"mov eax, {n}; movd xmm1, eax; {op} xmm0, xmm1", LOGIC) for n in (0, 3, 15, 16, 31, 32, 63)
    for op in ("psllw", "pslld", "psllq", "psrlw", "psrld", "psrlq", "psraw", "psrad")
] + _convert(
    "movd xmm0, ebx", "movq xmm0, rbx", "movd eax, xmm1", "movq rax, xmm1", "movq xmm0, xmm1",
    "movq [$M], xmm1", "movdqu xmm0, [$M+1]", "movdqu [$M+7], xmm1", "movdqa [$M], xmm1",
    "movsd xmm0, xmm1", "movsd xmm0, [$M]", "movlpd xmm0, [$M]", "movhpd xmm0, [$M]",
    "movmskpd eax, xmm1", "pmovmskb eax, xmm1", "pextrw eax, xmm1, 5", "pinsrw xmm0, ebx, 6",
    "cvtsi2sd xmm0, ebx", "cvtsi2sd xmm0, rbx", "cvtsd2si eax, xmm1", "cvttsd2si eax, xmm1",
    "cvtsd2si rax, xmm1", "cvttsd2si rax, xmm1", "movntdq [$M], xmm1", "movnti [$M], rax",
    "lea rdi, [$M]; maskmovdqu xmm0, xmm1; xor edi, edi",
)  # fmt: skip

_MMX_OPS = (
    "paddb paddw paddd paddq psubb psubw psubd psubq paddsb paddusw psubsw pmullw pmulhw "
    "pmulhuw pmaddwd pmuludq pavgb pminub pmaxsw psadbw pand pandn por pxor pcmpeqb pcmpgtw "
    "packsswb packuswb packssdw punpcklbw punpckhwd punpckldq psllw psrlq psrad "
)

_MMX = [
    (f"movq mm0, [$M]; movq mm1, [$M+8]; {op} mm0, mm1; movq [$M], mm0; emms", ALL)
    for op in _MMX_OPS.split()
] + _convert(
    "movq mm0, [$M]; pshufw mm1, mm0, 0x1b; movq [$M], mm1; emms",
    "movq mm0, [$M]; pmovmskb eax, mm0; emms", "movd mm0, ebx; movd ecx, mm0; emms",
    "movq mm0, [$M]; movq2dq xmm0, mm0; movdq2q mm1, xmm1; movq [$M], mm1; emms",
    "cvtps2pi mm0, xmm1; movq [$M], mm0; emms", "movq mm0, [$M]; cvtpi2ps xmm0, mm0; emms",
    "cvttpd2pi mm0, xmm1; movq [$M], mm0; emms", "movq mm0, [$M]; cvtpi2pd xmm0, mm0; emms",
)  # fmt: skip

_SSSE3 = _sse(
    "pshufb phaddw phaddd phaddsw phsubw phsubd phsubsw pmaddubsw pmulhrsw psignb psignw psignd "
    "pabsb pabsw pabsd"
) + _immediate("palignr", (0, 1, 7, 15, 16, 20, 31, 32, 255)) + [
    (f"movq mm0, [$M]; movq mm1, [$M+8]; {op}; movq [$M], mm0; emms", ALL)
    for op in ("pshufb mm0, mm1", "palignr mm0, mm1, 3", "palignr mm0, mm1, 9", "phaddw mm0, mm1",
               "psignw mm0, mm1", "pabsd mm0, mm1", "pmaddubsw mm0, mm1")
]  # fmt: skip

_SSE41 = _sse(
    "pmulld pmuldq pminsb pminsd pminuw pminud pmaxsb pmaxsd pmaxuw pmaxud packusdw pcmpeqq "
    "pmovsxbw pmovsxbd pmovsxbq pmovsxwd pmovsxwq pmovsxdq pmovzxbw pmovzxbd pmovzxbq pmovzxwd "
    "pmovzxwq pmovzxdq ptest phminposuw"
) + _immediate("blendps blendpd pblendw mpsadbw insertps dpps dppd",
               (0x00, 0x01, 0x31, 0x5A, 0xA7, 0xFF)) + _immediate(
    "roundps roundss roundpd roundsd", tuple(range(16))
) + _convert(
    "pblendvb xmm2, xmm1, xmm0", "blendvps xmm2, xmm1, xmm0", "blendvpd xmm2, xmm1, xmm0",
    "pextrb eax, xmm1, 9", "pextrd eax, xmm1, 2", "pextrq rax, xmm1, 1", "extractps eax, xmm1, 3",
    "pinsrb xmm0, ebx, 11", "pinsrd xmm0, ebx, 1", "pinsrq xmm0, rbx, 1", "pextrb [$M], xmm1, 3",
    "pextrw [$M], xmm1, 3", "insertps xmm0, [$M], 0x50", "movntdqa xmm0, [$M]",
)  # fmt: skip

_SSE42 = [("pcmpgtq xmm0, xmm1", ALL)] + _convert(
    "crc32 eax, bl", "crc32 eax, bx", "crc32 eax, ebx", "crc32 rax, rbx", "crc32 rax, bl"
) + [
    (f"{length}{op} xmm0, xmm1, {n}", ALL)
    for op, length in (
        ("pcmpistri", ""), ("pcmpistrm", ""),
        ("pcmpestri", "movsx eax, al; movsx edx, dl; sar eax, 3; sar edx, 3; "),
        ("pcmpestrm", "movsx eax, al; movsx edx, dl; sar eax, 3; sar edx, 3; "),
    )
    for n in range(128)
]  # fmt: skip

_X87_LOAD = ("fninit; fld qword ptr [$M]; fld qword ptr [$M+8]; ",
             "fninit; fld tbyte ptr [$M+16]; fld dword ptr [$M+8]; ")  # fmt: skip
_X87_END = "; fnstsw ax; and eax, 0x4500; fstp tbyte ptr [$M+32]; fstp tbyte ptr [$M+48]; fninit"
_X87 = [
    (load + op + _X87_END, ALL)
    for load in _X87_LOAD
    for op in (
        "fadd st, st(1)", "fsub st, st(1)", "fsubr st, st(1)", "fmul st, st(1)", "fdiv st, st(1)",
        "fdivr st, st(1)", "fadd st(1), st", "fsub st(1), st", "fdiv st(1), st", "faddp; fld1",
        "fmulp; fldz", "fsubrp; fldpi", "fchs", "fabs", "fxch", "fcom st(1)", "fucom st(1)", "ftst",
        "fcomp st(1); fld1", "fld st(1); fstp st(2)", "fadd qword ptr [$M+8]",
        "fmul dword ptr [$M+4]", "fiadd dword ptr [$M]", "fimul word ptr [$M]", "fild qword ptr "
        "[$M]; fstp st(1)", "fld1; fstp st(2)", "fldl2e; fstp st(2)", "fldln2; fstp st(2)",
    )
] + [
    ("fninit; fld qword ptr [$M]; fld qword ptr [$M+8]; fucomip st, st(1); fstp st; fninit",
     ZF | PF | CF),
    ("fninit; fld qword ptr [$M]; fld qword ptr [$M+8]; fcomi st, st(1); fninit", ZF | PF | CF),
    ("fninit; fld qword ptr [$M]; fabs; fsqrt; fstp tbyte ptr [$M+32]; fninit", ALL),
    ("fninit; fld qword ptr [$M]; frndint; fstp tbyte ptr [$M+32]; fninit", ALL),
    ("fninit; fld tbyte ptr [$M]; fistp qword ptr [$M+32]; fninit", ALL),
    ("fninit; fld qword ptr [$M]; fistp dword ptr [$M+32]; fninit", ALL),
    ("fninit; fld qword ptr [$M]; fistp word ptr [$M+32]; fninit", ALL),
    ("fninit; fld qword ptr [$M]; fisttp qword ptr [$M+32]; fninit", ALL),
    ("fninit; fld qword ptr [$M]; fisttp dword ptr [$M+32]; fninit", ALL),
    ("fninit; fild dword ptr [$M]; fstp dword ptr [$M+32]; fninit", ALL),
    ("fninit; fild word ptr [$M]; fstp qword ptr [$M+32]; fninit", ALL),
    ("fninit; fld tbyte ptr [$M]; fstp qword ptr [$M+32]; fninit", ALL),
    ("fninit; fld qword ptr [$M]; fld qword ptr [$M+8]; fcmovb st, st(1); fstp tbyte ptr [$M+32];"
     "fninit", ALL),
    ("fninit; fnstcw [$M]; mov word ptr [$M+2], 0x77f; fldcw [$M+2]; fild qword ptr [$M+8];"
     "fistp dword ptr [$M+16]; fninit", ALL),
]  # fmt: skip

# What each needs of the host, as /proc/cpuinfo names it.
GROUPS: dict[str, list[Case]] = {
    "lm": _arithmetic(),
    "fpu": _X87,
    "tsc": _multiply(),
    "cmov": _shifts(),
    "cx8": _bits(),
    "rep_good": _strings(),
    "cx16": [("cmpxchg16b [$M]", ALL), ("lock cmpxchg16b [$M+16]", ALL),
             ("mov rax, [$M]; mov rdx, [$M+8]; cmpxchg16b [$M]", ALL)],
    "lahf_lm": [("lahf; mov bl, ah", ALL), ("mov ah, bl; sahf", ALL)],
    "movbe": _convert("movbe ax, [$M]", "movbe eax, [$M]", "movbe rax, [$M]", "movbe [$M], bx",
                      "movbe [$M], ebx", "movbe [$M], rbx"),
    "popcnt": _convert("popcnt ax, bx", "popcnt eax, ebx", "popcnt rax, [$M]"),
    "abm": [(f"lzcnt {a}, {b}", CF | ZF)
            for a, b in (("ax", "bx"), ("eax", "ebx"), ("rax", "rbx"))],
    "adx": [(f"{op} {a}, {b}", ALL) for op in ("adcx", "adox")
            for a, b in (("eax", "ebx"), ("rax", "rbx"), ("rax", "[$M]"))],
    "mmx": _MMX,
    "sse": _SSE,
    "sse2": _SSE2,
    "pni": _sse("addsubps addsubpd haddps haddpd hsubps hsubpd movsldup movshdup movddup")
    + _convert("lddqu xmm0, [$M+1]"),
    "ssse3": _SSSE3,
    "sse4_1": _SSE41,
    "sse4_2": _SSE42,
    "pclmulqdq": _immediate("pclmulqdq", (0x00, 0x01, 0x10, 0x11)),
    "aes": _sse("aesenc aesenclast aesdec aesdeclast aesimc")
    + _immediate("aeskeygenassist", (0, 1, 0x1B, 0x80)),
}  # fmt: skip
