/* Guest-virtual to guest-physical: the page tables (SDM vol. 3, chapter 4). */
#include "tlb.h"

#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull
/* Physical address bits above the 40 that CPUID announces are reserved. */
#define PTE_RSVD 0x000fff0000000000ull

#define ERR_P 1
#define ERR_W 2
#define ERR_U 4
#define ERR_RSVD 8
#define ERR_I 16

#define CR0_WP (1ull << 16)
#define CR0_PG (1ull << 31)
#define CR4_PSE (1ull << 4)
#define CR4_PAE (1ull << 5)
#define CR4_PGE (1ull << 7)
#define CR4_SMEP (1ull << 20)
#define EFER_NXE (1ull << 11)

/* The host address of a page-table entry, or NULL where there is no RAM. ``*fixed`` is
 * set if it cannot be written: accessed and dirty bits are lost there. */
static inline void *table_entry(uint64_t paddr, bool *fixed)
{
    struct ram_slot *slot = ram_find(M, paddr);

    if (!slot)
        return NULL;
    *fixed |= slot->readonly;
    return slot->host + (paddr - slot->start);
}

struct walk {
    uint64_t paddr, size;
    bool readable, writable, executable, global;
    int error; /* page-fault error code when the walk failed */
};

/* Walk 4-level, PAE or 32-bit tables. ``fault`` semantics as SDM vol. 3, 4.6-4.7.
 * With ``peek``, accessed and dirty bits stay as they are. */
static bool page_walk(void *env, uint64_t addr, int access, int mmu_idx, bool peek, struct walk *w)
{
    uint64_t cr0 = ENV(uint64_t, CR), cr3 = FIELD(uint64_t, env, ENV_CR + 24);
    uint64_t cr4 = FIELD(uint64_t, env, ENV_CR + 32), efer = ENV(uint64_t, EFER);
    uint64_t pte = 0, table, all = PTE_U | PTE_W, nx = 0, rsvd = PTE_RSVD;
    bool user = mmu_idx == K_MMU_USER_IDX, lma = ENV(uint32_t, HFLAGS) & HF(LMA);
    bool fixed = peek;
    void *slot = NULL;
    int shift;

    w->error = 0;
    if (!(cr0 & CR0_PG)) {
        w->paddr = lma ? addr : (uint32_t)addr;
        w->paddr &= (uint64_t)(int64_t)ENV(int32_t, A20_MASK);
        w->size = PAGE_SIZE;
        w->readable = w->writable = w->executable = true;
        w->global = false;
        return true;
    }
    if (!(efer & EFER_NXE))
        rsvd |= PTE_NX;
    if (cr4 & CR4_PAE) {
        if (lma) {
            shift = 39;
            table = cr3 & PTE_ADDR;
        } else {
            uint64_t *pdpte = table_entry((cr3 & 0xffffffe0) + ((addr >> 27) & 0x18), &fixed);

            if (!pdpte || !(*pdpte & PTE_P))
                goto fault;
            shift = 21;
            table = *pdpte & PTE_ADDR;
        }
        for (;; shift -= 9) {
            fixed = peek;
            slot = table_entry(table + ((addr >> shift) & 0x1ff) * 8, &fixed);
            pte = slot ? *(volatile uint64_t *)slot : 0;
            if (!(pte & PTE_P))
                goto fault;
            if (pte & rsvd)
                goto fault_rsvd;
            all &= pte;
            nx |= pte;
            if (shift == 12 || (pte & PTE_PS))
                break;
            if (!(pte & PTE_A) && !fixed)
                *(volatile uint64_t *)slot = pte | PTE_A;
            table = pte & PTE_ADDR;
        }
        if (shift == 39)
            goto fault_rsvd; /* PS is reserved in a PML4 entry */
        w->size = 1ull << shift;
        if (shift > 12 && (pte & (w->size - 1) & PTE_ADDR & ~0x1000ull))
            goto fault_rsvd;
        w->paddr = pte & PTE_ADDR & ~(w->size - 1);
    } else {
        uint32_t entry;

        slot = table_entry((cr3 & 0xfffff000) + ((addr >> 20) & 0xffc), &fixed);
        entry = slot ? *(volatile uint32_t *)slot : 0;
        if (!(entry & PTE_P))
            goto fault;
        all &= entry;
        if ((entry & PTE_PS) && (cr4 & CR4_PSE)) {
            w->size = 4ull << 20;
            if (entry & (1u << 21))
                goto fault_rsvd;
            w->paddr = (entry & 0xffc00000u) | ((uint64_t)(entry & 0x1fe000) << 19);
        } else {
            if (!(entry & PTE_A) && !fixed)
                *(volatile uint32_t *)slot = entry | PTE_A;
            fixed = peek;
            slot = table_entry((entry & 0xfffff000) + ((addr >> 10) & 0xffc), &fixed);
            entry = slot ? *(volatile uint32_t *)slot : 0;
            if (!(entry & PTE_P))
                goto fault;
            all &= entry;
            w->size = PAGE_SIZE;
            w->paddr = entry & 0xfffff000u;
        }
        pte = entry;
        nx = 0;
    }

    if (user && !(all & PTE_U))
        goto fault_protect;
    w->readable = mmu_idx != K_MMU_KSMAP_IDX || !(all & PTE_U);
    w->writable = w->readable && ((all & PTE_W) || (!user && !(cr0 & CR0_WP)));
    w->executable = !(nx & PTE_NX) && (user || !((cr4 & CR4_SMEP) && (all & PTE_U)));
    if (!(access == ACCESS_LOAD ? w->readable : access == ACCESS_STORE ? w->writable : w->executable))
        goto fault_protect;
    if (!peek) {
        uint64_t bits = access == ACCESS_STORE ? PTE_A | PTE_D : PTE_A;

        if (fixed) {
            pte |= bits; /* else every store would come here again, and for nothing */
        } else if (bits & ~pte) {
            pte |= bits;
            /* the low byte holds both bits, whatever the entry's width */
            *(volatile uint8_t *)slot = (uint8_t)pte;
        }
        if (!(pte & PTE_D))
            w->writable = false; /* the first store must come back for the dirty bit */
    }
    w->global = (pte & PTE_G) && (cr4 & CR4_PGE);
    w->paddr |= addr & (w->size - 1);
    w->paddr &= (uint64_t)(int64_t)ENV(int32_t, A20_MASK);
    return true;

fault_rsvd:
    w->error |= ERR_RSVD;
fault_protect:
    w->error |= ERR_P;
fault:
    if (access == ACCESS_STORE)
        w->error |= ERR_W;
    if (user)
        w->error |= ERR_U;
    if (access == ACCESS_FETCH && (((efer & EFER_NXE) && (cr4 & CR4_PAE)) || (cr4 & CR4_SMEP)))
        w->error |= ERR_I;
    return false;
}

bool mmu_translate(struct machine *m, void *env, uint64_t addr, uint64_t *paddr)
{
    struct walk w;
    bool ok;
    struct machine *before = M;

    M = m;
    ok = page_walk(env, addr, ACCESS_LOAD, K_MMU_KNOSMAP_IDX, true, &w);
    M = before;
    *paddr = w.paddr;
    return ok;
}

/* CPUClass.tlb_fill */
bool mmu_fill(void *cpu, uint64_t addr, int size, int access, int mmu_idx, bool probe,
              uintptr_t retaddr)
{
    void *env = CPU(void *, ENV_PTR);
    struct walk w;
    int64_t sign;

    (void)size;
    if ((ENV(uint64_t, CR) & CR0_PG) && (ENV(uint32_t, HFLAGS) & HF(LMA))) {
        sign = (int64_t)addr >> 47;
        if (sign != 0 && sign != -1) {
            if (probe)
                return false;
            raise_exception_err_ra_x86_64(env, EXC_GP, 0, retaddr);
        }
    }
    if (!page_walk(env, addr, access, mmu_idx, false, &w)) {
        if (probe)
            return false;
        FIELD(uint64_t, env, ENV_CR + 16) = addr;
        raise_exception_err_ra_x86_64(env, EXC_PF, w.error, retaddr);
    }
    tlb_insert(env, addr, w.paddr, w.readable, w.writable, w.executable, mmu_idx, w.size,
               !w.global);
    return true;
}

/* uc_struct.memory_mapping: Unicorn asks which region an address is in, to call
 * hooks; we have none, so one region that allows everything is the answer. */
void *mmu_fake_mapping(uc_engine *uc, uint64_t address)
{
    (void)uc;
    (void)address;
    return M->fake_region;
}
