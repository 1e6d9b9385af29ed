// Which blocks that one process had the kernel allocate, for one of the modules in the
// ranges, are not freed yet. A block is the module's where one of its functions is
// among the callers.
//
// DEPTH, RANGES and PROCESS are set where this is compiled.
#include <uapi/linux/ptrace.h>

struct text {
	u64 start;
	u64 end;
};

struct callers {
	u64 address[DEPTH];
};

struct block {
	u64 bytes;
	u64 caller;
};

BPF_ARRAY(ranges, struct text, RANGES);
BPF_HASH(live, u64, struct block, 65536);
// The verifier wants the stack's copy off the program's own stack.
BPF_PERCPU_ARRAY(scratch, struct callers, 1);

static inline bool is_ours(u64 address)
{
	for (int i = 0; i < RANGES; i++) {
		int key = i;
		struct text *range = ranges.lookup(&key);

		if (range && address >= range->start && address < range->end)
			return true;
	}
	return false;
}

RAW_TRACEPOINT_PROBE(kmalloc)
{
	u64 site = ctx->args[0], block = ctx->args[1];
	struct block made = { .bytes = ctx->args[BYTES_ARGUMENT] };
	int zero = 0;
	struct callers *callers;

	if (!block || bpf_get_current_pid_tgid() >> 32 != PROCESS)
		return 0;
	if (is_ours(site)) {
		made.caller = site;
		live.update(&block, &made);
		return 0;
	}
	callers = scratch.lookup(&zero);
	if (!callers || bpf_get_stack(ctx, callers, sizeof(*callers), 0) < 0)
		return 0;
#pragma unroll
	for (int i = 0; i < DEPTH; i++) {
		if (is_ours(callers->address[i])) {
			made.caller = callers->address[i];
			live.update(&block, &made);
			return 0;
		}
	}
	return 0;
}

// A program that runs already on a CPU is passed over there, and an interrupt may free:
// so there are two, of which the interrupt meets one at most at work.
RAW_TRACEPOINT_PROBE(kfree)
{
	u64 block = ctx->args[1];

	live.delete(&block);
	return 0;
}

TRACEPOINT_PROBE(kmem, kfree)
{
	u64 block = (u64)args->ptr;

	live.delete(&block);
	return 0;
}
