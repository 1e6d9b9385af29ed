/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * A runtime: one isolated Lua state with its allocator, lock, limits and hooks.
 *
 * Lifetime. A reference (lunatik_runtime_get/put) keeps the structure, not the
 * Lua state. The state lives from lunatik_runtime_create() to
 * lunatik_runtime_stop(); whoever enters it holds the runtime's lock and has seen
 * that it is not stopped. A runtime that is not stopped is on the list of
 * runtimes and holds a reference to the module.
 *
 * Locks, outermost first:
 *	life	 mutex; arming and stopping
 *	mutex	 sleepable runtimes: whoever runs in the Lua state
 *	spinlock non-sleepable ones: the same, bottom halves off
 * The body of a runtime that is being created needs none of the last two, because
 * nobody else knows the runtime yet. A task that already runs in a runtime only
 * ever tries the locks of another one, so no cycle of runtimes can deadlock.
 */
#ifndef _LUNATIK_RUNTIME_H
#define _LUNATIK_RUNTIME_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/workqueue.h>
#include <net/net_namespace.h>

#include "lunatik.h"
#include "trace_enums.h"
#include "uapi/lunatik.h"
#include "value.h"

#include "lua.h"
#include "lauxlib.h"

#define LUNATIK_NAME_MAX	64
#define LUNATIK_MESSAGE_MAX	192

/**
 * struct lunatik_error - what became of a request, for whoever made it
 * @errno: negative errno
 * @text: message and traceback, kmalloc'ed, or NULL; see lunatik_error_free()
 */
struct lunatik_error {
	int errno;
	char *text;
};

__printf(4, 5)
int lunatik_error_set(struct lunatik_error *error, gfp_t gfp, int errno,
		      const char *fmt, ...);
void lunatik_error_free(struct lunatik_error *error);

/**
 * struct lunatik_runtime - see the top of this file
 * @limits: for luaconf.h; protected by the lock
 * @id: number for user space
 * @sleep: sleepable
 * @armed: the body has returned or yielded once and callbacks may run
 * @state: enum lunatik_state; written under the lock, read anywhere
 * @gfp: flags of every allocation of the Lua state
 * @memory: bytes the Lua state holds
 * @memory_limit: bytes it may hold
 * @budget: Lua instructions a call from atomic context may run
 * @trapped: the instructions of the running call are counted
 * @cpu_end: CPU time of the running task, in ns, that a call in process context ends at
 * @late: ticks of the watchdog that have seen the running call
 * @mutex: see Locks
 * @spinlock: see Locks
 * @life: see Locks
 * @owner: task that runs in a sleepable runtime
 * @owner_cpu: CPU that runs in a non-sleepable one, or -1
 * @outer: runtime that the watchdog of this CPU watched before
 * @L: main thread; callbacks run here
 * @body: thread of the script's body
 * @net: namespace of the hooks, not counted; valid until its exit stops us
 * @netns: its inode number
 * @hooks: struct lunatik_hook; changed while creating and when stopped only
 * @hook_count: length of @hooks
 * @handles: references to shared objects
 * @libraries: references to modules whose libraries are open
 * @calls: callbacks run
 * @errors: callbacks that failed
 * @last_error: message of the latest failure
 * @name: of the script
 * @refs: references
 * @stop_work: stops a runtime that its owner's collector met at work
 */
struct lunatik_runtime {
	struct lunatik_limits limits;
	u32 id;
	bool sleep;
	bool armed;
	u8 state;
	gfp_t gfp;
	size_t memory;
	size_t memory_limit;
	u32 budget;
	bool trapped;
	u16 late;
	u64 cpu_end;
	struct mutex mutex;
	spinlock_t spinlock;
	struct mutex life;
	struct task_struct *owner;
	int owner_cpu;
	struct lunatik_runtime *outer;
	lua_State *L;
	lua_State *body;
	struct net *net;
	u32 netns;
	struct list_head hooks;
	u32 hook_count;
	struct list_head handles;
	struct list_head libraries;
	u64 calls;
	u64 errors;
	char last_error[LUNATIK_MESSAGE_MAX];
	char name[LUNATIK_NAME_MAX];
	struct kref refs;
	struct work_struct stop_work;
};

/**
 * struct lunatik_spec - what to create
 * @name: script below the Lua root, or name of @source in messages
 * @source: text of the script, or NULL to read it from the Lua root
 * @source_len: its length in bytes
 * @sleep: sleepable
 * @net: namespace; the caller holds a reference during the call
 * @nested: the caller runs in a runtime itself
 */
struct lunatik_spec {
	const char *name;
	const char *source;
	size_t source_len;
	bool sleep;
	struct net *net;
	bool nested;
};

/* The runtime that owns @L. Any context. */
static inline struct lunatik_runtime *lunatik_runtime_of(lua_State *L)
{
	return container_of(lunatik_thread_of(L)->limits,
			    struct lunatik_runtime, limits);
}

/* Whether a body may still register hooks and require libraries. */
static inline bool lunatik_runtime_is_setup(const struct lunatik_runtime *rt)
{
	return rt->sleep || !rt->armed;
}

struct lunatik_runtime *lunatik_runtime_create(const struct lunatik_spec *spec,
					       struct lunatik_error *error);
int lunatik_runtime_resume(struct lunatik_runtime *rt, bool nested,
			   struct lunatik_values *args,
			   struct lunatik_values **results,
			   struct lunatik_error *error);
int lunatik_runtime_stop(struct lunatik_runtime *rt, bool nested,
			 enum lunatik_stop_reason reason,
			 struct lunatik_error *error);
void lunatik_runtime_collect(struct lunatik_runtime *rt);

struct lunatik_runtime *lunatik_runtime_find(u32 id);
struct lunatik_runtime *lunatik_runtime_next(u32 *id);
u32 lunatik_runtime_count(void);
void lunatik_runtime_stop_netns(struct net *net);
void lunatik_runtime_put(struct lunatik_runtime *rt);

void lunatik_runtime_failed(struct lunatik_runtime *rt, u32 hook,
			    const char *message);
unsigned long lunatik_stack_floor(void);
void lunatik_budget_start(struct lunatik_runtime *rt, u32 instructions);
void lunatik_budget_exhaust(struct lunatik_runtime *rt);
void lunatik_budget_end(struct lunatik_runtime *rt);
const char *lunatik_message(lua_State *L, int index);

int lunatik_runtime_init(void);
void lunatik_runtime_exit(void);

#endif /* _LUNATIK_RUNTIME_H */
