// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Events, see event.h.
 *
 * Every network namespace of the initial user namespace hears of every runtime: its
 * listeners may read the same by requests. In others the right to listen means less,
 * so nothing is sent there.
 */
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/sched.h>
#include <linux/skbuff.h>
#include <linux/user_namespace.h>
#include <linux/workqueue.h>
#include <net/genetlink.h>
#include <net/net_namespace.h>

#include "control.h"
#include "event.h"
#include "memory.h"
#include "runtime.h"

/* What any event takes, with the longest name and message. */
#define EVENT_SIZE		(GENL_HDRLEN + LUNATIK_NAME_MAX + \
				 LUNATIK_MESSAGE_MAX + 160)
/* Events in line, before more are lost. */
#define EVENTS_IN_LINE		1024
/* Failures a second that a runtime tells of. */
#define FAILURES_TOLD		10

static void event_work(struct work_struct *work);

static struct sk_buff_head line = {
	.next = (struct sk_buff *)&line,
	.prev = (struct sk_buff *)&line,
	.lock = __SPIN_LOCK_UNLOCKED(line.lock),
};
static DECLARE_WORK(sending, event_work);
static bool lost;
static DEFINE_SPINLOCK(limit_lock);

/* Sending */

static bool may_hear(const struct net *net)
{
	return net->user_ns == &init_user_ns;
}

static void event_send(struct sk_buff *msg)
{
	struct sk_buff *copy;
	struct net *net;

	rcu_read_lock();
	for_each_net_rcu(net) {
		if (!may_hear(net))
			continue;
		copy = lunatik_memory_fails() ? NULL :
			skb_clone(msg, GFP_ATOMIC | __GFP_NOWARN);
		if (copy)
			genlmsg_multicast_netns(&lunatik_family, net, copy, 0,
						LUNATIK_EVENTS, GFP_ATOMIC);
		else
			WRITE_ONCE(lost, true);
	}
	rcu_read_unlock();
	consume_skb(msg);
}

/* Listeners learn of what is lost as of what overflows their own buffers. */
static void tell_of_loss(void)
{
	struct net *net;

	rcu_read_lock();
	for_each_net_rcu(net)
		if (may_hear(net))
			genl_set_err(&lunatik_family, net, 0, LUNATIK_EVENTS,
				     -ENOBUFS);
	rcu_read_unlock();
}

static void event_work(struct work_struct *work)
{
	struct sk_buff *msg;

	while ((msg = skb_dequeue(&line))) {
		event_send(msg);
		cond_resched();
	}
	if (xchg(&lost, false))
		tell_of_loss();
}

/**
 * lunatik_event_flush() - send what is in line
 *
 * Context: process, may sleep; nothing is posted any more.
 */
void lunatik_event_flush(void)
{
	flush_work(&sending);
}

/* Posting */

static bool anybody_listens(void)
{
	/* told of all network namespaces at once */
	return genl_has_listeners(&lunatik_family, &init_net, LUNATIK_EVENTS);
}

static struct sk_buff *event_alloc(void)
{
	if (skb_queue_len_lockless(&line) >= EVENTS_IN_LINE)
		return NULL;
	return lunatik_memory_fails() ? NULL :
		genlmsg_new(EVENT_SIZE, GFP_ATOMIC | __GFP_NOWARN);
}

/* An event with what all events have, or NULL where it is not to be told. */
static struct sk_buff *event_begin(const struct lunatik_runtime *rt,
				   enum lunatik_event event)
{
	struct sk_buff *msg;

	if (!anybody_listens())
		return NULL;
	msg = event_alloc();
	if (!msg) {
		WRITE_ONCE(lost, true);
		schedule_work(&sending);
		return NULL;
	}
	genlmsg_put(msg, 0, 0, &lunatik_family, 0, LUNATIK_CMD_EVENT);
	nla_put_u32(msg, LUNATIK_A_EVENT, event);
	nla_put_u64_64bit(msg, LUNATIK_A_WHEN, ktime_get_ns(), LUNATIK_A_PAD);
	nla_put_u32(msg, LUNATIK_A_ID, rt->id);
	nla_put_string(msg, LUNATIK_A_NAME, lunatik_runtime_name(rt).text);
	return msg;
}

/* What EVENT_SIZE has room for is in the message, so no attribute failed. */
static void event_end(struct sk_buff *msg)
{
	nlmsg_end(msg, nlmsg_hdr(msg));
	skb_queue_tail(&line, msg);
	schedule_work(&sending);
}

/**
 * lunatik_event_created() - a runtime has its number; its body has not run yet
 * @rt: runtime
 *
 * Context: any, as with all events.
 */
void lunatik_event_created(const struct lunatik_runtime *rt)
{
	struct sk_buff *msg = event_begin(rt, LUNATIK_EVENT_CREATED);

	if (!msg)
		return;
	nla_put_u8(msg, LUNATIK_A_SLEEP, rt->sleep);
	nla_put_u8(msg, LUNATIK_A_PERCPU, rt->percpu);
	nla_put_u32(msg, LUNATIK_A_NETNS_INO, READ_ONCE(rt->netns));
	event_end(msg);
}

/**
 * lunatik_event_armed() - the body has run, and hooks come into force
 * @rt: runtime
 * @hooks: how many
 */
void lunatik_event_armed(const struct lunatik_runtime *rt, u32 hooks)
{
	struct sk_buff *msg = event_begin(rt, LUNATIK_EVENT_ARMED);

	if (!msg)
		return;
	nla_put_u32(msg, LUNATIK_A_HOOKS, hooks);
	event_end(msg);
}

/**
 * lunatik_event_resumed() - somebody resumes the body
 * @rt: runtime
 */
void lunatik_event_resumed(const struct lunatik_runtime *rt)
{
	struct sk_buff *msg = event_begin(rt, LUNATIK_EVENT_RESUMED);

	if (msg)
		event_end(msg);
}

/**
 * lunatik_event_yielded() - the resumed body gave control back
 * @rt: runtime
 * @outcome: how
 */
void lunatik_event_yielded(const struct lunatik_runtime *rt,
			   enum lunatik_outcome outcome)
{
	struct sk_buff *msg = event_begin(rt, LUNATIK_EVENT_YIELDED);

	if (!msg)
		return;
	nla_put_u32(msg, LUNATIK_A_OUTCOME, outcome);
	event_end(msg);
}

/**
 * lunatik_event_replaced() - another script has taken over
 * @rt: runtime; its life lock is held
 */
void lunatik_event_replaced(const struct lunatik_runtime *rt)
{
	struct sk_buff *msg = event_begin(rt, LUNATIK_EVENT_REPLACED);

	if (!msg)
		return;
	nla_put_u32(msg, LUNATIK_A_GENERATION, rt->generation);
	nla_put_u32(msg, LUNATIK_A_HOOKS, READ_ONCE(rt->slot_count));
	event_end(msg);
}

/* Whether a failure may be told of; if so, how many were not since the last. */
static bool failure_passes(struct lunatik_event_limit *limit, u32 *suppressed)
{
	bool passes;

	spin_lock_bh(&limit_lock);
	if (!limit->told || time_after(jiffies, limit->begin + HZ)) {
		limit->begin = jiffies;
		limit->told = 0;
	}
	passes = limit->told < FAILURES_TOLD;
	if (passes) {
		limit->told++;
		*suppressed = limit->suppressed;
		limit->suppressed = 0;
	} else {
		limit->suppressed++;
	}
	spin_unlock_bh(&limit_lock);
	return passes;
}

/* The beginning of a message, with an end. */
static void put_message(struct sk_buff *msg, const char *message)
{
	size_t len = strnlen(message, LUNATIK_MESSAGE_MAX - 1);
	struct nlattr *attr = nla_reserve(msg, LUNATIK_A_MESSAGE, len + 1);

	if (attr)
		strscpy(nla_data(attr), message, len + 1);
}

/**
 * lunatik_event_failed() - a callback or the body failed
 * @rt: runtime
 * @hook: number of the slot whose callback it was, or 0 for the body
 * @message: what Lua said
 * @exceeded: it ran too long
 *
 * Of very many in a short time only the first are told, and how many there were.
 */
void lunatik_event_failed(struct lunatik_runtime *rt, u32 hook,
			  const char *message, bool exceeded)
{
	struct sk_buff *msg;
	u32 suppressed;

	if (!anybody_listens() ||
	    !failure_passes(&rt->event_limit, &suppressed))
		return;
	msg = event_begin(rt, exceeded ? LUNATIK_EVENT_BUDGET :
			  LUNATIK_EVENT_ERROR);
	if (!msg)
		return;
	nla_put_u32(msg, LUNATIK_A_HOOK, hook);
	put_message(msg, message);
	nla_put_u32(msg, LUNATIK_A_SUPPRESSED, suppressed);
	event_end(msg);
}

/**
 * lunatik_event_broken() - callbacks have failed too often in a row
 * @rt: runtime
 * @hook: number of the slot of the last one
 */
void lunatik_event_broken(const struct lunatik_runtime *rt, u32 hook)
{
	struct sk_buff *msg = event_begin(rt, LUNATIK_EVENT_BROKEN);

	if (!msg)
		return;
	nla_put_u32(msg, LUNATIK_A_HOOK, hook);
	nla_put_u32(msg, LUNATIK_A_BREAKER, rt->breaker);
	event_end(msg);
}

/**
 * lunatik_event_stopped() - a runtime is closed
 * @rt: runtime
 * @reason: why
 */
void lunatik_event_stopped(struct lunatik_runtime *rt,
			   enum lunatik_stop_reason reason)
{
	struct sk_buff *msg = event_begin(rt, LUNATIK_EVENT_STOPPED);

	if (!msg)
		return;
	nla_put_u32(msg, LUNATIK_A_REASON, reason);
	nla_put_u32(msg, LUNATIK_A_SUPPRESSED, rt->event_limit.suppressed);
	event_end(msg);
}
