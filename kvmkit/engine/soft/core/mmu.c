/* Guest-virtual to guest-physical to host: Intel SDM vol. 3, chapter 4.
 *
 * Translated code looks an address up in a software TLB inline; what misses
 * comes here. A miss walks the guest's page tables in host memory and fills the
 * entry. Entries of pages from which code was translated carry a flag that
 * sends stores here, by physical page, so every alias of a page is covered.
 */
#include "core.h"
#include <string.h>

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

#define ACCESS_LOAD 0
#define ACCESS_STORE 1
#define ACCESS_FETCH 2

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

/* After so many stores in a row to one page with code, the page is taken for data. */
#define SMC_SWEEP 8

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

static inline void *env_cpu(void *env)
{
    return (char *)env - X86CPU_ENV;
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

static void tlb_insert(void *env, uint64_t addr, uint64_t paddr, int readable, int writable,
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

/* ---- memory-mapped I/O ---- */

static uint64_t mmio_read(uint64_t paddr, int size)
{
    struct machine *m = M;
    struct vcpu *v = &m->vcpu[m->current];
    uint64_t value = ~0ull;
    PyObject *result;

    m->stat_mmio++;
    gil_take(m);
    if ((paddr & PAGE_MASK) == v->apic_page)
        result = PyObject_CallFunction(m->apic_read, "iIi", m->current,
                                       (unsigned)(paddr & 0xfff), size);
    else
        result = PyObject_CallFunction(m->memory_read, "Ki", (unsigned long long)paddr, size);
    if (result) {
        value = PyLong_AsUnsignedLongLongMask(result);
        Py_DECREF(result);
    }
    if (PyErr_Occurred())
        py_failed(m);
    gil_drop(m);
    return value;
}

static void mmio_write(uint64_t paddr, int size, uint64_t value)
{
    struct machine *m = M;
    struct vcpu *v = &m->vcpu[m->current];
    PyObject *result;

    m->stat_mmio++;
    if (size < 8)
        value &= (1ull << size * 8) - 1;
    gil_take(m);
    if ((paddr & PAGE_MASK) == v->apic_page)
        result = PyObject_CallFunction(m->apic_write, "iIiK", m->current,
                                       (unsigned)(paddr & 0xfff), size, (unsigned long long)value);
    else
        result = PyObject_CallFunction(m->memory_write, "KiK", (unsigned long long)paddr, size,
                                       (unsigned long long)value);
    Py_XDECREF(result);
    if (PyErr_Occurred())
        py_failed(m);
    gil_drop(m);
}

int __wrap_memory_region_dispatch_read_x86_64(uc_engine *uc, void *mr, uint64_t addr,
                                              uint64_t *value, uint32_t op, uint64_t attrs)
{
    (void)uc, (void)mr, (void)attrs;
    *value = mmio_read(addr, 1 << (op & 3));
    return 0;
}

int __wrap_memory_region_dispatch_write_x86_64(uc_engine *uc, void *mr, uint64_t addr,
                                               uint64_t value, uint32_t op, uint64_t attrs)
{
    (void)uc, (void)mr, (void)attrs;
    mmio_write(addr, 1 << (op & 3), value);
    return 0;
}

/* ---- code: what was translated must not go stale ---- */

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
static void store_check(uint64_t paddr, int size, uintptr_t retaddr, struct tlb_entry *e)
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

/* ---- loads and stores that missed in translated code ---- */

static bool victim_hit(void *tlb, int mmu_idx, size_t index, struct tlb_entry *e, uint64_t addr,
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

uint64_t slow_load(void *env, uint64_t addr, int size, int mmu_idx, uintptr_t retaddr)
{
    struct tlb_entry *e;
    uint64_t value = 0;

    if ((addr & (PAGE_SIZE - 1)) + size > PAGE_SIZE) {
        /* both pages must be there before anything is read */
        entry_for(env, addr, 1, ACCESS_LOAD, mmu_idx, retaddr, TLBE_ADDR_READ);
        entry_for(env, (addr + size - 1) & PAGE_MASK, 1, ACCESS_LOAD, mmu_idx, retaddr,
                  TLBE_ADDR_READ);
        for (int i = 0; i < size; i++)
            value |= slow_load(env, addr + i, 1, mmu_idx, retaddr) << (8 * i);
        return value;
    }
    e = entry_for(env, addr, size, ACCESS_LOAD, mmu_idx, retaddr, TLBE_ADDR_READ);
    if (e->read & K_TLB_MMIO)
        return mmio_read(e->paddr | (addr & (PAGE_SIZE - 1)), size);
    memcpy(&value, (void *)(addr + e->addend), size);
    return value;
}

void slow_store(void *env, uint64_t addr, uint64_t value, int size, int mmu_idx,
                       uintptr_t retaddr)
{
    struct tlb_entry *e;

    if ((addr & (PAGE_SIZE - 1)) + size > PAGE_SIZE) {
        entry_for(env, addr, 1, ACCESS_STORE, mmu_idx, retaddr, TLBE_ADDR_WRITE);
        entry_for(env, (addr + size - 1) & PAGE_MASK, 1, ACCESS_STORE, mmu_idx, retaddr,
                  TLBE_ADDR_WRITE);
        for (int i = 0; i < size; i++)
            slow_store(env, addr + i, (value >> (8 * i)) & 0xff, 1, mmu_idx, retaddr);
        return;
    }
    e = entry_for(env, addr, size, ACCESS_STORE, mmu_idx, retaddr, TLBE_ADDR_WRITE);
    if (e->write & K_TLB_MMIO) {
        mmio_write(e->paddr | (addr & (PAGE_SIZE - 1)), size, value);
        return;
    }
    if (e->write & K_TLB_NOTDIRTY)
        store_check(e->paddr | (addr & (PAGE_SIZE - 1)), size, retaddr, e);
    memcpy((void *)(addr + e->addend), &value, size);
}

/* Host memory from ``addr`` to its page's end, for a load or for stores; NULL where
 * it must go byte by byte (devices, pages with code). Faults as the access would. */
uint8_t *ram_for_load(void *env, uint64_t addr, int mmu_idx, uintptr_t retaddr)
{
    struct tlb_entry *e = entry_for(env, addr, 1, ACCESS_LOAD, mmu_idx, retaddr, TLBE_ADDR_READ);

    return e->read & K_TLB_MMIO ? NULL : (uint8_t *)(addr + e->addend);
}

uint8_t *ram_for_store(void *env, uint64_t addr, int mmu_idx, uintptr_t retaddr)
{
    struct tlb_entry *e = entry_for(env, addr, 1, ACCESS_STORE, mmu_idx, retaddr, TLBE_ADDR_WRITE);

    if (e->write & K_TLB_MMIO)
        return NULL;
    if (e->write & K_TLB_NOTDIRTY) {
        store_check(e->paddr | (addr & (PAGE_SIZE - 1)), 1, retaddr, e);
        if (e->write & K_TLB_NOTDIRTY)
            return NULL;
    }
    return (uint8_t *)(addr + e->addend);
}

#define LOAD(name, type, size)                                                                     \
    uint64_t __wrap_helper_##name##_mmu_x86_64(void *env, uint64_t addr, uint32_t oi,              \
                                               uintptr_t retaddr)                                  \
    {                                                                                              \
        return (uint64_t)(type)slow_load(env, addr, size, oi & 15, retaddr);                       \
    }
LOAD(ret_ldub, uint8_t, 1)
LOAD(le_lduw, uint16_t, 2)
LOAD(le_ldul, uint32_t, 4)
LOAD(le_ldq, uint64_t, 8)

#define LOAD_SWAPPED(name, size, swap)                                                             \
    uint64_t __wrap_helper_##name##_mmu_x86_64(void *env, uint64_t addr, uint32_t oi,              \
                                               uintptr_t retaddr)                                  \
    {                                                                                              \
        return swap(slow_load(env, addr, size, oi & 15, retaddr));                                 \
    }
LOAD_SWAPPED(be_lduw, 2, __builtin_bswap16)
LOAD_SWAPPED(be_ldul, 4, __builtin_bswap32)
LOAD_SWAPPED(be_ldq, 8, __builtin_bswap64)

#define STORE(name, size, convert)                                                                 \
    void __wrap_helper_##name##_mmu_x86_64(void *env, uint64_t addr, uint64_t value, uint32_t oi,  \
                                           uintptr_t retaddr)                                      \
    {                                                                                              \
        slow_store(env, addr, convert(value), size, oi & 15, retaddr);                             \
    }
STORE(ret_stb, 1, )
STORE(le_stw, 2, )
STORE(le_stl, 4, )
STORE(le_stq, 8, )
STORE(be_stw, 2, __builtin_bswap16)
STORE(be_stl, 4, __builtin_bswap32)
STORE(be_stq, 8, __builtin_bswap64)

/* the same for Unicorn's own helpers (interrupt delivery, IRET, FXSAVE, ...) */
static inline uint64_t any_load(void *env, uint64_t addr, int size, int mmu_idx, uintptr_t retaddr)
{
    size_t index;
    struct tlb_entry *e = tlb_lookup(env_tlb(env), mmu_idx, addr, &index);
    uint64_t value = 0;

    if (e->read != (addr & PAGE_MASK) || (addr & (PAGE_SIZE - 1)) + size > PAGE_SIZE)
        return slow_load(env, addr, size, mmu_idx, retaddr);
    memcpy(&value, (void *)(addr + e->addend), size);
    return value;
}

static inline void any_store(void *env, uint64_t addr, uint64_t value, int size, int mmu_idx,
                             uintptr_t retaddr)
{
    size_t index;
    struct tlb_entry *e = tlb_lookup(env_tlb(env), mmu_idx, addr, &index);

    if (e->write != (addr & PAGE_MASK) || (addr & (PAGE_SIZE - 1)) + size > PAGE_SIZE)
        slow_store(env, addr, value, size, mmu_idx, retaddr);
    else
        memcpy((void *)(addr + e->addend), &value, size);
}

int data_mmu_index(void *env)
{
    uint32_t hflags = ENV(uint32_t, HFLAGS);

    if ((hflags & 3) == 3)
        return K_MMU_USER_IDX;
    return !(hflags & HF(SMAP)) || (ENV(uint64_t, EFLAGS) & FLAG_AC) ? K_MMU_KNOSMAP_IDX
                                                                      : K_MMU_KSMAP_IDX;
}

#define HELPER_LOAD(name, ret, type, size)                                                         \
    ret __wrap_cpu_##name##_mmuidx_ra_x86_64(void *env, uint64_t addr, int mmu_idx,                \
                                             uintptr_t retaddr)                                    \
    {                                                                                              \
        return (type)any_load(env, addr, size, mmu_idx, retaddr);                                  \
    }                                                                                              \
    ret __wrap_cpu_##name##_data_ra_x86_64(void *env, uint64_t addr, uintptr_t retaddr)            \
    {                                                                                              \
        return (type)any_load(env, addr, size, data_mmu_index(env), retaddr);                      \
    }                                                                                              \
    ret __wrap_cpu_##name##_data_x86_64(void *env, uint64_t addr)                                  \
    {                                                                                              \
        return (type)any_load(env, addr, size, data_mmu_index(env), 0);                            \
    }
HELPER_LOAD(ldub, uint32_t, uint8_t, 1)
HELPER_LOAD(ldsb, int, int8_t, 1)
HELPER_LOAD(lduw, uint32_t, uint16_t, 2)
HELPER_LOAD(ldsw, int, int16_t, 2)
HELPER_LOAD(ldl, uint32_t, uint32_t, 4)
HELPER_LOAD(ldq, uint64_t, uint64_t, 8)

#define HELPER_STORE(name, type, size)                                                             \
    void __wrap_cpu_##name##_mmuidx_ra_x86_64(void *env, uint64_t addr, type value, int mmu_idx,   \
                                              uintptr_t retaddr)                                   \
    {                                                                                              \
        any_store(env, addr, value, size, mmu_idx, retaddr);                                       \
    }                                                                                              \
    void __wrap_cpu_##name##_data_ra_x86_64(void *env, uint64_t addr, type value,                  \
                                            uintptr_t retaddr)                                     \
    {                                                                                              \
        any_store(env, addr, value, size, data_mmu_index(env), retaddr);                           \
    }                                                                                              \
    void __wrap_cpu_##name##_data_x86_64(void *env, uint64_t addr, type value)                     \
    {                                                                                              \
        any_store(env, addr, value, size, data_mmu_index(env), 0);                                 \
    }
HELPER_STORE(stb, uint32_t, 1)
HELPER_STORE(stw, uint32_t, 2)
HELPER_STORE(stl, uint32_t, 4)
HELPER_STORE(stq, uint64_t, 8)

/* ---- instruction fetch, by the translator ---- */

static struct tlb_entry *code_entry(void *env, uint64_t addr)
{
    struct tlb_entry *e =
        entry_for(env, addr, 0, ACCESS_FETCH, data_mmu_index(env), 0, TLBE_ADDR_CODE);

    /* whatever enters the jump cache was looked up here first */
    if (e->local) {
        struct vcpu *v = &M->vcpu[M->current];
        uint32_t n = v->local_code_count;

        if (n == 0 || n > LOCAL_CODE_MAX || v->local_code[n - 1] != (addr & PAGE_MASK)) {
            if (n < LOCAL_CODE_MAX)
                v->local_code[n] = addr & PAGE_MASK;
            if (n <= LOCAL_CODE_MAX)
                v->local_code_count++;
        }
    }
    return e;
}

/* Where the code at ``addr`` is, to its page's end; NULL if not in RAM. */
const uint8_t *code_bytes(void *env, uint64_t addr)
{
    struct tlb_entry *e = code_entry(env, addr);

    return e->code & K_TLB_MMIO ? NULL : (const uint8_t *)(addr + e->addend);
}

static uint64_t fetch(void *env, uint64_t addr, int size)
{
    struct tlb_entry *e = code_entry(env, addr);
    uint64_t value = 0;

    if ((addr & (PAGE_SIZE - 1)) + size > PAGE_SIZE) {
        for (int i = 0; i < size; i++)
            value |= fetch(env, addr + i, 1) << (8 * i);
        return value;
    }
    if (e->code & K_TLB_MMIO)
        return mmio_read(e->paddr | (addr & (PAGE_SIZE - 1)), size);
    memcpy(&value, (void *)(addr + e->addend), size);
    return value;
}

uint32_t __wrap_cpu_ldub_code_x86_64(void *env, uint64_t addr)
{
    struct machine *m = M;

    if (m->shown_left) {
        int shown = strings_next_byte(m, addr);

        if (shown >= 0)
            return (uint32_t)shown;
    }
    if (m->insn_start) {
        const uint8_t *code = code_bytes(env, addr);
        int shown = code ? strings_first_byte(m, env, addr, code) : -1;

        m->insn_start = false;
        if (shown >= 0)
            return (uint32_t)shown;
    }
    return fetch(env, addr, 1);
}

uint32_t __wrap_cpu_lduw_code_x86_64(void *env, uint64_t addr)
{
    return fetch(env, addr, 2);
}

uint32_t __wrap_cpu_ldl_code_x86_64(void *env, uint64_t addr)
{
    return fetch(env, addr, 4);
}

uint64_t __wrap_cpu_ldq_code_x86_64(void *env, uint64_t addr)
{
    return fetch(env, addr, 8);
}

/* The "RAM address" under which translated code is filed is the guest-physical one. */
uint64_t __wrap_get_page_addr_code_hostp_x86_64(void *env, uint64_t addr, void **host)
{
    struct tlb_entry *e = code_entry(env, addr);

    if (e->code & K_TLB_MMIO) {
        if (host)
            *host = NULL;
        return ~0ull;
    }
    if (host)
        *host = (void *)(addr + e->addend);
    return e->paddr | (addr & (PAGE_SIZE - 1));
}

uint64_t __wrap_get_page_addr_code_x86_64(void *env, uint64_t addr)
{
    return __wrap_get_page_addr_code_hostp_x86_64(env, addr, NULL);
}
