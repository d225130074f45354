/* REP MOVS and REP STOS, a page at a time (SDM vol. 2B, REP).
 *
 * Translated, they move one element a turn; kernels clear and copy most of their
 * memory with them. In 64-bit code the translator is shown another instruction of
 * the same length in their place, RDPMC, whose helper is ours and does the work
 * on host memory. A page fault leaves RCX, RSI and RDI as the processor would.
 */
#include "core.h"
#include <string.h>

#define REP 0xf3
#define REX_W 0x48
#define MOVSB 0xa4
#define STOSB 0xaa
#define RDPMC_0 0x0f
#define RDPMC_1 0x33

enum { RCX = 1, RSI = 6, RDI = 7 };

/* How long the REP MOVS or REP STOS at ``code`` is, of which ``room`` bytes can be
 * seen; 0 if it is none. */
static int string_length(const uint8_t *code, size_t room)
{
    int at = 1;

    if (room < 3 || code[0] != REP)
        return 0;
    if (code[1] == REX_W)
        at = 2;
    return (code[at] & ~1u) == MOVSB || (code[at] & ~1u) == STOSB ? at + 1 : 0;
}

/* The translator's first byte of an instruction: RDPMC's, if it is one of ours. */
int strings_first_byte(struct machine *m, void *env, uint64_t addr, const uint8_t *code)
{
    int length;

    m->insn_start = false;
    m->shown_left = 0;
    if (code[0] != REP || !(ENV(uint32_t, HFLAGS) & HF(CS64)) ||
        (ENV(uint64_t, EFLAGS) & FLAG_TF))
        return -1;
    length = string_length(code, PAGE_SIZE - (addr & (PAGE_SIZE - 1)));
    if (!length)
        return -1;
    m->shown_left = length - 1;
    m->shown_at = addr + 1;
    return length == 3 ? REX_W : RDPMC_0;
}

/* Its further bytes; -1 if they are to be read from memory. */
int strings_next_byte(struct machine *m, uint64_t addr)
{
    if (addr != m->shown_at) {
        m->shown_left = 0;
        return -1;
    }
    m->shown_at++;
    return m->shown_left-- == 2 ? RDPMC_0 : RDPMC_1;
}

/* One element, however awkward: device memory, page ends, pages with code. */
static void one(void *env, bool move, int size, int mmu_idx, uintptr_t retaddr)
{
    int64_t step = ENV(int32_t, DF) * (int64_t)size;
    uint64_t value = *reg(env, 0);

    if (move)
        value = slow_load(env, *reg(env, RSI), size, mmu_idx, retaddr);
    slow_store(env, *reg(env, RDI), value, size, mmu_idx, retaddr);
    if (move)
        *reg(env, RSI) += (uint64_t)step;
    *reg(env, RDI) += (uint64_t)step;
    --*reg(env, RCX);
}

static void fill(uint8_t *to, uint64_t value, int size, size_t count)
{
    if (size == 1 || value == 0) {
        memset(to, (uint8_t)value, count * size);
    } else if (size == 8) {
        for (size_t i = 0; i < count; i++)
            memcpy(to + 8 * i, &value, 8);
    } else {
        for (size_t i = 0; i < count; i++)
            memcpy(to + 4 * i, &value, 4);
    }
}

static void copy(uint8_t *to, const uint8_t *from, int size, size_t count)
{
    if (to <= from || to >= from + count * size) {
        memmove(to, from, count * size);
        return;
    }
    for (size_t i = 0; i < count; i++) { /* overlapping forward: elements repeat */
        uint64_t element;

        memcpy(&element, from + i * size, size);
        memcpy(to + i * size, &element, size);
    }
}

static inline uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* True: RCX is 0, go on; false: the guest must look at its interrupts first. */
static bool run_string(struct machine *m, void *env, bool move, int size, uintptr_t retaddr)
{
    int mmu_idx = data_mmu_index(env);
    uint64_t value = size == 8 ? *reg(env, 0) : (uint32_t)*reg(env, 0);

    while (*reg(env, RCX)) {
        uint64_t from = *reg(env, RSI), to = *reg(env, RDI), count = *reg(env, RCX);
        uint8_t *source = NULL, *target;

        if (FIELD(volatile int32_t, m->cpu, X86CPU_ICOUNT_DECR) < 0)
            return false;
        count = least(count, (PAGE_SIZE - (to & (PAGE_SIZE - 1))) / size);
        if (move)
            count = least(count, (PAGE_SIZE - (from & (PAGE_SIZE - 1))) / size);
        if (count && ENV(int32_t, DF) > 0) {
            /* the source first: so a processor faults */
            if (move)
                source = ram_for_load(env, from, mmu_idx, retaddr);
            target = ram_for_store(env, to, mmu_idx, retaddr);
            /* the fill for the store may have moved the load's entry, not its page */
            if (target && (source || !move)) {
                if (move) {
                    copy(target, source, size, count);
                    *reg(env, RSI) += count * size;
                } else {
                    fill(target, size == 1 ? (uint8_t)value : value, size, count);
                }
                *reg(env, RDI) += count * size;
                *reg(env, RCX) -= count;
                continue;
            }
        }
        one(env, move, size, mmu_idx, retaddr);
    }
    return true;
}

extern void __real_helper_rdpmc_x86_64(void *env);

void __wrap_helper_rdpmc_x86_64(void *env)
{
    struct machine *m = M;
    uint64_t addr = FIELD(uint64_t, env, ENV_SEGS + R_CS * SIZEOF_SEG + SEG_BASE) +
                    ENV(uint64_t, EIP);
    size_t room = PAGE_SIZE - (addr & (PAGE_SIZE - 1));
    const uint8_t *code = code_bytes(env, addr);
    int length = code && (ENV(uint32_t, HFLAGS) & HF(CS64)) ? string_length(code, room) : 0;
    uint8_t opcode;

    if (!length) {
        /* no performance counters: SDM vol. 2B, RDPMC, #GP for any of them */
        raise_exception_err_ra_x86_64(env, EXC_GP, 0, RETADDR);
    }
    opcode = code[length - 1];
    if (!run_string(m, env, (opcode & ~1u) == MOVSB, opcode & 1 ? (length == 3 ? 8 : 4) : 1,
                    RETADDR)) {
        /* RIP is still the string instruction's: it goes on after the interrupt */
        CPU_FIELD(m, int32_t, EXCEPTION_INDEX) = -1;
        cpu_loop_exit_x86_64(m->cpu);
    }
}
