/* Stand-ins for the processors that Unicorn can emulate besides x86.
 *
 * Unicorn's library refers to all of them; defining their entry points here keeps
 * their code, nine tenths of the library, out of ours. They are never called.
 */
#include <stdlib.h>

#define STUB(name)                                                                                 \
    void name(void)                                                                                \
    {                                                                                              \
        abort();                                                                                   \
    }
#define ARCHITECTURE(name) STUB(uc_init_##name) STUB(reg_read_##name) STUB(reg_write_##name)

ARCHITECTURE(aarch64)
ARCHITECTURE(arm)
ARCHITECTURE(m68k)
ARCHITECTURE(mips)
ARCHITECTURE(mips64)
ARCHITECTURE(mips64el)
ARCHITECTURE(mipsel)
ARCHITECTURE(ppc)
ARCHITECTURE(ppc64)
ARCHITECTURE(riscv32)
ARCHITECTURE(riscv64)
ARCHITECTURE(s390x)
ARCHITECTURE(sparc)
ARCHITECTURE(sparc64)
ARCHITECTURE(tricore)
