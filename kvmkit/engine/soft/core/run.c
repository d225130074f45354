/* Several vCPUs in turn on one thread, and the ticker that ends a turn.
 *
 * Unicorn has one CPU. A vCPU that is not running is a copy of the architectural
 * state and its own TLB; a switch swaps both, so translated code is shared and
 * LOCK needs no care. A vCPU gives way at HLT, at PAUSE and after a slice.
 */
#include "core.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#define SLICE_NS 2000000
#define SOON_NS 2000000
#define NAP_NS 2000000
#define NAPS_MAX 8
#define NEVER INT64_MAX

int64_t monotonic(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void timed_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t until)
{
    struct timespec t = {until / 1000000000ll, until % 1000000000ll};

    if (until == NEVER)
        pthread_cond_wait(cond, lock);
    else
        pthread_cond_timedwait(cond, lock, &t);
}

/* ---- the ticker ---- */

static void *ticker_main(void *arg)
{
    struct machine *m = arg;
    int naps = NAPS_MAX;

    pthread_setname_np(pthread_self(), "ticker");
    pthread_mutex_lock(&m->lock);
    while (!m->ticker_stop) {
        if (m->tick != NEVER && monotonic() >= m->tick) {
            m->tick = NEVER;
            exit_to_loop(m);
        }
        /* While the guest runs, naps: to wake the ticker for a new deadline costs
         * more than it costs the ticker to look. A guest that idles lets it sleep. */
        m->tick_sleep = m->tick;
        if (m->idle)
            naps = 0;
        else if (naps < NAPS_MAX || m->tick != NEVER) {
            int64_t nap = monotonic() + NAP_NS;

            naps = m->tick != NEVER ? 0 : naps + 1;
            if (nap < m->tick_sleep)
                m->tick_sleep = nap;
        }
        timed_wait(&m->tick_cond, &m->lock, m->tick_sleep);
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

int ticker_start(struct machine *m)
{
    pthread_condattr_t attr;
    sigset_t all, before;
    int error;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&m->tick_cond, &attr);
    pthread_cond_init(&m->idle_cond, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&m->lock, NULL);
    m->tick = m->tick_sleep = m->deadline = NEVER;
    /* signals belong to the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&m->ticker, NULL, ticker_main, m);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

void ticker_end(struct machine *m)
{
    pthread_mutex_lock(&m->lock);
    m->ticker_stop = true;
    pthread_cond_signal(&m->tick_cond);
    pthread_mutex_unlock(&m->lock);
    pthread_join(m->ticker, NULL);
    pthread_cond_destroy(&m->tick_cond);
    pthread_cond_destroy(&m->idle_cond);
    pthread_mutex_destroy(&m->lock);
}

/* under lock */
static void arm(struct machine *m, int64_t tick)
{
    m->tick = tick;
    if (tick < m->tick_sleep)
        pthread_cond_signal(&m->tick_cond);
}

void machine_set_deadline(struct machine *m, int64_t deadline)
{
    pthread_mutex_lock(&m->lock);
    m->deadline = deadline;
    if (m->idle)
        pthread_cond_signal(&m->idle_cond);
    else if (deadline < m->tick)
        arm(m, deadline);
    pthread_mutex_unlock(&m->lock);
}

/* The run loop shall look around in a moment, whatever the guest does. */
void machine_tick_soon(struct machine *m)
{
    int64_t soon = monotonic() + SOON_NS;

    pthread_mutex_lock(&m->lock);
    if (soon < m->tick)
        arm(m, soon);
    pthread_mutex_unlock(&m->lock);
}

/* Make the run loop look around: a line changed or a caller wants it back. */
void machine_wake(struct machine *m)
{
    exit_to_loop(m);
    pthread_mutex_lock(&m->lock);
    if (m->idle)
        pthread_cond_signal(&m->idle_cond);
    pthread_mutex_unlock(&m->lock);
}

/* ---- vCPUs ---- */

void switch_to(struct machine *m, int index)
{
    void *cpu = m->cpu;
    struct vcpu *from = &m->vcpu[m->current], *to = &m->vcpu[index];
    char *tlb = (char *)m->cpu + X86CPU_TLB;

    if (index == m->current)
        return;
    /* Unicorn's list of breakpoints is the processor's: only those of who runs are in it */
    from->dr7 = FIELD(uint64_t, m->env, ENV_DR + 56);
    if (from->dr7 & 0xff)
        cpu_x86_update_dr7_x86_64(m->env, (uint32_t)from->dr7 & ~0xffu);
    memcpy(from->env, m->env, ENV_END_RESET_FIELDS);
    memcpy(from->tlb, tlb, SIZEOF_TLB);
    from->cflags_next_tb = CPU(uint32_t, CFLAGS_NEXT_TB);
    memcpy(m->env, to->env, ENV_END_RESET_FIELDS);
    memcpy(tlb, to->tlb, SIZEOF_TLB);
    CPU(uint32_t, CFLAGS_NEXT_TB) = to->cflags_next_tb;
    jumps_forget(m);
    m->current = index;
    if (to->dr7 & 0xff)
        cpu_x86_update_dr7_x86_64(m->env, (uint32_t)to->dr7);
    m->stat_switches++;
}

/* The architectural state of a vCPU, wherever it is now. */
static void *env_of(struct machine *m, int index)
{
    return index == m->current ? m->env : m->vcpu[index].env;
}

static bool can_run(struct machine *m, int index)
{
    struct vcpu *v = &m->vcpu[index];
    void *env = env_of(m, index);

    if (v->waiting_for_sipi)
        return false;
    if (!v->halted)
        return true;
    if (atomic_load(&v->nmi) && !(ENV(uint32_t, HFLAGS2) & K_HF2_NMI_MASK))
        return true;
    return atomic_load(&v->interrupt) && (ENV(uint64_t, EFLAGS) & FLAG_IF);
}

/* The next vCPU that can run, the current one last if ``others_first``; -1: none. */
static int choose(struct machine *m, bool others_first, int *runnable)
{
    int best = -1;

    *runnable = 0;
    for (int i = 0; i < m->vcpu_count; i++) {
        int index = (m->current + i + (others_first ? 1 : 0)) % m->vcpu_count;

        if (can_run(m, index)) {
            if (best < 0)
                best = index;
            ++*runnable;
        }
    }
    return best;
}

/* Run until a deadline, a kick or an end. The GIL is not held. */
int machine_run(struct machine *m)
{
    void *cpu = m->cpu;
    bool rotate = false;

    for (;;) {
        struct vcpu *v;
        int64_t now, slice_end;
        int index, runnable, result;

        if (m->failed)
            return STOP_ERROR;
        if (m->triple_fault) {
            m->triple_fault = false;
            return STOP_TRIPLE_FAULT;
        }
        if (atomic_exchange(&m->kick, false))
            return STOP_KICK;
        if (m->collected_count) {
            gil_take(m);
            ports_deliver(m);
            gil_drop(m);
        }
        index = choose(m, rotate, &runnable);
        now = monotonic();
        pthread_mutex_lock(&m->lock);
        if (now >= m->deadline) {
            m->deadline = NEVER;
            pthread_mutex_unlock(&m->lock);
            return STOP_DEADLINE;
        }
        if (index < 0) {
            /* exit_to_loop from a waker comes before it takes the lock */
            m->stat_halts++;
            m->idle = true;
            m->tick = NEVER;
            if (!atomic_load(&m->kick) && choose(m, false, &runnable) < 0)
                timed_wait(&m->idle_cond, &m->lock, m->deadline);
            m->idle = false;
            pthread_mutex_unlock(&m->lock);
            continue;
        }
        slice_end = runnable > 1 ? now + SLICE_NS : NEVER;
        arm(m, slice_end < m->deadline ? slice_end : m->deadline);
        pthread_mutex_unlock(&m->lock);

        switch_to(m, index);
        v = &m->vcpu[index];
        v->halted = false;
        CPU(uint32_t, HALTED) = 0;
        if (atomic_load(&v->interrupt) || atomic_load(&v->nmi))
            CPU(uint32_t, INTERRUPT_REQUEST) |= K_CPU_INTERRUPT_HARD;
        else
            CPU(uint32_t, INTERRUPT_REQUEST) &= ~(uint32_t)K_CPU_INTERRUPT_HARD;
        atomic_store(&m->pause_hint, false);
        /* a line that changed after the two loads above also set exit_request */
        result = cpu_exec_x86_64(m->uc, cpu);
        if (result == K_EXCP_HLT && !m->triple_fault)
            v->halted = true;
        CPU(uint32_t, HALTED) = 0;
        CPU(int32_t, EXCEPTION_INDEX) = -1;
        now = monotonic();
        rotate = result == K_EXCP_HLT || atomic_load(&m->pause_hint) || now >= slice_end;
    }
}
