/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * The watchdog: ends callbacks that run on and on, at no cost to those that do
 * not.
 */
#ifndef _LUNATIK_WATCHDOG_H
#define _LUNATIK_WATCHDOG_H

struct lunatik_instance;

void lunatik_watchdog_enter(struct lunatik_instance *instance);
bool lunatik_watchdog_leave(struct lunatik_instance *instance);
void lunatik_watchdog_enter_body(struct lunatik_instance *instance);
void lunatik_watchdog_leave_body(struct lunatik_instance *instance);
void lunatik_watchdog_init(void);
void lunatik_watchdog_exit(void);

#endif /* _LUNATIK_WATCHDOG_H */
