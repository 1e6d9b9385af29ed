// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The watchdog of callbacks, and of bodies.
 *
 * Counting instructions costs every one of them. So a callback runs uncounted,
 * and a timer per CPU looks at which one is running; it ticks only while packets
 * flow. A callback that it meets twice is counted from then on: it may run the
 * runtime's budget of instructions more, and then fails. Hence a callback below
 * its budget never fails, however slow the machine, and one without end always
 * does, after two periods and its budget.
 *
 * Instructions are no measure of time: one can collect all garbage, or match a
 * pattern. A callback that is still met after LATE periods fails at its next
 * instruction, and so do the loops in C that look at the time.
 *
 * A body in process context counts its instructions, and every so many it looks at
 * the CPU time it has used. The loops in C do so too, by a list of who runs what.
 */
#include <linux/hrtimer.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/percpu.h>
#include <linux/sched/signal.h>
#include <linux/spinlock.h>

#include "instance.h"
#include "watchdog.h"

#define PERIOD_NS	(4 * NSEC_PER_MSEC)
#define LATE		125

/**
 * struct watchdog - one per CPU; its timer interrupts that CPU only
 * @timer: runs while packets flow
 * @running: instance whose callback runs on this CPU
 * @entries: callbacks entered on this CPU
 * @seen: @entries at the latest tick
 * @ticking: the timer is on
 */
struct watchdog {
	struct hrtimer timer;
	struct lunatik_instance *running;
	unsigned long entries;
	unsigned long seen;
	bool ticking;
};

static DEFINE_PER_CPU(struct watchdog, watchdogs);

/* Instances that run in process context, the latest first. */
static LIST_HEAD(bodies);
static DEFINE_SPINLOCK(bodies_lock);
/* When a loop in C last looked at the time on this CPU. */
static DEFINE_PER_CPU(unsigned long, looked);

static void watchdog_bark(struct lunatik_instance *instance)
{
	if (!instance->trapped) {
		instance->trapped = true;
		lunatik_budget_start(instance, instance->budget);
	}
	if (++instance->late == LATE)
		lunatik_budget_exhaust(instance);
}

static enum hrtimer_restart watchdog_tick(struct hrtimer *timer)
{
	struct watchdog *dog = container_of(timer, struct watchdog, timer);
	struct lunatik_instance *instance = READ_ONCE(dog->running);
	bool idle = dog->entries == dog->seen;

	if (dog != this_cpu_ptr(&watchdogs)) {
		/* moved here, because its CPU has gone: nothing runs there */
		WRITE_ONCE(dog->ticking, false);
		return HRTIMER_NORESTART;
	}
	if (instance && idle)
		watchdog_bark(instance);
	if (!instance && idle) {
		WRITE_ONCE(dog->ticking, false);
		return HRTIMER_NORESTART;
	}
	dog->seen = dog->entries;
	hrtimer_forward_now(timer, ns_to_ktime(PERIOD_NS));
	return HRTIMER_RESTART;
}

/**
 * lunatik_watchdog_enter() - a callback is about to run on this CPU
 * @instance: its instance
 *
 * Context: bottom halves off, instance's lock held.
 */
void lunatik_watchdog_enter(struct lunatik_instance *instance)
{
	struct watchdog *dog = this_cpu_ptr(&watchdogs);

	instance->dog = dog;
	instance->outer = dog->running;
	instance->late = 0;
	dog->entries++;
	WRITE_ONCE(dog->running, instance);
	if (!READ_ONCE(dog->ticking)) {
		WRITE_ONCE(dog->ticking, true);
		hrtimer_start(&dog->timer, ns_to_ktime(PERIOD_NS),
			      HRTIMER_MODE_REL_PINNED_HARD);
	}
}

/**
 * lunatik_watchdog_leave() - the callback has ended
 * @instance: its instance
 *
 * Context: as lunatik_watchdog_enter().
 * Return: whether it was made to.
 */
bool lunatik_watchdog_leave(struct lunatik_instance *instance)
{
	bool exceeded = false;

	/* Not this CPU's: a defect elsewhere may have let a callback move. */
	WRITE_ONCE(instance->dog->running, instance->outer);
	barrier(); /* no tick traps us any more: see whether one has */
	if (unlikely(instance->trapped)) {
		exceeded = lunatik_budget_end(instance);
		instance->trapped = false;
	}
	return exceeded;
}

/**
 * lunatik_watchdog_enter_body() - a call in process context is about to run
 * @instance: its instance, which knows when the call is over its time
 *
 * Context: process.
 */
void lunatik_watchdog_enter_body(struct lunatik_instance *instance)
{
	instance->task = current;
	spin_lock(&bodies_lock);
	list_add(&instance->running, &bodies);
	spin_unlock(&bodies_lock);
}

/**
 * lunatik_watchdog_leave_body() - the call has ended
 * @instance: its instance
 *
 * Context: process.
 */
void lunatik_watchdog_leave_body(struct lunatik_instance *instance)
{
	spin_lock(&bodies_lock);
	list_del(&instance->running);
	spin_unlock(&bodies_lock);
}

/* The instance that this task runs in, in process context. */
static struct lunatik_instance *body_find(void)
{
	struct lunatik_instance *instance, *found = NULL;

	spin_lock(&bodies_lock);
	list_for_each_entry(instance, &bodies, running) {
		if (instance->task == current) {
			found = instance;
			break;
		}
	}
	spin_unlock(&bodies_lock);
	return found; /* nobody but this task can end it */
}

/* Once a jiffy is often enough, and costs a loop nothing. */
static int body_overdue(void)
{
	struct lunatik_instance *instance;
	unsigned long now = jiffies;

	cond_resched();
	if (fatal_signal_pending(current))
		return 1;
	if (raw_cpu_read(looked) == now)
		return 0;
	raw_cpu_write(looked, now);
	instance = body_find();
	if (!instance || current->se.sum_exec_runtime < instance->cpu_end)
		return 0;
	lunatik_budget_exhaust(instance);
	return 1;
}

/**
 * lunatik_overdue() - whether a loop in C should end by an error
 *
 * Context: any; called by the string library. In process context it lets others
 * run, and ends what is killed.
 *
 * Return: whether the running call is over its time.
 */
int lunatik_overdue(void)
{
	struct lunatik_instance *instance;

	if (preemptible())
		return body_overdue();
	instance = this_cpu_read(watchdogs.running);
	return instance && READ_ONCE(instance->limits.overdue);
}

void lunatik_watchdog_init(void)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		struct hrtimer *timer = &per_cpu_ptr(&watchdogs, cpu)->timer;

		hrtimer_init(timer, CLOCK_MONOTONIC,
			     HRTIMER_MODE_REL_PINNED_HARD);
		timer->function = watchdog_tick;
	}
}

void lunatik_watchdog_exit(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		hrtimer_cancel(&per_cpu_ptr(&watchdogs, cpu)->timer);
}
