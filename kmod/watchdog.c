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

#include "runtime.h"
#include "watchdog.h"

#define PERIOD_NS	(4 * NSEC_PER_MSEC)
#define LATE		125

/**
 * struct watchdog - one per CPU; its timer interrupts that CPU only
 * @timer: runs while packets flow
 * @running: runtime whose callback runs on this CPU
 * @entries: callbacks entered on this CPU
 * @seen: @entries at the latest tick
 * @ticking: the timer is on
 */
struct watchdog {
	struct hrtimer timer;
	struct lunatik_runtime *running;
	unsigned long entries;
	unsigned long seen;
	bool ticking;
};

static DEFINE_PER_CPU(struct watchdog, watchdogs);

static void watchdog_bark(struct lunatik_runtime *rt)
{
	if (!rt->trapped) {
		rt->trapped = true;
		lunatik_budget_start(rt, rt->budget);
	}
	if (++rt->late == LATE)
		lunatik_budget_exhaust(rt);
}

static enum hrtimer_restart watchdog_tick(struct hrtimer *timer)
{
	struct watchdog *dog = container_of(timer, struct watchdog, timer);
	struct lunatik_runtime *rt = READ_ONCE(dog->running);
	bool idle = dog->entries == dog->seen;

	if (dog != this_cpu_ptr(&watchdogs)) {
		/* moved here, because its CPU has gone: nothing runs there */
		WRITE_ONCE(dog->ticking, false);
		return HRTIMER_NORESTART;
	}
	if (rt && idle)
		watchdog_bark(rt);
	if (!rt && idle) {
		WRITE_ONCE(dog->ticking, false);
		return HRTIMER_NORESTART;
	}
	dog->seen = dog->entries;
	hrtimer_forward_now(timer, ns_to_ktime(PERIOD_NS));
	return HRTIMER_RESTART;
}

/**
 * lunatik_watchdog_enter() - a callback is about to run on this CPU
 * @rt: its runtime
 *
 * Context: bottom halves off, runtime's lock held.
 */
void lunatik_watchdog_enter(struct lunatik_runtime *rt)
{
	struct watchdog *dog = this_cpu_ptr(&watchdogs);

	rt->outer = dog->running;
	rt->late = 0;
	dog->entries++;
	WRITE_ONCE(dog->running, rt);
	if (!READ_ONCE(dog->ticking)) {
		WRITE_ONCE(dog->ticking, true);
		hrtimer_start(&dog->timer, ns_to_ktime(PERIOD_NS),
			      HRTIMER_MODE_REL_PINNED_HARD);
	}
}

/**
 * lunatik_watchdog_leave() - the callback has ended
 * @rt: its runtime
 *
 * Context: as lunatik_watchdog_enter().
 */
void lunatik_watchdog_leave(struct lunatik_runtime *rt)
{
	WRITE_ONCE(this_cpu_ptr(&watchdogs)->running, rt->outer);
	barrier(); /* no tick traps us any more: see whether one has */
	if (unlikely(rt->trapped)) {
		lunatik_budget_end(rt);
		rt->trapped = false;
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
	struct lunatik_runtime *rt;

	if (preemptible()) {
		cond_resched();
		return fatal_signal_pending(current);
	}
	rt = this_cpu_read(watchdogs.running);
	return rt && READ_ONCE(rt->limits.overdue);
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
