/* The Python type kvmkit.engine.soft._core.Machine. */
#include "core.h"
#include <stddef.h>
#include <string.h>
#include <structmember.h>

bool check_idle(struct machine *m)
{
    if (!m->uc) {
        PyErr_SetString(PyExc_ValueError, "the machine is closed");
        return false;
    }
    if (m->running) {
        PyErr_SetString(PyExc_RuntimeError, "the machine is running");
        return false;
    }
    M = m;
    return true;
}

/* For what may also be done from one of the machine's callbacks. */
bool check_quiet(struct machine *m)
{
    if (m->uc && on_runner(m)) {
        M = m;
        return true;
    }
    return check_idle(m);
}

static bool check_index(struct machine *m, int index)
{
    if (index >= 0 && index < m->vcpu_count)
        return true;
    PyErr_Format(PyExc_IndexError, "vCPU %d of %d", index, m->vcpu_count);
    return false;
}

/* A further vCPU starts as a copy of the first and has TLB tables of its own. */
static int vcpu_init(struct machine *m, int index)
{
    struct vcpu *v = &m->vcpu[index];
    char *tlb = (char *)m->cpu + X86CPU_TLB;

    v->env = PyMem_RawMalloc(ENV_END_RESET_FIELDS);
    v->tlb = PyMem_RawMalloc(SIZEOF_TLB);
    v->apic_page = ~0ull;
    v->cflags_next_tb = ~0u;
    if (!v->env || !v->tlb)
        return -1;
    memcpy(v->env, m->env, ENV_END_RESET_FIELDS);
    memcpy(v->tlb, tlb, SIZEOF_TLB);
    if (index == 0)
        return 0;
    for (int mode = 0; mode < K_NB_MMU_MODES; mode++) { /* not the first vCPU's, whatever fails */
        FIELD(void *, v->tlb, TLB_F + mode * SIZEOF_TLBF + TLBF_TABLE) = NULL;
        FIELD(void *, v->tlb, TLB_D + mode * SIZEOF_TLBD + TLBD_IOTLB) = NULL;
    }
    for (int mode = 0; mode < K_NB_MMU_MODES; mode++) {
        char *fast = (char *)v->tlb + TLB_F + mode * SIZEOF_TLBF;
        char *desc = (char *)v->tlb + TLB_D + mode * SIZEOF_TLBD;
        size_t n = (FIELD(uint64_t, fast, TLBF_MASK) >> K_CPU_TLB_ENTRY_BITS) + 1;

        /* malloc: Unicorn frees and replaces them when it resizes a TLB */
        FIELD(void *, fast, TLBF_TABLE) = malloc(n * SIZEOF_TLBE);
        FIELD(void *, desc, TLBD_IOTLB) = calloc(n, SIZEOF_IOTLBE);
        if (!FIELD(void *, fast, TLBF_TABLE) || !FIELD(void *, desc, TLBD_IOTLB))
            return -1;
        memset(FIELD(void *, fast, TLBF_TABLE), -1, n * SIZEOF_TLBE);
    }
    return 0;
}

static void machine_free(struct machine *m)
{
    if (!m->uc)
        return;
    M = m;
    ticker_end(m);
    switch_to(m, 0);
    for (int i = 0; i < m->vcpu_count; i++) {
        struct vcpu *v = &m->vcpu[i];

        for (int mode = 0; i > 0 && v->tlb && mode < K_NB_MMU_MODES; mode++) {
            free(FIELD(void *, v->tlb, TLB_F + mode * SIZEOF_TLBF + TLBF_TABLE));
            free(FIELD(void *, v->tlb, TLB_D + mode * SIZEOF_TLBD + TLBD_IOTLB));
        }
        PyMem_RawFree(v->env);
        PyMem_RawFree(v->tlb);
    }
    for (int i = 0; i < m->ram_count; i++)
        PyMem_RawFree(m->ram[i].pages);
    free(m->port_kind);
    m->port_kind = NULL;
    uc_close(m->uc);
    m->uc = NULL;
    M = NULL;
}

static PyObject *machine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"vcpus", "code_buffer", NULL};
    struct machine *m;
    uc_hook hook;
    void *cc;
    unsigned buffer = 256u << 20;
    int vcpus;
    uc_err error;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|I", names, &vcpus, &buffer))
        return NULL;
    if (vcpus < 1 || vcpus > MAX_VCPUS)
        return PyErr_Format(PyExc_ValueError, "1 to %d vCPUs, not %d", MAX_VCPUS, vcpus);
    m = (struct machine *)type->tp_alloc(type, 0);
    if (!m)
        return NULL;
    error = uc_open(UC_ARCH_X86, UC_MODE_64, &m->uc);
    if (error) {
        Py_DECREF(m);
        return PyErr_Format(PyExc_RuntimeError, "Unicorn: %s", uc_strerror(error));
    }
    M = m;
    /* the first use of the instance sets it up */
    uc_ctl_set_tcg_buffer_size(m->uc, buffer);
    error = uc_hook_add(m->uc, &hook, UC_HOOK_INTR, cpu_exception_hook, m, 1, 0);
    if (error || ticker_start(m)) {
        uc_close(m->uc);
        m->uc = NULL;
        Py_DECREF(m);
        return PyErr_Format(PyExc_RuntimeError, "Unicorn: %s",
                            error ? uc_strerror(error) : "no thread can be started");
    }
    m->cpu = FIELD(void *, m->uc, UC_CPU);
    m->env = FIELD(void *, m->cpu, CPU_ENV_PTR);
    m->tcg = FIELD(void *, m->uc, UC_TCG_CTX);
    m->vcpu_count = vcpus;
    m->port_kind = calloc(2, 0x10000);
    if (!m->port_kind) {
        Py_DECREF(m);
        return PyErr_NoMemory();
    }
    m->port_answer = m->port_kind + 0x10000;
    m->tsc_base = monotonic();

    /* Stops only between blocks; every exception to our hook; our MMU. */
    FIELD(bool, m->uc, UC_NO_EXIT_REQUEST) = true;
    FIELD(void *, m->uc, UC_STOP_INTERRUPT) = NULL;
    FIELD(void *, m->uc, UC_MEMORY_MAPPING) = mmu_fake_mapping;
    FIELD(int, m->uc, UC_NESTED_LEVEL) = 1;
    FIELD(uint64_t, m->uc, UC_EXITS) = 0x8000dead00000001ull; /* not canonical: never reached */
    FIELD(uint32_t, m->fake_region, MR_PERMS) = UC_PROT_ALL;
    FIELD(int32_t, m->fake_region, MR_PRIORITY) = -1;
    cc = FIELD(void *, m->cpu, CPU_CC);
    FIELD(void *, cc, CC_TLB_FILL) = mmu_fill;
    FIELD(void *, cc, CC_CPU_EXEC_INTERRUPT) = cpu_deliver_interrupt;
    FIELD(bool, m->cpu, CPU_STOP) = false;
    FIELD(bool, m->cpu, CPU_STOPPED) = false;
    FIELD(bool, m->cpu, CPU_CREATED) = true;
    FIELD(int32_t, m->cpu, CPU_EXCEPTION_INDEX) = -1;
    for (int i = 0; i < vcpus; i++) {
        if (vcpu_init(m, i) < 0) {
            Py_DECREF(m);
            return PyErr_NoMemory();
        }
    }
    if (FIELD(void *, m->cpu, CPU_UC) != m->uc || m->env != (char *)m->cpu + X86CPU_ENV) {
        Py_DECREF(m);
        PyErr_SetString(PyExc_RuntimeError,
                        "the Unicorn library linked in is not version " LAYOUT_VERSION
                        " for this processor: its structures are laid out differently");
        return NULL;
    }
    return (PyObject *)m;
}

static void machine_dealloc(struct machine *m)
{
    PyTypeObject *type = Py_TYPE(m);

    PyObject_GC_UnTrack(m);
    machine_free(m);
    type->tp_clear((PyObject *)m);
    type->tp_free((PyObject *)m);
    Py_DECREF(type); /* as a type made by PyType_FromSpec asks for */
}

#define HANDLERS(X)                                                                                \
    X(port_read) X(port_write) X(memory_read) X(memory_write) X(apic_read) X(apic_write)           \
    X(msr_read) X(msr_write) X(acknowledge) X(tpr_read) X(tpr_write) X(port_collected)

static int machine_traverse(struct machine *m, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(m));
#define X(name) Py_VISIT(m->name);
    HANDLERS(X)
#undef X
    return 0;
}

static int machine_clear(struct machine *m)
{
#define X(name) Py_CLEAR(m->name);
    HANDLERS(X)
#undef X
    Py_CLEAR(m->error_type);
    Py_CLEAR(m->error_value);
    Py_CLEAR(m->error_trace);
    return 0;
}

static PyObject *machine_close(struct machine *m, PyObject *none)
{
    (void)none;
    if (m->running)
        return PyErr_Format(PyExc_RuntimeError, "the machine is running");
    machine_free(m);
    machine_clear(m);
    Py_RETURN_NONE;
}

static PyObject *machine_run_method(struct machine *m, PyObject *none)
{
    int result;

    (void)none;
    if (!check_idle(m))
        return NULL;
#define X(name)                                                                                    \
    if (!m->name)                                                                                  \
        return PyErr_Format(PyExc_ValueError, "no handler: " #name);
    HANDLERS(X)
#undef X
    m->runner = pthread_self();
    m->running = true;
    m->thread = PyEval_SaveThread();
    result = machine_run(m);
    PyEval_RestoreThread(m->thread);
    ports_deliver(m);
    m->running = false;
    if (result == STOP_ERROR) {
        PyErr_Restore(m->error_type, m->error_value, m->error_trace);
        m->error_type = m->error_value = m->error_trace = NULL;
        m->failed = false;
        return NULL;
    }
    return PyLong_FromLong(result);
}

static PyObject *machine_set_deadline_method(struct machine *m, PyObject *arg)
{
    int overflow = 0;
    long long deadline = arg == Py_None ? INT64_MAX : PyLong_AsLongLongAndOverflow(arg, &overflow);

    if (deadline == -1 && PyErr_Occurred())
        return NULL;
    if (overflow) /* a guest may ask for a time in centuries */
        deadline = overflow > 0 ? INT64_MAX : INT64_MIN;
    if (m->uc)
        machine_set_deadline(m, deadline);
    Py_RETURN_NONE;
}

static PyObject *machine_kick(struct machine *m, PyObject *none)
{
    (void)none;
    if (m->uc) {
        atomic_store(&m->kick, true);
        machine_wake(m);
    }
    Py_RETURN_NONE;
}

static PyObject *machine_interrupt(struct machine *m, PyObject *args)
{
    int index, level;

    if (!PyArg_ParseTuple(args, "ip", &index, &level) || !check_index(m, index))
        return NULL;
    atomic_store(&m->vcpu[index].interrupt, level);
    if (!m->uc || !level)
        Py_RETURN_NONE;
    if (on_runner(m) && index == m->current) {
        /* from a callback of this very vCPU: look after this block */
        FIELD(uint32_t, m->cpu, CPU_INTERRUPT_REQUEST) |= K_CPU_INTERRUPT_HARD;
        atomic_store(&FIELD(_Atomic uint16_t, m->cpu, X86CPU_ICOUNT_DECR + 2), 0xffff);
    } else if (!on_runner(m)) {
        machine_wake(m);
    } else if (m->vcpu[index].halted || m->vcpu_count > 1) {
        exit_to_loop(m); /* another vCPU of ours may want a turn now */
    }
    Py_RETURN_NONE;
}

static PyObject *machine_nmi(struct machine *m, PyObject *arg)
{
    long index = PyLong_AsLong(arg);

    if ((index == -1 && PyErr_Occurred()) || !check_index(m, (int)index))
        return NULL;
    atomic_store(&m->vcpu[index].nmi, true);
    if (m->uc)
        machine_wake(m);
    Py_RETURN_NONE;
}

static PyObject *machine_get_state(struct machine *m, PyObject *arg)
{
    long index = PyLong_AsLong(arg);

    if ((index == -1 && PyErr_Occurred()) || !check_index(m, (int)index) || !check_idle(m))
        return NULL;
    return state_get(m, (int)index);
}

static PyObject *machine_set_state(struct machine *m, PyObject *args)
{
    Py_buffer data;
    int index, result;

    if (!PyArg_ParseTuple(args, "iy*", &index, &data))
        return NULL;
    result = check_index(m, index) && check_idle(m)
                 ? state_set(m, index, data.buf, data.len) : -1;
    PyBuffer_Release(&data);
    if (result < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *machine_set_cpuid(struct machine *m, PyObject *args)
{
    Py_buffer data;
    int index;

    if (!PyArg_ParseTuple(args, "iy*", &index, &data))
        return NULL;
    if (!check_index(m, index) || !check_idle(m)) {
        PyBuffer_Release(&data);
        return NULL;
    }
    if (data.len % sizeof(struct cpuid_leaf) || data.len > (Py_ssize_t)sizeof m->vcpu[0].cpuid) {
        PyBuffer_Release(&data);
        return PyErr_Format(PyExc_ValueError, "at most %d leaves of 28 bytes", MAX_CPUID);
    }
    memcpy(m->vcpu[index].cpuid, data.buf, data.len);
    m->vcpu[index].cpuid_count = (int)(data.len / sizeof(struct cpuid_leaf));
    PyBuffer_Release(&data);
    /* the translator accepts the instructions that CPUID announces, and no others */
    for (int i = 0; i < m->vcpu[index].cpuid_count; i++) {
        const struct cpuid_leaf *l = &m->vcpu[index].cpuid[i];
        uint64_t *features = &FIELD(uint64_t, m->env, ENV_FEATURES);

        if (l->function == 1) {
            features[K_FEAT_1_EDX] = l->edx;
            features[K_FEAT_1_ECX] = l->ecx;
        } else if (l->function == 7 && l->index == 0) {
            features[K_FEAT_7_0_EBX] = l->ebx;
            features[K_FEAT_7_0_ECX] = l->ecx;
        } else if (l->function == 0x80000001u) {
            features[K_FEAT_8000_0001_EDX] = l->edx;
            features[K_FEAT_8000_0001_ECX] = l->ecx;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *machine_set_apic_page(struct machine *m, PyObject *args)
{
    unsigned long long address;
    int index;

    if (!PyArg_ParseTuple(args, "iK", &index, &address) || !check_index(m, index))
        return NULL;
    if (!check_quiet(m))
        return NULL;
    m->vcpu[index].apic_page = address;
    if (index == m->current)
        tlb_flush_x86_64(m->cpu);
    Py_RETURN_NONE;
}

static PyObject *machine_tsc(struct machine *m, PyObject *none)
{
    (void)none;
    return PyLong_FromUnsignedLongLong(guest_tsc(m));
}

static PyObject *machine_tsc_offset(struct machine *m, PyObject *arg)
{
    long index = PyLong_AsLong(arg);

    if ((index == -1 && PyErr_Occurred()) || !check_index(m, (int)index))
        return NULL;
    if (!m->uc)
        return PyLong_FromLong(0);
    return PyLong_FromUnsignedLongLong(FIELD(
        uint64_t, index == m->current ? m->env : m->vcpu[index].env, ENV_TSC_OFFSET));
}

static PyObject *machine_set_tsc_offset(struct machine *m, PyObject *args)
{
    unsigned long long offset;
    int index;

    if (!PyArg_ParseTuple(args, "iK", &index, &offset) || !check_index(m, index))
        return NULL;
    if (m->uc)
        FIELD(uint64_t, index == m->current ? m->env : m->vcpu[index].env, ENV_TSC_OFFSET) = offset;
    Py_RETURN_NONE;
}

static PyObject *machine_current(struct machine *m, PyObject *none)
{
    (void)none;
    return PyLong_FromLong(m->current);
}

static PyObject *machine_set_tsc_base(struct machine *m, PyObject *arg)
{
    long long base = PyLong_AsLongLong(arg);

    if (base == -1 && PyErr_Occurred())
        return NULL;
    m->tsc_base = base;
    Py_RETURN_NONE;
}

static PyObject *machine_translate(struct machine *m, PyObject *args)
{
    unsigned long long address;
    uint64_t physical;
    int index;

    if (!PyArg_ParseTuple(args, "iK", &index, &address) || !check_index(m, index) || !check_idle(m))
        return NULL;
    switch_to(m, index);
    if (!mmu_translate(m, m->env, address, &physical))
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(physical);
}

static PyObject *machine_port_quick(struct machine *m, PyObject *args)
{
    int port, kind, value = 0;

    if (!PyArg_ParseTuple(args, "ii|i", &port, &kind, &value))
        return NULL;
    if (port < 0 || port > 0xffff || kind < 0 || kind > 2)
        return PyErr_Format(PyExc_ValueError, "no such port or kind");
    if (m->port_kind) {
        m->port_answer[port] = (uint8_t)value;
        m->port_kind[port] = (uint8_t)kind;
    }
    Py_RETURN_NONE;
}

static PyObject *machine_stats(struct machine *m, PyObject *none)
{
    (void)none;
    return Py_BuildValue("{sKsKsKsKsKsKsKsKsKsKsK}", "tlb_fills", m->stat_fills, "port_io", m->stat_io,
                         "mmio", m->stat_mmio, "msr", m->stat_msr, "interrupts",
                         m->stat_interrupts, "exceptions", m->stat_exceptions, "switches",
                         m->stat_switches, "idle", m->stat_halts, "code_writes", m->stat_smc,
                         "invlpg", m->stat_invlpg, "tlb_flushes", m->stat_flushes);
}

static PyMethodDef machine_methods[] = {
    {"add_ram", (PyCFunction)machine_add_ram, METH_VARARGS,
     "add_ram(slot, address, host, size, readonly=False)"},
    {"remove_ram", (PyCFunction)machine_remove_ram, METH_O, "remove_ram(slot)"},
    {"run", (PyCFunction)machine_run_method, METH_NOARGS, "run() -> STOP_*"},
    {"set_deadline", (PyCFunction)machine_set_deadline_method, METH_O,
     "set_deadline(monotonic_ns | None): run() returns STOP_DEADLINE then"},
    {"kick", (PyCFunction)machine_kick, METH_NOARGS, "kick(): run() returns STOP_KICK"},
    {"interrupt", (PyCFunction)machine_interrupt, METH_VARARGS, "interrupt(vcpu, pending)"},
    {"nmi", (PyCFunction)machine_nmi, METH_O, "nmi(vcpu)"},
    {"get_state", (PyCFunction)machine_get_state, METH_O, "get_state(vcpu) -> bytes"},
    {"set_state", (PyCFunction)machine_set_state, METH_VARARGS, "set_state(vcpu, bytes)"},
    {"set_cpuid", (PyCFunction)machine_set_cpuid, METH_VARARGS,
     "set_cpuid(vcpu, leaves): packed 7 x uint32 each"},
    {"set_apic_page", (PyCFunction)machine_set_apic_page, METH_VARARGS,
     "set_apic_page(vcpu, address): where its xAPIC registers are; 2**64-1: nowhere"},
    {"tsc", (PyCFunction)machine_tsc, METH_NOARGS, "tsc() -> time-stamp counter without offset"},
    {"tsc_offset", (PyCFunction)machine_tsc_offset, METH_O, "tsc_offset(vcpu)"},
    {"set_tsc_offset", (PyCFunction)machine_set_tsc_offset, METH_VARARGS,
     "set_tsc_offset(vcpu, offset)"},
    {"current", (PyCFunction)machine_current, METH_NOARGS, "current() -> the vCPU that ran last"},
    {"write", (PyCFunction)machine_write, METH_VARARGS, "write(address, bytes)"},
    {"set_tsc_base", (PyCFunction)machine_set_tsc_base, METH_O,
     "set_tsc_base(monotonic_ns): when the counter was 0"},
    {"invalidate", (PyCFunction)machine_invalidate, METH_VARARGS,
     "invalidate(address, size): the host wrote there"},
    {"has_code", (PyCFunction)machine_has_code, METH_VARARGS,
     "has_code(address, size): was code translated from pages there? From any thread"},
    {"translate", (PyCFunction)machine_translate, METH_VARARGS,
     "translate(vcpu, address) -> guest-physical address | None"},
    {"port_quick", (PyCFunction)machine_port_quick, METH_VARARGS,
     "port_quick(port, kind, value=0): 0 call, 1 answer reads with value, 2 collect writes"},
    {"stats", (PyCFunction)machine_stats, METH_NOARGS, "stats() -> dict of counters"},
    {"close", (PyCFunction)machine_close, METH_NOARGS, "close()"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef machine_members[] = {
#define X(name) {#name, T_OBJECT_EX, offsetof(struct machine, name), 0, NULL},
    HANDLERS(X)
#undef X
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot machine_slots[] = {
    {Py_tp_doc, "Machine(vcpus, code_buffer=256 MiB): the processors of one virtual machine."},
    {Py_tp_new, machine_new},
    {Py_tp_dealloc, machine_dealloc},
    {Py_tp_traverse, machine_traverse},
    {Py_tp_clear, machine_clear},
    {Py_tp_methods, machine_methods},
    {Py_tp_members, machine_members},
    {0, NULL},
};

static PyType_Spec machine_spec = {
    "kvmkit.engine.soft._core.Machine", sizeof(struct machine), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, machine_slots,
};

/* The address of a writable buffer's memory: what ctypes is else needed for. */
static PyObject *address_of(PyObject *module, PyObject *buffer)
{
    Py_buffer view;
    uintptr_t address;

    (void)module;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    address = (uintptr_t)view.buf;
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLongLong(address);
}

static PyMethodDef module_methods[] = {
    {"address_of", address_of, METH_O, "address_of(buffer) -> where its memory is"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_core", "The software CPU's core.", -1, module_methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__core(void)
{
    PyObject *self = PyModule_Create(&module), *type;

    if (!self)
        return NULL;
    type = PyType_FromSpec(&machine_spec);
    if (!type || PyModule_AddObject(self, "Machine", type) < 0) {
        Py_XDECREF(type);
        Py_DECREF(self);
        return NULL;
    }
    PyModule_AddIntConstant(self, "STOP_DEADLINE", STOP_DEADLINE);
    PyModule_AddIntConstant(self, "STOP_KICK", STOP_KICK);
    PyModule_AddIntConstant(self, "STOP_TRIPLE_FAULT", STOP_TRIPLE_FAULT);
    return self;
}
