/* Where indirect jumps go: a cache from program counter to translated code.
 *
 * Unicorn has one too, of pointers to its blocks' descriptions; each hit reads one
 * of them, which lie among the code, far apart. Here an entry holds all that is
 * compared, and the code's address. It is laid out by pages, as Unicorn's is, so
 * that a page's entries can be forgotten at once.
 */
#include "core.h"
#include <string.h>

#define FLAGS_IN_KEY (FLAG_IOPL | FLAG_TF | FLAG_RF | FLAG_VM | FLAG_AC)
#define BLOCK 64 /* entries of one page */
#define BLOCKS (JUMPS / BLOCK)

/* Unicorn's hash (exec/tb-hash.h) */
#define THEIR_PAGE_BITS 6

extern void *__real_helper_lookup_tb_ptr_x86_64(void *env);

static inline struct jump *block_of(struct machine *m, uint64_t pc)
{
    uint64_t page = pc >> PAGE_SHIFT;

    return &m->jump[((page ^ page >> 7) & (BLOCKS - 1)) * BLOCK];
}

static inline struct jump *entry_of(struct machine *m, uint64_t pc)
{
    return block_of(m, pc) + ((pc ^ pc >> 6) & (BLOCK - 1));
}

/* The block that Unicorn's own lookup has just put in its cache. */
static void *found_by_unicorn(struct machine *m, uint64_t pc)
{
    uint64_t mixed = pc ^ pc >> (PAGE_SHIFT - THEIR_PAGE_BITS);
    uint64_t low = (1u << THEIR_PAGE_BITS) - 1, high = K_TB_JMP_CACHE_SIZE - 1 - low;
    uint64_t hash = (mixed >> (PAGE_SHIFT - THEIR_PAGE_BITS) & high) | (mixed & low);

    return FIELD(void *, m->cpu, CPU_TB_JMP_CACHE + hash * sizeof(void *));
}

void *__wrap_helper_lookup_tb_ptr_x86_64(void *env)
{
    struct machine *m = M;
    uint64_t base = FIELD(uint64_t, env, ENV_SEGS + R_CS * SIZEOF_SEG + SEG_BASE);
    uint64_t pc = base + ENV(uint64_t, EIP);
    uint32_t flags = ENV(uint32_t, HFLAGS) | (uint32_t)(ENV(uint64_t, EFLAGS) & FLAGS_IN_KEY);
    struct jump *e = entry_of(m, pc);
    void *code, *tb;

    if (e->pc == pc && e->flags == flags && e->cs_base == (uint32_t)base && e->code)
        return e->code;
    code = __real_helper_lookup_tb_ptr_x86_64(env);
    tb = found_by_unicorn(m, pc);
    if (tb && base <= UINT32_MAX && FIELD(void *, tb, TB_CODE) == code &&
        FIELD(uint64_t, tb, TB_PC) == pc)
        *e = (struct jump){pc, flags, (uint32_t)base, code, tb};
    return code;
}

void jumps_forget(struct machine *m)
{
    memset(m->jump, 0, sizeof m->jump);
    memset((char *)m->cpu + CPU_TB_JMP_CACHE, 0, K_TB_JMP_CACHE_SIZE * sizeof(void *));
}

/* Blocks on a page, and those on the page before, which may reach into it. */
void jumps_forget_page(struct machine *m, uint64_t page)
{
    memset(block_of(m, page), 0, BLOCK * sizeof(struct jump));
    memset(block_of(m, page - PAGE_SIZE), 0, BLOCK * sizeof(struct jump));
    tb_flush_jmp_cache_x86_64(m->cpu, page);
}

/* Unicorn takes a block out of its table when it is no longer right ... */
extern bool __real_qht_remove(void *table, const void *tb, uint32_t hash);

bool __wrap_qht_remove(void *table, const void *tb, uint32_t hash)
{
    struct jump *e = entry_of(M, FIELD(uint64_t, tb, TB_PC));

    if (e->tb == tb)
        memset(e, 0, sizeof *e);
    return __real_qht_remove(table, tb, hash);
}

/* ... and all of them when the buffer for code is full. */
extern bool __real_qht_reset_size(void *uc, void *table, size_t size);

bool __wrap_qht_reset_size(void *uc, void *table, size_t size)
{
    memset(M->jump, 0, sizeof M->jump);
    return __real_qht_reset_size(uc, table, size);
}
