/* Instruction fetch: what the translator reads, and where its code is filed. */
#include "tlb.h"
#include <string.h>

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
