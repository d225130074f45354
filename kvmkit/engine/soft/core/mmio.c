/* Memory-mapped I/O: accesses outside RAM go to Python. */
#include "tlb.h"

uint64_t mmio_read(uint64_t paddr, int size)
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

void mmio_write(uint64_t paddr, int size, uint64_t value)
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
