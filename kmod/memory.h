/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * Every allocation of the module passes here, so that a test can make each of them
 * fail in turn; see memory.c. Whoever is not testing pays a no-op for it.
 *
 * What allocates inside another part of the kernel asks lunatik_memory_fails()
 * first: "lunatik_memory_fails() ? -ENOMEM : nf_register_net_hook(...)".
 */
#ifndef _LUNATIK_MEMORY_H
#define _LUNATIK_MEMORY_H

#include <linux/jump_label.h>
#include <linux/slab.h>
#include <linux/string.h>

DECLARE_STATIC_KEY_FALSE(lunatik_memory_failing);

bool lunatik_memory_count(void);

/* Whether the allocation that is about to be made is to fail. Any context. */
static inline bool lunatik_memory_fails(void)
{
	return static_branch_unlikely(&lunatik_memory_failing) &&
		lunatik_memory_count();
}

static inline void *lunatik_kmalloc(size_t size, gfp_t gfp)
{
	return lunatik_memory_fails() ? NULL : kmalloc(size, gfp);
}

static inline void *lunatik_kzalloc(size_t size, gfp_t gfp)
{
	return lunatik_memory_fails() ? NULL : kzalloc(size, gfp);
}

static inline void *lunatik_krealloc(const void *ptr, size_t size, gfp_t gfp)
{
	return lunatik_memory_fails() ? NULL : krealloc(ptr, size, gfp);
}

static inline void *lunatik_kmemdup(const void *from, size_t size, gfp_t gfp)
{
	return lunatik_memory_fails() ? NULL : kmemdup(from, size, gfp);
}

static inline void *lunatik_kvmalloc(size_t size, gfp_t gfp)
{
	return lunatik_memory_fails() ? NULL : kvmalloc(size, gfp);
}

static inline void *lunatik_kvzalloc(size_t size, gfp_t gfp)
{
	return lunatik_memory_fails() ? NULL : kvzalloc(size, gfp);
}

#endif /* _LUNATIK_MEMORY_H */
