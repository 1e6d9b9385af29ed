// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Hooks: from a packet at a Netfilter hook to a verdict from Lua, see hook.h.
 */
#include <linux/atomic.h>
#include <linux/ktime.h>
#include <linux/skbuff.h>
#include <net/net_namespace.h>

#include "hook.h"
#include "memory.h"
#include "runtime.h"
#include "trace.h"
#include "watchdog.h"

/* ACCEPT, DROP, and QUEUE with a queue's number: what a script can honour. */
static const char *check_verdict(lua_Integer verdict, u8 pf)
{
	if (verdict == NF_ACCEPT || verdict == NF_DROP)
		return NULL;
	if (verdict < 0 || verdict > U32_MAX ||
	    (verdict & NF_VERDICT_MASK) != NF_QUEUE)
		return "the callback's verdict is none of accept, drop and queue";
	/* Of the others the kernel keeps nothing that could go on later. */
	if (pf != NFPROTO_IPV4 && pf != NFPROTO_IPV6 && pf != NFPROTO_BRIDGE)
		return "packets are queued at hooks of IPv4, IPv6 and bridges only";
	return NULL;
}

/*
 * What the callback returned: a verdict, and a mark for the packet or nil. The
 * message says what is wrong with it, or is NULL.
 */
static const char *hook_read_results(lua_State *L, struct sk_buff *skb,
				     const struct nf_hook_state *state,
				     unsigned int *verdict)
{
	const char *refusal;
	lua_Integer value;

	if (!lua_isinteger(L, -2))
		return lua_isnil(L, -2) ? "the callback returned no verdict" :
			"the callback's verdict is not an integer";
	value = lua_tointeger(L, -2);
	refusal = check_verdict(value, state->pf);
	if (refusal)
		return refusal;
	if (!lua_isnil(L, -1)) {
		lua_Integer mark = lua_tointeger(L, -1);

		if (!lua_isinteger(L, -1))
			return "the callback's mark is not an integer";
		if (mark < 0 || mark > U32_MAX)
			return "the callback's mark does not fit 32 bits";
		skb->mark = mark;
	}
	*verdict = value;
	return NULL;
}

/* Call the callback. The runtime's lock is held, so nothing in here may sleep. */
static const char *hook_call(struct lunatik_hook *hook, struct sk_buff *skb,
			     const struct nf_hook_state *state,
			     unsigned int *verdict)
{
	lua_State *L = hook->instance->L;
	const char *failure;

	*hook->packet = (struct lunatik_packet){ skb, state };
	lua_rawgeti(L, LUA_REGISTRYINDEX, hook->callback);
	lua_rawgeti(L, LUA_REGISTRYINDEX, hook->packet_ref);
	if (lua_pcall(L, 1, 2, 0) != LUA_OK)
		failure = lunatik_message(L, -1);
	else
		failure = hook_read_results(L, skb, state, verdict);
	hook->packet->skb = NULL; /* a packet object kept by Lua is void now */
	if (failure)
		hook->packet->reject = 0;
	else if (hook->packet->reject)
		*verdict = NF_DROP;
	return failure;
}

/* Let no callback of an instance run any more, and have its runtime stopped. */
static void hook_break(struct lunatik_instance *instance, u32 number)
{
	struct lunatik_runtime *rt = instance->runtime;
	struct lunatik_hook *hook;

	instance->broken = true;
	list_for_each_entry(hook, &instance->hooks, list)
		lunatik_hook_unregister(hook);
	pr_warn_ratelimited("runtime %u (%s): stopped, because %u callbacks in a row have failed\n",
			    rt->id, lunatik_runtime_name(rt).text, rt->breaker);
	lunatik_event_broken(rt, number);
	lunatik_runtime_break(rt);
}

static void hook_failed(struct lunatik_hook *hook, struct lunatik_slot *slot,
			const char *message, bool exceeded)
{
	struct lunatik_statistics *statistics =
		&slot->hook[hook->index].statistics;
	struct lunatik_instance *instance = hook->instance;
	u32 breaker = instance->runtime->breaker;

	statistics->errors++;
	if (exceeded)
		statistics->budget_hits++;
	lunatik_instance_failed(instance, slot->number, message, exceeded);
	if (breaker && ++instance->failures == breaker)
		hook_break(instance, slot->number);
}

static unsigned int hook_enter(struct lunatik_hook *hook,
			       struct lunatik_slot *slot, struct sk_buff *skb,
			       const struct nf_hook_state *state)
{
	struct lunatik_statistics *statistics =
		&slot->hook[hook->index].statistics;
	struct lunatik_instance *instance = hook->instance;
	u32 id = instance->runtime->id;
	unsigned int verdict = hook->on_error;
	u64 start = 0, duration = 0;
	const char *failure;
	bool exceeded;

	instance->limits.stack_floor = lunatik_stack_floor();
	trace_hook_enter(id, slot->number, state->pf, state->hook, skb->len,
			 preempt_count());
	if (lunatik_is_timing() || trace_hook_exit_enabled())
		start = ktime_get_ns();
	lunatik_watchdog_enter(instance);
	failure = hook_call(hook, skb, state, &verdict);
	exceeded = lunatik_watchdog_leave(instance);
	if (start)
		duration = ktime_get_ns() - start;
	lunatik_statistics_verdict(statistics, verdict);
	if (start && lunatik_is_timing())
		lunatik_statistics_time(statistics, duration);
	if (unlikely(failure))
		hook_failed(hook, slot, failure, exceeded);
	else
		instance->failures = 0;
	lua_settop(instance->L, 0);
	trace_hook_exit(id, slot->number, verdict, failure != NULL, duration,
			preempt_count());
	return verdict;
}

/*
 * The hook of a slot on this CPU with its instance locked, or NULL. Bottom halves
 * are off. While we wait for the lock, another hook may take over the slot.
 */
static struct lunatik_hook *slot_lock(struct lunatik_slot *slot,
				      unsigned int *verdict)
{
	unsigned int i = slot->runtime->percpu ? smp_processor_id() : 0;
	struct lunatik_hook *hook;

	while ((hook = rcu_dereference(slot->hook[i].now))) {
		struct lunatik_instance *instance = hook->instance;

		/*
		 * A packet that comes while this CPU is in the instance already
		 * cannot enter it again; the failure rule decides.
		 */
		if (READ_ONCE(instance->owner_cpu) == smp_processor_id()) {
			*verdict = hook->on_error;
			slot->hook[i].statistics.reentered++;
			lunatik_statistics_verdict(&slot->hook[i].statistics,
						   *verdict);
			return NULL;
		}
		spin_lock(&instance->spinlock);
		__release(&instance->spinlock); /* sparse knows no conditional locks */
		if (likely(rcu_access_pointer(slot->hook[i].now) == hook))
			return hook;
		__acquire(&instance->spinlock);
		spin_unlock(&instance->spinlock);
	}
	return NULL;
}

/* One packet. Never inlined: tracers count its calls. */
static noinline unsigned int lunatik_hook_run(struct lunatik_slot *slot,
					      struct sk_buff *skb,
					      const struct nf_hook_state *state)
{
	unsigned int verdict = NF_ACCEPT;
	struct lunatik_instance *instance;
	struct lunatik_hook *hook;
	u8 answer = 0;

	local_bh_disable();
	if (unlikely(lunatik_reject_is_own(slot->runtime)))
		goto enable;
	hook = slot_lock(slot, &verdict);
	if (likely(hook)) {
		instance = hook->instance;
		instance->owner_cpu = smp_processor_id();
		verdict = hook_enter(hook, slot, skb, state);
		answer = hook->packet->reject;
		instance->owner_cpu = -1;
		__acquire(&instance->spinlock);
		spin_unlock(&instance->spinlock);
	}
	if (unlikely(answer))
		lunatik_reject_send(skb, state, answer, slot->runtime);
enable:
	local_bh_enable();
	return verdict;
}

/**
 * lunatik_hook_nf() - the function that Netfilter calls
 * @priv: slot
 * @skb: packet
 * @state: where it is
 *
 * Context: any that Netfilter calls hooks in, inside an RCU read-side section.
 * Return: verdict.
 */
unsigned int lunatik_hook_nf(void *priv, struct sk_buff *skb,
			     const struct nf_hook_state *state)
{
	struct lunatik_slot *slot = priv;

	if (slot->place.match_mark && skb->mark != slot->place.mark)
		return NF_ACCEPT;
	return lunatik_hook_run(slot, skb, state);
}

/**
 * lunatik_hook_add() - give an instance a hook that is not in force yet
 * @instance: whose body first runs
 * @template: its place and failure rule
 *
 * Context: process.
 * Return: the hook, owned by @instance, or NULL without memory.
 */
struct lunatik_hook *lunatik_hook_add(struct lunatik_instance *instance,
				      const struct lunatik_hook *template)
{
	struct lunatik_hook *hook =
		lunatik_kmemdup(template, sizeof(*hook), GFP_KERNEL);

	if (!hook)
		return NULL;
	hook->instance = instance;
	list_add_tail(&hook->list, &instance->hooks);
	instance->hook_count++;
	return hook;
}

/**
 * lunatik_hook_unregister() - call a hook no more
 * @hook: may be off already
 *
 * Context: any, in the hook's instance, so that its callback does not run on
 * another CPU.
 */
void lunatik_hook_unregister(struct lunatik_hook *hook)
{
	struct lunatik_instance *instance = hook->instance;
	struct lunatik_slot *slot = hook->slot;

	if (hook->off)
		return;
	hook->off = true;
	instance->hook_count--;
	if (!slot)
		return;
	if (rcu_access_pointer(slot->hook[hook->index].now) == hook)
		RCU_INIT_POINTER(slot->hook[hook->index].now, NULL);
	lunatik_runtime_prune(instance->runtime);
}

/**
 * lunatik_hooks_free() - free the hooks of an instance
 * @instance: none of its hooks is in a slot
 */
void lunatik_hooks_free(struct lunatik_instance *instance)
{
	struct lunatik_hook *hook, *next;

	list_for_each_entry_safe(hook, next, &instance->hooks, list) {
		list_del(&hook->list);
		kfree(hook);
	}
}
