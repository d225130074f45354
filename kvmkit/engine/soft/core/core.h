/* The software CPU's core: what must not be Python.
 *
 * Unicorn (QEMU's TCG as a library) translates guest code; this core replaces
 * the parts of it that a whole machine needs otherwise: the MMU's slow path,
 * interrupts and exceptions, system calls, I/O dispatch, model-specific
 * registers, time, and the scheduling of several vCPUs on one thread.
 * Functions named __wrap_X replace Unicorn's X (link.args lists them).
 *
 *   machine.c   the Python type       mmu.c      loads and stores that missed
 *   walk.c      page tables           tlb.c      the software TLB
 *   mmio.c      devices' memory       stale.c    stores to translated code
 *   fetch.c     instruction fetch     ram.c      the guest's RAM
 *   run.c       vCPUs in turn, timer  cpu.c      instructions the core executes itself
 *   port.c      port I/O              strings.c  REP MOVS and REP STOS
 *   jumps.c     indirect jumps        fixes.c    what Unicorn gets wrong
 *   state.c     registers by name     emit.c     the exit check in translated code
 */
#ifndef KVMKIT_CORE_H
#define KVMKIT_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <unicorn/unicorn.h>

#include "unicorn_layout.h"

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ull
#define PAGE_MASK (~(PAGE_SIZE - 1))
#define MAX_RAM_SLOTS 32
#define MAX_VCPUS 64
#define MAX_CPUID 64
#define LOCAL_MAX 256
#define LOCAL_CODE_MAX 16

/* A field of one of Unicorn's structures, by offset. */
#define FIELD(type, base, offset) (*(type *)((char *)(base) + (offset)))

#define ENV(type, name) FIELD(type, env, ENV_##name)
#define CPU(type, name) FIELD(type, cpu, CPU_##name)
#define CPU_FIELD(m, type, name) FIELD(type, (m)->cpu, CPU_##name)

enum { R_ES, R_CS, R_SS, R_DS, R_FS, R_GS };
enum { EXC_DB = 1, EXC_NMI = 2, EXC_UD = 6, EXC_DF = 8, EXC_SS = 12, EXC_GP = 13, EXC_PF = 14 };

#define FLAG_TF 0x100u
#define FLAG_IF 0x200u
#define FLAG_DF 0x400u
#define FLAG_IOPL 0x3000u
#define FLAG_NT 0x4000u
#define FLAG_RF 0x10000u
#define FLAG_VM 0x20000u
#define FLAG_AC 0x40000u
#define FLAGS_CC 0x8d5u /* OF SF ZF AF PF CF */

#define HF_CPL(env) (ENV(uint32_t, HFLAGS) & 3u)
#define HF(name) (1u << K_HF_##name##_SHIFT)

/* One range of guest RAM and what we know of each of its pages. */
enum {
    PAGE_HAS_CODE = 1,    /* translated code was made from it: stores must look */
    PAGE_MAYBE_WRITE = 2, /* some TLB entry lets stores through */
    PAGE_DIRTY = 4,       /* written since the log was last read */
};

struct ram_slot {
    uint64_t start, size;
    uint8_t *host;
    uint8_t *pages;
    bool readonly;
    int id;
};

/* See jumps.c. */
#define JUMPS 8192

struct jump {
    uint64_t pc;
    uint32_t flags, cs_base;
    void *code, *tb;
};

struct cpuid_leaf {
    uint32_t function, index, has_index, eax, ebx, ecx, edx;
};

/* A vCPU that is not on the (only) processor of Unicorn's at the moment. */
struct vcpu {
    uint8_t *env;     /* architectural state: ENV_END_RESET_FIELDS bytes */
    uint8_t *tlb;     /* SIZEOF_TLB bytes, with its own tables */
    uint32_t cflags_next_tb;
    bool halted, waiting_for_sipi;
    atomic_bool interrupt, nmi; /* lines from its local APIC */
    uint64_t large_pages[16], huge_pages; /* filters: regions with pieces of large pages */
    uint32_t local[LOCAL_MAX], local_count;   /* TLB entries that are not global */
    uint64_t local_code[LOCAL_CODE_MAX];      /* their pages that code was run from */
    uint32_t local_code_count;
    uint64_t apic_page;         /* physical address of its xAPIC page, or ~0 */
    uint64_t dr7;               /* its breakpoints, while it is not running */
    struct cpuid_leaf cpuid[MAX_CPUID];
    int cpuid_count;
};

enum stop { STOP_DEADLINE, STOP_KICK, STOP_TRIPLE_FAULT, STOP_ERROR };

struct machine {
    PyObject_HEAD
    uc_engine *uc;
    void *cpu;   /* CPUState */
    void *env;   /* CPUX86State */
    void *tcg;   /* TCGContext */
    int vcpu_count, current;
    struct vcpu vcpu[MAX_VCPUS];
    struct ram_slot ram[MAX_RAM_SLOTS];
    int ram_count;
    struct ram_slot *last_ram;
    uint8_t fake_region[SIZEOF_MR];

    PyObject *port_read, *port_write, *memory_read, *memory_write;
    PyObject *apic_read, *apic_write, *msr_read, *msr_write, *acknowledge, *tpr_read, *tpr_write;
    /* ports that need no call each time (port.c) */
    uint8_t *port_kind;
    uint8_t *port_answer;
    PyObject *port_collected;
    uint8_t collected[4096];
    int collected_count, collected_port;
    PyThreadState *thread; /* set while the GIL is released in run() */
    PyObject *error_type, *error_value, *error_trace;
    bool failed, triple_fault, running;
    pthread_t runner; /* the thread in run(), while running */

    int64_t tsc_base; /* guest TSC (1 GHz) = CLOCK_MONOTONIC ns - tsc_base */
    struct jump jump[JUMPS];
    void *exit_label;
    bool insn_start; /* the translator begins an instruction */
    int shown_left;  /* bytes of one to show instead of what is in memory (strings.c) */
    uint64_t shown_at;
    uint64_t smc_page;
    int smc_count;

    /* the ticker: a thread that makes the guest stop at a deadline */
    pthread_t ticker;
    pthread_mutex_t lock;
    pthread_cond_t tick_cond, idle_cond;
    int64_t deadline;      /* of the caller, CLOCK_MONOTONIC ns; under lock */
    int64_t tick;          /* when the ticker is to act; under lock */
    int64_t tick_sleep;    /* until when the ticker sleeps now; under lock */
    bool ticker_stop, idle;
    atomic_bool kick;
    atomic_bool pause_hint;

    uint64_t stat_fills, stat_io, stat_mmio, stat_interrupts, stat_exceptions, stat_switches,
        stat_msr, stat_halts, stat_smc, stat_invlpg, stat_flushes;
};

extern __thread struct machine *self_machine __attribute__((tls_model("initial-exec")));
#define M self_machine

/* machine.c */
bool check_idle(struct machine *m);
bool check_quiet(struct machine *m);

/* ram.c: methods */
PyObject *machine_add_ram(struct machine *m, PyObject *args);
PyObject *machine_remove_ram(struct machine *m, PyObject *arg);
PyObject *machine_write(struct machine *m, PyObject *args);
PyObject *machine_invalidate(struct machine *m, PyObject *args);
PyObject *machine_has_code(struct machine *m, PyObject *args);

/* mmu.c */
struct ram_slot *ram_find(struct machine *m, uint64_t paddr);
bool mmu_fill(void *cpu, uint64_t addr, int size, int access, int mmu_idx, bool probe,
              uintptr_t retaddr);
void *mmu_fake_mapping(uc_engine *uc, uint64_t address);
void mmu_new_tables(struct machine *m);
uint64_t slow_load(void *env, uint64_t addr, int size, int mmu_idx, uintptr_t retaddr);
void slow_store(void *env, uint64_t addr, uint64_t value, int size, int mmu_idx, uintptr_t retaddr);
uint8_t *ram_for_load(void *env, uint64_t addr, int mmu_idx, uintptr_t retaddr);
uint8_t *ram_for_store(void *env, uint64_t addr, int mmu_idx, uintptr_t retaddr);
const uint8_t *code_bytes(void *env, uint64_t addr);
int data_mmu_index(void *env);
bool mmu_translate(struct machine *m, void *env, uint64_t addr, uint64_t *paddr);

/* cpu.c */
bool cpu_deliver_interrupt(void *cpu, int request);
void cpu_exception_hook(uc_engine *uc, uint32_t number, void *user);
uint64_t guest_tsc(struct machine *m);
void py_failed(struct machine *m);
void exit_to_loop(struct machine *m);

/* jumps.c */
void jumps_forget(struct machine *m);
void jumps_forget_page(struct machine *m, uint64_t page);

/* strings.c */
int strings_first_byte(struct machine *m, void *env, uint64_t addr, const uint8_t *code);
int strings_next_byte(struct machine *m, uint64_t addr);

/* port.c */
void ports_deliver(struct machine *m);

/* run.c */
int machine_run(struct machine *m);
int ticker_start(struct machine *m);
void ticker_end(struct machine *m);
void machine_set_deadline(struct machine *m, int64_t deadline);
void machine_tick_soon(struct machine *m);
void machine_wake(struct machine *m);
void switch_to(struct machine *m, int index);
int64_t monotonic(void);

/* state.c */
PyObject *state_get(struct machine *m, int index);
int state_set(struct machine *m, int index, const uint8_t *data, Py_ssize_t size);

/* A vCPU's architectural state as Unicorn has it, the CPU around it, a register of it. */
static inline void *env_cpu(void *env)
{
    return (char *)env - X86CPU_ENV;
}

static inline uint64_t *reg(void *env, int index)
{
    return &FIELD(uint64_t, env, ENV_REGS + 8 * index);
}

/* Calls into Python from translated code. */
static inline void gil_take(struct machine *m)
{
    PyEval_RestoreThread(m->thread);
}

static inline void gil_drop(struct machine *m)
{
    M = m; /* the callback may have looked into another machine */
    m->thread = PyEval_SaveThread();
}

/* Called from one of the machine's own callbacks? */
static inline bool on_runner(struct machine *m)
{
    return m->running && pthread_equal(m->runner, pthread_self());
}

/* Unicorn's own, not in its public headers */
extern int cpu_exec_x86_64(uc_engine *uc, void *cpu);
extern uint32_t cpu_cc_compute_all_x86_64(void *env, int op);
extern void raise_exception_err_ra_x86_64(void *env, int exception, int error, uintptr_t retaddr)
    __attribute__((noreturn));
extern bool cpu_restore_state_x86_64(void *cpu, uintptr_t pc, bool will_exit);
extern void cpu_loop_exit_x86_64(void *cpu) __attribute__((noreturn));
extern void x86_cpu_do_interrupt_x86_64(void *cpu);
extern void do_interrupt_x86_hardirq_x86_64(void *env, int number, int is_hw);
extern void tlb_flush_x86_64(void *cpu);
extern void tb_flush_jmp_cache_x86_64(void *cpu, uint64_t addr);
extern void tb_flush_x86_64(void *cpu);
extern void tb_invalidate_phys_page_fast_x86_64(uc_engine *uc, void *pages, uint64_t start, int len,
                                                uintptr_t retaddr);
extern void tb_invalidate_phys_range_x86_64(uc_engine *uc, uint64_t start, uint64_t end);
extern void update_fp_status_x86_64(void *env);
extern void update_mxcsr_status_x86_64(void *env);
extern void cpu_x86_update_dr7_x86_64(void *env, uint32_t value);

#define RETADDR ((uintptr_t)__builtin_return_address(0))

#endif
