/* The guest's RAM: host memory at guest-physical addresses, and writes by others to it. */
#include "core.h"

static int apply_to_each_tlb(struct machine *m)
{
    int current = m->current;

    for (int i = 0; i < m->vcpu_count; i++) {
        switch_to(m, i);
        tlb_flush_x86_64(m->cpu);
    }
    switch_to(m, current);
    return 0;
}

PyObject *machine_add_ram(struct machine *m, PyObject *args)
{
    unsigned long long start, host, size;
    int id, readonly = 0;
    struct ram_slot *slot;

    if (!PyArg_ParseTuple(args, "iKKK|p", &id, &start, &host, &size, &readonly) || !check_idle(m))
        return NULL;
    if ((start | host | size) & (PAGE_SIZE - 1) || !size || start + size < start)
        return PyErr_Format(PyExc_ValueError, "RAM must be whole pages of 4096 bytes");
    for (int i = 0; i < m->ram_count; i++)
        if (m->ram[i].id == id ||
            (start < m->ram[i].start + m->ram[i].size && m->ram[i].start < start + size))
            return PyErr_Format(PyExc_ValueError, "RAM slot %d is there, or the range is", id);
    if (m->ram_count == MAX_RAM_SLOTS)
        return PyErr_Format(PyExc_ValueError, "no more than %d RAM slots", MAX_RAM_SLOTS);
    slot = &m->ram[m->ram_count];
    *slot = (struct ram_slot){start, size, (uint8_t *)(uintptr_t)host,
                              PyMem_RawCalloc(size >> PAGE_SHIFT, 1), readonly, id};
    if (!slot->pages)
        return PyErr_NoMemory();
    m->ram_count++;
    m->last_ram = NULL;
    apply_to_each_tlb(m);
    Py_RETURN_NONE;
}

PyObject *machine_remove_ram(struct machine *m, PyObject *arg)
{
    long id = PyLong_AsLong(arg);

    if ((id == -1 && PyErr_Occurred()) || !check_idle(m))
        return NULL;
    for (int i = 0; i < m->ram_count; i++) {
        if (m->ram[i].id == id) {
            PyMem_RawFree(m->ram[i].pages);
            m->ram[i] = m->ram[--m->ram_count];
            m->last_ram = NULL;
            tb_flush_x86_64(m->cpu);
            apply_to_each_tlb(m);
            Py_RETURN_NONE;
        }
    }
    return PyErr_Format(PyExc_KeyError, "no RAM slot %ld", id);
}

/* For what the processor itself writes (clock pages); what is not RAM is skipped. */
PyObject *machine_write(struct machine *m, PyObject *args)
{
    unsigned long long address;
    Py_buffer data;

    if (!PyArg_ParseTuple(args, "Ky*", &address, &data))
        return NULL;
    for (Py_ssize_t i = 0; m->uc && i < data.len; i++) {
        struct ram_slot *slot = ram_find(m, address + i);

        if (slot && !slot->readonly)
            slot->host[address + i - slot->start] = ((uint8_t *)data.buf)[i];
    }
    PyBuffer_Release(&data);
    Py_RETURN_NONE;
}

PyObject *machine_invalidate(struct machine *m, PyObject *args)
{
    unsigned long long start, size;

    if (!PyArg_ParseTuple(args, "KK", &start, &size))
        return NULL;
    if (!check_quiet(m))
        return NULL;
    if (size)
        tb_invalidate_phys_range_x86_64(m->uc, start, start + size);
    Py_RETURN_NONE;
}

/* Read only, so that any thread may ask while the machine runs. */
PyObject *machine_has_code(struct machine *m, PyObject *args)
{
    unsigned long long start, size;

    if (!PyArg_ParseTuple(args, "KK", &start, &size))
        return NULL;
    for (int i = 0; m->uc && size && i < m->ram_count; i++) {
        struct ram_slot *slot = &m->ram[i];
        uint64_t first = start > slot->start ? start - slot->start : 0;
        uint64_t end = start + size > slot->start ? start + size - slot->start : 0;

        if (end > slot->size)
            end = slot->size;
        for (uint64_t page = first >> PAGE_SHIFT; page << PAGE_SHIFT < end; page++)
            if (slot->pages[page] & PAGE_HAS_CODE)
                Py_RETURN_TRUE;
    }
    Py_RETURN_FALSE;
}
