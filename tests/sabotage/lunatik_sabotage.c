// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Test-only: a Lua library that breaks every promise that is checked, so that tests
 * can show that the checkers notice. Never load it on a machine that matters.
 *
 * Its functions use no Lua API, take no arguments and return nothing. A policy
 * calls them in a callback, that is, in atomic context:
 *
 *	sleep		msleep: the task is switched away. The scheduler complains
 *			("BUG: scheduling while atomic") and resets preempt_count,
 *			so the count is put back after. RCU's read side is left for
 *			the time, so that RCU has no reason to complain as well.
 *	mutex		takes and releases a mutex that nobody else wants
 *	allocate	GFP_KERNEL
 *	leak		an allocation that is freed only when this module goes
 *	bh		enables bottom halves and disables them again
 *	interrupt	none of the callback's doing: waits for a hard interrupt
 *			that allocates with GFP_KERNEL (which the interrupt must
 *			not, but it gets away with it where memory is plenty)
 *
 * For a kernel with sanitizers there are also, from any context,
 *
 *	use_after_free	reads memory that it has freed
 *	overflow	writes the byte behind an allocation
 *	lose		allocations whose only pointers are forgotten
 *	invert		takes two locks in one order, then in the other
 *
 * A callback after stop cannot be staged with the module's own hook: the memory
 * it works on is gone by then. What can be had is what such a hook looks like
 * from outside: a Netfilter hook of this module, in every namespace, on real
 * packets, that announces itself through lunatik's exported tracepoints as the
 * runtime whose id is in the parameter late_id, with bottom halves off.
 */
#include <linux/bottom_half.h>
#include <linux/delay.h>
#include <linux/irq_work.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <net/net_namespace.h>

#include "lunatik.h"
#include "trace.h"

#define LEAK_BYTES	100
#define LATE_HOOK	1

struct leaked {
	struct list_head list;
	u8 bytes[LEAK_BYTES];
};

static unsigned int late_id;
module_param(late_id, uint, 0600);
MODULE_PARM_DESC(late_id, "runtime in whose name packets are seen after its stop");

static DEFINE_MUTEX(nobody_wants_this);
static LIST_HEAD(leaks);
static DEFINE_SPINLOCK(leaks_lock);

static int sabotage_sleep(struct lua_State *L)
{
	int count = preempt_count();

	__acquire(RCU); /* Netfilter's, for sparse */
	rcu_read_unlock();
	msleep(20);
	preempt_count_set(count);
	rcu_read_lock();
	__release(RCU);
	return 0;
}

static int sabotage_mutex(struct lua_State *L)
{
	mutex_lock(&nobody_wants_this);
	mutex_unlock(&nobody_wants_this);
	return 0;
}

static int sabotage_allocate(struct lua_State *L)
{
	kfree(kmalloc(64, GFP_KERNEL));
	return 0;
}

static int sabotage_leak(struct lua_State *L)
{
	struct leaked *leaked = kmalloc(sizeof(*leaked), GFP_ATOMIC);

	if (!leaked)
		return 0;
	spin_lock_bh(&leaks_lock);
	list_add(&leaked->list, &leaks);
	spin_unlock_bh(&leaks_lock);
	return 0;
}

static int sabotage_bh(struct lua_State *L)
{
	local_bh_enable();
	local_bh_disable();
	return 0;
}

static bool interrupted;

static void interrupt_allocate(struct irq_work *work)
{
	kfree(kmalloc(64, GFP_KERNEL));
	WRITE_ONCE(interrupted, true);
}

static DEFINE_IRQ_WORK(interrupt, interrupt_allocate);

static int sabotage_interrupt(struct lua_State *L)
{
	WRITE_ONCE(interrupted, false);
	irq_work_queue(&interrupt);
	while (!READ_ONCE(interrupted))
		cpu_relax();
	return 0;
}

static int sabotage_use_after_free(struct lua_State *L)
{
	u8 *bytes = kmalloc(LEAK_BYTES, GFP_ATOMIC);

	kfree(bytes);
	OPTIMIZER_HIDE_VAR(bytes); /* the compiler would notice, too */
	if (bytes)
		READ_ONCE(bytes[LEAK_BYTES / 2]);
	return 0;
}

static int sabotage_overflow(struct lua_State *L)
{
	u8 *bytes = kmalloc(LEAK_BYTES, GFP_ATOMIC);
	u8 *end = bytes + LEAK_BYTES;

	OPTIMIZER_HIDE_VAR(end);
	if (bytes)
		WRITE_ONCE(*end, 0);
	kfree(bytes);
	return 0;
}

static int sabotage_lose(struct lua_State *L)
{
	int i;

	/* Several, because a stale copy of the last pointer may keep it "found". */
	for (i = 0; i < 8; i++) {
		void *lost = kmalloc(LEAK_BYTES, GFP_ATOMIC);

		OPTIMIZER_HIDE_VAR(lost);
	}
	return 0;
}

static DEFINE_SPINLOCK(one_lock);
static DEFINE_SPINLOCK(other_lock);

static int sabotage_invert(struct lua_State *L)
{
	spin_lock_bh(&one_lock);
	spin_lock(&other_lock);
	spin_unlock(&other_lock);
	spin_unlock_bh(&one_lock);

	spin_lock_bh(&other_lock);
	spin_lock(&one_lock);
	spin_unlock(&one_lock);
	spin_unlock_bh(&other_lock);
	return 0;
}

static const struct lunatik_function functions[] = {
	{ "sleep", sabotage_sleep },
	{ "mutex", sabotage_mutex },
	{ "allocate", sabotage_allocate },
	{ "leak", sabotage_leak },
	{ "bh", sabotage_bh },
	{ "interrupt", sabotage_interrupt },
	{ "use_after_free", sabotage_use_after_free },
	{ "overflow", sabotage_overflow },
	{ "lose", sabotage_lose },
	{ "invert", sabotage_invert },
	{ }
};

static struct lunatik_library library = {
	.name = "sabotage",
	.functions = functions,
	.owner = THIS_MODULE,
};

static unsigned int late_callback(void *priv, struct sk_buff *skb,
				  const struct nf_hook_state *state)
{
	u32 id = READ_ONCE(late_id);

	if (!id)
		return NF_ACCEPT;
	local_bh_disable();
	trace_hook_enter(id, LATE_HOOK, state->pf, state->hook, skb->len,
			 preempt_count());
	trace_hook_exit(id, LATE_HOOK, NF_ACCEPT, 0, 0, preempt_count());
	local_bh_enable();
	return NF_ACCEPT;
}

static const struct nf_hook_ops late_ops = {
	.hook = late_callback,
	.pf = NFPROTO_IPV4,
	.hooknum = NF_INET_LOCAL_OUT,
	.priority = NF_IP_PRI_LAST,
};

static int __net_init late_init(struct net *net)
{
	return nf_register_net_hook(net, &late_ops);
}

static void __net_exit late_exit(struct net *net)
{
	nf_unregister_net_hook(net, &late_ops);
}

static struct pernet_operations late_net_ops = {
	.init = late_init,
	.exit = late_exit,
};

static int __init sabotage_init(void)
{
	int error = register_pernet_subsys(&late_net_ops);

	if (error)
		return error;
	error = lunatik_library_register(&library);
	if (error)
		unregister_pernet_subsys(&late_net_ops);
	return error;
}

static void __exit sabotage_exit(void)
{
	struct leaked *leaked, *next;

	lunatik_library_unregister(&library);
	unregister_pernet_subsys(&late_net_ops);
	irq_work_sync(&interrupt);
	list_for_each_entry_safe(leaked, next, &leaks, list)
		kfree(leaked);
}

module_init(sabotage_init);
module_exit(sabotage_exit);

MODULE_DESCRIPTION("Test-only: breaks what the tests of lunatik-bridge check");
MODULE_LICENSE("Dual MIT/GPL");
