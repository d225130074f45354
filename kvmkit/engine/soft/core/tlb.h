/* The software TLB that translated code looks addresses up in (see tlb.c). */
#ifndef KVMKIT_TLB_H
#define KVMKIT_TLB_H

#include "core.h"

#define ACCESS_LOAD 0
#define ACCESS_STORE 1
#define ACCESS_FETCH 2

struct tlb_entry {
    uint64_t read, write, code, paddr;
    uintptr_t addend;
    uint64_t size;  /* of the page it is a piece of */
    uint64_t local; /* not a global page: a new CR3 drops it */
    uint64_t spare;
};
_Static_assert(sizeof(struct tlb_entry) == SIZEOF_TLBE, "TLB entry");
_Static_assert(TLBE_ADDR_WRITE == 8 && TLBE_ADDR_CODE == 16 && TLBE_PADDR == 24 &&
                   TLBE_ADDEND == 32, "TLB entry");

struct iotlb_entry {
    uint64_t addr, attrs;
};
_Static_assert(sizeof(struct iotlb_entry) == SIZEOF_IOTLBE, "I/O TLB entry");

static inline char *tlb_desc(void *tlb, int mmu_idx)
{
    return (char *)tlb + TLB_D + mmu_idx * SIZEOF_TLBD;
}

static inline char *tlb_fast(void *tlb, int mmu_idx)
{
    return (char *)tlb + TLB_F + mmu_idx * SIZEOF_TLBF;
}

static inline void *env_tlb(void *env)
{
    return (char *)env - X86CPU_ENV + X86CPU_TLB;
}

static inline struct tlb_entry *tlb_lookup(void *tlb, int mmu_idx, uint64_t addr, size_t *index)
{
    char *fast = tlb_fast(tlb, mmu_idx);
    uint64_t mask = FIELD(uint64_t, fast, TLBF_MASK);
    size_t i = (addr >> PAGE_SHIFT) & (mask >> K_CPU_TLB_ENTRY_BITS);

    *index = i;
    return FIELD(struct tlb_entry *, fast, TLBF_TABLE) + i;
}

static inline bool hit(uint64_t tag, uint64_t addr)
{
    return (tag & (PAGE_MASK | K_TLB_INVALID_MASK)) == (addr & PAGE_MASK);
}

static inline bool entry_has_page(const struct tlb_entry *e, uint64_t page)
{
    return hit(e->read, page) || hit(e->write, page) || hit(e->code, page);
}

/* tlb.c */
void tlb_insert(void *env, uint64_t addr, uint64_t paddr, int readable, int writable,
                int executable, int mmu_idx, uint64_t page_size, bool local);
bool victim_hit(void *tlb, int mmu_idx, size_t index, struct tlb_entry *e, uint64_t addr,
                size_t tag);

/* stale.c */
void store_check(uint64_t paddr, int size, uintptr_t retaddr, struct tlb_entry *e);

/* mmio.c */
uint64_t mmio_read(uint64_t paddr, int size);
void mmio_write(uint64_t paddr, int size, uint64_t value);

/* The entry for an access, filled if need be. Does not return if the access faults. */
static inline struct tlb_entry *entry_for(void *env, uint64_t addr, int size, int access,
                                          int mmu_idx, uintptr_t retaddr, size_t tag)
{
    void *tlb = env_tlb(env);
    size_t index;
    struct tlb_entry *e = tlb_lookup(tlb, mmu_idx, addr, &index);

    if (hit(FIELD(uint64_t, e, tag), addr) || victim_hit(tlb, mmu_idx, index, e, addr, tag))
        return e;
    mmu_fill(env_cpu(env), addr, size, access, mmu_idx, false, retaddr);
    return tlb_lookup(tlb, mmu_idx, addr, &index);
}

#endif
