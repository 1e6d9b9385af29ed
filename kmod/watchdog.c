// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The watchdog of callbacks.
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
 */
#include <linux/hrtimer.h>
#include <linux/percpu.h>
#include <linux/sched/signal.h>

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
 */
void lunatik_watchdog_leave(struct lunatik_instance *instance)
{
	/* Not this CPU's: a defect elsewhere may have let a callback move. */
	WRITE_ONCE(instance->dog->running, instance->outer);
	barrier(); /* no tick traps us any more: see whether one has */
	if (unlikely(instance->trapped)) {
		lunatik_budget_end(instance);
		instance->trapped = false;
	}
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

	if (preemptible()) {
		cond_resched();
		return fatal_signal_pending(current);
	}
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
