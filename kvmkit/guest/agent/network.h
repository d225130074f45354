/* SPDX-License-Identifier: GPL-2.0-only */
/* Network cards: addresses as the host says them, or as a DHCP server does. */
#ifndef KVMKIT_AGENT_NETWORK_H
#define KVMKIT_AGENT_NETWORK_H

/*
 * Bring up what text names: cards separated by semicolons, each
 * NAME,ADDRESS/BITS,ROUTER,NAMESERVER or NAME,dhcp. What fails is reported.
 */
void networks_up(char *text, char **environment);

#endif
