// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Runtimes: create, resume, stop. See runtime.h for lifetimes and locks.
 */
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "hook.h"
#include "library.h"
#include "memory.h"
#include "object.h"
#include "runtime.h"
#include "script.h"
#include "trace.h"
#include "watchdog.h"

/* What one level of C may use below the last check of the stack, in bytes. */
#define STACK_RESERVE		3072
/* What Lua may use of an interrupt stack, whose end we are not told, in bytes. */
#define STACK_INTERRUPT		(7 * 1024)

static unsigned long memory_limit = 1024 * 1024;
module_param(memory_limit, ulong, 0644);
MODULE_PARM_DESC(memory_limit, "bytes a runtime may hold (default 1 MiB)");

static unsigned int budget = 100 * 1000;
module_param(budget, uint, 0644);
MODULE_PARM_DESC(budget, "Lua instructions a call in atomic context may run (default 100,000)");

static unsigned int body_budget = 10 * 1000 * 1000;
module_param(body_budget, uint, 0644);
MODULE_PARM_DESC(body_budget, "Lua instructions a call in process context may run (default 10,000,000)");

static unsigned int body_time = 10 * MSEC_PER_SEC;
module_param(body_time, uint, 0644);
MODULE_PARM_DESC(body_time, "milliseconds of CPU a call in process context may take (default 10,000)");

static DEFINE_XARRAY_ALLOC1(runtimes);
static u32 runtimes_next;
static atomic_t runtimes_alive;
static struct workqueue_struct *stop_queue;

/**
 * lunatik_error_set() - say what went wrong
 * @error: to fill in; an earlier text is freed
 * @gfp: allocation flags for the text; without memory there is none
 * @errno: negative errno
 * @fmt: printf format of the text
 *
 * Return: @errno.
 */
int lunatik_error_set(struct lunatik_error *error, gfp_t gfp, int errno,
		      const char *fmt, ...)
{
	va_list args;

	kfree(error->text);
	va_start(args, fmt);
	error->text = lunatik_memory_fails() ? NULL :
		kvasprintf(gfp | __GFP_NOWARN, fmt, args);
	va_end(args);
	error->errno = errno;
	return errno;
}

/**
 * lunatik_error_free() - free the text of an error
 * @error: may have none
 */
void lunatik_error_free(struct lunatik_error *error)
{
	kfree(error->text);
	error->text = NULL;
}

/* Memory */

/*
 * krealloc() never gives memory back, so a block that was made much smaller would
 * be held whole and accounted small. Lua wants shrinking not to fail.
 */
static void *shrink(void *ptr, size_t old, size_t new, gfp_t gfp)
{
	void *copy;

	if (new > old / 2)
		return ptr;
	copy = lunatik_kmalloc(new, gfp);
	if (!copy)
		return ptr;
	memcpy(copy, ptr, new);
	kfree(ptr);
	return copy;
}

/*
 * The lua_Alloc of every runtime. noinline, so that a tracer can tell by its
 * arguments whose memory a block is.
 */
static noinline void *lunatik_allocate(void *ud, void *ptr, size_t osize,
				       size_t nsize)
{
	struct lunatik_runtime *rt = ud;
	size_t old = ptr ? osize : 0; /* without a block osize is a type */
	void *new = NULL;

	if (nsize == 0) {
		kfree(ptr);
	} else {
		if (nsize > old && nsize - old > rt->memory_limit - rt->memory)
			return NULL;
		new = nsize < old ? shrink(ptr, old, nsize, rt->gfp) :
			lunatik_krealloc(ptr, nsize, rt->gfp);
		if (!new)
			return NULL;
	}
	rt->memory += nsize - old;
	trace_runtime_alloc(rt->id, old, nsize, rt->memory, (__force u32)rt->gfp);
	return new;
}

/* The kernel stack, and interrupting Lua */

/**
 * lunatik_stack_floor() - the address Lua must stay above
 *
 * Context: any. On the task's stack its end is known. On an interrupt stack it is
 * not, and Lua gets a fixed share of what is below us.
 *
 * Return: the address; more than the current stack pointer where nothing is left.
 */
unsigned long lunatik_stack_floor(void)
{
	unsigned long here = (unsigned long)__builtin_frame_address(0);
	unsigned long stack = (unsigned long)end_of_stack(current);

	if (here - stack < THREAD_SIZE)
		return stack + STACK_RESERVE;
	return here - STACK_INTERRUPT;
}

/*
 * Have a hook called after so many instructions in any thread, or none. Called by
 * the holder of the lock, or by an interrupt on the CPU that runs the runtime:
 * lua_sethook() may be called asynchronously, and the list of threads is kept so
 * that an interrupt can walk it.
 */
static void runtime_sethook(struct lunatik_runtime *rt, lua_Hook hook, int count)
{
	struct lunatik_thread *thread = lunatik_thread_of(rt->L);

	for (; thread; thread = READ_ONCE(thread->next))
		lua_sethook((lua_State *)((char *)thread + LUA_EXTRASPACE), hook,
			    hook ? LUA_MASKCOUNT : 0, count);
}

/* Called before every instruction once a call is over its limit: no pcall helps. */
static void runtime_abandon(lua_State *L, lua_Debug *ar)
{
	lunatik_raise_from_hook(L, fatal_signal_pending(current) ? "killed" :
			   "instruction budget exceeded");
}

static void runtime_tick(lua_State *L, lua_Debug *ar)
{
	struct lunatik_runtime *rt = lunatik_runtime_of(L);
	bool preemptible = rt->sleep || !rt->armed;

	if (rt->limits.left > LUNATIK_TICK) {
		rt->limits.left -= LUNATIK_TICK;
		if (!preemptible)
			return;
		cond_resched();
		if (!fatal_signal_pending(current) &&
		    current->se.sum_exec_runtime < rt->cpu_end)
			return;
	}
	runtime_sethook(rt, runtime_abandon, 1);
	runtime_abandon(L, ar);
}

/**
 * lunatik_budget_start() - count instructions from here on, and end at a limit
 * @rt: runtime
 * @instructions: limit
 *
 * Context: holder of the lock, or an interrupt on the CPU that runs the runtime.
 */
void lunatik_budget_start(struct lunatik_runtime *rt, u32 instructions)
{
	rt->limits.left = instructions;
	runtime_sethook(rt, runtime_tick, min_t(u32, instructions, LUNATIK_TICK));
}

/**
 * lunatik_budget_exhaust() - have the running call fail at its next instruction
 * @rt: runtime
 *
 * Context: an interrupt on the CPU that runs the runtime.
 */
void lunatik_budget_exhaust(struct lunatik_runtime *rt)
{
	rt->limits.left = 0;
	WRITE_ONCE(rt->limits.overdue, 1);
	runtime_sethook(rt, runtime_abandon, 1);
}

/**
 * lunatik_budget_end() - count instructions no longer
 * @rt: runtime
 *
 * Context: holder of the lock.
 */
void lunatik_budget_end(struct lunatik_runtime *rt)
{
	WRITE_ONCE(rt->limits.overdue, 0);
	runtime_sethook(rt, NULL, 0);
}

static int runtime_lock(struct lunatik_runtime *rt, bool nested,
			struct lunatik_error *error)
{
	if (!rt->sleep) {
		spin_lock_bh(&rt->spinlock);
		__release(&rt->spinlock); /* sparse knows no conditional locks */
		rt->owner_cpu = smp_processor_id();
		return 0;
	}
	if (READ_ONCE(rt->owner) == current)
		return lunatik_error_set(error, GFP_KERNEL, -EDEADLK,
					 "runtime %u is running: it can neither resume nor stop itself",
					 rt->id);
	if (nested ? !mutex_trylock(&rt->mutex) : mutex_lock_killable(&rt->mutex))
		return lunatik_error_set(error, GFP_KERNEL, -EBUSY,
					 "runtime %u is busy: somebody else runs it",
					 rt->id);
	WRITE_ONCE(rt->owner, current);
	return 0;
}

static void runtime_unlock(struct lunatik_runtime *rt)
{
	if (rt->sleep) {
		WRITE_ONCE(rt->owner, NULL);
		mutex_unlock(&rt->mutex);
	} else {
		rt->owner_cpu = -1;
		__acquire(&rt->spinlock);
		spin_unlock_bh(&rt->spinlock);
	}
}

/* Running the body */

/**
 * struct runtime_call - a call of the body, and what came of it
 * @nested: the caller is Lua, which wants the message without a traceback
 * @spec: what to create, or NULL for a resume
 * @args: of a resume
 * @results: what the body returned or yielded
 * @errno: what kept the script from being loaded
 * @pending: results still on the body's stack
 */
struct runtime_call {
	bool nested;
	const struct lunatik_spec *spec;
	const struct lunatik_values *args;
	struct lunatik_values *results;
	int errno;
	int pending;
};

/* Turn the body's error into a message with a traceback, and close the body. */
static int body_raise(lua_State *L, struct lunatik_runtime *rt, bool nested)
{
	lua_State *body = rt->body;

	lua_xmove(body, L, 1);
	luaL_tolstring(L, -1, NULL);
	if (!nested)
		luaL_traceback(L, body, lua_tostring(L, -1), 0);
	lua_closethread(body, L);
	return lua_error(L);
}

static void body_run(lua_State *L, struct runtime_call *call, int nargs)
{
	struct lunatik_runtime *rt = lunatik_runtime_of(L);
	int status;

	rt->state = LUNATIK_STATE_RUNNING;
	status = lua_resume(rt->body, L, nargs, &call->pending);
	rt->state = LUNATIK_STATE_FAILED; /* whatever happens to the message */
	if (status != LUA_OK && status != LUA_YIELD) {
		call->pending = 0;
		body_raise(L, rt, call->nested);
	}
	rt->state = status == LUA_YIELD ? LUNATIK_STATE_YIELDED :
		LUNATIK_STATE_FINISHED;
	call->results = lunatik_values_get(L, rt->body,
					   lua_gettop(rt->body) - call->pending + 1,
					   call->pending, rt->gfp);
}

static int protected_resume(lua_State *L)
{
	struct runtime_call *call = lua_touserdata(L, 1);
	struct lunatik_runtime *rt = lunatik_runtime_of(L);

	/* An error on the body's own stack would unwind it; on this one it does not. */
	lunatik_values_push(L, call->args);
	if (!lua_checkstack(rt->body, call->args->count))
		luaL_error(L, "not enough memory");
	lua_xmove(L, rt->body, call->args->count);
	body_run(L, call, call->args->count);
	return 0;
}

static int protected_create(lua_State *L)
{
	struct runtime_call *call = lua_touserdata(L, 1);
	struct lunatik_runtime *rt = lunatik_runtime_of(L);

	/*
	 * Lua makes this string when protection has just ended, where it must not
	 * run out of memory. While one exists, it need not.
	 */
	lua_pushliteral(L, "error in error handling");
	luaL_ref(L, LUA_REGISTRYINDEX);
	lunatik_library_open(L);
	rt->body = lua_newthread(L);
	luaL_ref(L, LUA_REGISTRYINDEX);
	call->errno = lunatik_script_load(L, call->spec);
	if (call->errno)
		return lua_error(L);
	lua_xmove(L, rt->body, 1);
	body_run(L, call, 0);
	return 0;
}

/*
 * Call a protected_*() function from process context. Its error, if any, becomes
 * @error. The lock is held, or nobody else knows the runtime.
 */
static int runtime_enter(struct lunatik_runtime *rt, lua_CFunction function,
			 struct runtime_call *call, struct lunatik_error *error)
{
	bool preemptible = rt->sleep || !rt->armed;
	lua_State *L = rt->L;
	int status, errno = 0;

	rt->limits.stack_floor = lunatik_stack_floor();
	lunatik_budget_start(rt, preemptible ? max(READ_ONCE(body_budget), 1U) :
			     rt->budget);

	rt->cpu_end = current->se.sum_exec_runtime +
		(u64)READ_ONCE(body_time) * NSEC_PER_MSEC;
	lua_pushcfunction(L, function);
	lua_pushlightuserdata(L, call);
	if (!preemptible) {
		lunatik_watchdog_enter(rt);
		rt->trapped = true; /* it is counted already */
	}
	status = lua_pcall(L, 1, 0, 0);
	if (!preemptible)
		lunatik_watchdog_leave(rt);
	lunatik_budget_end(rt);
	if (call->pending)
		lua_pop(rt->body, call->pending);
	if (status != LUA_OK) {
		errno = call->errno ?: status == LUA_ERRMEM ? -ENOMEM : -ENOEXEC;
		lunatik_runtime_failed(rt, 0, lunatik_message(L, -1));
		lunatik_error_set(error, preemptible ? GFP_KERNEL : GFP_ATOMIC,
				  errno, "%s", lunatik_message(L, -1));
	}
	lua_settop(L, 0);
	return errno;
}

/**
 * lunatik_message() - text of an error value
 * @L: thread, outside any protected call
 * @index: of the error value
 *
 * Return: the message; valid while the value is on the stack.
 */
const char *lunatik_message(lua_State *L, int index)
{
	/* lua_tostring() would convert a number in place, and may raise */
	return lua_type(L, index) == LUA_TSTRING ? lua_tostring(L, index) :
		"the error value is not a string";
}

/**
 * lunatik_runtime_failed() - keep, trace and log a failure
 * @rt: runtime
 * @hook: number of the hook whose callback failed, or 0 for the body
 * @message: what Lua said
 *
 * Context: any; the runtime's lock is held.
 */
void lunatik_runtime_failed(struct lunatik_runtime *rt, u32 hook,
			    const char *message)
{
	/* One byte less, so that whoever reads it meanwhile finds an end. */
	strscpy(rt->last_error, message, sizeof(rt->last_error) - 1);
	trace_runtime_error(rt->id, hook, message);
	if (hook)
		pr_warn_ratelimited("runtime %u (%s): %s\n", rt->id, rt->name,
				    rt->last_error);
}

/* Create */

static struct lunatik_runtime *runtime_alloc(const struct lunatik_spec *spec,
					     struct lunatik_error *error)
{
	struct lunatik_runtime *rt = lunatik_kzalloc(sizeof(*rt), GFP_KERNEL);

	if (!rt)
		goto no_memory;
	kref_init(&rt->refs);
	mutex_init(&rt->mutex);
	mutex_init(&rt->life);
	spin_lock_init(&rt->spinlock);
	INIT_LIST_HEAD(&rt->hooks);
	INIT_LIST_HEAD(&rt->handles);
	INIT_LIST_HEAD(&rt->libraries);
	strscpy(rt->name, spec->name, sizeof(rt->name));
	rt->sleep = spec->sleep;
	rt->state = LUNATIK_STATE_CREATING;
	/* What a callback allocates is not the memory of whoever sends the packet. */
	rt->gfp = (spec->sleep ? GFP_KERNEL_ACCOUNT : GFP_ATOMIC) | __GFP_NOWARN;
	rt->memory_limit = READ_ONCE(memory_limit);
	rt->budget = clamp(READ_ONCE(budget), 1U, (unsigned int)INT_MAX);
	rt->owner_cpu = -1;
	rt->net = spec->net;
	rt->netns = spec->net->ns.inum;
	/* Reserved: nobody finds the runtime before it is armed. */
	if (lunatik_memory_fails() ||
	    xa_alloc_cyclic(&runtimes, &rt->id, NULL, xa_limit_31b,
			    &runtimes_next, GFP_KERNEL) < 0)
		goto free_runtime;
	return rt;

free_runtime:
	kfree(rt);
no_memory:
	lunatik_error_set(error, GFP_KERNEL, -ENOMEM, "not enough memory");
	return NULL;
}

static void runtime_free(struct kref *refs)
{
	kfree(container_of(refs, struct lunatik_runtime, refs));
}

/**
 * lunatik_runtime_put() - give back a reference
 * @rt: runtime
 *
 * Context: process.
 */
void lunatik_runtime_put(struct lunatik_runtime *rt)
{
	kref_put(&rt->refs, runtime_free);
}

/* Close the state and free every byte. Nobody else can enter the runtime. */
static void runtime_close(struct lunatik_runtime *rt,
			  enum lunatik_stop_reason reason)
{
	rt->net = NULL;
	rt->netns = 0;
	rt->state = LUNATIK_STATE_STOPPED;
	if (rt->L) {
		rt->limits.stack_floor = lunatik_stack_floor();
		lua_close(rt->L);
		rt->L = NULL;
		rt->body = NULL;
	}
	lunatik_handles_sweep(&rt->handles);
	lunatik_library_close(rt);
	trace_runtime_stop(rt->id, reason, rt->memory);
	WARN_ON_ONCE(rt->memory);
	xa_erase(&runtimes, rt->id);
	atomic_dec(&runtimes_alive);
	lunatik_runtime_put(rt);
	module_put(THIS_MODULE);
}

static void runtime_stop_work(struct work_struct *work);

static int runtime_build(struct lunatik_runtime *rt,
			 const struct lunatik_spec *spec,
			 struct lunatik_error *error)
{
	struct runtime_call call = { .spec = spec, .nested = spec->nested };
	int errno;

	INIT_WORK(&rt->stop_work, runtime_stop_work);
	rt->limits.stack_floor = lunatik_stack_floor();
	rt->L = lua_newstate(lunatik_allocate, rt);
	if (!rt->L)
		return lunatik_error_set(error, GFP_KERNEL, -ENOMEM,
					 "not enough memory for a Lua state (limit %zu bytes)",
					 rt->memory_limit);
	*lunatik_thread_of(rt->L) = (struct lunatik_thread){ &rt->limits };
	errno = runtime_enter(rt, protected_create, &call, error);
	kfree(call.results);
	if (errno)
		return errno;
	/* From here on callbacks may run, so the lock counts. */
	rt->armed = true;
	trace_runtime_arm(rt->id, rt->hook_count);
	return lunatik_hooks_register(rt, error);
}

/**
 * lunatik_runtime_create() - run a script's body once and arm its hooks
 * @spec: what to create
 * @error: filled in on failure
 *
 * The body runs in the caller's task. Registering hooks comes last, so no packet
 * meets a runtime that is not complete.
 *
 * Context: process, may sleep.
 * Return: the runtime with a reference for the caller, or NULL.
 */
struct lunatik_runtime *lunatik_runtime_create(const struct lunatik_spec *spec,
					       struct lunatik_error *error)
{
	struct lunatik_runtime *rt;

	if (!try_module_get(THIS_MODULE)) {
		lunatik_error_set(error, GFP_KERNEL, -ENODEV,
				  "the module is being unloaded");
		return NULL;
	}
	rt = runtime_alloc(spec, error);
	if (!rt) {
		module_put(THIS_MODULE);
		return NULL;
	}
	atomic_inc(&runtimes_alive);
	trace_runtime_create(rt->id, rt->name, rt->sleep, rt->netns);
	if (runtime_build(rt, spec, error)) {
		lunatik_hooks_unregister(rt);
		runtime_close(rt, LUNATIK_STOP_CREATE_FAILED);
		return NULL;
	}
	kref_get(&rt->refs);
	xa_store(&runtimes, rt->id, rt, GFP_KERNEL);
	return rt;
}

/* Resume */

static int runtime_check_resumable(const struct lunatik_runtime *rt,
				   struct lunatik_error *error, gfp_t gfp)
{
	static const char * const why[] = {
		[LUNATIK_STATE_FINISHED] = "its script has returned",
		[LUNATIK_STATE_FAILED] = "its script has failed",
		[LUNATIK_STATE_STOPPED] = "it is stopped",
	};

	if (rt->state == LUNATIK_STATE_YIELDED)
		return 0;
	return lunatik_error_set(error, gfp, -ENOEXEC,
				 "cannot resume runtime %u: %s", rt->id,
				 why[rt->state] ?: "it is running");
}

/**
 * lunatik_runtime_resume() - pass values to a body that yielded
 * @rt: runtime; the caller holds a reference
 * @nested: the caller runs in a runtime itself
 * @args: what coroutine.yield() returns in the body
 * @results: what the body yielded or returned, for kfree()
 * @error: filled in on failure
 *
 * Context: process, may sleep; a non-sleepable body runs with its spinlock held.
 * Return: 0, -ENOEXEC for a Lua error, -EBUSY, -EDEADLK or -ENOMEM.
 */
int lunatik_runtime_resume(struct lunatik_runtime *rt, bool nested,
			   struct lunatik_values *args,
			   struct lunatik_values **results,
			   struct lunatik_error *error)
{
	gfp_t gfp = rt->sleep ? GFP_KERNEL : GFP_ATOMIC;
	struct runtime_call call = { .args = args, .nested = nested };
	int errno;

	errno = runtime_lock(rt, nested, error);
	if (errno)
		return errno;
	errno = runtime_check_resumable(rt, error, gfp);
	if (errno)
		goto unlock;
	trace_runtime_resume(rt->id);
	errno = runtime_enter(rt, protected_resume, &call, error);
	trace_runtime_yield(rt->id, errno ? LUNATIK_OUTCOME_ERROR :
			    rt->state == LUNATIK_STATE_YIELDED ?
			    LUNATIK_OUTCOME_YIELDED : LUNATIK_OUTCOME_RETURNED);
	*results = call.results;
unlock:
	runtime_unlock(rt);
	return errno;
}

/* Stop */

/**
 * lunatik_runtime_stop() - unregister hooks, close the state, free every byte
 * @rt: runtime; the caller holds a reference
 * @nested: the caller runs in a runtime itself
 * @reason: for the trace
 * @error: filled in on failure
 *
 * Waits for callbacks in flight. Stopping a stopped runtime does nothing.
 *
 * Context: process, may sleep.
 * Return: 0, -EBUSY where waiting could deadlock or was interrupted, -EDEADLK for
 * a runtime that stops itself.
 */
int lunatik_runtime_stop(struct lunatik_runtime *rt, bool nested,
			 enum lunatik_stop_reason reason,
			 struct lunatik_error *error)
{
	int errno = 0;

	if (!nested)
		mutex_lock(&rt->life);
	else if (!mutex_trylock(&rt->life))
		return READ_ONCE(rt->state) == LUNATIK_STATE_STOPPED ? 0 :
			lunatik_error_set(error, GFP_KERNEL, -EBUSY,
					  "runtime %u is busy: somebody else stops it",
					  rt->id);
	if (rt->state == LUNATIK_STATE_STOPPED)
		goto unlock_life;
	errno = runtime_lock(rt, nested, error);
	if (errno)
		goto unlock_life;
	rt->state = LUNATIK_STATE_STOPPED;
	runtime_unlock(rt);
	/* Whoever gets the lock now sees that and leaves. */
	lunatik_hooks_unregister(rt);
	runtime_close(rt, reason);
unlock_life:
	mutex_unlock(&rt->life);
	return errno;
}

static void runtime_stop_work(struct work_struct *work)
{
	struct lunatik_runtime *rt =
		container_of(work, struct lunatik_runtime, stop_work);
	struct lunatik_error error = {};

	lunatik_runtime_stop(rt, false, LUNATIK_STOP_COLLECTED, &error);
	lunatik_error_free(&error);
	lunatik_runtime_put(rt);
}

/**
 * lunatik_runtime_collect() - stop a runtime whose Lua object was collected
 * @rt: runtime; its reference is consumed
 *
 * Context: process; the caller runs in another runtime.
 */
void lunatik_runtime_collect(struct lunatik_runtime *rt)
{
	struct lunatik_error error = {};

	if (lunatik_runtime_stop(rt, true, LUNATIK_STOP_COLLECTED, &error)) {
		lunatik_error_free(&error);
		queue_work(stop_queue, &rt->stop_work);
		return;
	}
	lunatik_runtime_put(rt);
}

/**
 * lunatik_runtime_stop_netns() - stop the runtimes of a namespace that goes away
 * @net: namespace
 *
 * Context: process, from the namespace's exit.
 */
void lunatik_runtime_stop_netns(struct net *net)
{
	struct lunatik_error error = {};
	struct lunatik_runtime *rt;
	u32 id = 0;

	while ((rt = lunatik_runtime_next(&id))) {
		if (READ_ONCE(rt->net) == net)
			lunatik_runtime_stop(rt, false, LUNATIK_STOP_NETNS_GONE,
					     &error);
		lunatik_runtime_put(rt);
	}
	lunatik_error_free(&error);
}

/* Find */

/**
 * lunatik_runtime_find() - look a runtime up
 * @id: its number
 *
 * Return: the runtime with a reference, or NULL.
 */
struct lunatik_runtime *lunatik_runtime_find(u32 id)
{
	struct lunatik_runtime *rt;

	xa_lock(&runtimes);
	rt = xa_load(&runtimes, id);
	if (rt && !kref_get_unless_zero(&rt->refs))
		rt = NULL;
	xa_unlock(&runtimes);
	return rt;
}

/**
 * lunatik_runtime_next() - walk over all runtimes
 * @id: number to go on after; becomes that of the runtime found
 *
 * Return: the next runtime with a reference, or NULL.
 */
struct lunatik_runtime *lunatik_runtime_next(u32 *id)
{
	unsigned long index = *id;
	struct lunatik_runtime *rt;

	xa_lock(&runtimes);
	rt = xa_find_after(&runtimes, &index, ULONG_MAX, XA_PRESENT);
	if (rt)
		kref_get(&rt->refs); /* erased under the lock before the last put */
	xa_unlock(&runtimes);
	*id = index;
	return rt;
}

/**
 * lunatik_runtime_count() - how many runtimes are alive
 *
 * Return: that number.
 */
u32 lunatik_runtime_count(void)
{
	return atomic_read(&runtimes_alive);
}

int lunatik_runtime_init(void)
{
	stop_queue = lunatik_memory_fails() ? NULL :
		alloc_workqueue("lunatik", WQ_UNBOUND, 0);
	return stop_queue ? 0 : -ENOMEM;
}

void lunatik_runtime_exit(void)
{
	destroy_workqueue(stop_queue);
	xa_destroy(&runtimes);
}
