/* CPU state by register name: one flat record that Python packs and unpacks.
 *
 * Intel SDM vol. 3, 2 and 3.4. The layout (struct registers below) is private to
 * this file and kvmkit/engine/soft/state.py; names live there.
 */
#include "core.h"
#include <string.h>

struct registers {
    uint64_t gpr[16], rip, rflags;
    struct {
        uint64_t selector, base, limit, attributes;
    } seg[8]; /* ES CS SS DS FS GS LDT TR */
    uint64_t gdt_base, gdt_limit, idt_base, idt_limit;
    uint64_t cr0, cr2, cr3, cr4, efer;
    uint64_t dr[6]; /* DR0-3, DR6, DR7 */
    uint64_t star, lstar, cstar, fmask, kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip, tsc_aux, pat, misc_enable, tsc;
    uint64_t fcw, fsw, ftw, fop, fip, fdp, mxcsr;
    uint64_t halted, waiting_for_sipi, interrupt_shadow, nmi_masked;
    uint8_t st[8][16], xmm[16][16];
};

static char *segment(void *env, int i)
{
    static const size_t other[] = {ENV_LDT, ENV_TR, ENV_GDT, ENV_IDT};

    return (char *)env + (i < 6 ? ENV_SEGS + (size_t)i * SIZEOF_SEG : other[i - 6]);
}

static uint64_t flags_of(void *env)
{
    return (ENV(uint64_t, EFLAGS) & ~(uint64_t)(FLAGS_CC | FLAG_DF)) |
           cpu_cc_compute_all_x86_64(env, ENV(int32_t, CC_OP)) |
           ((uint32_t)ENV(int32_t, DF) & FLAG_DF);
}

static void get(struct machine *m, int index, struct registers *r)
{
    void *env = m->env;
    struct vcpu *v = &m->vcpu[index];
    uint32_t top = ENV(uint32_t, FPSTT);

    memset(r, 0, sizeof *r);
    for (int i = 0; i < 16; i++)
        r->gpr[i] = FIELD(uint64_t, env, ENV_REGS + 8 * i);
    r->rip = ENV(uint64_t, EIP);
    r->rflags = flags_of(env) | 2;
    for (int i = 0; i < 8; i++) {
        char *s = segment(env, i);

        r->seg[i].selector = FIELD(uint32_t, s, SEG_SELECTOR);
        r->seg[i].base = FIELD(uint64_t, s, SEG_BASE);
        r->seg[i].limit = FIELD(uint32_t, s, SEG_LIMIT);
        r->seg[i].attributes = (FIELD(uint32_t, s, SEG_FLAGS) >> 8) & 0xf0ff;
    }
    r->gdt_base = FIELD(uint64_t, segment(env, 8), SEG_BASE);
    r->gdt_limit = FIELD(uint32_t, segment(env, 8), SEG_LIMIT);
    r->idt_base = FIELD(uint64_t, segment(env, 9), SEG_BASE);
    r->idt_limit = FIELD(uint32_t, segment(env, 9), SEG_LIMIT);
    r->cr0 = FIELD(uint64_t, env, ENV_CR);
    r->cr2 = FIELD(uint64_t, env, ENV_CR + 16);
    r->cr3 = FIELD(uint64_t, env, ENV_CR + 24);
    r->cr4 = FIELD(uint64_t, env, ENV_CR + 32);
    r->efer = ENV(uint64_t, EFER);
    for (int i = 0; i < 4; i++)
        r->dr[i] = FIELD(uint64_t, env, ENV_DR + 8 * i);
    r->dr[4] = FIELD(uint64_t, env, ENV_DR + 48);
    r->dr[5] = FIELD(uint64_t, env, ENV_DR + 56);
    r->star = ENV(uint64_t, STAR);
    r->lstar = ENV(uint64_t, LSTAR);
    r->cstar = ENV(uint64_t, CSTAR);
    r->fmask = ENV(uint64_t, FMASK);
    r->kernel_gs_base = ENV(uint64_t, KERNELGSBASE);
    r->sysenter_cs = ENV(uint32_t, SYSENTER_CS);
    r->sysenter_esp = ENV(uint64_t, SYSENTER_ESP);
    r->sysenter_eip = ENV(uint64_t, SYSENTER_EIP);
    r->tsc_aux = ENV(uint64_t, TSC_AUX);
    r->pat = ENV(uint64_t, PAT);
    r->misc_enable = ENV(uint64_t, MSR_IA32_MISC_ENABLE);
    r->tsc = guest_tsc(m) + ENV(uint64_t, TSC_OFFSET);
    r->fcw = ENV(uint16_t, FPUC);
    r->fsw = (ENV(uint16_t, FPUS) & ~0x3800u) | (top & 7) << 11;
    for (int i = 0; i < 8; i++) {
        if (!FIELD(uint8_t, env, ENV_FPTAGS + i))
            r->ftw |= 1u << i;
        memcpy(r->st[i], (char *)env + ENV_FPREGS + ((top + i) & 7) * SIZEOF_FPREG, 10);
    }
    r->fop = ENV(uint16_t, FPOP);
    r->fip = ENV(uint64_t, FPIP);
    r->fdp = ENV(uint64_t, FPDP);
    r->mxcsr = ENV(uint32_t, MXCSR);
    for (int i = 0; i < 16; i++)
        memcpy(r->xmm[i], (char *)env + ENV_XMM_REGS + i * SIZEOF_ZMM, 16);
    r->halted = v->halted;
    r->waiting_for_sipi = v->waiting_for_sipi;
    r->interrupt_shadow = !!(ENV(uint32_t, HFLAGS) & HF(INHIBIT_IRQ));
    r->nmi_masked = !!(ENV(uint32_t, HFLAGS2) & K_HF2_NMI_MASK);
}

/* The translator's summary of the modes the CPU is in (QEMU: "hidden flags"). */
static uint32_t hidden_flags(const struct registers *r)
{
    uint32_t h = (r->seg[R_SS].attributes >> 5) & 3, cs = r->seg[R_CS].attributes;

    if (r->cr0 & 1)
        h |= HF(PE);
    h |= (r->cr0 & 2 ? HF(MP) : 0) | (r->cr0 & 4 ? HF(EM) : 0) | (r->cr0 & 8 ? HF(TS) : 0);
    if (r->cr4 & 0x200)
        h |= HF(OSFXSR);
    if (r->cr4 & 0x200000)
        h |= HF(SMAP);
    if (r->efer & 0x400)
        h |= HF(LMA);
    if ((r->efer & 0x400) && (cs & 0x2000)) {
        h |= HF(CS32) | HF(SS32) | HF(CS64);
    } else {
        h |= cs & 0x4000 ? HF(CS32) : 0;
        h |= r->seg[R_SS].attributes & 0x4000 ? HF(SS32) : 0;
        if (!(r->cr0 & 1) || (r->rflags & FLAG_VM) || !(h & HF(CS32)) || r->seg[R_DS].base ||
            r->seg[R_ES].base || r->seg[R_SS].base)
            h |= HF(ADDSEG);
    }
    if (r->interrupt_shadow)
        h |= HF(INHIBIT_IRQ);
    return h;
}

static void set(struct machine *m, int index, const struct registers *r)
{
    void *env = m->env, *cpu = m->cpu;
    struct vcpu *v = &m->vcpu[index];
    uint32_t top = (r->fsw >> 11) & 7;

    for (int i = 0; i < 16; i++)
        FIELD(uint64_t, env, ENV_REGS + 8 * i) = r->gpr[i];
    ENV(uint64_t, EIP) = r->rip;
    ENV(uint64_t, CC_SRC) = r->rflags & FLAGS_CC;
    ENV(uint32_t, CC_OP) = K_CC_OP_EFLAGS;
    ENV(int32_t, DF) = r->rflags & FLAG_DF ? -1 : 1;
    /* All of them: at its entry the run loop takes CC and DF from here. */
    ENV(uint64_t, EFLAGS) = r->rflags | 2;
    for (int i = 0; i < 8; i++) {
        char *s = segment(env, i);

        FIELD(uint32_t, s, SEG_SELECTOR) = (uint32_t)r->seg[i].selector;
        FIELD(uint64_t, s, SEG_BASE) = r->seg[i].base;
        FIELD(uint32_t, s, SEG_LIMIT) = (uint32_t)r->seg[i].limit;
        FIELD(uint32_t, s, SEG_FLAGS) = (uint32_t)(r->seg[i].attributes & 0xf0ff) << 8;
    }
    FIELD(uint64_t, segment(env, 8), SEG_BASE) = r->gdt_base;
    FIELD(uint32_t, segment(env, 8), SEG_LIMIT) = (uint32_t)r->gdt_limit;
    FIELD(uint64_t, segment(env, 9), SEG_BASE) = r->idt_base;
    FIELD(uint32_t, segment(env, 9), SEG_LIMIT) = (uint32_t)r->idt_limit;
    FIELD(uint64_t, env, ENV_CR) = r->cr0 | 0x10;
    FIELD(uint64_t, env, ENV_CR + 16) = r->cr2;
    FIELD(uint64_t, env, ENV_CR + 24) = r->cr3;
    FIELD(uint64_t, env, ENV_CR + 32) = r->cr4;
    ENV(uint64_t, EFER) = r->efer;
    ENV(int32_t, A20_MASK) = ~0;
    ENV(uint32_t, HFLAGS) = hidden_flags(r);
    ENV(uint32_t, HFLAGS2) = K_HF2_GIF_MASK | (r->nmi_masked ? K_HF2_NMI_MASK : 0);
    for (int i = 0; i < 4; i++)
        FIELD(uint64_t, env, ENV_DR + 8 * i) = r->dr[i];
    FIELD(uint64_t, env, ENV_DR + 48) = r->dr[4];
    cpu_x86_update_dr7_x86_64(env, (uint32_t)r->dr[5]);
    ENV(uint64_t, STAR) = r->star;
    ENV(uint64_t, LSTAR) = r->lstar;
    ENV(uint64_t, CSTAR) = r->cstar;
    ENV(uint64_t, FMASK) = r->fmask;
    ENV(uint64_t, KERNELGSBASE) = r->kernel_gs_base;
    ENV(uint32_t, SYSENTER_CS) = (uint32_t)r->sysenter_cs;
    ENV(uint64_t, SYSENTER_ESP) = r->sysenter_esp;
    ENV(uint64_t, SYSENTER_EIP) = r->sysenter_eip;
    ENV(uint64_t, TSC_AUX) = r->tsc_aux;
    ENV(uint64_t, PAT) = r->pat;
    ENV(uint64_t, MSR_IA32_MISC_ENABLE) = r->misc_enable;
    ENV(uint64_t, TSC_OFFSET) = r->tsc - guest_tsc(m);
    ENV(uint16_t, FPUC) = (uint16_t)r->fcw;
    ENV(uint16_t, FPUS) = (uint16_t)(r->fsw & ~0x3800u);
    ENV(uint32_t, FPSTT) = top;
    for (int i = 0; i < 8; i++) {
        FIELD(uint8_t, env, ENV_FPTAGS + i) = !(r->ftw >> i & 1);
        memcpy((char *)env + ENV_FPREGS + ((top + i) & 7) * SIZEOF_FPREG, r->st[i], 10);
    }
    ENV(uint16_t, FPOP) = (uint16_t)r->fop;
    ENV(uint64_t, FPIP) = r->fip;
    ENV(uint64_t, FPDP) = r->fdp;
    ENV(uint32_t, MXCSR) = (uint32_t)r->mxcsr;
    update_fp_status_x86_64(env);
    update_mxcsr_status_x86_64(env);
    for (int i = 0; i < 16; i++)
        memcpy((char *)env + ENV_XMM_REGS + i * SIZEOF_ZMM, r->xmm[i], 16);
    ENV(int32_t, OLD_EXCEPTION) = -1;
    v->halted = r->halted;
    v->waiting_for_sipi = r->waiting_for_sipi;
    CPU(uint32_t, CFLAGS_NEXT_TB) = ~0u;
    CPU(int32_t, EXCEPTION_INDEX) = -1;
    tlb_flush_x86_64(cpu);
}

PyObject *state_get(struct machine *m, int index)
{
    struct registers r;

    switch_to(m, index);
    get(m, index, &r);
    return PyBytes_FromStringAndSize((char *)&r, sizeof r);
}

int state_set(struct machine *m, int index, const uint8_t *data, Py_ssize_t size)
{
    struct registers r;

    if (size != sizeof r) {
        PyErr_Format(PyExc_ValueError, "a register record is %zu bytes, not %zd", sizeof r, size);
        return -1;
    }
    memcpy(&r, data, sizeof r);
    switch_to(m, index);
    set(m, index, &r);
    return 0;
}
