// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Adding up the counters of slots, and reading them all in one dump.
 */
#include <linux/kstrtox.h>
#include <linux/moduleparam.h>
#include <linux/sysfs.h>
#include <net/genetlink.h>

#include "control.h"
#include "hook.h"
#include "runtime.h"
#include "statistics.h"

DEFINE_STATIC_KEY_FALSE(lunatik_timing);

static int timing_set(const char *text, const struct kernel_param *param)
{
	bool on;
	int errno = kstrtobool(text, &on);

	if (errno)
		return errno;
	if (on)
		static_branch_enable(&lunatik_timing);
	else
		static_branch_disable(&lunatik_timing);
	return 0;
}

static int timing_get(char *text, const struct kernel_param *param)
{
	return sysfs_emit(text, "%c\n", lunatik_is_timing() ? 'Y' : 'N');
}

static const struct kernel_param_ops timing_ops = {
	.set = timing_set,
	.get = timing_get,
};

module_param_cb(timing, &timing_ops, NULL, 0644);
MODULE_PARM_DESC(timing, "take the time of every callback, which reads the clock twice (default N)");

/**
 * lunatik_statistics_add() - add counters up
 * @sum: what they are added to
 * @part: may be counting on meanwhile
 *
 * Context: any.
 */
void lunatik_statistics_add(struct lunatik_statistics *sum,
			    const struct lunatik_statistics *part)
{
	const u64 *from = (const u64 *)part;
	u64 *to = (u64 *)sum;
	size_t i;

	for (i = 0; i < sizeof(*sum) / sizeof(u64); i++)
		to[i] += READ_ONCE(from[i]);
}

/**
 * lunatik_statistics_packets() - how many packets there were
 * @statistics: of a slot, or of several
 *
 * Return: that number.
 */
u64 lunatik_statistics_packets(const struct lunatik_statistics *statistics)
{
	u64 packets = 0;
	unsigned int i;

	for (i = 0; i < LUNATIK_VERDICTS; i++)
		packets += statistics->verdict[i];
	return packets;
}

/* The dump */

static int put_u64(struct sk_buff *msg, int attr, u64 value)
{
	return nla_put_u64_64bit(msg, attr, value, LUNATIK_A_PAD);
}

static int put_histogram(struct sk_buff *msg,
			 const struct lunatik_statistics *statistics)
{
	struct nlattr *nest;
	unsigned int i;

	if (!statistics->time_ns)
		return 0;
	if (put_u64(msg, LUNATIK_A_TIME, statistics->time_ns))
		return -EMSGSIZE;
	nest = nla_nest_start(msg, LUNATIK_A_HISTOGRAM);
	if (!nest)
		return -EMSGSIZE;
	for (i = 0; i < LUNATIK_BUCKETS; i++)
		if (put_u64(msg, LUNATIK_A_BUCKET, statistics->histogram[i]))
			return -EMSGSIZE;
	nla_nest_end(msg, nest);
	return 0;
}

static int put_statistics(struct sk_buff *msg,
			  const struct lunatik_statistics *statistics)
{
	if (put_u64(msg, LUNATIK_A_PACKETS,
		    lunatik_statistics_packets(statistics)) ||
	    put_u64(msg, LUNATIK_A_ACCEPTED, statistics->verdict[NF_ACCEPT]) ||
	    put_u64(msg, LUNATIK_A_DROPPED, statistics->verdict[NF_DROP]) ||
	    put_u64(msg, LUNATIK_A_QUEUED, statistics->verdict[NF_QUEUE]) ||
	    put_u64(msg, LUNATIK_A_ERRORS, statistics->errors) ||
	    put_u64(msg, LUNATIK_A_BUDGET_HITS, statistics->budget_hits) ||
	    put_u64(msg, LUNATIK_A_REENTERED, statistics->reentered))
		return -EMSGSIZE;
	return put_histogram(msg, statistics);
}

static int put_place(struct sk_buff *msg, const struct lunatik_place *place)
{
	if (nla_put_u32(msg, LUNATIK_A_PF, place->pf) ||
	    nla_put_u32(msg, LUNATIK_A_HOOKNUM, place->hooknum) ||
	    nla_put_s32(msg, LUNATIK_A_PRIORITY, place->priority))
		return -EMSGSIZE;
	if (place->ifindex &&
	    nla_put_u32(msg, LUNATIK_A_IFINDEX, place->ifindex))
		return -EMSGSIZE;
	if (place->match_mark && nla_put_u32(msg, LUNATIK_A_MARK, place->mark))
		return -EMSGSIZE;
	return 0;
}

/* One of the hooks that run at a slot, or NULL. The slots are locked. */
static const struct lunatik_hook *hook_at(const struct lunatik_slot *slot)
{
	const struct lunatik_hook *hook = NULL;
	unsigned int i;

	for (i = 0; i < lunatik_runtime_width(slot->runtime) && !hook; i++)
		hook = rcu_dereference_protected(slot->hook[i].now, true);
	return hook;
}

static int put_slot(struct sk_buff *msg, const struct lunatik_slot *slot,
		    const struct lunatik_hook *hook)
{
	struct lunatik_statistics sum = {};
	unsigned int i;

	for (i = 0; i < lunatik_runtime_width(slot->runtime); i++)
		lunatik_statistics_add(&sum, &slot->hook[i].statistics);
	if (nla_put_u32(msg, LUNATIK_A_ID, slot->runtime->id) ||
	    nla_put_string(msg, LUNATIK_A_NAME,
			   lunatik_runtime_name(slot->runtime).text) ||
	    nla_put_u32(msg, LUNATIK_A_HOOK, slot->number) ||
	    nla_put_u32(msg, LUNATIK_A_ONERROR, hook->on_error))
		return -EMSGSIZE;
	return put_place(msg, &slot->place) ?: put_statistics(msg, &sum);
}

static int dump_slot(struct sk_buff *msg, struct netlink_callback *cb,
		     const struct lunatik_slot *slot,
		     const struct lunatik_hook *hook)
{
	void *header = genlmsg_put(msg, NETLINK_CB(cb->skb).portid,
				   cb->nlh->nlmsg_seq, &lunatik_family,
				   NLM_F_MULTI, LUNATIK_CMD_HOOK_GET);

	if (!header)
		return -EMSGSIZE;
	if (put_slot(msg, slot, hook)) {
		genlmsg_cancel(msg, header);
		return -EMSGSIZE;
	}
	genlmsg_end(msg, header);
	return 0;
}

/**
 * struct cursor - how far a dump has come; kept in the callback's args
 * @done: runtime that all was told of, or 0
 * @runtime: the one being told of
 * @slot: its slot that was told of last; their numbers ascend
 */
struct cursor {
	long done;
	long runtime;
	long slot;
};

static int dump_runtime(struct sk_buff *msg, struct netlink_callback *cb,
			struct lunatik_runtime *rt)
{
	struct cursor *cursor = (struct cursor *)cb->args;
	const struct lunatik_hook *hook;
	struct lunatik_slot *slot;
	int errno = 0;

	if (cursor->runtime != rt->id) {
		cursor->runtime = rt->id;
		cursor->slot = 0;
	}
	mutex_lock(&rt->slots_lock);
	list_for_each_entry(slot, &rt->slots, list) {
		hook = slot->number > cursor->slot ? hook_at(slot) : NULL;
		if (!hook)
			continue;
		errno = dump_slot(msg, cb, slot, hook);
		if (errno)
			break;
		cursor->slot = slot->number;
	}
	mutex_unlock(&rt->slots_lock);
	return errno;
}

static int dump_one(struct sk_buff *msg, struct netlink_callback *cb, u32 id)
{
	struct cursor *cursor = (struct cursor *)cb->args;
	struct lunatik_runtime *rt = lunatik_runtime_find(id);

	if (!rt && !cursor->runtime) {
		NL_SET_ERR_MSG(cb->extack, "no runtime has that number");
		return -ESRCH;
	}
	if (rt) {
		dump_runtime(msg, cb, rt);
		lunatik_runtime_put(rt);
	}
	return msg->len;
}

/**
 * lunatik_statistics_dump() - tell of the hooks of one runtime, or of all
 * @msg: to fill
 * @cb: the request, and how far we have come
 *
 * Context: process, may sleep.
 * Return: bytes in @msg, 0 at the end, or a negative errno.
 */
int lunatik_statistics_dump(struct sk_buff *msg, struct netlink_callback *cb)
{
	struct nlattr *only = nlmsg_find_attr(cb->nlh, GENL_HDRLEN, LUNATIK_A_ID);
	struct cursor *cursor = (struct cursor *)cb->args;
	struct lunatik_runtime *rt;
	int errno;
	u32 id;

	BUILD_BUG_ON(sizeof(*cursor) > sizeof(cb->args));
	errno = lunatik_control_capable(cb->skb, cb->extack);
	if (errno)
		return errno;
	if (only)
		return dump_one(msg, cb, nla_get_u32(only));
	id = cursor->done;
	while ((rt = lunatik_runtime_next(&id))) {
		errno = dump_runtime(msg, cb, rt);
		lunatik_runtime_put(rt);
		if (errno)
			break;
		cursor->done = id;
	}
	return msg->len;
}
