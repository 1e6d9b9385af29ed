/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * A runtime: what user space knows by a number. It runs a script in one instance,
 * or in one per CPU, and owns the slots its hooks occupy in Netfilter.
 *
 * Lifetime. A reference (lunatik_runtime_get/put) keeps the structure. A runtime
 * that is not stopped is on the list of runtimes and holds a reference to the
 * module; its instances live until it is stopped or its script replaced.
 *
 * Locks, outermost first:
 *	life	 mutex; stopping and replacing
 *	rtnl	 where a hook is at a device
 *	slots_lock  mutex; the list of slots
 *	the locks of instances, see instance.h
 *	lock	 spinlock, bottom halves off; which instances there are
 *	texts	 seqlock; what is told of in any context while it changes
 * A task that already runs in a runtime only ever tries the locks of another one,
 * so no cycle of runtimes can deadlock.
 */
#ifndef _LUNATIK_RUNTIME_H
#define _LUNATIK_RUNTIME_H

#include <linux/atomic.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/seqlock.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <net/net_namespace.h>

#include "event.h"
#include "instance.h"
#include "statistics.h"
#include "uapi/lunatik.h"
#include "value.h"

#define LUNATIK_NAME_MAX	64
#define LUNATIK_MESSAGE_MAX	192

/**
 * struct lunatik_name - copy of a runtime's name
 * @text: the name
 */
struct lunatik_name {
	char text[LUNATIK_NAME_MAX];
};

/**
 * struct lunatik_message - copy of a failure's message
 * @text: the beginning of the message, or nothing
 */
struct lunatik_message {
	char text[LUNATIK_MESSAGE_MAX];
};

/**
 * struct lunatik_runtime - see the top of this file
 * @id: number for user space
 * @sleep: sleepable
 * @percpu: has an instance per possible CPU, else one
 * @breaker: callbacks that may fail in a row in one instance, or 0
 * @stopped: written under @life, read anywhere
 * @stopping: how many wait for the runtime to end, which ends the waits of its script
 * @generation: scripts it has run, this one included
 * @life: see Locks
 * @net: namespace of the hooks, not counted; valid until its exit stops us
 * @netns: its inode number
 * @slots_lock: see Locks
 * @slots: struct lunatik_slot
 * @slot_count: length of @slots
 * @past: counters of slots that are no more; protected by @slots_lock
 * @slots_rtnl: whoever holds @slots_lock holds the rtnl too
 * @event_limit: of the failures that events tell of
 * @texts: see Locks; protects @name and @last_error
 * @name: of the script
 * @last_error: message of the latest failure
 * @refs: references
 * @stop_work: stops a runtime that its owner's collector met at work
 * @break_work: stops a runtime whose callbacks failed too often
 * @prune_work: takes slots that no hook uses out of Netfilter
 * @lock: see Locks; protects @instance
 * @instance: by CPU where there are several; NULL when stopped
 */
struct lunatik_runtime {
	u32 id;
	bool sleep;
	bool percpu;
	bool stopped;
	u32 breaker;
	atomic_t stopping;
	u32 generation;
	struct mutex life;
	struct net *net;
	u32 netns;
	struct mutex slots_lock;
	struct list_head slots;
	u32 slot_count;
	struct lunatik_statistics past;
	bool slots_rtnl;
	struct lunatik_event_limit event_limit;
	seqlock_t texts;
	struct lunatik_name name;
	struct lunatik_message last_error;
	struct kref refs;
	struct work_struct stop_work;
	struct work_struct break_work;
	struct work_struct prune_work;
	spinlock_t lock;
	struct lunatik_instance *instance[];
};

/**
 * struct lunatik_spec - what to create, or to replace a script with
 * @name: script below the Lua root, or name of @source in messages
 * @source: text of the script, or NULL to read it from the Lua root
 * @source_len: its length in bytes
 * @sleep: sleepable
 * @percpu: an instance per CPU; not with @sleep
 * @breaker: callbacks that may fail in a row, or 0; not with @sleep
 * @net: namespace; the caller holds a reference during the call
 * @outer: instance whose script asks for it, or NULL
 */
struct lunatik_spec {
	const char *name;
	const char *source;
	size_t source_len;
	bool sleep;
	bool percpu;
	u32 breaker;
	struct net *net;
	struct lunatik_instance *outer;
};

/**
 * struct lunatik_sum - what the instances of a runtime amount to
 * @state: enum lunatik_state of the first one's body
 * @memory: bytes they hold
 * @memory_limit: bytes each of them may hold
 * @budget: Lua instructions a call from atomic context may run
 * @calls: callbacks run
 * @errors: callbacks that failed
 */
struct lunatik_sum {
	enum lunatik_state state;
	u64 memory;
	u64 memory_limit;
	u64 budget;
	u64 calls;
	u64 errors;
};

/* How many instances a runtime has. */
static inline unsigned int
lunatik_runtime_width(const struct lunatik_runtime *rt)
{
	return rt->percpu ? nr_cpu_ids : 1;
}

/* Woken when a runtime is about to be stopped. */
extern wait_queue_head_t lunatik_stopping;

/* Whether a script is to end its wait, because it or one that has called it is stopped. */
static inline bool
lunatik_instance_is_stopping(const struct lunatik_instance *instance)
{
	for (; instance; instance = instance->caller)
		if (atomic_read(&instance->runtime->stopping))
			return true;
	return false;
}

struct lunatik_runtime *lunatik_runtime_create(const struct lunatik_spec *spec,
					       struct lunatik_error *error);
int lunatik_runtime_resume(struct lunatik_runtime *rt,
			   struct lunatik_instance *outer,
			   const struct lunatik_values *args,
			   struct lunatik_values **results,
			   struct lunatik_error *error);
int lunatik_runtime_replace(struct lunatik_runtime *rt,
			    const struct lunatik_spec *spec,
			    struct lunatik_error *error);
int lunatik_runtime_stop(struct lunatik_runtime *rt, bool nested,
			 enum lunatik_stop_reason reason,
			 struct lunatik_error *error);
void lunatik_runtime_collect(struct lunatik_runtime *rt);
void lunatik_runtime_break(struct lunatik_runtime *rt);
void lunatik_runtime_prune(struct lunatik_runtime *rt);
void lunatik_runtime_sum(struct lunatik_runtime *rt, struct lunatik_sum *sum);
struct lunatik_name lunatik_runtime_name(const struct lunatik_runtime *rt);
struct lunatik_message
lunatik_runtime_last_error(const struct lunatik_runtime *rt);
void lunatik_runtime_keep_error(struct lunatik_runtime *rt, const char *message);

struct lunatik_runtime *lunatik_runtime_find(u32 id);
struct lunatik_runtime *lunatik_runtime_next(u32 *id);
u32 lunatik_runtime_count(void);
void lunatik_runtime_stop_netns(struct net *net);
void lunatik_runtime_put(struct lunatik_runtime *rt);

int lunatik_runtime_init(void);
void lunatik_runtime_exit(void);

#endif /* _LUNATIK_RUNTIME_H */
