/* The software TLB: entries, and what drops them (SDM vol. 3, 4.10).
 *
 * Unicorn keeps a table for each MMU mode, and a few victims of collisions.
 * Entries say where in host memory a page is; flags in their tags send accesses to
 * slower ways: devices, and pages from which code was translated.
 */
#include "tlb.h"
#include <string.h>

struct ram_slot *ram_find(struct machine *m, uint64_t paddr)
{
    struct ram_slot *slot = m->last_ram;

    if (slot && paddr - slot->start < slot->size)
        return slot;
    for (int i = 0; i < m->ram_count; i++) {
        slot = &m->ram[i];
        if (paddr - slot->start < slot->size)
            return m->last_ram = slot;
    }
    return NULL;
}

/* Large pages are entered 4 KiB at a time. INVLPG anywhere in one must find all of
 * its pieces; these filters say which 2 MiB and 1 GiB regions can have any. */
static inline void note_large_page(struct vcpu *v, uint64_t addr, uint64_t size)
{
    if (size >= 1ull << 30)
        v->huge_pages |= 1ull << (addr >> 30 & 63);
    else
        v->large_pages[addr >> 27 & 15] |= 1ull << (addr >> 21 & 63);
}

/* Entries of pages that are not global are listed, so that a new CR3 drops them
 * and nothing else; a list that is full means: drop everything. */
static inline void note_local(struct vcpu *v, int mmu_idx, size_t index)
{
    if (v->local_count < LOCAL_MAX)
        v->local[v->local_count] = (uint32_t)index << 2 | (uint32_t)mmu_idx;
    v->local_count++;
}

void tlb_insert(void *env, uint64_t addr, uint64_t paddr, int readable, int writable,
                       int executable, int mmu_idx, uint64_t page_size, bool local)
{
    struct machine *m = M;
    void *tlb = env_tlb(env);
    char *desc = tlb_desc(tlb, mmu_idx);
    struct tlb_entry *victims = (struct tlb_entry *)(desc + TLBD_VTABLE), *e;
    struct iotlb_entry *iotlb = FIELD(struct iotlb_entry *, desc, TLBD_IOTLB);
    uint64_t page = addr & PAGE_MASK, flags = 0, write_flags = 0;
    struct ram_slot *slot;
    size_t index;

    paddr &= PAGE_MASK;
    if (page_size > PAGE_SIZE)
        note_large_page(&m->vcpu[m->current], page, page_size);
    FIELD(uint16_t, tlb, TLB_C + TLBC_DIRTY) |= 1u << mmu_idx;
    for (int i = 0; i < K_CPU_VTLB_SIZE; i++) {
        if (entry_has_page(&victims[i], page)) {
            memset(&victims[i], -1, sizeof victims[i]);
            FIELD(size_t, desc, TLBD_N_USED_ENTRIES)--;
        }
    }
    e = tlb_lookup(tlb, mmu_idx, page, &index);
    if ((e->read & e->write & e->code) != ~0ull && !entry_has_page(e, page)) {
        size_t v = FIELD(size_t, desc, TLBD_VINDEX)++ % K_CPU_VTLB_SIZE;

        victims[v] = *e;
        ((struct iotlb_entry *)(desc + TLBD_VIOTLB))[v] = iotlb[index];
        FIELD(size_t, desc, TLBD_N_USED_ENTRIES)--;
    }

    slot = ram_find(m, paddr);
    if (slot && m->vcpu[m->current].apic_page != paddr) {
        uint8_t *state = &slot->pages[(paddr - slot->start) >> PAGE_SHIFT];

        e->addend = (uintptr_t)(slot->host + (paddr - slot->start)) - page;
        if (slot->readonly)
            write_flags = K_TLB_MMIO;
        else if (writable) {
            if ((*state & (PAGE_HAS_CODE | PAGE_DIRTY)) != PAGE_DIRTY)
                write_flags = K_TLB_NOTDIRTY;
            else
                *state |= PAGE_MAYBE_WRITE;
        }
    } else {
        e->addend = 0;
        flags = write_flags = K_TLB_MMIO;
    }
    e->paddr = paddr;
    e->size = page_size;
    e->local = local;
    if (local)
        note_local(&m->vcpu[m->current], mmu_idx, index);
    e->read = readable ? page | flags : ~0ull;
    e->write = writable ? page | write_flags : ~0ull;
    e->code = executable ? page | flags : ~0ull;
    iotlb[index].addr = paddr - page;
    iotlb[index].attrs = 0;
    FIELD(size_t, desc, TLBD_N_USED_ENTRIES)++;
    m->stat_fills++;
}

static void drop_entry(char *desc, struct tlb_entry *e)
{
    memset(e, -1, sizeof *e);
    FIELD(size_t, desc, TLBD_N_USED_ENTRIES)--;
}

/* Drop all pieces of pages of at least ``size`` bytes in the region around ``addr``. */
static void flush_region(void *env, uint64_t addr, uint64_t size)
{
    void *tlb = env_tlb(env);
    uint64_t region = addr & ~(size - 1);

    for (int mode = 0; mode < K_NB_MMU_MODES; mode++) {
        char *fast = tlb_fast(tlb, mode), *desc = tlb_desc(tlb, mode);
        struct tlb_entry *table = FIELD(struct tlb_entry *, fast, TLBF_TABLE);
        size_t n = (FIELD(uint64_t, fast, TLBF_MASK) >> K_CPU_TLB_ENTRY_BITS) + 1;
        struct tlb_entry *victims = (struct tlb_entry *)(desc + TLBD_VTABLE);

        for (size_t i = 0; i < n + K_CPU_VTLB_SIZE; i++) {
            struct tlb_entry *e = i < n ? &table[i] : &victims[i - n];
            uint64_t tag = e->read & e->write & e->code; /* a missing right is all ones */

            if (tag != ~0ull && e->size >= size && (tag & ~(size - 1)) == region)
                drop_entry(desc, e);
        }
    }
    jumps_forget(M);
}

/* INVLPG. Unicorn's own flushes everything once a large page was met. */
void __wrap_tlb_flush_page_x86_64(void *cpu, uint64_t addr)
{
    void *env = CPU(void *, ENV_PTR), *tlb = env_tlb(env);
    struct vcpu *v = &M->vcpu[M->current];
    uint64_t page = addr & PAGE_MASK;

    for (int mode = 0; mode < K_NB_MMU_MODES; mode++) {
        char *desc = tlb_desc(tlb, mode);
        struct tlb_entry *victims = (struct tlb_entry *)(desc + TLBD_VTABLE);
        size_t index;
        struct tlb_entry *e = tlb_lookup(tlb, mode, page, &index);

        if (entry_has_page(e, page))
            drop_entry(desc, e);
        for (int i = 0; i < K_CPU_VTLB_SIZE; i++)
            if (entry_has_page(&victims[i], page))
                drop_entry(desc, &victims[i]);
    }
    jumps_forget_page(M, page);
    if (v->large_pages[addr >> 27 & 15] >> (addr >> 21 & 63) & 1)
        flush_region(env, addr, 1ull << 21);
    if (v->huge_pages >> (addr >> 30 & 63) & 1)
        flush_region(env, addr, 1ull << 30);
    M->stat_invlpg++;
}

/* Any flush of everything: the filters start afresh when nothing is left. */
extern void __real_tlb_flush_x86_64(void *cpu);

void __wrap_tlb_flush_x86_64(void *cpu)
{
    struct vcpu *v = &M->vcpu[M->current];

    __real_tlb_flush_x86_64(cpu);
    memset(M->jump, 0, sizeof M->jump);
    memset(v->large_pages, 0, sizeof v->large_pages);
    v->huge_pages = 0;
    v->local_count = v->local_code_count = 0;
    M->stat_flushes++;
}

/* A new CR3: what is not global goes (SDM vol. 3, 4.10.4.1). */
void mmu_new_tables(struct machine *m)
{
    void *env = m->env, *tlb = env_tlb(env);
    struct vcpu *v = &m->vcpu[m->current];
    bool crowded = false;

    /* Unicorn's flush also fits the TLB's size to its use: let it, when it is crowded */
    for (int mode = 0; mode < K_NB_MMU_MODES; mode++) {
        size_t n = (FIELD(uint64_t, tlb_fast(tlb, mode), TLBF_MASK) >> K_CPU_TLB_ENTRY_BITS) + 1;

        crowded |= FIELD(size_t, tlb_desc(tlb, mode), TLBD_N_USED_ENTRIES) > n - n / 4;
    }
    if (crowded || v->local_count > LOCAL_MAX) {
        tlb_flush_x86_64(m->cpu);
        return;
    }
    for (uint32_t i = 0; i < v->local_count; i++) {
        int mode = v->local[i] & 3;
        struct tlb_entry *e = FIELD(struct tlb_entry *, tlb_fast(tlb, mode), TLBF_TABLE) +
                              (v->local[i] >> 2);

        if ((e->read & e->write & e->code) != ~0ull && e->local)
            drop_entry(tlb_desc(tlb, mode), e);
    }
    for (int mode = 0; mode < K_NB_MMU_MODES; mode++) {
        char *desc = tlb_desc(tlb, mode);
        struct tlb_entry *victims = (struct tlb_entry *)(desc + TLBD_VTABLE);

        for (int i = 0; i < K_CPU_VTLB_SIZE; i++)
            if ((victims[i].read & victims[i].write & victims[i].code) != ~0ull && victims[i].local)
                drop_entry(desc, &victims[i]);
    }
    if (v->local_code_count > LOCAL_CODE_MAX)
        jumps_forget(m);
    else
        for (uint32_t i = 0; i < v->local_code_count; i++)
            jumps_forget_page(m, v->local_code[i]);
    v->local_count = v->local_code_count = 0;
}

bool victim_hit(void *tlb, int mmu_idx, size_t index, struct tlb_entry *e, uint64_t addr,
                       size_t tag)
{
    char *desc = tlb_desc(tlb, mmu_idx);
    struct tlb_entry *victims = (struct tlb_entry *)(desc + TLBD_VTABLE);

    for (int i = 0; i < K_CPU_VTLB_SIZE; i++) {
        if (hit(FIELD(uint64_t, &victims[i], tag), addr)) {
            struct iotlb_entry *io = FIELD(struct iotlb_entry *, desc, TLBD_IOTLB) + index;
            struct iotlb_entry *vio = (struct iotlb_entry *)(desc + TLBD_VIOTLB) + i, t = *io;
            struct tlb_entry swap = *e;

            *e = victims[i];
            victims[i] = swap;
            *io = *vio;
            *vio = t;
            return true;
        }
    }
    return false;
}
