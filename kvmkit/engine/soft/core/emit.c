/* What the core adds to translation: above all, the check at the head of every block.
 *
 * Unicorn calls a C function there; a load and a branch do (as QEMU emits).
 * A set sign bit in icount_decr makes the block leave before its first
 * instruction, so a stop is always between two instructions.
 */
#include "core.h"

extern void helper_check_exit_request_x86_64(void *uc, uint32_t in_delay_slot);
extern void __real_tcg_gen_callN_x86_64(void *s, void *func, void *ret, int nargs, void **args);
extern void __real_tcg_gen_exit_tb_x86_64(void *s, void *tb, unsigned index);
extern void *gen_new_label_x86_64(void *s);
extern void *tcg_temp_new_internal_x86_64(void *s, int type, bool local);
extern void tcg_temp_free_internal_x86_64(void *s, void *temp);
extern void tcg_gen_op1_x86_64(void *s, int op, uintptr_t a);
extern void tcg_gen_op3_x86_64(void *s, int op, uintptr_t a, uintptr_t b, uintptr_t c);
extern void tcg_gen_brcondi_i32_x86_64(void *s, int cond, void *a, int32_t b, void *label);

void __wrap_tcg_gen_callN_x86_64(void *s, void *func, void *ret, int nargs, void **args)
{
    void *flag;

    if (func != (void *)helper_check_exit_request_x86_64) {
        __real_tcg_gen_callN_x86_64(s, func, ret, nargs, args);
        return;
    }
    flag = tcg_temp_new_internal_x86_64(s, K_TCG_TYPE_I32, false);
    M->exit_label = gen_new_label_x86_64(s);
    /* TCG variables are passed as offsets into the context, operands as addresses */
    tcg_gen_op3_x86_64(s, K_INDEX_op_ld_i32, (uintptr_t)flag,
                       (uintptr_t)s + FIELD(uintptr_t, s, TCG_CPU_ENV),
                       (uintptr_t)((intptr_t)X86CPU_ICOUNT_DECR - (intptr_t)X86CPU_ENV));
    tcg_gen_brcondi_i32_x86_64(s, K_TCG_COND_LT, (void *)((uintptr_t)flag - (uintptr_t)s), 0,
                               M->exit_label);
    tcg_temp_free_internal_x86_64(s, flag);
}

void __wrap_tcg_gen_exit_tb_x86_64(void *s, void *tb, unsigned index)
{
    if (index == K_TB_EXIT_REQUESTED && M->exit_label) {
        *(uint32_t *)M->exit_label |= 1; /* TCGLabel.present */
        tcg_gen_op1_x86_64(s, K_INDEX_op_set_label, (uintptr_t)M->exit_label);
        M->exit_label = NULL;
    }
    __real_tcg_gen_exit_tb_x86_64(s, tb, index);
}

/* Each instruction begins with this mark: the next byte the translator reads is its first. */
extern void *__real_tcg_emit_op_x86_64(void *s, int op);

void *__wrap_tcg_emit_op_x86_64(void *s, int op)
{
    if (op == K_INDEX_op_insn_start)
        M->insn_start = true;
    return __real_tcg_emit_op_x86_64(s, op);
}
