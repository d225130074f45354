/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reports to the host, on the fourth serial port: lines "kvmkit: WORD REST".
 *
 *   ready             the program is about to start, its input may come
 *   exit N            it ended, with this status as a shell has it (128 + signal)
 *   trouble WHAT NAME ERRNO   something could not be done; the guest goes on
 *   failed TEXT       something without which it cannot go on
 *
 * The host reads them in kvmkit/board/reports.py. Where there is no such port they
 * go nowhere.
 */
#ifndef KVMKIT_AGENT_REPORT_H
#define KVMKIT_AGENT_REPORT_H

void report(const char *word, const char *rest);
void report_exit(int status);
void report_trouble(const char *what, const char *name, long error);

/* Wait until all reports are out. */
void report_finish(void);

#endif
