/* What Unicorn 2.1.4 does wrong, done right (found by tests/engine/soft).
 *
 * Each function replaces Unicorn's of the same name; link.args lists them.
 */
#include "core.h"
#include <stdarg.h>

#define EXC_NP 11
#define ERROR_IDT 2u /* SDM vol. 3, 6.13: the selector index is into the IDT */

extern void __real_raise_exception_err_x86_64(void *env, int exception, int error)
    __attribute__((noreturn));

/* An IDT entry is 16 bytes in long mode, but its index in an error code counts entries. */
__attribute__((noreturn)) void __wrap_raise_exception_err_x86_64(void *env, int exception,
                                                                 int error)
{
    if ((ENV(uint32_t, HFLAGS) & HF(LMA)) && (error & ERROR_IDT) &&
        (exception == EXC_GP || exception == EXC_NP))
        error = (error >> 4) << 3 | ERROR_IDT;
    __real_raise_exception_err_x86_64(env, exception, error);
}

/* Unicorn's abort() when it finds an impossible state: the vCPU ends, not the process. */
__attribute__((noreturn)) void __wrap_cpu_abort_x86_64(void *cpu, const char *format, ...)
{
    struct machine *m = M;
    va_list args;
    char text[256];

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    gil_take(m);
    PyErr_Format(PyExc_RuntimeError, "Unicorn: %s", text);
    py_failed(m);
    gil_drop(m);
    cpu_loop_exit_x86_64(cpu);
}
