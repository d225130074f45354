/* Instructions and events that the core executes itself: CPUID, time,
 * model-specific registers, SYSCALL, HLT, PAUSE, exceptions and interrupts
 * (Intel SDM vol. 2 and vol. 3, chapter 6).
 */
#include "core.h"
#include <string.h>

#define MSR_TSC 0x10u
#define MSR_SYSENTER_CS 0x174u
#define MSR_SYSENTER_EIP 0x176u
#define MSR_MISC_ENABLE 0x1a0u
#define MSR_PAT 0x277u
#define MSR_EFER 0xc0000080u
#define MSR_STAR 0xc0000081u
#define MSR_GS_SWAP 0xc0000102u
#define MSR_TSC_AUX 0xc0000103u

#define CR4_TSD 4u

__thread struct machine *self_machine __attribute__((tls_model("initial-exec")));

static void raise_gp(void *env, uintptr_t retaddr)
{
    raise_exception_err_ra_x86_64(env, EXC_GP, 0, retaddr);
}

/* A Python callback raised: keep the exception for run() and stop the guest. */
void py_failed(struct machine *m)
{
    if (!m->failed) {
        PyErr_Fetch(&m->error_type, &m->error_value, &m->error_trace);
        m->failed = true;
    } else {
        PyErr_Clear();
    }
    exit_to_loop(m);
}

/* Leave translated code at the next block's start. Safe from any thread. */
void exit_to_loop(struct machine *m)
{
    FIELD(atomic_bool, m->cpu, CPU_EXIT_REQUEST) = true;
    atomic_store(&FIELD(_Atomic uint16_t, m->cpu, X86CPU_ICOUNT_DECR + 2), 0xffff);
}

/* ---- CPUID ---- */

void __wrap_helper_cpuid_x86_64(void *env)
{
    struct vcpu *v = &M->vcpu[M->current];
    uint32_t function = (uint32_t)*reg(env, 0), index = (uint32_t)*reg(env, 1);
    const struct cpuid_leaf *best = NULL;
    uint32_t out[4] = {0, 0, 0, 0};

    for (int i = 0; i < v->cpuid_count && !best; i++) {
        const struct cpuid_leaf *l = &v->cpuid[i];

        if (l->function == function && (!l->has_index || l->index == index))
            best = l;
    }
    if (best) {
        out[0] = best->eax, out[1] = best->ebx, out[2] = best->ecx, out[3] = best->edx;
    } else if (function == 0xb) {
        out[2] = index & 0xff; /* SDM: invalid subleaves return their number and the APIC id */
        for (int i = 0; i < v->cpuid_count; i++)
            if (v->cpuid[i].function == 0xb)
                out[3] = v->cpuid[i].edx;
    }
    *reg(env, 0) = out[0];
    *reg(env, 3) = out[1];
    *reg(env, 1) = out[2];
    *reg(env, 2) = out[3];
}

/* ---- time ---- */

uint64_t guest_tsc(struct machine *m)
{
    return (uint64_t)(monotonic() - m->tsc_base);
}

static void rdtsc(void *env, uintptr_t retaddr)
{
    uint64_t tsc;

    if ((FIELD(uint64_t, env, ENV_CR + 32) & CR4_TSD) && HF_CPL(env) != 0)
        raise_gp(env, retaddr);
    tsc = guest_tsc(M) + ENV(uint64_t, TSC_OFFSET);
    *reg(env, 0) = (uint32_t)tsc;
    *reg(env, 2) = tsc >> 32;
}

void __wrap_helper_rdtsc_x86_64(void *env)
{
    rdtsc(env, RETADDR);
}

void __wrap_helper_rdtscp_x86_64(void *env)
{
    rdtsc(env, RETADDR);
    *reg(env, 1) = (uint32_t)ENV(uint64_t, TSC_AUX);
}

/* ---- model-specific registers ---- */

extern void __real_helper_rdmsr_x86_64(void *env);
extern void __real_helper_wrmsr_x86_64(void *env);

static bool canonical(uint64_t address)
{
    int64_t sign = (int64_t)address >> 47;

    return sign == 0 || sign == -1;
}

/* Registers that Unicorn's CPU state holds. */
static bool msr_is_in_cpu(uint32_t index)
{
    return (index >= MSR_SYSENTER_CS && index <= MSR_SYSENTER_EIP) || index == MSR_PAT ||
           (index >= MSR_EFER && index <= 0xc0000084u) ||
           (index >= 0xc0000100u && index <= MSR_TSC_AUX) || index == MSR_MISC_ENABLE;
}

void __wrap_helper_rdmsr_x86_64(void *env)
{
    struct machine *m = M;
    uint32_t index = (uint32_t)*reg(env, 1);
    uint64_t value = 0;
    bool ok = false;
    PyObject *result;

    if (msr_is_in_cpu(index)) {
        __real_helper_rdmsr_x86_64(env);
        return;
    }
    if (index == MSR_TSC) {
        value = guest_tsc(m) + ENV(uint64_t, TSC_OFFSET);
        ok = true;
    } else {
        m->stat_msr++;
        gil_take(m);
        result = PyObject_CallFunction(m->msr_read, "iI", m->current, index);
        if (result && result != Py_None) {
            value = PyLong_AsUnsignedLongLongMask(result);
            ok = true;
        }
        Py_XDECREF(result);
        if (PyErr_Occurred())
            py_failed(m);
        gil_drop(m);
    }
    if (!ok)
        raise_gp(env, RETADDR);
    *reg(env, 0) = (uint32_t)value;
    *reg(env, 2) = value >> 32;
}

void __wrap_helper_wrmsr_x86_64(void *env)
{
    struct machine *m = M;
    uint32_t index = (uint32_t)*reg(env, 1);
    uint64_t value = (uint32_t)*reg(env, 0) | *reg(env, 2) << 32;
    bool ok = false;
    PyObject *result;

    if (msr_is_in_cpu(index)) {
        /* SDM vol. 4: addresses must be canonical, reserved bits zero */
        if (((index >= 0xc0000100u && index <= MSR_GS_SWAP) || index == 0xc0000082u ||
             index == 0xc0000083u || index == 0x175 || index == 0x176) && !canonical(value))
            raise_gp(env, RETADDR);
        if (index == MSR_EFER && (value & ~0xd01ull))
            raise_gp(env, RETADDR);
        __real_helper_wrmsr_x86_64(env);
        return;
    }
    m->stat_msr++;
    gil_take(m);
    result = PyObject_CallFunction(m->msr_write, "iIK", m->current, index,
                                   (unsigned long long)value);
    ok = result && PyObject_IsTrue(result) == 1;
    Py_XDECREF(result);
    if (PyErr_Occurred()) {
        py_failed(m);
        ok = true;
    }
    gil_drop(m);
    if (!ok)
        raise_gp(env, RETADDR);
}

/* ---- CR3, and CR8, the task priority ---- */

extern uint64_t __real_helper_read_crN_x86_64(void *env, int index);
extern void __real_helper_write_crN_x86_64(void *env, int index, uint64_t value);

uint64_t __wrap_helper_read_crN_x86_64(void *env, int index)
{
    struct machine *m = M;
    uint64_t value = 0;
    PyObject *result;

    if (index != 8)
        return __real_helper_read_crN_x86_64(env, index);
    gil_take(m);
    result = PyObject_CallFunction(m->tpr_read, "i", m->current);
    if (result) {
        value = PyLong_AsUnsignedLongLongMask(result);
        Py_DECREF(result);
    }
    if (PyErr_Occurred())
        py_failed(m);
    gil_drop(m);
    return value;
}

void __wrap_helper_write_crN_x86_64(void *env, int index, uint64_t value)
{
    struct machine *m = M;
    PyObject *result;

    if (index == 3) {
        if ((ENV(uint32_t, HFLAGS) & HF(LMA)) && value >> 40)
            raise_gp(env, RETADDR);
        FIELD(uint64_t, env, ENV_CR + 24) = value;
        if (FIELD(uint64_t, env, ENV_CR) >> 31 & 1)
            mmu_new_tables(m);
        return;
    }
    if (index != 8) {
        __real_helper_write_crN_x86_64(env, index, value);
        return;
    }
    if (value > 15)
        raise_gp(env, RETADDR);
    gil_take(m);
    result = PyObject_CallFunction(m->tpr_write, "ii", m->current, (int)value);
    Py_XDECREF(result);
    if (PyErr_Occurred())
        py_failed(m);
    gil_drop(m);
}

/* ---- SYSCALL (SDM vol. 2B); SYSRET is native ---- */

static void set_segment(void *env, int index, uint32_t selector, uint32_t flags)
{
    char *s = (char *)env + ENV_SEGS + index * SIZEOF_SEG;

    FIELD(uint32_t, s, SEG_SELECTOR) = selector;
    FIELD(uint64_t, s, SEG_BASE) = 0;
    FIELD(uint32_t, s, SEG_LIMIT) = 0xffffffff;
    FIELD(uint32_t, s, SEG_FLAGS) = flags;
}

static uint64_t get_flags(void *env)
{
    return (ENV(uint64_t, EFLAGS) & ~(uint64_t)(FLAGS_CC | FLAG_DF)) |
           cpu_cc_compute_all_x86_64(env, ENV(uint32_t, CC_OP)) |
           ((uint32_t)ENV(int32_t, DF) & FLAG_DF);
}

void __wrap_helper_syscall_x86_64(void *env, int length)
{
    uint32_t hflags = ENV(uint32_t, HFLAGS), selector = (ENV(uint64_t, STAR) >> 32) & 0xffff;
    uint64_t flags;

    if (!(ENV(uint64_t, EFER) & 1))
        raise_exception_err_ra_x86_64(env, EXC_UD, 0, RETADDR);
    flags = get_flags(env);
    if (hflags & HF(LMA)) {
        *reg(env, 1) = ENV(uint64_t, EIP) + length;
        *reg(env, 11) = flags;
        ENV(uint64_t, EIP) = hflags & HF(CS64) ? ENV(uint64_t, LSTAR) : ENV(uint64_t, CSTAR);
        flags &= ~(ENV(uint64_t, FMASK) | FLAG_RF);
        /* code: L, present, non-conforming; data: D/B, present, writable */
        set_segment(env, R_CS, selector & 0xfffc, 0x00a09b00);
        set_segment(env, R_SS, (selector + 8) & 0xfffc, 0x00c09300);
        hflags &= ~(3u | HF(ADDSEG));
        hflags |= HF(CS32) | HF(SS32) | HF(CS64);
    } else {
        *reg(env, 1) = (uint32_t)(ENV(uint64_t, EIP) + length);
        flags &= ~(uint64_t)(FLAG_IF | FLAG_RF | FLAG_VM);
        ENV(uint64_t, EIP) = (uint32_t)ENV(uint64_t, STAR);
        set_segment(env, R_CS, selector & 0xfffc, 0x00c09b00);
        set_segment(env, R_SS, (selector + 8) & 0xfffc, 0x00c09300);
        hflags &= ~(3u | HF(CS64));
        hflags |= HF(CS32) | HF(SS32);
    }
    ENV(uint32_t, HFLAGS) = hflags;
    ENV(uint64_t, CC_SRC) = flags & FLAGS_CC;
    ENV(uint32_t, CC_OP) = K_CC_OP_EFLAGS;
    ENV(int32_t, DF) = flags & FLAG_DF ? -1 : 1;
    ENV(uint64_t, EFLAGS) = (flags & ~(uint64_t)(FLAGS_CC | FLAG_DF)) | 2;
}

/* ---- PAUSE: give the processor to another vCPU, if one wants it ---- */

extern void __real_helper_pause_x86_64(void *env, int length);

void __wrap_helper_pause_x86_64(void *env, int length)
{
    atomic_store(&M->pause_hint, true);
    __real_helper_pause_x86_64(env, length);
}

/* ---- exceptions and interrupts ---- */

/* Unicorn's INTR hook: an exception or a software interrupt, pc already right. */
void cpu_exception_hook(uc_engine *uc, uint32_t number, void *user)
{
    struct machine *m = user;

    (void)uc, (void)number;
    m->stat_exceptions++;
    x86_cpu_do_interrupt_x86_64(m->cpu);
}

/* CPUClass.cpu_exec_interrupt: true when something was delivered. */
bool cpu_deliver_interrupt(void *cpu, int request)
{
    struct machine *m = M;
    struct vcpu *v = &m->vcpu[m->current];
    void *env = m->env;
    long vector = -1;
    PyObject *result;

    (void)request;
    if (atomic_load(&v->nmi) && !(ENV(uint32_t, HFLAGS2) & K_HF2_NMI_MASK) &&
        !(ENV(uint32_t, HFLAGS) & HF(INHIBIT_IRQ))) {
        atomic_store(&v->nmi, false);
        ENV(uint32_t, HFLAGS2) |= K_HF2_NMI_MASK;
        do_interrupt_x86_hardirq_x86_64(env, EXC_NMI, 1);
        return true;
    }
    if (!atomic_load(&v->interrupt)) {
        if (!atomic_load(&v->nmi))
            CPU(uint32_t, INTERRUPT_REQUEST) &= ~(uint32_t)K_CPU_INTERRUPT_HARD;
        return false;
    }
    if (!(ENV(uint64_t, EFLAGS) & FLAG_IF) || (ENV(uint32_t, HFLAGS) & HF(INHIBIT_IRQ)))
        return false;
    gil_take(m);
    result = PyObject_CallFunction(m->acknowledge, "i", m->current);
    if (result && result != Py_None)
        vector = PyLong_AsLong(result);
    Py_XDECREF(result);
    if (PyErr_Occurred())
        py_failed(m);
    gil_drop(m);
    if (vector < 0 || vector > 255)
        return false;
    m->stat_interrupts++;
    /* an interrupt cannot be contributory to a double fault */
    ENV(int32_t, OLD_EXCEPTION) = -1;
    do_interrupt_x86_hardirq_x86_64(env, (int)vector, 1);
    return true;
}

/* Unicorn calls this for a triple fault. */
void __wrap_qemu_system_reset_request(uc_engine *uc)
{
    (void)uc;
    M->triple_fault = true;
    exit_to_loop(M);
}
