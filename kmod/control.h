/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * The generic netlink family "lunatik", see uapi/lunatik.h.
 */
#ifndef _LUNATIK_CONTROL_H
#define _LUNATIK_CONTROL_H

int lunatik_control_init(void);
void lunatik_control_exit(void);

#endif /* _LUNATIK_CONTROL_H */
