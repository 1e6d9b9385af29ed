/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * Hooks: from a packet at a Netfilter hook to a verdict from Lua.
 *
 * A hook belongs to its runtime from the call of netfilter.register until the
 * runtime stops; it is in force from arming on. It is freed after the packets
 * that might have met it are through (synchronize_net()).
 */
#ifndef _LUNATIK_HOOK_H
#define _LUNATIK_HOOK_H

#include <linux/list.h>
#include <linux/netfilter.h>

#include "lua.h"

struct lunatik_runtime;
struct lunatik_error;

/**
 * struct lunatik_packet - what a packet object in Lua stands for
 * @skb: the packet, NULL outside the callback
 * @state: of the hook that has it
 */
struct lunatik_packet {
	struct sk_buff *skb;
	const struct nf_hook_state *state;
};

/**
 * struct lunatik_hook - one call of netfilter.register
 * @ops: what Netfilter knows
 * @runtime: owner
 * @number: unique in this boot
 * @match_mark: only packets with @mark
 * @mark: see @match_mark
 * @on_error: verdict for a packet whose callback failed
 * @registered: @ops is in force
 * @callback: registry reference of the Lua function
 * @packet_ref: registry reference of the packet object
 * @packet: that object's memory
 * @list: in the runtime's hooks
 */
struct lunatik_hook {
	struct nf_hook_ops ops;
	struct lunatik_runtime *runtime;
	u32 number;
	bool match_mark;
	u32 mark;
	unsigned int on_error;
	bool registered;
	int callback;
	int packet_ref;
	struct lunatik_packet *packet;
	struct list_head list;
};

struct lunatik_hook *lunatik_hook_add(struct lunatik_runtime *rt,
				      const struct lunatik_hook *template);
int lunatik_hooks_register(struct lunatik_runtime *rt,
			   struct lunatik_error *error);
void lunatik_hooks_unregister(struct lunatik_runtime *rt);
int lunatik_hook_init(void);
void lunatik_hook_exit(void);

#endif /* _LUNATIK_HOOK_H */
