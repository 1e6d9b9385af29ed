/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * Hooks: from a packet at a Netfilter hook to a verdict from Lua.
 *
 * A hook is a callback that a script has registered; it belongs to an instance and
 * lives as long. A slot is what Netfilter knows: a place, and per CPU the hook that
 * runs there now. The slots of a runtime survive the replacement of its script.
 */
#ifndef _LUNATIK_HOOK_H
#define _LUNATIK_HOOK_H

#include <linux/list.h>
#include <linux/netfilter.h>

#include "lua.h"

#include "statistics.h"

struct lunatik_error;
struct lunatik_instance;
struct lunatik_runtime;

/**
 * struct lunatik_packet - what a packet object in Lua stands for
 * @skb: the packet, NULL outside the callback
 * @state: of the hook that has it
 * @parsed: the fields below say what is in it; see skb.h
 * @family: NFPROTO_IPV4, _IPV6 or _ARP where its header can be read, else 0
 * @fragment: part of a fragmented datagram
 * @protocol: of the transport header, or -1
 * @transport: offset of that header, or 0 where the packet holds none
 * @end: offset of the end of the IP packet, which padding may follow
 * @views: a bit for each enum lunatik_part whose view is valid
 * @reject: what to answer when the callback has ended, see lunatik_reject_send()
 *
 * Offsets count from the network header. Every callback starts with zeros.
 */
struct lunatik_packet {
	struct sk_buff *skb;
	const struct nf_hook_state *state;
	bool parsed;
	u8 family;
	bool fragment;
	s16 protocol;
	int transport;
	int end;
	u8 views;
	u8 reject;
};

/**
 * struct lunatik_place - where in Netfilter, and for which packets
 * @pf: NFPROTO_*
 * @hooknum: hook of that family
 * @priority: order among the hooks there
 * @ifindex: device, where the family wants one, else 0
 * @match_mark: only packets with @mark
 * @mark: see @match_mark
 */
struct lunatik_place {
	u8 pf;
	u8 hooknum;
	s32 priority;
	int ifindex;
	bool match_mark;
	u32 mark;
};

/**
 * struct lunatik_hook - one call of netfilter.register
 * @place: where
 * @instance: owner
 * @on_error: verdict for a packet whose callback failed
 * @off: unregistered; written under the instance's lock
 * @callback: registry reference of the Lua function
 * @packet_ref: registry reference of the packet object
 * @packet: that object's memory
 * @slot: where it is in force, or NULL; valid until @off
 * @index: in the slot's hooks
 * @list: in the instance's hooks
 */
struct lunatik_hook {
	struct lunatik_place place;
	struct lunatik_instance *instance;
	unsigned int on_error;
	bool off;
	int callback;
	int packet_ref;
	struct lunatik_packet *packet;
	struct lunatik_slot *slot;
	unsigned int index;
	struct list_head list;
};

/**
 * struct lunatik_slot - a registration with Netfilter
 * @ops: what Netfilter knows
 * @place: where
 * @runtime: owner
 * @number: unique in this boot
 * @registered: @ops is in force
 * @fresh: made for a script that is being taken into service
 * @list: in the runtime's slots
 * @hook: by CPU where the runtime has several instances: which callback runs, NULL
 *	for none; which one takes its place; and what has happened, whichever it was
 */
struct lunatik_slot {
	struct nf_hook_ops ops;
	struct lunatik_place place;
	struct lunatik_runtime *runtime;
	u32 number;
	bool registered;
	bool fresh;
	struct list_head list;
	struct {
		struct lunatik_hook __rcu *now;
		struct lunatik_hook *next;
		struct lunatik_statistics statistics;
	} hook[];
};

struct lunatik_hook *lunatik_hook_add(struct lunatik_instance *instance,
				      const struct lunatik_hook *template);
void lunatik_hook_unregister(struct lunatik_hook *hook);
void lunatik_hooks_free(struct lunatik_instance *instance);
unsigned int lunatik_hook_nf(void *priv, struct sk_buff *skb,
			     const struct nf_hook_state *state);

int lunatik_slots_prepare(struct lunatik_runtime *rt,
			  struct lunatik_instance **instance,
			  struct lunatik_error *error);
void lunatik_slots_switch(struct lunatik_runtime *rt, unsigned int i);
void lunatik_slots_cancel(struct lunatik_runtime *rt);
void lunatik_slots_finish(struct lunatik_runtime *rt);
void lunatik_slots_clear(struct lunatik_runtime *rt);
void lunatik_slots_prune(struct lunatik_runtime *rt);
void lunatik_slots_sum(struct lunatik_runtime *rt,
		       struct lunatik_statistics *sum);
int lunatik_slot_init(void);
void lunatik_slot_exit(void);

void lunatik_reject_send(struct sk_buff *skb, const struct nf_hook_state *state,
			 u8 answer, const void *runtime);
bool lunatik_reject_is_own(const void *runtime);

#endif /* _LUNATIK_HOOK_H */
