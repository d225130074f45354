/* What was translated must not go stale: stores to code, by physical page.
 *
 * A page from which code was translated is marked; TLB entries that would let stores
 * to it through are marked too, whatever their virtual address, so every alias of a
 * page is covered.
 */
#include "tlb.h"

/* After so many stores in a row to one page with code, the page is taken for data. */
#define SMC_SWEEP 8

static void protect_tlb(void *tlb, uint64_t page)
{
    for (int mode = 0; mode < K_NB_MMU_MODES; mode++) {
        char *fast = tlb_fast(tlb, mode), *desc = tlb_desc(tlb, mode);
        struct tlb_entry *e = FIELD(struct tlb_entry *, fast, TLBF_TABLE);
        size_t n = (FIELD(uint64_t, fast, TLBF_MASK) >> K_CPU_TLB_ENTRY_BITS) + 1;
        struct tlb_entry *victims = (struct tlb_entry *)(desc + TLBD_VTABLE);

        for (size_t i = 0; i < n; i++)
            if (e[i].paddr == page && e[i].write != ~0ull)
                e[i].write |= K_TLB_NOTDIRTY;
        for (size_t i = 0; i < K_CPU_VTLB_SIZE; i++)
            if (victims[i].paddr == page && victims[i].write != ~0ull)
                victims[i].write |= K_TLB_NOTDIRTY;
    }
}

void __wrap_tlb_protect_code_x86_64(uc_engine *uc, uint64_t paddr)
{
    struct machine *m = M;
    uint64_t page = paddr & PAGE_MASK;
    struct ram_slot *slot = ram_find(m, page);
    uint8_t *state;

    (void)uc;
    if (!slot)
        return;
    state = &slot->pages[(page - slot->start) >> PAGE_SHIFT];
    if (*state & PAGE_MAYBE_WRITE) {
        for (int i = 0; i < m->vcpu_count; i++)
            protect_tlb(i == m->current ? env_tlb(m->env) : m->vcpu[i].tlb, page);
        *state &= (uint8_t)~PAGE_MAYBE_WRITE;
    }
    *state |= PAGE_HAS_CODE;
}

void __wrap_tlb_unprotect_code_x86_64(uc_engine *uc, uint64_t paddr)
{
    struct ram_slot *slot = ram_find(M, paddr & PAGE_MASK);

    (void)uc;
    if (slot)
        slot->pages[((paddr & PAGE_MASK) - slot->start) >> PAGE_SHIFT] &= (uint8_t)~PAGE_HAS_CODE;
}

void __wrap_tlb_reset_dirty_by_vaddr_x86_64(void *cpu, uint64_t start, uint64_t length)
{
    (void)cpu, (void)start, (void)length; /* done by physical page above */
}

/* A store to a page whose entry says NOTDIRTY. May not return (the running block
 * modified itself); the instruction then runs again. */
void store_check(uint64_t paddr, int size, uintptr_t retaddr, struct tlb_entry *e)
{
    struct machine *m = M;
    struct ram_slot *slot = ram_find(m, paddr);
    uint8_t *state;

    if (!slot)
        return;
    state = &slot->pages[(paddr - slot->start) >> PAGE_SHIFT];
    if (*state & PAGE_HAS_CODE) {
        uint64_t page = paddr & PAGE_MASK;

        m->stat_smc++;
        if (page != m->smc_page) {
            m->smc_page = page;
            m->smc_count = 0;
        }
        if (++m->smc_count < SMC_SWEEP) {
            /* Unicorn looks at one word of its map of code bytes only, 64 of them */
            int first = 64 - (int)(paddr & 63);

            if (first > size)
                first = size;
            tb_invalidate_phys_page_fast_x86_64(m->uc, NULL, paddr, first, retaddr);
            if (size > first)
                tb_invalidate_phys_page_fast_x86_64(m->uc, NULL, paddr + first, size - first,
                                                    retaddr);
        } else {
            /* somebody fills the page: let all its code go at once */
            m->smc_count = 0;
            for (uint64_t at = page; at < page + PAGE_SIZE; at += 16)
                tb_invalidate_phys_page_fast_x86_64(m->uc, NULL, at, 16, retaddr);
        }
    }
    *state |= PAGE_DIRTY;
    if (!(*state & PAGE_HAS_CODE)) {
        e->write &= ~(uint64_t)K_TLB_NOTDIRTY;
        *state |= PAGE_MAYBE_WRITE;
    }
}
