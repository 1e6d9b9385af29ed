// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * What the kernel tells of the module: memory it gives to Lua states, and its flags;
 * locks that the module takes, or that anybody takes during a callback.
 * test_contexts.py gives PER_CPU_OFFSET, PREEMPT_COUNT, TEXT_START and TEXT_END.
 */
#include <asm/ptrace.h>

#define SOFTIRQ_MASK	0x0000ff00	/* include/linux/preempt.h */
#define RECORDS		16384

enum kind {				/* test_contexts.Kind has the same order */
	ALLOCATED, LOCKED, UNLOCKED, ENTERED
};

struct record {
	u64 context;
	u64 object;			/* the owner of the memory, or the lock */
	u32 kind;
	u32 gfp;
	u32 preempt;
	u32 callback;			/* callbacks of this context that are open */
	u32 size;			/* bytes of the object, if it is an owner */
	u64 function;
};

BPF_ARRAY(records, struct record, RECORDS);
BPF_ARRAY(count, u64, 1);
BPF_ARRAY(active, u64, 1);
BPF_HASH(owners, u64, u64, 1024);	/* context to owner, inside lunatik_allocate() */
BPF_TABLE("lru_hash", u64, u32, sizes, 4096);	/* the module's other memory */
BPF_HASH(callbacks, u64, u32, 1024);	/* context to open callbacks */

static __always_inline u32 preempt_count_now(void)
{
	u64 offset = 0;
	u32 preempt = 0;

	bpf_probe_read_kernel(&offset, sizeof(offset),
			      (void *)(PER_CPU_OFFSET + 8ULL * bpf_get_smp_processor_id()));
	bpf_probe_read_kernel(&preempt, sizeof(preempt), (void *)(offset + PREEMPT_COUNT));
	return preempt & 0x7fffffff;
}

static __always_inline bool is_active(void)
{
	u32 zero = 0;
	u64 *value = active.lookup(&zero);

	return value && *value;
}

/*
 * The task, or the CPU for its idle task, which every CPU has. What runs with
 * bottom halves off on top of a task is another context than the task itself.
 */
static __always_inline u64 context(void)
{
	u32 task = bpf_get_current_pid_tgid();
	u64 who = task ? task : (1ULL << 32) + bpf_get_smp_processor_id();

	return who << 1 | !!(preempt_count_now() & SOFTIRQ_MASK);
}

/* Hooks disable bottom halves themselves, so only the task or CPU counts here. */
static __always_inline u64 callback_context(void)
{
	return context() >> 1;
}

static __always_inline bool in_module(u64 address)
{
	return address >= TEXT_START && address < TEXT_END;
}

static __always_inline void note(u32 kind, u64 object, u32 gfp, u64 function)
{
	u64 who = callback_context(), *next;
	struct record *record;
	u32 zero = 0, index;
	u32 *open, *size;

	next = count.lookup(&zero);
	if (!next)
		return;
	index = __sync_fetch_and_add(next, 1);
	record = records.lookup(&index);
	if (!record)
		return;
	open = callbacks.lookup(&who);
	size = sizes.lookup(&object);
	record->context = who;
	record->object = object;
	record->kind = kind;
	record->gfp = gfp;
	record->preempt = preempt_count_now();
	record->callback = open ? *open : 0;
	record->size = size ? *size : 0;
	record->function = function;
}

/* lunatik_allocate(ud, ptr, osize, nsize) */
int allocate_entry(struct pt_regs *ctx)
{
	u64 who = context(), owner = PT_REGS_PARM1(ctx);

	owners.update(&who, &owner);
	return 0;
}

int allocate_return(struct pt_regs *ctx)
{
	u64 who = context();

	owners.delete(&who);
	return 0;
}

/* kmalloc(call_site, ptr, bytes_req, bytes_alloc, gfp_flags, node), 6.1 and later */
RAW_TRACEPOINT_PROBE(kmalloc)
{
	u64 who, *owner, object = ctx->args[1];
	u32 bytes = ctx->args[3];

	if (!in_module(ctx->args[0]))
		return 0;
	who = context();
	owner = owners.lookup(&who);
	if (!owner)
		sizes.update(&object, &bytes);
	else if (is_active())
		note(ALLOCATED, *owner, ctx->args[4], 0);
	return 0;
}

int run_entry(struct pt_regs *ctx)
{
	u64 who = callback_context();
	u32 zero = 0, *open;

	if (!is_active())
		return 0;
	open = callbacks.lookup_or_try_init(&who, &zero);
	if (open)
		(*open)++;
	return 0;
}

int run_return(struct pt_regs *ctx)
{
	u64 who = callback_context();
	u32 *open = callbacks.lookup(&who);

	if (open && *open)
		(*open)--;
	return 0;
}

/* hook_enter(id, hook, pf, hooknum, len, preempt): what the module says of itself */
RAW_TRACEPOINT_PROBE(hook_enter)
{
	if (is_active())
		note(ENTERED, ctx->args[0], ctx->args[5], 0);
	return 0;
}

static __always_inline bool by_module(struct pt_regs *ctx)
{
	u64 caller = 0;

	bpf_probe_read_kernel(&caller, sizeof(caller), (void *)PT_REGS_SP(ctx));
	return in_module(caller);
}

static __always_inline bool in_callback(void)
{
	u64 who = callback_context();
	u32 *open = callbacks.lookup(&who);

	return open && *open;
}

/* Entry of a lock that may sleep: what the module takes, and any in a callback. */
int sleeping_lock(struct pt_regs *ctx)
{
	if (is_active() && (by_module(ctx) || in_callback()))
		note(LOCKED, PT_REGS_PARM1(ctx), 0, bpf_get_func_ip(ctx));
	return 0;
}

int spinning_lock(struct pt_regs *ctx)
{
	if (is_active() && by_module(ctx))
		note(LOCKED, PT_REGS_PARM1(ctx), 0, bpf_get_func_ip(ctx));
	return 0;
}

int unlock(struct pt_regs *ctx)
{
	if (is_active() && by_module(ctx))
		note(UNLOCKED, PT_REGS_PARM1(ctx), 0, bpf_get_func_ip(ctx));
	return 0;
}
