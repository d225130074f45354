/* Loads and stores that missed in translated code, and those of Unicorn's helpers.
 *
 * Translated code looks an address up in the TLB inline; what misses, crosses a
 * page, or is no plain RAM comes here.
 */
#include "tlb.h"
#include <string.h>

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
