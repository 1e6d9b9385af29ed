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

static atomic_t last_number = ATOMIC_INIT(0);

/* ACCEPT, DROP, and QUEUE with a queue's number: what a script can honour. */
static bool verdict_is_valid(lua_Integer verdict)
{
	if (verdict < 0 || verdict > U32_MAX)
		return false;
	if ((verdict & NF_VERDICT_MASK) == NF_QUEUE)
		return true;
	return verdict == NF_ACCEPT || verdict == NF_DROP;
}

/*
 * What the callback returned: a verdict, and a mark for the packet or nil. The
 * message says what is wrong with it, or is NULL.
 */
static const char *hook_read_results(lua_State *L, struct sk_buff *skb,
				     unsigned int *verdict)
{
	lua_Integer value;

	if (!lua_isinteger(L, -2))
		return lua_isnil(L, -2) ? "the callback returned no verdict" :
			"the callback's verdict is not an integer";
	value = lua_tointeger(L, -2);
	if (!verdict_is_valid(value))
		return "the callback's verdict is none of accept, drop and queue";
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
	lua_State *L = hook->runtime->L;

	*hook->packet = (struct lunatik_packet){ skb, state };
	lua_rawgeti(L, LUA_REGISTRYINDEX, hook->callback);
	lua_rawgeti(L, LUA_REGISTRYINDEX, hook->packet_ref);
	if (lua_pcall(L, 1, 2, 0) != LUA_OK) {
		hook->packet->skb = NULL;
		return lunatik_message(L, -1);
	}
	hook->packet->skb = NULL; /* a packet object kept by Lua is void now */
	return hook_read_results(L, skb, verdict);
}

static unsigned int hook_enter(struct lunatik_hook *hook, struct sk_buff *skb,
			       const struct nf_hook_state *state)
{
	struct lunatik_runtime *rt = hook->runtime;
	unsigned int verdict = hook->on_error;
	const char *failure;
	u64 start = 0;

	rt->limits.stack_floor = lunatik_stack_floor();
	trace_hook_enter(rt->id, hook->number, state->pf, state->hook, skb->len,
			 preempt_count());
	if (trace_hook_exit_enabled())
		start = ktime_get_ns();
	lunatik_watchdog_enter(rt);
	failure = hook_call(hook, skb, state, &verdict);
	lunatik_watchdog_leave(rt);
	rt->calls++;
	if (unlikely(failure)) {
		rt->errors++;
		lunatik_runtime_failed(rt, hook->number, failure);
	}
	lua_settop(rt->L, 0);
	trace_hook_exit(rt->id, hook->number, verdict, failure != NULL,
			start ? ktime_get_ns() - start : 0, preempt_count());
	return verdict;
}

/*
 * One packet. Never inlined: tracers count its calls. A packet that Lua itself
 * causes to be sent, on this CPU, from this runtime, cannot enter it again; the
 * failure rule decides.
 */
static noinline unsigned int lunatik_hook_run(struct lunatik_hook *hook,
					      struct sk_buff *skb,
					      const struct nf_hook_state *state)
{
	struct lunatik_runtime *rt = hook->runtime;
	unsigned int verdict = NF_ACCEPT;

	local_bh_disable();
	if (READ_ONCE(rt->owner_cpu) == smp_processor_id()) {
		verdict = hook->on_error;
		goto enable;
	}
	spin_lock(&rt->spinlock);
	if (likely(rt->state != LUNATIK_STATE_STOPPED)) {
		rt->owner_cpu = smp_processor_id();
		verdict = hook_enter(hook, skb, state);
		rt->owner_cpu = -1;
	}
	spin_unlock(&rt->spinlock);
enable:
	local_bh_enable();
	return verdict;
}

static unsigned int hook_nf(void *priv, struct sk_buff *skb,
			    const struct nf_hook_state *state)
{
	struct lunatik_hook *hook = priv;

	if (hook->match_mark && skb->mark != hook->mark)
		return NF_ACCEPT;
	return lunatik_hook_run(hook, skb, state);
}

/**
 * lunatik_hook_add() - give a runtime a hook that is not in force yet
 * @rt: runtime that is being set up
 * @template: its ops' pf, hooknum and priority, the mark and the failure rule
 *
 * Context: process.
 * Return: the hook, owned by @rt, or NULL without memory.
 */
struct lunatik_hook *lunatik_hook_add(struct lunatik_runtime *rt,
				      const struct lunatik_hook *template)
{
	struct lunatik_hook *hook;

	hook = lunatik_kmemdup(template, sizeof(*hook), GFP_KERNEL);
	if (!hook)
		return NULL;
	hook->ops.hook = hook_nf;
	hook->ops.priv = hook;
	hook->runtime = rt;
	hook->number = atomic_inc_return(&last_number);
	list_add_tail(&hook->list, &rt->hooks);
	rt->hook_count++;
	return hook;
}

/**
 * lunatik_hooks_register() - put all hooks of a runtime in force
 * @rt: runtime whose body has run
 * @error: filled in on failure, after which none is in force
 *
 * Context: process, may sleep.
 * Return: 0 or a negative errno.
 */
int lunatik_hooks_register(struct lunatik_runtime *rt,
			   struct lunatik_error *error)
{
	struct lunatik_hook *hook;
	int errno;

	list_for_each_entry(hook, &rt->hooks, list) {
		errno = lunatik_memory_fails() ? -ENOMEM :
			nf_register_net_hook(rt->net, &hook->ops);
		if (errno) {
			lunatik_error_set(error, GFP_KERNEL, errno,
					  "cannot register a hook (pf %u, hooknum %u, priority %d): errno %d",
					  hook->ops.pf, hook->ops.hooknum,
					  hook->ops.priority, -errno);
			lunatik_hooks_unregister(rt);
			return errno;
		}
		hook->registered = true;
	}
	return 0;
}

/**
 * lunatik_hooks_unregister() - take a runtime's hooks out of force and free them
 * @rt: runtime
 *
 * Returns when no callback runs any more.
 *
 * Context: process, may sleep.
 */
void lunatik_hooks_unregister(struct lunatik_runtime *rt)
{
	struct lunatik_hook *hook, *next;
	bool any = false;

	list_for_each_entry(hook, &rt->hooks, list) {
		if (hook->registered)
			nf_unregister_net_hook(rt->net, &hook->ops);
		any |= hook->registered;
	}
	if (any)
		synchronize_net();
	list_for_each_entry_safe(hook, next, &rt->hooks, list) {
		list_del(&hook->list);
		kfree(hook);
	}
	rt->hook_count = 0;
}

static void __net_exit hook_netns_exit(struct net *net)
{
	lunatik_runtime_stop_netns(net);
}

static struct pernet_operations hook_netns_ops = {
	.exit = hook_netns_exit,
};

int lunatik_hook_init(void)
{
	return lunatik_memory_fails() ? -ENOMEM :
		register_pernet_subsys(&hook_netns_ops);
}

void lunatik_hook_exit(void)
{
	unregister_pernet_subsys(&hook_netns_ops);
}
