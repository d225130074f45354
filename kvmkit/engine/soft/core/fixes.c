/* What Unicorn 2.1.4 does wrong, done right (found by tests/engine/soft).
 *
 * Each function replaces Unicorn's of the same name; link.args lists them.
 */
#include "core.h"
#include <stdarg.h>
#include <string.h>

#define EXC_NP 11
#define ERROR_IDT 2u /* SDM vol. 3, 6.13: the selector index is into the IDT */

extern void __real_raise_exception_err_x86_64(void *env, int exception, int error)
    __attribute__((noreturn));

/* An IDT entry is 16 bytes in long mode, but its index in an error code counts entries. */
__attribute__((noreturn)) void __wrap_raise_exception_err_x86_64(void *env, int exception,
                                                                 int error)
{
    if ((ENV(uint32_t, HFLAGS) & HF(LMA)) && (error & ERROR_IDT) &&
        (exception == EXC_GP || exception == EXC_NP))
        error = (error >> 4) << 3 | ERROR_IDT;
    __real_raise_exception_err_x86_64(env, exception, error);
}

/* Unicorn's abort() when it finds an impossible state: the vCPU ends, not the process. */
__attribute__((noreturn)) void __wrap_cpu_abort_x86_64(void *cpu, const char *format, ...)
{
    struct machine *m = M;
    va_list args;
    char text[256];

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    gil_take(m);
    PyErr_Format(PyExc_RuntimeError, "Unicorn: %s", text);
    py_failed(m);
    gil_drop(m);
    CPU(int32_t, EXCEPTION_INDEX) = K_EXCP_INTERRUPT; /* not again what led here */
    cpu_loop_exit_x86_64(cpu);
}

/* Unicorn's translator abort()s where it is inconsistent with itself, as it is about LOCK BT
 * with a register. The instruction is one that faults: find it, by translating one at a time,
 * and let it be #UD. Only what was translated before has run, so nothing is half done. */
extern void __real_abort(void) __attribute__((noreturn));

__attribute__((noreturn)) void __wrap_abort(void)
{
    static __thread uint64_t suspect; /* where a block began that could not be translated */
    struct machine *m = M;
    void *env, *cpu;

    if (!m || !m->running)
        __real_abort();
    env = m->env, cpu = m->cpu;
    if (suspect == ENV(uint64_t, EIP) + 1) {
        suspect = 0;
        raise_exception_err_ra_x86_64(env, EXC_UD, 0, 0);
    }
    suspect = ENV(uint64_t, EIP) + 1;
    CPU(uint32_t, CFLAGS_NEXT_TB) = 1;
    cpu_loop_exit_x86_64(cpu);
}

/* Some instructions leave TCG temporaries behind until the block ends, and the table of them has
 * a fixed size that nothing checks: 500 x87 instructions in a row wrote past it. End the block
 * when it is nearly full; no instruction takes more than a few dozen. */
#define TEMPS_SPARE 96

extern void __real_translator_loop_x86_64(const void *ops, void *base, void *cpu, void *tb,
                                          int max_insns);

typedef void translate_insn(void *base, void *cpu);
static translate_insn *real_translate_insn;

static void translate_and_count(void *base, void *cpu)
{
    real_translate_insn(base, cpu);
    if (FIELD(int, base, DB_IS_JMP) == K_DISAS_NEXT &&
        FIELD(int, M->tcg, TCG_NB_TEMPS) > K_TCG_MAX_TEMPS - TEMPS_SPARE)
        FIELD(int, base, DB_IS_JMP) = K_DISAS_TOO_MANY;
}

void __wrap_translator_loop_x86_64(const void *ops, void *base, void *cpu, void *tb, int max_insns)
{
    _Alignas(void *) uint8_t ours[SIZEOF_OPS];

    memcpy(ours, ops, sizeof ours);
    real_translate_insn = FIELD(translate_insn *, ops, OPS_TRANSLATE_INSN);
    FIELD(translate_insn *, ours, OPS_TRANSLATE_INSN) = translate_and_count;
    __real_translator_loop_x86_64(ours, base, cpu, tb, max_insns);
}

/* LTR of a null selector faults (SDM vol. 2A); Unicorn loads it and gives up when it needs a TSS. */
extern void __real_helper_ltr_x86_64(void *env, int selector);

void __wrap_helper_ltr_x86_64(void *env, int selector)
{
    if (!(selector & 0xfffc))
        raise_exception_err_ra_x86_64(env, EXC_GP, 0, RETADDR);
    /* what faults inside cannot find the instruction by its return address, which is ours */
    cpu_restore_state_x86_64((char *)env - X86CPU_ENV, RETADDR, true);
    __real_helper_ltr_x86_64(env, selector);
}

/* ---- FISTTP: what does not fit is the integer indefinite (SDM vol. 1, 4.2.2) ---- */

extern int32_t __real_helper_fisttl_ST0_x86_64(void *env);
extern int64_t __real_helper_fisttll_ST0_x86_64(void *env);

/* The binary exponent of ST0; infinities and NaNs have the largest. */
static int st0_exponent(void *env)
{
    uint32_t top = ENV(uint32_t, FPSTT) & 7;

    return (FIELD(uint16_t, env, ENV_FPREGS + top * SIZEOF_FPREG + 8) & 0x7fff) - 0x3fff;
}

int32_t __wrap_helper_fisttl_ST0_x86_64(void *env)
{
    int32_t value = __real_helper_fisttl_ST0_x86_64(env);

    return st0_exponent(env) >= 31 ? INT32_MIN : value;
}

int64_t __wrap_helper_fisttll_ST0_x86_64(void *env)
{
    int64_t value = __real_helper_fisttll_ST0_x86_64(env);

    return st0_exponent(env) >= 63 ? INT64_MIN : value;
}

/* ---- DPPS, DPPD: the products are added in pairs (SDM vol. 2A), with MXCSR's rounding ---- */

void __wrap_helper_dpps_xmm_x86_64(void *env, float *d, const float *s, uint32_t control)
{
    uint32_t host = __builtin_ia32_stmxcsr();
    volatile float p[4], low, high, sum;

    __builtin_ia32_ldmxcsr((ENV(uint32_t, MXCSR) & 0xe040) | 0x1f80);
    for (int i = 0; i < 4; i++)
        p[i] = control & (0x10u << i) ? d[i] * s[i] : 0;
    low = p[0] + p[1];
    high = p[2] + p[3];
    sum = low + high;
    for (int i = 0; i < 4; i++)
        d[i] = control & (1u << i) ? sum : 0;
    __builtin_ia32_ldmxcsr(host);
}

void __wrap_helper_dppd_xmm_x86_64(void *env, double *d, const double *s, uint32_t control)
{
    uint32_t host = __builtin_ia32_stmxcsr();
    volatile double low, high, sum;

    __builtin_ia32_ldmxcsr((ENV(uint32_t, MXCSR) & 0xe040) | 0x1f80);
    low = control & 0x10 ? d[0] * s[0] : 0;
    high = control & 0x20 ? d[1] * s[1] : 0;
    sum = low + high;
    d[0] = control & 1 ? sum : 0;
    d[1] = control & 2 ? sum : 0;
    __builtin_ia32_ldmxcsr(host);
}

/* ---- PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM vol. 2B, 4.1) ---- */

#define STR_WORDS 1u
#define STR_SIGNED 2u
#define STR_MODE(control) ((control) >> 2 & 3)
#define STR_NEGATE 0x10u
#define STR_VALID_ONLY 0x20u
#define STR_LAST 0x40u /* PCMPxSTRI: the last index; PCMPxSTRM: a mask of whole elements */

enum { EQUAL_ANY, RANGES, EQUAL_EACH, EQUAL_ORDERED };

static int element(const uint8_t *reg, uint32_t control, int i)
{
    uint16_t word;

    if (!(control & STR_WORDS))
        return control & STR_SIGNED ? (int8_t)reg[i] : reg[i];
    memcpy(&word, reg + 2 * i, 2);
    return control & STR_SIGNED ? (int16_t)word : word;
}

static int implicit_length(const uint8_t *reg, uint32_t control)
{
    int n = control & STR_WORDS ? 8 : 16, i = 0;

    while (i < n && element(reg, control, i))
        i++;
    return i;
}

/* In EAX or EDX; a bit above the immediate byte says RAX, RDX. */
static int explicit_length(void *env, int index, uint32_t control)
{
    uint64_t value = FIELD(uint64_t, env, ENV_REGS + 8 * index);
    int64_t length = control >> 8 ? (int64_t)value : (int32_t)value;
    int n = control & STR_WORDS ? 8 : 16;

    return length >= n || length <= -n ? n : (int)(length < 0 ? -length : length);
}

static bool compare(const uint8_t *d, int d_length, const uint8_t *s, int s_length,
                    uint32_t control, int j)
{
    int n = control & STR_WORDS ? 8 : 16, v = element(s, control, j);
    bool valid = j < s_length;

    switch (STR_MODE(control)) {
    case EQUAL_ANY:
        for (int i = 0; valid && i < d_length; i++)
            if (element(d, control, i) == v)
                return true;
        return false;
    case RANGES:
        for (int i = 0; valid && i + 1 < d_length; i += 2)
            if (element(d, control, i) <= v && v <= element(d, control, i + 1))
                return true;
        return false;
    case EQUAL_EACH:
        if (!valid || j >= d_length)
            return !valid && j >= d_length;
        return element(d, control, j) == v;
    default:
        for (int i = 0; i < d_length && i + j < n; i++)
            if (i + j >= s_length || element(d, control, i) != element(s, control, i + j))
                return false;
        return true;
    }
}

static uint32_t compare_strings(void *env, const uint8_t *d, int d_length, const uint8_t *s,
                                int s_length, uint32_t control)
{
    int n = control & STR_WORDS ? 8 : 16;
    uint32_t result = 0;

    for (int j = 0; j < n; j++)
        if (compare(d, d_length, s, s_length, control, j))
            result |= 1u << j;
    if (control & STR_NEGATE)
        result ^= control & STR_VALID_ONLY ? (1u << s_length) - 1 : (1u << n) - 1;
    ENV(uint64_t, CC_SRC) = (result ? 1 : 0) | (s_length < n ? 0x40 : 0) |
                            (d_length < n ? 0x80 : 0) | (result & 1 ? 0x800 : 0);
    return result;
}

static void give_index(void *env, uint32_t result, uint32_t control)
{
    uint64_t *rcx = &FIELD(uint64_t, env, ENV_REGS + 8);

    if (!result)
        *rcx = control & STR_WORDS ? 8 : 16;
    else
        *rcx = (uint64_t)(control & STR_LAST ? 31 - __builtin_clz(result) : __builtin_ctz(result));
}

static void give_mask(void *env, uint32_t result, uint32_t control)
{
    uint8_t *xmm0 = (uint8_t *)env + ENV_XMM_REGS;
    int width = control & STR_WORDS ? 2 : 1;

    memset(xmm0, 0, 16);
    if (control & STR_LAST)
        for (int i = 0; i < 16; i++)
            xmm0[i] = result >> (i / width) & 1 ? 0xff : 0;
    else
        memcpy(xmm0, &result, sizeof result);
}

#define STRING_HELPER(name, give, d_length, s_length)                                              \
    void __wrap_helper_##name##_xmm_x86_64(void *env, uint8_t *d, uint8_t *s, uint32_t control)    \
    {                                                                                              \
        give(env, compare_strings(env, d, d_length, s, s_length, control), control);               \
    }
STRING_HELPER(pcmpestri, give_index, explicit_length(env, 0, control),
              explicit_length(env, 2, control))
STRING_HELPER(pcmpestrm, give_mask, explicit_length(env, 0, control),
              explicit_length(env, 2, control))
STRING_HELPER(pcmpistri, give_index, implicit_length(d, control), implicit_length(s, control))
STRING_HELPER(pcmpistrm, give_mask, implicit_length(d, control), implicit_length(s, control))
