// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Slots: the registrations of a runtime with Netfilter, and how one script's hooks
 * take over those of another; see hook.h.
 */
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <net/net_namespace.h>

#include "hook.h"
#include "memory.h"
#include "runtime.h"

static atomic_t last_number = ATOMIC_INIT(0);

static bool same_place(const struct lunatik_place *a,
		       const struct lunatik_place *b)
{
	return a->pf == b->pf && a->hooknum == b->hooknum &&
		a->priority == b->priority && a->ifindex == b->ifindex &&
		a->match_mark == b->match_mark && a->mark == b->mark;
}

static bool have_device(struct lunatik_runtime *rt,
			struct lunatik_instance **instance)
{
	const struct lunatik_hook *hook;
	unsigned int i;

	for (i = 0; i < lunatik_runtime_width(rt); i++) {
		if (!instance[i])
			continue;
		list_for_each_entry(hook, &instance[i]->hooks, list)
			if (hook->place.ifindex)
				return true;
	}
	return false;
}

/* With Netfilter */

static int slot_register(struct lunatik_slot *slot, struct lunatik_error *error)
{
	struct lunatik_runtime *rt = slot->runtime;
	int errno;

	if (slot->place.ifindex) {
		slot->ops.dev = __dev_get_by_index(rt->net, slot->place.ifindex);
		if (!slot->ops.dev || slot->ops.dev->reg_state != NETREG_REGISTERED)
			return lunatik_error_set(error, GFP_KERNEL, -ENODEV,
						 "cannot register a hook: the device %d is gone",
						 slot->place.ifindex);
	}
	errno = lunatik_memory_fails() ? -ENOMEM :
		nf_register_net_hook(rt->net, &slot->ops);
	if (errno)
		return lunatik_error_set(error, GFP_KERNEL, errno,
					 "cannot register a hook (pf %u, hooknum %u, priority %d): errno %d",
					 slot->ops.pf, slot->ops.hooknum,
					 slot->ops.priority, -errno);
	slot->registered = true;
	return 0;
}

static bool slot_unregister(struct lunatik_slot *slot)
{
	bool was = slot->registered;

	if (was)
		nf_unregister_net_hook(slot->runtime->net, &slot->ops);
	slot->registered = false;
	return was;
}

static bool slot_is_idle(const struct lunatik_slot *slot)
{
	unsigned int i;

	for (i = 0; i < lunatik_runtime_width(slot->runtime); i++)
		if (rcu_access_pointer(slot->hook[i].now))
			return false;
	return true;
}

static void slot_add_up(const struct lunatik_slot *slot,
			struct lunatik_statistics *sum)
{
	unsigned int i;

	for (i = 0; i < lunatik_runtime_width(slot->runtime); i++)
		lunatik_statistics_add(sum, &slot->hook[i].statistics);
}

/* Take the slots that no hook uses out of Netfilter, and free them. */
static void slots_drop_idle(struct lunatik_runtime *rt)
{
	struct lunatik_slot *slot, *next;
	LIST_HEAD(idle);
	bool any = false;

	list_for_each_entry_safe(slot, next, &rt->slots, list) {
		if (!slot_is_idle(slot))
			continue;
		any |= slot_unregister(slot);
		list_move(&slot->list, &idle);
		rt->slot_count--;
	}
	if (any)
		synchronize_net();
	list_for_each_entry_safe(slot, next, &idle, list) {
		slot_add_up(slot, &rt->past);
		kvfree(slot);
	}
}

/* Taking a script into service */

static struct lunatik_slot *slot_add(struct lunatik_runtime *rt,
				     const struct lunatik_place *place)
{
	struct lunatik_slot *slot;

	slot = lunatik_kvzalloc(struct_size(slot, hook, lunatik_runtime_width(rt)),
				GFP_KERNEL);
	if (!slot)
		return NULL;
	slot->place = *place;
	slot->runtime = rt;
	slot->number = atomic_inc_return(&last_number);
	slot->ops.hook = lunatik_hook_nf;
	slot->ops.priv = slot;
	slot->ops.pf = place->pf;
	slot->ops.hooknum = place->hooknum;
	slot->ops.priority = place->priority;
	list_add_tail(&slot->list, &rt->slots);
	rt->slot_count++;
	return slot;
}

/* The slot for a hook of instance @i: one at its place that has none coming yet. */
static struct lunatik_slot *slot_for(struct lunatik_runtime *rt, unsigned int i,
				     const struct lunatik_place *place)
{
	struct lunatik_slot *slot;

	list_for_each_entry(slot, &rt->slots, list)
		if (!slot->hook[i].next && same_place(&slot->place, place))
			return slot;
	return slot_add(rt, place);
}

static int plan_instance(struct lunatik_runtime *rt, unsigned int i,
			 struct lunatik_instance *instance,
			 struct lunatik_error *error)
{
	struct lunatik_hook *hook;

	list_for_each_entry(hook, &instance->hooks, list) {
		struct lunatik_slot *slot;

		if (hook->off)
			continue;
		slot = slot_for(rt, i, &hook->place);
		if (!slot)
			return lunatik_error_set(error, GFP_KERNEL, -ENOMEM,
						 "not enough memory");
		slot->hook[i].next = hook;
		hook->slot = slot;
		hook->index = i;
	}
	return 0;
}

static int plan(struct lunatik_runtime *rt, struct lunatik_instance **instance,
		struct lunatik_error *error)
{
	unsigned int i;
	int errno = 0;

	for (i = 0; i < lunatik_runtime_width(rt) && !errno; i++)
		if (instance[i])
			errno = plan_instance(rt, i, instance[i], error);
	return errno;
}

/*
 * Put the new slots in force: first with Netfilter, where any of them may fail, and
 * only then with their hooks.
 */
static int begin(struct lunatik_runtime *rt, struct lunatik_error *error)
{
	bool fresh = false, stale = false;
	struct lunatik_slot *slot;
	unsigned int i;
	int errno;

	list_for_each_entry(slot, &rt->slots, list) {
		if (slot->registered)
			continue;
		errno = slot_register(slot, error);
		if (errno)
			return errno;
		slot->fresh = true;
	}
	list_for_each_entry(slot, &rt->slots, list) {
		fresh |= slot->fresh;
		for (i = 0; i < lunatik_runtime_width(rt); i++) {
			struct lunatik_hook *hook = slot->hook[i].next;

			if (slot->fresh)
				rcu_assign_pointer(slot->hook[i].now, hook);
			stale |= !hook && rcu_access_pointer(slot->hook[i].now);
		}
	}
	/* A packet that has passed a new hook too early meets the old ones still. */
	if (fresh && stale)
		synchronize_net();
	return 0;
}

/**
 * lunatik_slots_prepare() - make room in Netfilter for the hooks of a script
 * @rt: runtime; its life lock is held
 * @instance: the script's, by CPU where there are several
 * @error: filled in on failure, after which nothing has changed
 *
 * Hooks at places that the script in charge has none at come into force. Locks the
 * slots until lunatik_slots_finish().
 *
 * Context: process, may sleep.
 * Return: 0 or a negative errno, with the slots not locked.
 */
int lunatik_slots_prepare(struct lunatik_runtime *rt,
			  struct lunatik_instance **instance,
			  struct lunatik_error *error)
{
	bool device;
	int errno;

	if (rt->sleep)
		return 0;
	/* Whoever registers at a device must know that it stays meanwhile. */
	device = have_device(rt, instance);
	if (device)
		rtnl_lock();
	mutex_lock(&rt->slots_lock);
	rt->slots_rtnl = device;
	errno = plan(rt, instance, error) ?: begin(rt, error);
	if (errno) {
		lunatik_slots_cancel(rt);
		lunatik_slots_finish(rt);
	}
	return errno;
}

/**
 * lunatik_slots_switch() - exchange the hooks in force with the prepared ones
 * @rt: runtime; its slots are locked
 * @i: number of the instance; that in charge and the new one are locked
 *
 * Called again, it undoes what it did.
 *
 * Context: any.
 */
void lunatik_slots_switch(struct lunatik_runtime *rt, unsigned int i)
{
	struct lunatik_slot *slot;

	list_for_each_entry(slot, &rt->slots, list) {
		struct lunatik_hook *now, *next = slot->hook[i].next;

		now = rcu_dereference_protected(slot->hook[i].now, true);
		if (next && next->off)
			next = NULL;
		rcu_assign_pointer(slot->hook[i].now, next);
		slot->hook[i].next = now;
	}
}

/**
 * lunatik_slots_cancel() - take back what lunatik_slots_prepare() put in force
 * @rt: runtime; its slots are locked
 *
 * Context: process.
 */
void lunatik_slots_cancel(struct lunatik_runtime *rt)
{
	struct lunatik_slot *slot;
	unsigned int i;

	list_for_each_entry(slot, &rt->slots, list)
		for (i = 0; slot->fresh && i < lunatik_runtime_width(rt); i++)
			RCU_INIT_POINTER(slot->hook[i].now, NULL);
}

/**
 * lunatik_slots_finish() - drop slots without a hook, and unlock
 * @rt: runtime; its slots are locked by lunatik_slots_prepare()
 *
 * Context: process, may sleep.
 */
void lunatik_slots_finish(struct lunatik_runtime *rt)
{
	struct lunatik_slot *slot;
	unsigned int i;
	bool device;

	if (rt->sleep)
		return;
	list_for_each_entry(slot, &rt->slots, list) {
		slot->fresh = false;
		for (i = 0; i < lunatik_runtime_width(rt); i++)
			slot->hook[i].next = NULL;
	}
	slots_drop_idle(rt);
	device = rt->slots_rtnl;
	mutex_unlock(&rt->slots_lock);
	if (device)
		rtnl_unlock();
}

/**
 * lunatik_slots_clear() - take a runtime's hooks out of force
 * @rt: runtime
 *
 * Returns when no callback runs any more.
 *
 * Context: process, may sleep.
 */
void lunatik_slots_clear(struct lunatik_runtime *rt)
{
	struct lunatik_slot *slot;
	unsigned int i;

	mutex_lock(&rt->slots_lock);
	list_for_each_entry(slot, &rt->slots, list)
		for (i = 0; i < lunatik_runtime_width(rt); i++)
			RCU_INIT_POINTER(slot->hook[i].now, NULL);
	slots_drop_idle(rt);
	mutex_unlock(&rt->slots_lock);
}

/**
 * lunatik_slots_prune() - take slots that no hook uses out of Netfilter
 * @rt: runtime; may be stopped
 *
 * Context: process, may sleep.
 */
void lunatik_slots_prune(struct lunatik_runtime *rt)
{
	mutex_lock(&rt->slots_lock);
	slots_drop_idle(rt);
	mutex_unlock(&rt->slots_lock);
}

/**
 * lunatik_slots_sum() - all that a runtime's hooks have counted
 * @rt: runtime
 * @sum: filled in; with what slots that are no more have counted
 *
 * Context: process, may sleep.
 */
void lunatik_slots_sum(struct lunatik_runtime *rt,
		       struct lunatik_statistics *sum)
{
	const struct lunatik_slot *slot;

	mutex_lock(&rt->slots_lock);
	*sum = rt->past;
	list_for_each_entry(slot, &rt->slots, list)
		slot_add_up(slot, sum);
	mutex_unlock(&rt->slots_lock);
}

/* Things that go away */

static void slot_lose_device(struct lunatik_slot *slot)
{
	struct lunatik_error none = {};
	struct lunatik_hook *hook;
	unsigned int i;

	for (i = 0; i < lunatik_runtime_width(slot->runtime); i++) {
		hook = rcu_dereference_protected(slot->hook[i].now, true);
		if (!hook)
			continue;
		lunatik_instance_lock(hook->instance, false, &none);
		lunatik_hook_unregister(hook);
		lunatik_instance_unlock(hook->instance);
	}
}

static void runtime_lose_device(struct lunatik_runtime *rt,
				const struct net_device *dev)
{
	struct lunatik_slot *slot;

	mutex_lock(&rt->slots_lock);
	list_for_each_entry(slot, &rt->slots, list)
		if (slot->ops.dev == dev)
			slot_lose_device(slot);
	slots_drop_idle(rt);
	mutex_unlock(&rt->slots_lock);
}

/* Netfilter does not unregister hooks at a device that goes away. */
static int device_event(struct notifier_block *nb, unsigned long event, void *data)
{
	const struct net_device *dev = netdev_notifier_info_to_dev(data);
	struct lunatik_runtime *rt;
	u32 id = 0;

	if (event != NETDEV_UNREGISTER)
		return NOTIFY_DONE;
	while ((rt = lunatik_runtime_next(&id))) {
		if (READ_ONCE(rt->net) == dev_net(dev))
			runtime_lose_device(rt, dev);
		lunatik_runtime_put(rt);
	}
	return NOTIFY_DONE;
}

static struct notifier_block device_notifier = {
	.notifier_call = device_event,
};

static void __net_exit slot_netns_exit(struct net *net)
{
	lunatik_runtime_stop_netns(net);
}

static struct pernet_operations slot_netns_ops = {
	.exit = slot_netns_exit,
};

int lunatik_slot_init(void)
{
	int errno;

	errno = lunatik_memory_fails() ? -ENOMEM :
		register_pernet_subsys(&slot_netns_ops);

	if (errno)
		return errno;
	errno = lunatik_memory_fails() ? -ENOMEM :
		register_netdevice_notifier(&device_notifier);
	if (errno)
		unregister_pernet_subsys(&slot_netns_ops);
	return errno;
}

void lunatik_slot_exit(void)
{
	unregister_netdevice_notifier(&device_notifier);
	unregister_pernet_subsys(&slot_netns_ops);
}
