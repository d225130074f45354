/* Port I/O into Python, and ports that need no call each time.
 *
 * A console that prints a character asks "may I?" and writes it, at some 2 us a
 * call. A device may let the core answer reads of a port with a fixed byte, and
 * collect bytes written to a port until somebody can see the difference; it takes
 * both back before they stop being true. KVM calls the like coalesced I/O.
 */
#include "core.h"

enum { PORT_CALL, PORT_ANSWER, PORT_COLLECT };

/* Hand over what was collected. With the GIL. */
void ports_deliver(struct machine *m)
{
    PyObject *result;
    int count = m->collected_count;

    if (!count)
        return;
    m->collected_count = 0;
    result = PyObject_CallFunction(m->port_collected, "iy#", m->collected_port, m->collected,
                                   (Py_ssize_t)count);
    Py_XDECREF(result);
    if (!result)
        py_failed(m);
}

/* False when it must be delivered first: another port's bytes, or enough of them. */
static inline bool collect(struct machine *m, uint32_t port, uint32_t value)
{
    if (m->collected_count && (m->collected_port != (int)port ||
                               m->collected_count == (int)sizeof m->collected))
        return false;
    if (!m->collected_count)
        machine_tick_soon(m); /* nobody waits long for the first */
    m->collected_port = (int)port;
    m->collected[m->collected_count++] = (uint8_t)value;
    return true;
}


extern void helper_check_iob_x86_64(void *env, uint32_t port);
extern void helper_check_iow_x86_64(void *env, uint32_t port);
extern void helper_check_iol_x86_64(void *env, uint32_t port);

/* SDM vol. 1, 19.5: CPL against IOPL, then the TSS's permission bitmap. */
static inline void check_io(void *env, uint32_t port, int size, uintptr_t retaddr)
{
    uint32_t hflags = ENV(uint32_t, HFLAGS);
    uint64_t eflags = ENV(uint64_t, EFLAGS);

    if (!(hflags & HF(PE)) || ((hflags & 3) <= ((eflags & FLAG_IOPL) >> 12) && !(eflags & FLAG_VM)))
        return;
    cpu_restore_state_x86_64(env_cpu(env), retaddr, true);
    if (size == 1)
        helper_check_iob_x86_64(env, port);
    else if (size == 2)
        helper_check_iow_x86_64(env, port);
    else
        helper_check_iol_x86_64(env, port);
}

static uint64_t port_in(void *env, uint32_t port, int size, uintptr_t retaddr)
{
    struct machine *m = M;
    uint64_t value = ~0ull;
    PyObject *args[2], *result;

    port &= 0xffff;
    check_io(env, port, size, retaddr);
    m->stat_io++;
    if (size == 1 && m->port_kind[port] == PORT_ANSWER)
        return m->port_answer[port];
    gil_take(m);
    ports_deliver(m);
    args[0] = PyLong_FromLong(port);
    args[1] = PyLong_FromLong(size);
    result = PyObject_Vectorcall(m->port_read, args, 2, NULL);
    Py_DECREF(args[0]);
    Py_DECREF(args[1]);
    if (result) {
        value = PyLong_AsUnsignedLongLongMask(result);
        Py_DECREF(result);
    }
    if (PyErr_Occurred())
        py_failed(m);
    gil_drop(m);
    return value & ((1ull << 8 * size) - 1);
}

static void port_out(void *env, uint32_t port, int size, uint32_t value, uintptr_t retaddr)
{
    struct machine *m = M;
    PyObject *args[3], *result;

    port &= 0xffff;
    check_io(env, port, size, retaddr);
    m->stat_io++;
    if (size == 1 && m->port_kind[port] == PORT_COLLECT && collect(m, port, value))
        return;
    gil_take(m);
    ports_deliver(m);
    if (size == 1 && m->port_kind[port] == PORT_COLLECT && collect(m, port, value)) {
        gil_drop(m);
        return;
    }
    args[0] = PyLong_FromLong(port);
    args[1] = PyLong_FromLong(size);
    args[2] = PyLong_FromUnsignedLong(size == 4 ? value : value & ((1u << 8 * size) - 1));
    result = PyObject_Vectorcall(m->port_write, args, 3, NULL);
    Py_DECREF(args[0]);
    Py_DECREF(args[1]);
    Py_DECREF(args[2]);
    Py_XDECREF(result);
    if (!result)
        py_failed(m);
    gil_drop(m);
}

#define PORT(suffix, size)                                                                         \
    uint64_t __wrap_helper_in##suffix##_x86_64(void *env, uint32_t port)                           \
    {                                                                                              \
        return port_in(env, port, size, RETADDR);                                                  \
    }                                                                                              \
    void __wrap_helper_out##suffix##_x86_64(void *env, uint32_t port, uint32_t value)              \
    {                                                                                              \
        port_out(env, port, size, value, RETADDR);                                                 \
    }
PORT(b, 1)
PORT(w, 2)
PORT(l, 4)
