// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Runtimes: create, resume, replace, stop. See runtime.h for lifetimes and locks.
 */
#include <linux/module.h>
#include <linux/xarray.h>

#include "hook.h"
#include "memory.h"
#include "runtime.h"
#include "trace.h"

static DEFINE_XARRAY_ALLOC1(runtimes);
static u32 runtimes_next;
static atomic_t runtimes_alive;
static struct workqueue_struct *work_queue;
DECLARE_WAIT_QUEUE_HEAD(lunatik_stopping);

/* The number of the next instance: the numbers of CPUs may have gaps. */
static unsigned int runtime_after(const struct lunatik_runtime *rt, unsigned int i)
{
	unsigned int width = lunatik_runtime_width(rt);

	for (i++; i < width && !cpu_possible(i); i++)
		;
	return i;
}

#define for_each_instance(i, rt) \
	for ((i) = 0; (i) < lunatik_runtime_width(rt); \
	     (i) = runtime_after(rt, i))

/* Texts */

static void runtime_rename(struct lunatik_runtime *rt, const char *name)
{
	write_seqlock_bh(&rt->texts);
	strscpy(rt->name.text, name, sizeof(rt->name.text));
	write_sequnlock_bh(&rt->texts);
}

/**
 * lunatik_runtime_name() - the name of the script in charge
 * @rt: runtime
 *
 * Context: any but a hard interrupt.
 * Return: a copy, for another script may take over.
 */
struct lunatik_name lunatik_runtime_name(const struct lunatik_runtime *rt)
{
	struct lunatik_name name;
	unsigned int seq;

	do {
		seq = read_seqbegin(&rt->texts);
		name = rt->name;
	} while (read_seqretry(&rt->texts, seq));
	return name;
}

/**
 * lunatik_runtime_last_error() - the message of the latest failure
 * @rt: runtime
 *
 * Context: any but a hard interrupt.
 * Return: a copy, for another failure may follow.
 */
struct lunatik_message
lunatik_runtime_last_error(const struct lunatik_runtime *rt)
{
	struct lunatik_message message;
	unsigned int seq;

	do {
		seq = read_seqbegin(&rt->texts);
		message = rt->last_error;
	} while (read_seqretry(&rt->texts, seq));
	return message;
}

/**
 * lunatik_runtime_keep_error() - remember the latest failure
 * @rt: runtime
 * @message: what Lua said; of a long one the beginning is kept
 *
 * Context: any but a hard interrupt.
 */
void lunatik_runtime_keep_error(struct lunatik_runtime *rt, const char *message)
{
	write_seqlock_bh(&rt->texts);
	strscpy(rt->last_error.text, message, sizeof(rt->last_error.text));
	write_sequnlock_bh(&rt->texts);
}

/* Create */

static void runtime_stop_work(struct work_struct *work);
static void runtime_break_work(struct work_struct *work);
static void runtime_prune_work(struct work_struct *work);

static struct lunatik_runtime *runtime_alloc(const struct lunatik_spec *spec,
					     struct lunatik_error *error)
{
	unsigned int width = spec->percpu ? nr_cpu_ids : 1;
	struct lunatik_runtime *rt;

	rt = lunatik_kzalloc(struct_size(rt, instance, width), GFP_KERNEL);
	if (!rt)
		goto no_memory;
	kref_init(&rt->refs);
	mutex_init(&rt->life);
	mutex_init(&rt->slots_lock);
	spin_lock_init(&rt->lock);
	seqlock_init(&rt->texts);
	INIT_LIST_HEAD(&rt->slots);
	INIT_WORK(&rt->stop_work, runtime_stop_work);
	INIT_WORK(&rt->break_work, runtime_break_work);
	INIT_WORK(&rt->prune_work, runtime_prune_work);
	runtime_rename(rt, spec->name);
	rt->sleep = spec->sleep;
	rt->percpu = spec->percpu;
	rt->breaker = spec->breaker;
	rt->generation = 1;
	rt->net = spec->net;
	rt->netns = spec->net->ns.inum;
	/* Reserved: nobody finds the runtime before its script has run. */
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

/* Run the script in as many new instances as the runtime has. */
static int runtime_instantiate(struct lunatik_runtime *rt,
			       const struct lunatik_spec *spec,
			       struct lunatik_instance **instance,
			       struct lunatik_error *error)
{
	unsigned int i;

	for_each_instance(i, rt) {
		instance[i] = lunatik_instance_create(rt, spec, error);
		if (!instance[i])
			return error->errno;
	}
	return 0;
}

/* Destroy instances that no callback runs in; those that were never made are NULL. */
static size_t runtime_destroy(struct lunatik_runtime *rt,
			      struct lunatik_instance **instance)
{
	size_t leaked = 0;
	unsigned int i;

	for_each_instance(i, rt)
		if (instance[i])
			leaked += lunatik_instance_destroy(instance[i]);
	return leaked;
}

/* Destroy the instances; nobody can enter them any more. The life lock is held. */
static void runtime_close(struct lunatik_runtime *rt,
			  enum lunatik_stop_reason reason)
{
	struct lunatik_instance *instance;
	size_t leaked = 0;
	unsigned int i;

	rt->net = NULL;
	WRITE_ONCE(rt->netns, 0);
	WRITE_ONCE(rt->stopped, true);
	for_each_instance(i, rt) {
		spin_lock_bh(&rt->lock);
		instance = rt->instance[i];
		rt->instance[i] = NULL;
		spin_unlock_bh(&rt->lock);
		if (instance)
			leaked += lunatik_instance_destroy(instance);
	}
	trace_runtime_stop(rt->id, reason, leaked);
	lunatik_event_stopped(rt, reason);
	xa_erase(&runtimes, rt->id);
	atomic_dec(&runtimes_alive);
	lunatik_runtime_put(rt);
	module_put(THIS_MODULE);
}

/*
 * Put a runtime whose script has run on the list, and its hooks in force. In this
 * order, because from here on a device or the namespace may go away.
 */
static int runtime_publish(struct lunatik_runtime *rt,
			   struct lunatik_error *error)
{
	int errno;

	/* Nobody knows the runtime, and a script may be creating it: never waits. */
	WARN_ON_ONCE(!mutex_trylock(&rt->life));
	kref_get(&rt->refs);
	/* First, because whoever finds the runtime may resume it. */
	trace_runtime_arm(rt->id, rt->instance[0]->hook_count);
	lunatik_event_armed(rt, rt->instance[0]->hook_count);
	xa_store(&runtimes, rt->id, rt, GFP_KERNEL);
	errno = lunatik_slots_prepare(rt, rt->instance, error);
	if (!errno)
		lunatik_slots_finish(rt);
	else
		runtime_close(rt, LUNATIK_STOP_CREATE_FAILED);
	mutex_unlock(&rt->life);
	if (errno)
		lunatik_runtime_put(rt);
	return errno;
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
	trace_runtime_create(rt->id, rt->name.text, rt->sleep, rt->netns);
	lunatik_event_created(rt);
	if (runtime_instantiate(rt, spec, rt->instance, error)) {
		runtime_close(rt, LUNATIK_STOP_CREATE_FAILED);
		return NULL;
	}
	return runtime_publish(rt, error) ? NULL : rt;
}

/* Resume */

/* The instance of this number with a reference, or NULL when stopped. */
static struct lunatik_instance *runtime_instance(struct lunatik_runtime *rt,
						 unsigned int i)
{
	struct lunatik_instance *instance;

	spin_lock_bh(&rt->lock);
	instance = rt->instance[i];
	if (instance)
		kref_get(&instance->refs);
	spin_unlock_bh(&rt->lock);
	return instance;
}

/*
 * Lock the instance in charge, with a reference. While we wait for its lock,
 * another one may take its place.
 */
static struct lunatik_instance *runtime_lock(struct lunatik_runtime *rt,
					     unsigned int i, bool nested,
					     struct lunatik_error *error)
{
	struct lunatik_instance *instance;
	int errno;

	while ((instance = runtime_instance(rt, i))) {
		errno = lunatik_instance_lock(instance, nested, error);
		if (!errno && !instance->closed)
			return instance;
		if (!errno)
			lunatik_instance_unlock(instance);
		lunatik_instance_put(instance);
		if (errno)
			return NULL;
		if (READ_ONCE(rt->stopped))
			break;
	}
	lunatik_error_set(error, GFP_KERNEL, -ENOEXEC,
			  "cannot resume runtime %u: it is stopped", rt->id);
	return NULL;
}

static int check_resumable(const struct lunatik_instance *instance,
			   struct lunatik_error *error)
{
	static const char * const why[] = {
		[LUNATIK_STATE_FINISHED] = "its script has returned",
		[LUNATIK_STATE_FAILED] = "its script has failed",
		[LUNATIK_STATE_STOPPED] = "it is stopped",
	};

	if (instance->state == LUNATIK_STATE_YIELDED)
		return 0;
	return lunatik_error_set(error, instance->sleep ? GFP_KERNEL : GFP_ATOMIC,
				 -ENOEXEC, "cannot resume runtime %u: %s",
				 instance->runtime->id,
				 why[instance->state] ?: "it is running");
}

static int resume_one(struct lunatik_runtime *rt, unsigned int i,
		      struct lunatik_instance *outer,
		      const struct lunatik_values *args,
		      struct lunatik_values **results,
		      struct lunatik_error *error)
{
	struct lunatik_instance *instance = runtime_lock(rt, i, outer, error);
	enum lunatik_outcome outcome;
	int errno;

	if (!instance)
		return error->errno;
	errno = check_resumable(instance, error);
	if (errno)
		goto unlock;
	trace_runtime_resume(rt->id, i);
	lunatik_event_resumed(rt);
	errno = lunatik_instance_resume(instance, outer, args, results, error);
	outcome = errno ? LUNATIK_OUTCOME_ERROR :
		instance->state == LUNATIK_STATE_YIELDED ?
		LUNATIK_OUTCOME_YIELDED : LUNATIK_OUTCOME_RETURNED;
	trace_runtime_yield(rt->id, outcome, i);
	lunatik_event_yielded(rt, outcome);
unlock:
	lunatik_instance_unlock(instance);
	lunatik_instance_put(instance);
	return errno;
}

/**
 * lunatik_runtime_resume() - pass values to a body that yielded
 * @rt: runtime; the caller holds a reference
 * @outer: instance whose script asks for it, or NULL
 * @args: what coroutine.yield() returns in the body
 * @results: what the body yielded or returned, for lunatik_values_free()
 * @error: filled in on failure
 *
 * With an instance per CPU each is resumed with the same arguments, whatever becomes
 * of the others; the results are those of the first, the error that of the first
 * that failed.
 *
 * Context: process, may sleep; a non-sleepable body runs with its spinlock held.
 * Return: 0, -ENOEXEC for a Lua error, -EBUSY, -EDEADLK or -ENOMEM.
 */
int lunatik_runtime_resume(struct lunatik_runtime *rt,
			   struct lunatik_instance *outer,
			   const struct lunatik_values *args,
			   struct lunatik_values **results,
			   struct lunatik_error *error)
{
	struct lunatik_error other = {};
	int errno = 0;
	unsigned int i;

	for_each_instance(i, rt) {
		struct lunatik_values *extra = NULL;

		if (!errno)
			errno = resume_one(rt, i, outer, args,
					   i ? &extra : results, error);
		else
			resume_one(rt, i, outer, args, &extra, &other);
		lunatik_values_free(extra);
	}
	lunatik_error_free(&other);
	return errno;
}

/* Replace */

/*
 * Let the new script take over what the old one hands over. Both are locked, or
 * nobody else can enter them.
 */
static int hand_over(struct lunatik_instance *old, struct lunatik_instance *new,
		     struct lunatik_error *error)
{
	struct lunatik_values *state = NULL, *none = NULL;
	int errno;

	errno = lunatik_instance_call(old, "handover", NULL, &state, error);
	if (!errno && state)
		errno = lunatik_instance_call(new, "takeover", state, &none, error);
	lunatik_values_free(state);
	lunatik_values_free(none);
	return errno;
}

/* The lock of the old instance is held, and no third one's. */
static void lock_new(struct lunatik_instance *new)
{
	if (new->sleep)
		return;
	spin_lock_nested(&new->spinlock, SINGLE_DEPTH_NESTING);
	__release(&new->spinlock); /* sparse knows no conditional locks */
	new->owner_cpu = smp_processor_id();
}

static void unlock_new(struct lunatik_instance *new)
{
	if (new->sleep)
		return;
	new->owner_cpu = -1;
	__acquire(&new->spinlock);
	spin_unlock(&new->spinlock);
}

/* Exchange an instance with the one in charge. Both are locked. */
static void exchange(struct lunatik_runtime *rt, unsigned int i,
		     struct lunatik_instance **instance)
{
	struct lunatik_instance *old = rt->instance[i];

	lunatik_slots_switch(rt, i);
	spin_lock_bh(&rt->lock);
	rt->instance[i] = *instance;
	spin_unlock_bh(&rt->lock);
	(*instance)->closed = false;
	old->closed = true;
	*instance = old;
}

static int replace_one(struct lunatik_runtime *rt, unsigned int i,
		       struct lunatik_instance **new, bool undo,
		       struct lunatik_error *error)
{
	struct lunatik_instance *old = rt->instance[i], *other = *new;
	int errno;

	errno = lunatik_instance_lock(old, false, error);
	if (errno)
		return errno;
	lock_new(other);
	if (!undo)
		errno = hand_over(old, other, error);
	if (!errno)
		exchange(rt, i, new);
	unlock_new(other);
	lunatik_instance_unlock(old);
	return errno;
}

/* Put new instances in charge; afterwards @instance has those that are not. */
static int replace_all(struct lunatik_runtime *rt,
		       struct lunatik_instance **instance,
		       struct lunatik_error *error)
{
	unsigned int i, failed;
	int errno;

	for_each_instance(i, rt) {
		errno = replace_one(rt, i, &instance[i], false, error);
		if (errno)
			break;
	}
	if (i == lunatik_runtime_width(rt))
		return 0;
	failed = i;
	for (i = 0; i < failed; i = runtime_after(rt, i))
		replace_one(rt, i, &instance[i], true, error);
	return errno;
}

static int runtime_take_over(struct lunatik_runtime *rt,
			     struct lunatik_instance **instance,
			     struct lunatik_error *error)
{
	int errno;

	errno = lunatik_slots_prepare(rt, instance, error);
	if (errno)
		return errno;
	errno = replace_all(rt, instance, error);
	if (errno)
		lunatik_slots_cancel(rt);
	lunatik_slots_finish(rt);
	/* Packets may still wait for the lock of an instance that has lost its place. */
	if (!rt->sleep)
		synchronize_net();
	return errno;
}

/**
 * lunatik_runtime_replace() - let new source take over a runtime
 * @rt: runtime; the caller holds a reference
 * @spec: name and source
 * @error: filled in on failure, after which the old script is in charge
 *
 * The new script's body runs first. What the global function handover() of the old
 * script returns goes to takeover() of the new one, with no packet in between. Each
 * packet at a place where both have a hook meets exactly one of them. Hooks at
 * places that only the new script has begin before those that only the old one has
 * end, so that no packet meets neither.
 *
 * Context: process, may sleep.
 * Return: 0 or a negative errno.
 */
int lunatik_runtime_replace(struct lunatik_runtime *rt,
			    const struct lunatik_spec *spec,
			    struct lunatik_error *error)
{
	struct lunatik_instance **instance;
	int errno;

	instance = lunatik_kzalloc(array_size(lunatik_runtime_width(rt),
					      sizeof(*instance)), GFP_KERNEL);
	if (!instance)
		return lunatik_error_set(error, GFP_KERNEL, -ENOMEM,
					 "not enough memory");
	errno = -EINTR;
	if (mutex_lock_killable(&rt->life))
		goto free;
	if (rt->stopped)
		errno = lunatik_error_set(error, GFP_KERNEL, -ESRCH,
					  "runtime %u is stopped", rt->id);
	else
		errno = runtime_instantiate(rt, spec, instance, error) ?:
			runtime_take_over(rt, instance, error);
	if (!errno) {
		runtime_rename(rt, spec->name);
		WRITE_ONCE(rt->generation, rt->generation + 1);
		trace_runtime_replace(rt->id, rt->generation, rt->slot_count);
		lunatik_event_replaced(rt);
	}
	runtime_destroy(rt, instance);
	mutex_unlock(&rt->life);
free:
	kfree(instance);
	return errno;
}

/* Stop */

static bool runtime_is_broken(struct lunatik_runtime *rt)
{
	unsigned int i;

	for_each_instance(i, rt)
		if (READ_ONCE(rt->instance[i]->broken))
			return true;
	return false;
}

/* Keep everybody out of all instances; either all are closed or none is. */
static int runtime_shut(struct lunatik_runtime *rt, bool nested,
			struct lunatik_error *error)
{
	unsigned int i;
	int errno;

	for_each_instance(i, rt) {
		/* fails for sleepable ones only, which are alone */
		errno = lunatik_instance_lock(rt->instance[i], nested, error);
		if (errno)
			return errno;
		WRITE_ONCE(rt->stopped, true); /* before anybody sees it closed */
		rt->instance[i]->closed = true;
		lunatik_instance_unlock(rt->instance[i]);
	}
	return 0;
}

static int runtime_stop(struct lunatik_runtime *rt, bool nested,
			enum lunatik_stop_reason reason,
			struct lunatik_error *error)
{
	int errno = 0;

	if (nested ? !mutex_trylock(&rt->life) : mutex_lock_killable(&rt->life))
		return READ_ONCE(rt->stopped) ? 0 :
			lunatik_error_set(error, GFP_KERNEL, -EBUSY,
					  "runtime %u is busy: somebody else stops it",
					  rt->id);
	if (rt->stopped)
		goto unlock_life;
	/* Another script may have taken over from the one that failed. */
	if (reason == LUNATIK_STOP_BROKEN && !runtime_is_broken(rt))
		goto unlock_life;
	errno = runtime_shut(rt, nested, error);
	if (errno)
		goto unlock_life;
	lunatik_slots_clear(rt);
	runtime_close(rt, reason);
unlock_life:
	mutex_unlock(&rt->life);
	return errno;
}

/**
 * lunatik_runtime_stop() - unregister hooks, close the state, free every byte
 * @rt: runtime; the caller holds a reference
 * @nested: the caller runs in an instance itself
 * @reason: for the trace
 * @error: filled in on failure
 *
 * Waits for callbacks in flight. A script that waits for a completion stops waiting,
 * unless @nested. Stopping a stopped runtime does nothing.
 *
 * Context: process, may sleep.
 * Return: 0, -EBUSY where waiting could deadlock or was interrupted, -EDEADLK for
 * a runtime that stops itself.
 */
int lunatik_runtime_stop(struct lunatik_runtime *rt, bool nested,
			 enum lunatik_stop_reason reason,
			 struct lunatik_error *error)
{
	int errno;

	if (nested)
		return runtime_stop(rt, true, reason, error);
	/* Before any lock: the script holds its own while it waits. */
	atomic_inc(&rt->stopping);
	wake_up_all(&lunatik_stopping);
	errno = runtime_stop(rt, false, reason, error);
	atomic_dec(&rt->stopping);
	return errno;
}

static void runtime_prune_work(struct work_struct *work)
{
	struct lunatik_runtime *rt =
		container_of(work, struct lunatik_runtime, prune_work);

	lunatik_slots_prune(rt);
	lunatik_runtime_put(rt);
}

/**
 * lunatik_runtime_prune() - have slots that no hook uses taken out of Netfilter soon
 * @rt: runtime that is not stopped
 *
 * Context: any.
 */
void lunatik_runtime_prune(struct lunatik_runtime *rt)
{
	kref_get(&rt->refs);
	if (!queue_work(work_queue, &rt->prune_work))
		lunatik_runtime_put(rt);
}

static void runtime_break_work(struct work_struct *work)
{
	struct lunatik_runtime *rt =
		container_of(work, struct lunatik_runtime, break_work);
	struct lunatik_error error = {};

	lunatik_runtime_stop(rt, false, LUNATIK_STOP_BROKEN, &error);
	lunatik_error_free(&error);
	lunatik_runtime_put(rt);
}

/**
 * lunatik_runtime_break() - have a runtime stopped whose callbacks fail and fail
 * @rt: runtime that is not stopped
 *
 * Context: any.
 */
void lunatik_runtime_break(struct lunatik_runtime *rt)
{
	kref_get(&rt->refs);
	if (!queue_work(work_queue, &rt->break_work))
		lunatik_runtime_put(rt);
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

/* What stopping may use of the kernel's stack, in bytes. */
#define STACK_TO_STOP	(5 * 1024)

static bool stack_suffices(void)
{
	unsigned long here = (unsigned long)__builtin_frame_address(0);

	return here > lunatik_stack_floor() + STACK_TO_STOP;
}

/**
 * lunatik_runtime_collect() - stop a runtime whose Lua object was collected
 * @rt: runtime; its reference is consumed
 *
 * At once, or soon where somebody is at work in it, or where the collector met the
 * object near the end of the stack.
 *
 * Context: process; the caller runs in another runtime.
 */
void lunatik_runtime_collect(struct lunatik_runtime *rt)
{
	struct lunatik_error error = {};

	if (!stack_suffices() ||
	    lunatik_runtime_stop(rt, true, LUNATIK_STOP_COLLECTED, &error)) {
		lunatik_error_free(&error);
		queue_work(work_queue, &rt->stop_work);
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

/**
 * lunatik_runtime_sum() - what the instances of a runtime amount to
 * @rt: runtime
 * @sum: filled in
 *
 * Context: process, may sleep.
 */
void lunatik_runtime_sum(struct lunatik_runtime *rt, struct lunatik_sum *sum)
{
	struct lunatik_statistics statistics;
	const struct lunatik_instance *instance;
	unsigned int i;

	*sum = (struct lunatik_sum){ .state = LUNATIK_STATE_STOPPED };
	spin_lock_bh(&rt->lock);
	for_each_instance(i, rt) {
		instance = rt->instance[i];
		if (!instance)
			continue;
		if (i == 0 && !READ_ONCE(rt->stopped))
			sum->state = READ_ONCE(instance->state);
		sum->memory_limit = instance->memory_limit;
		sum->budget = instance->budget;
		sum->memory += READ_ONCE(instance->memory);
	}
	spin_unlock_bh(&rt->lock);
	lunatik_slots_sum(rt, &statistics);
	sum->calls = lunatik_statistics_packets(&statistics) -
		statistics.reentered;
	sum->errors = statistics.errors;
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
	work_queue = lunatik_memory_fails() ? NULL :
		alloc_workqueue("lunatik", WQ_UNBOUND, 0);
	return work_queue ? 0 : -ENOMEM;
}

void lunatik_runtime_exit(void)
{
	destroy_workqueue(work_queue);
	xa_destroy(&runtimes);
}
