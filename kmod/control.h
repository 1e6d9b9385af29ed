/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * The generic netlink family "lunatik", see uapi/lunatik.h.
 */
#ifndef _LUNATIK_CONTROL_H
#define _LUNATIK_CONTROL_H

struct genl_family;
struct netlink_ext_ack;
struct sk_buff;

/* Multicast groups, by their place in the family. */
#define LUNATIK_EVENTS	0

extern struct genl_family lunatik_family;

int lunatik_control_capable(struct sk_buff *skb, struct netlink_ext_ack *extack);

int lunatik_control_init(void);
void lunatik_control_exit(void);

#endif /* _LUNATIK_CONTROL_H */
