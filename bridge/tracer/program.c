// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The tracer's BPF program. session.py gives it PER_CPU_OFFSET, PREEMPT_COUNT,
 * RING_PAGES, CALLBACK_EVENTS, SELF and the text ranges, and decodes what it emits.
 *
 * A window is the time between a callback's hook_enter and hook_exit. It belongs
 * to the current task, which stays the same for a softirq that borrows the task,
 * and which a callback that sleeps and wakes on another CPU takes along. The idle
 * task is one per CPU.
 *
 * Events are missed where a program interrupts itself on a CPU. That cannot
 * happen to what runs with bottom halves off, which a callback does. It can
 * happen to the memory tracepoints, so each program of theirs is loaded twice and
 * both twins are attached: a softirq interrupts one of them, never both, and
 * whichever runs first does the work.
 */
#include <asm/ptrace.h>
#include <linux/gfp_types.h>

#define NMI_HARDIRQ_MASK	0x00ff0000	/* include/linux/preempt.h */
#define SOFTIRQ_MASK		0x0000ff00
#define PREEMPT_MASK		0x000000ff
#define BH_DISABLE_OFFSET	0x00000200
#define NEST			8		/* a power of two */
#define RANGES			8
#define REPORTS			32		/* events for one kind of violation */
#define NO_WAKEUP		1		/* BPF_RB_NO_WAKEUP: no irq_work in a callback */

enum kind {				/* trace.Kind has the same order */
	CREATE, ARM, RESUME, YIELD, STOP, ERROR, REPLACE, CALLBACK,
	/* violations from here */
	SCHEDULED, CALLED, ALLOCATED, PREEMPTIBLE, BH_ENABLED,
	AFTER_STOP, BEFORE_ARM, UNKNOWN_RUNTIME, UNCONFIRMED, UNMATCHED,
	DISAGREES,
	KINDS
};

enum counter {				/* program.COUNTERS has the same order */
	ACTIVE, OPEN, ENTRIES, RETURNS, SUBMITTED, DROPPED, UNTRACKED, TOO_DEEP,
	FOREIGN, OUTSTANDING, OWN_PREEMPT, COUNTERS
};

enum state { CREATED = 1, ARMED, STOPPED };

struct event {
	u64 time_ns;
	u32 kind;
	u32 cpu;
	u32 id;
	u32 hook;
	u32 task;
	s32 stack;
	u64 a;
	u64 b;
	u64 c;
};

struct text_event {
	struct event head;
	char text[128];
};

struct frame {
	u32 id;
	u32 hook;
	u32 len;
	u32 hooknum;
	u64 time_ns;
};

struct window {
	u32 depth;
	u32 runs;			/* frames of lunatik_hook_run open */
	struct frame frame[NEST];
};

struct hook_key {
	u32 id;
	u32 hook;
};

struct hook_stat {
	u64 seen;
	u64 returned;
	u64 failed;
	u64 total_ns;
	u64 longest_ns;
	u32 pf;
	u32 hooknum;
};

struct slot_key {
	u32 id;
	u32 hook;
	u32 slot;
};

struct block {
	u64 bytes;
	u64 site;
	u64 time_ns;
	u32 id;
	u32 gfp;
};

struct memory {
	u64 blocks;
	u64 bytes;
	u64 freed_blocks;
	u64 freed_bytes;
};

struct gfp_key {
	u32 id;
	u32 gfp;
	u32 source;			/* 0 kmalloc, 1 kmem_cache_alloc, 2 pages */
	u32 in_callback;
};

struct gfp_stat {
	u64 count;
	u64 bytes;
};

struct text_range {
	u64 start;
	u64 end;
};

BPF_RINGBUF_OUTPUT(events, RING_PAGES);
BPF_STACK_TRACE(stacks, 1024);
BPF_ARRAY(counters, u64, COUNTERS);
BPF_ARRAY(violations, u64, KINDS);
BPF_ARRAY(text, struct text_range, RANGES);
BPF_HASH(runtimes, u32, u32, 4096);
BPF_HASH(windows, u64, struct window, 1024);
BPF_HASH(hooks, struct hook_key, struct hook_stat, 4096);
BPF_HASH(verdicts, struct slot_key, u64, 8192);
BPF_HASH(durations, struct slot_key, u64, 16384);
BPF_HASH(live, u64, struct block, 65536);
BPF_HASH(memories, u32, struct memory, 4096);
BPF_HASH(allocations, struct gfp_key, struct gfp_stat, 4096);
BPF_HASH(latest, u64, u64, 1024);
BPF_PERCPU_ARRAY(twin, u64, 8);

static __always_inline u64 counter(u32 which)
{
	u64 *value = counters.lookup(&which);

	return value ? *value : 0;
}

static __always_inline void add(u32 which, s64 amount)
{
	u64 *value = counters.lookup(&which);

	if (value)
		__sync_fetch_and_add(value, amount);
}

/* The CPU's preempt_count, from the kernel's memory; holds the probe's own part. */
static __always_inline u32 preempt_count_now(void)
{
	u64 offset = 0;
	u32 count = 0;

	bpf_probe_read_kernel(&offset, sizeof(offset),
			      (void *)(PER_CPU_OFFSET + 8ULL * bpf_get_smp_processor_id()));
	bpf_probe_read_kernel(&count, sizeof(count), (void *)(offset + PREEMPT_COUNT));
	return count & 0x7fffffff;
}

static __always_inline u64 context(void)
{
	u32 task = bpf_get_current_pid_tgid();

	return task ? task : (1ULL << 32) + bpf_get_smp_processor_id();
}

/* The window this code runs in; a hard interrupt that arrived in it is not it. */
static __always_inline struct window *current_window(void)
{
	struct window *window;
	u64 key;

	if (!counter(ACTIVE) || !counter(OPEN))
		return NULL;
	key = context();
	window = windows.lookup(&key);
	if (!window || !window->depth)
		return NULL;
	if (preempt_count_now() & NMI_HARDIRQ_MASK) {
		add(FOREIGN, 1);
		return NULL;
	}
	return window;
}

static __always_inline struct frame *top(struct window *window)
{
	return &window->frame[(window->depth - 1) & (NEST - 1)];
}

static __always_inline void fill(struct event *event, u32 kind, u32 id, u32 hook)
{
	event->time_ns = bpf_ktime_get_ns();
	event->kind = kind;
	event->cpu = bpf_get_smp_processor_id();
	event->id = id;
	event->hook = hook;
	event->task = bpf_get_current_pid_tgid();
	event->stack = -1;
}

static __always_inline void emit(void *event, u64 size)
{
	if (events.ringbuf_output(event, size, NO_WAKEUP))
		add(DROPPED, 1);
	else
		add(SUBMITTED, 1);
}

static __always_inline void lifecycle(u32 kind, u32 id, u64 a, u64 b)
{
	struct event event = {};

	if (!counter(ACTIVE))
		return;
	fill(&event, kind, id, 0);
	event.a = a;
	event.b = b;
	emit(&event, sizeof(event));
}

static __always_inline void violation(void *ctx, u32 kind, u32 id, u32 hook,
				      u64 a, u64 b)
{
	u64 *count = violations.lookup(&kind);
	struct event event = {};

	if (!count || __sync_fetch_and_add(count, 1) >= REPORTS)
		return;
	fill(&event, kind, id, hook);
	event.a = a;
	event.b = b;
	event.stack = stacks.get_stackid(ctx, 0);
	emit(&event, sizeof(event));
}

static __always_inline void enter_state(u32 id, u32 state)
{
	if (counter(ACTIVE))
		runtimes.update(&id, &state);
}

/* ---- the life of a runtime ------------------------------------------- */

int on_runtime_create(struct bpf_raw_tracepoint_args *ctx)
{
	struct text_event event = {};

	if (!counter(ACTIVE))
		return 0;
	enter_state(ctx->args[0], CREATED);
	fill(&event.head, CREATE, ctx->args[0], 0);
	event.head.a = ctx->args[2] & 1;
	event.head.b = (u32)ctx->args[3];
	bpf_probe_read_kernel_str(event.text, sizeof(event.text), (void *)ctx->args[1]);
	emit(&event, sizeof(event));
	return 0;
}

int on_runtime_arm(struct bpf_raw_tracepoint_args *ctx)
{
	enter_state(ctx->args[0], ARMED);
	lifecycle(ARM, ctx->args[0], (u32)ctx->args[1], 0);
	return 0;
}

int on_runtime_resume(struct bpf_raw_tracepoint_args *ctx)
{
	lifecycle(RESUME, ctx->args[0], 0, (u32)ctx->args[1]);
	return 0;
}

int on_runtime_yield(struct bpf_raw_tracepoint_args *ctx)
{
	lifecycle(YIELD, ctx->args[0], (u32)ctx->args[1], (u32)ctx->args[2]);
	return 0;
}

int on_runtime_stop(struct bpf_raw_tracepoint_args *ctx)
{
	enter_state(ctx->args[0], STOPPED);
	lifecycle(STOP, ctx->args[0], (u32)ctx->args[1], ctx->args[2]);
	return 0;
}

int on_runtime_replace(struct bpf_raw_tracepoint_args *ctx)
{
	lifecycle(REPLACE, ctx->args[0], (u32)ctx->args[1], (u32)ctx->args[2]);
	return 0;
}

int on_runtime_error(struct bpf_raw_tracepoint_args *ctx)
{
	struct text_event event = {};

	if (!counter(ACTIVE))
		return 0;
	fill(&event.head, ERROR, ctx->args[0], ctx->args[1]);
	bpf_probe_read_kernel_str(event.text, sizeof(event.text), (void *)ctx->args[2]);
	emit(&event, sizeof(event));
	return 0;
}

/* ---- callbacks -------------------------------------------------------- */

int run_entry(struct pt_regs *ctx)
{
	struct window fresh = {};
	struct window *window;
	u64 key = context();

	if (!counter(ACTIVE))
		return 0;
	add(ENTRIES, 1);
	window = windows.lookup_or_try_init(&key, &fresh);
	if (window)
		window->runs++;
	else
		add(UNTRACKED, 1);
	return 0;
}

int run_return(struct pt_regs *ctx)
{
	struct window *window;
	u64 key = context();

	if (!counter(ACTIVE))
		return 0;
	add(RETURNS, 1);
	window = windows.lookup(&key);
	if (!window)
		return 0;
	if (window->runs)
		window->runs--;
	if (!window->runs && !window->depth)
		windows.delete(&key);
	return 0;
}

static __always_inline void check_state(void *ctx, u32 id, u32 hook)
{
	u32 *state = runtimes.lookup(&id);
	u32 kind = !state ? UNKNOWN_RUNTIME :
		   *state == STOPPED ? AFTER_STOP : BEFORE_ARM;

	if (!state || *state != ARMED)
		violation(ctx, kind, id, hook, 0, 0);
}

/* own is what the tracepoint adds to the count while the program runs. */
static __always_inline void check_preempt(void *ctx, u32 id, u32 hook, u32 said)
{
	u32 count = preempt_count_now();
	u32 own = counter(OWN_PREEMPT);
	bool atomic = (count & (SOFTIRQ_MASK | NMI_HARDIRQ_MASK)) ||
		      (count & PREEMPT_MASK) > own;

	if (!atomic || ((count - own) ^ said) & (SOFTIRQ_MASK | PREEMPT_MASK))
		violation(ctx, atomic ? DISAGREES : PREEMPTIBLE, id, hook,
			  count - own, said);
}

int on_hook_enter(struct bpf_raw_tracepoint_args *ctx)
{
	u32 id = ctx->args[0], hook = ctx->args[1];
	struct hook_key stat_key = { .id = id, .hook = hook };
	struct hook_stat none = { .pf = ctx->args[2], .hooknum = ctx->args[3] };
	struct window fresh = {};
	struct hook_stat *stat;
	struct window *window;
	struct frame *frame;
	u64 key = context();

	if (!counter(ACTIVE))
		return 0;
	check_state(ctx, id, hook);
	check_preempt(ctx, id, hook, ctx->args[5]);
	stat = hooks.lookup_or_try_init(&stat_key, &none);
	if (stat)
		__sync_fetch_and_add(&stat->seen, 1);
	else
		add(UNTRACKED, 1);
	window = windows.lookup_or_try_init(&key, &fresh);
	if (!window) {
		add(UNTRACKED, 1);
		return 0;
	}
	if (window->runs <= window->depth)
		violation(ctx, UNCONFIRMED, id, hook, window->runs, window->depth);
	if (window->depth >= NEST) {
		add(TOO_DEEP, 1);
		return 0;
	}
	window->depth++;
	frame = top(window);
	frame->id = id;
	frame->hook = hook;
	frame->hooknum = ctx->args[3];
	frame->len = ctx->args[4];
	frame->time_ns = bpf_ktime_get_ns();
	add(OPEN, 1);
	return 0;
}

static __always_inline void count_slot(u32 id, u32 hook, u32 verdict, u64 duration_ns)
{
	struct slot_key key = { .id = id, .hook = hook, .slot = verdict & 0xff };
	u64 zero = 0, *count;

	count = verdicts.lookup_or_try_init(&key, &zero);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		add(UNTRACKED, 1);
	key.slot = bpf_log2l(duration_ns);
	count = durations.lookup_or_try_init(&key, &zero);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		add(UNTRACKED, 1);
}

static __always_inline void close_callback(struct frame *frame, u32 verdict, u32 failed)
{
	struct hook_key key = { .id = frame->id, .hook = frame->hook };
	u64 duration_ns = bpf_ktime_get_ns() - frame->time_ns;
	struct hook_stat *stat = hooks.lookup(&key);
	struct event event = {};

	if (stat) {
		__sync_fetch_and_add(&stat->returned, 1);
		__sync_fetch_and_add(&stat->failed, failed & 1);
		__sync_fetch_and_add(&stat->total_ns, duration_ns);
		if (duration_ns > stat->longest_ns)
			stat->longest_ns = duration_ns;
	}
	count_slot(frame->id, frame->hook, verdict, duration_ns);
	if (!CALLBACK_EVENTS)
		return;
	fill(&event, CALLBACK, frame->id, frame->hook);
	event.time_ns = frame->time_ns;
	event.a = duration_ns;
	event.b = verdict | (u64)(failed & 1) << 32;
	event.c = frame->len | (u64)frame->hooknum << 32;
	emit(&event, sizeof(event));
}

int on_hook_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u32 id = ctx->args[0], hook = ctx->args[1];
	struct window *window;
	u64 key = context();
	struct frame *frame;

	if (!counter(ACTIVE))
		return 0;
	check_state(ctx, id, hook);
	check_preempt(ctx, id, hook, ctx->args[5]);
	window = windows.lookup(&key);
	frame = window ? top(window) : NULL;
	if (!frame || !window->depth || frame->id != id || frame->hook != hook) {
		violation(ctx, UNMATCHED, id, hook, 0, 0);
		if (!frame || !window->depth)
			return 0;
	} else {
		close_callback(frame, ctx->args[2], ctx->args[3]);
	}
	window->depth--;
	add(OPEN, -1);
	if (!window->depth && !window->runs)
		windows.delete(&key);
	return 0;
}

/* ---- what a callback must not do -------------------------------------- */

int on_sched_switch(struct bpf_raw_tracepoint_args *ctx)
{
	struct window *window = current_window();

	if (window)
		violation(ctx, SCHEDULED, top(window)->id, top(window)->hook,
			  ctx->args[0] & 1, 0);
	return 0;
}

int sleeper(struct pt_regs *ctx)
{
	struct window *window = current_window();

	if (window)
		violation(ctx, CALLED, top(window)->id, top(window)->hook,
			  bpf_get_func_ip(ctx), PT_REGS_IP(ctx));
	return 0;
}

static __always_inline void bh_enable(struct pt_regs *ctx, u32 amount)
{
	struct window *window = current_window();
	u32 disabled;

	if (!window)
		return;
	disabled = preempt_count_now() & SOFTIRQ_MASK;
	if (disabled && disabled <= (amount & SOFTIRQ_MASK))
		violation(ctx, BH_ENABLED, top(window)->id, top(window)->hook,
			  bpf_get_func_ip(ctx), PT_REGS_IP(ctx));
}

int local_bh_enable_ip(struct pt_regs *ctx)
{
	bh_enable(ctx, PT_REGS_PARM2(ctx));
	return 0;
}

int local_bh_enable_quiet(struct pt_regs *ctx)
{
	bh_enable(ctx, BH_DISABLE_OFFSET);
	return 0;
}

/* ---- memory ------------------------------------------------------------ */

/*
 * Whether the twin that ran first has seen this object already. Should one twin
 * alone see an object twice in a row, the second time goes uncounted; nothing but
 * the number of allocations outside the module's code depends on it.
 */
static __always_inline bool done_by_twin(u32 source, u64 object)
{
	bool softirq = preempt_count_now() & SOFTIRQ_MASK;
	u32 slot = source * 2 + softirq;
	u64 *last = twin.lookup(&slot);

	if (!last)
		return false;
	if (*last != object) {
		*last = object;
		return false;
	}
	*last = 0;
	return true;
}

static __always_inline bool in_text(u64 site)
{
	for (u32 i = 0; i < RANGES; i++) {
		u32 key = i;
		struct text_range *range = text.lookup(&key);

		if (!range || !range->start)
			return false;
		if (site >= range->start && site < range->end)
			return true;
	}
	return false;
}

static __always_inline void count_allocation(u32 id, u32 gfp, u32 source,
					     u32 in_callback, u64 bytes)
{
	struct gfp_key key = {
		.id = id, .gfp = gfp, .source = source, .in_callback = in_callback,
	};
	struct gfp_stat none = {}, *stat;

	stat = allocations.lookup_or_try_init(&key, &none);
	if (!stat) {
		add(UNTRACKED, 1);
		return;
	}
	__sync_fetch_and_add(&stat->count, 1);
	__sync_fetch_and_add(&stat->bytes, bytes);
}

static __always_inline void account(u32 id, s64 blocks, s64 bytes,
				    s64 freed_blocks, s64 freed_bytes)
{
	struct memory none = {}, *memory;

	memory = memories.lookup_or_try_init(&id, &none);
	if (!memory) {
		add(UNTRACKED, 1);
		return;
	}
	__sync_fetch_and_add(&memory->blocks, blocks);
	__sync_fetch_and_add(&memory->bytes, bytes);
	__sync_fetch_and_add(&memory->freed_blocks, freed_blocks);
	__sync_fetch_and_add(&memory->freed_bytes, freed_bytes);
}

/* Remember a block of the module; false if the twin has done so. */
static __always_inline bool track(u64 object, u64 site, u64 bytes, u32 gfp, u32 id)
{
	struct block block = {
		.bytes = bytes, .site = site, .gfp = gfp, .id = id,
		.time_ns = bpf_ktime_get_ns(),
	};
	u64 key = context() << 1 | !!(preempt_count_now() & SOFTIRQ_MASK);
	s64 error = live.insert(&object, &block);

	if (error == -17 /* EEXIST */)
		return false;
	if (error) {
		add(UNTRACKED, 1);
		return true;
	}
	add(OUTSTANDING, 1);
	account(id, 1, bytes, 0, 0);
	if (!id)
		latest.update(&key, &object);
	return true;
}

static __always_inline void allocated(void *ctx, u32 source, u64 site, u64 object,
				      u64 bytes, u32 gfp)
{
	struct window *window = current_window();
	bool ours = object && site && counter(ACTIVE) && in_text(site);
	u32 id = window ? top(window)->id : 0;

	if (!window && !ours)
		return;
	if (ours ? !track(object, site, bytes, gfp, id) : done_by_twin(source, object))
		return;
	count_allocation(id, gfp, source, !!window, bytes);
	if (window && (gfp & (__force u32)__GFP_DIRECT_RECLAIM))
		violation(ctx, ALLOCATED, id, top(window)->hook, gfp, site);
}

static __always_inline void freed(u64 object)
{
	struct block *block = live.lookup(&object);
	u64 bytes;
	u32 id;

	if (!block || !counter(ACTIVE))
		return;
	bytes = block->bytes;
	id = block->id;
	if (live.delete(&object))
		return;
	add(OUTSTANDING, -1);
	account(id, 0, 0, 1, bytes);
}

/* kmalloc(call_site, ptr, bytes_req, bytes_alloc, gfp_flags, node), 6.1 and later */
int on_kmalloc(struct bpf_raw_tracepoint_args *ctx)
{
	allocated(ctx, 0, ctx->args[0], ctx->args[1], ctx->args[3], ctx->args[4]);
	return 0;
}

/*
 * kmem_cache_alloc(call_site, ptr, s, gfp_flags, node). s->size lies 24 bytes into
 * struct kmem_cache, which no public header declares, on 64-bit kernels 6.1 to
 * 6.12. It is shown, the proof counts objects.
 */
static __always_inline u32 cache_bytes(u64 cache)
{
	u32 bytes = 0;

	bpf_probe_read_kernel(&bytes, sizeof(bytes), (void *)(cache + 24));
	return bytes;
}

int on_cache_alloc(struct bpf_raw_tracepoint_args *ctx)
{
	allocated(ctx, 1, ctx->args[0], ctx->args[1], cache_bytes(ctx->args[2]),
		  ctx->args[3]);
	return 0;
}

/* mm_page_alloc(page, order, gfp_flags, migratetype) */
int on_page_alloc(struct bpf_raw_tracepoint_args *ctx)
{
	allocated(ctx, 2, 0, ctx->args[0], 4096ULL << (ctx->args[1] & 31), ctx->args[2]);
	return 0;
}

/* kfree(call_site, ptr) and kmem_cache_free(call_site, ptr, ...) */
int on_free(struct bpf_raw_tracepoint_args *ctx)
{
	freed(ctx->args[1]);
	return 0;
}

/* The block just allocated outside a callback turns out to be a runtime's. */
int on_runtime_alloc(struct bpf_raw_tracepoint_args *ctx)
{
	u64 key = context() << 1 | !!(preempt_count_now() & SOFTIRQ_MASK);
	u64 *object = latest.lookup(&key);
	struct block *block;
	u64 wanted;

	if (!counter(ACTIVE) || !object)
		return 0;
	wanted = *object;
	latest.delete(&key);
	block = live.lookup(&wanted);
	if (!block || block->id)
		return 0;
	block->id = ctx->args[0];
	account(0, -1, -(s64)block->bytes, 0, 0);
	account(block->id, 1, block->bytes, 0, 0);
	return 0;
}

/* A system call starts with a preempt_count of 0: what is there is the probe's. */
int calibrate(struct bpf_raw_tracepoint_args *ctx)
{
	u32 which = OWN_PREEMPT;
	u64 *value = counters.lookup(&which);

	if (value && (bpf_get_current_pid_tgid() >> 32) == SELF)
		*value = 0x100000000ULL | preempt_count_now();
	return 0;
}
