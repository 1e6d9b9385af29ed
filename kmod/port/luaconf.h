/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * Configuration of the stock Lua core for the kernel. It takes the place of the
 * distribution's luaconf.h; the core itself is compiled unmodified.
 *
 * Lua in the kernel has integers only. lua_Number still names a type, because
 * the core's code mentions it, but no value of that kind can come into being:
 * literals with a point or an exponent do not parse, and '/' and '^' raise.
 */
#ifndef luaconf_h
#define luaconf_h

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

/*
 * objtool must know what the compiler knows: where it sees the whole module at once,
 * it finds out by itself which functions do not return and wants to see them marked;
 * where it sees one file, it takes a marked function of another one for one that
 * returns. And sparse 0.6.4 dies of a marked function behind an "||".
 */
#if defined(LUNATIK_WHOLE_OBJTOOL) && !defined(__CHECKER__)
#define LUNATIK_NORETURN	__attribute__((noreturn))
#else
#define LUNATIK_NORETURN
#endif
#define l_noret			void LUNATIK_NORETURN

struct lua_State;
struct LClosure;
struct Zio;

/* Numbers */

#define LUAI_IS32INT		1
#define LUA_INT_INT		1
#define LUA_INT_LONG		2
#define LUA_INT_LONGLONG	3
#define LUA_FLOAT_FLOAT		1
#define LUA_FLOAT_DOUBLE	2
#define LUA_FLOAT_LONGDOUBLE	3
#define LUA_INT_TYPE		LUA_INT_LONGLONG
#define LUA_FLOAT_TYPE		LUA_FLOAT_DOUBLE

#define LUA_INTEGER		long long
#define LUA_INTEGER_FRMLEN	"ll"
#define LUA_INTEGER_FMT		"%lld"
#define LUA_UNSIGNED		unsigned long long
#define LUA_MAXINTEGER		LLONG_MAX
#define LUA_MININTEGER		LLONG_MIN
#define LUA_MAXUNSIGNED		ULLONG_MAX
#define LUAI_UACINT		LUA_INTEGER
#define lua_integer2str(s, sz, n) snprintf((s), (sz), LUA_INTEGER_FMT, (n))

#define LUA_NUMBER		long long
#define LUAI_UACNUMBER		long long
#define LUA_NUMBER_FMT		"%lld"
#define LUAI_NUMFFORMAT		LUA_NUMBER_FMT
#define lua_number2str(s, sz, n) snprintf((s), (sz), LUA_NUMBER_FMT, (n))
#define lua_numbertointeger(n, p) (*(p) = (n), 1)
#define l_mathop(op)		op
#define l_floor(x)		(x)
#define l_floatatt(n)		LUNATIK_NUMBER_##n
#define LUNATIK_NUMBER_MANT_DIG	63
#define LUNATIK_NUMBER_MAX_10_EXP 18
#define l_hashfloat(n)		((int)((n) & INT_MAX))

/* "No number here": the lexer then reports a malformed number. */
#define lua_str2number(s, p)	((void)(*(p) = (char *)(s)), 0LL)
#define lua_strx2number(s, p)	lua_str2number(s, p)

/* string.format meets this before it would print a float. */
#define LUA_NUMBER_FRMLEN	(lunatik_no_float(L, "a float format"), "")
#define lua_number2strx(L, b, sz, f, n) \
	((void)(b), (void)(n), lunatik_no_float(L, "a float format"), 0)

long long lunatik_no_float(struct lua_State *L, const char *what)
	LUNATIK_NORETURN;
long long lunatik_fold_float(struct lua_State *L, const char *what);

#if defined(lvm_c)
/* In the interpreter loop: save where we are, so that the error has its line. */
#define luai_numdiv(L, a, b) \
	(savestate(L, ci), (void)(a), (void)(b), lunatik_no_float(L, "'/'"))
#define luai_numpow(L, a, b) \
	(savestate(L, ci), (void)(a), (void)(b), lunatik_no_float(L, "'^'"))
#else
/* In the constant folder: 0 stands for "leave it to run time". */
#define luai_numdiv(L, a, b) \
	((void)(a), (void)(b), lunatik_fold_float(L, "'/'"))
#define luai_numpow(L, a, b) \
	((void)(a), (void)(b), lunatik_fold_float(L, "'^'"))
#endif
/* Only float operands lead here, and there are none. */
#define luai_numidiv(L, a, b)	((void)(a), (void)(b), lunatik_no_float(L, "'//'"))
#define luai_nummod(L, a, b, m)	{ (m) = lunatik_no_float(L, "'%'"); (void)(b); }

/* Errors: a jump of our own, see jump_x86_64.S. */

typedef unsigned long lunatik_jmpbuf[8];
void lunatik_abort(void) LUNATIK_NORETURN;
int lunatik_setjmp(lunatik_jmpbuf buf) __attribute__((returns_twice));
void lunatik_longjmp(lunatik_jmpbuf buf) LUNATIK_NORETURN;
#define luai_jmpbuf		lunatik_jmpbuf
#define LUAI_THROW(L, c)	lunatik_longjmp((c)->b)
#define LUAI_TRY(L, c, a)	if (lunatik_setjmp((c)->b) == 0) { a }

void lunatik_raise_from_hook(struct lua_State *L, const char *message)
	LUNATIK_NORETURN;

/*
 * The functions that raise are declared to return an int, so that they can stand
 * behind "return". The compiler and objtool want to know that they do not.
 */
#if !defined(lapi_c)
int lua_error(struct lua_State *L) LUNATIK_NORETURN;
#endif
struct LClosure *luaU_undump(struct lua_State *L, struct Zio *Z,
			     const char *name) LUNATIK_NORETURN;
#if !defined(lauxlib_c)
int luaL_error(struct lua_State *L, const char *fmt, ...)
	LUNATIK_NORETURN;
int luaL_argerror(struct lua_State *L, int arg, const char *message)
	LUNATIK_NORETURN;
int luaL_typeerror(struct lua_State *L, int arg, const char *name)
	LUNATIK_NORETURN;
#endif

/*
 * Limits. The kernel stack is what runs out first, so the limit on nested C
 * calls is the stack itself: LUAI_MAXCCALLS is evaluated wherever the core
 * compares its count with it, see lunatik_max_ccalls(). The depth of pattern
 * matching is derived from what is left of the stack in the same way.
 */
#define LUAI_MAXSTACK		4000
#define LUNATIK_MAXCCALLS	200
#define LUAI_MAXCCALLS		lunatik_max_ccalls(L)
#define MAXCCALLS		lunatik_max_match_depth(L)
#define LUAL_BUFFERSIZE		256
#define LUA_IDSIZE		60

/**
 * struct lunatik_limits - what the running call may use, shared by all threads
 * @stack_floor: address below which the kernel stack is not Lua's to use
 * @compiling: a chunk is being compiled: the constant folder must not raise
 * @left: instructions left to the running call, where they are counted
 * @overdue: the running call is over its time: everything that looks is to raise
 */
struct lunatik_limits {
	unsigned long stack_floor;
	int compiling;
	int overdue;
	long long left;
};

/* Instructions between two looks at what is left; a new thread costs as many. */
#define LUNATIK_TICK		1000

/**
 * struct lunatik_thread - what precedes every lua_State: its extra space
 * @limits: those of the runtime that owns the thread, embedded in it
 * @next: the next thread, so that an interrupt reaches all of them
 * @prev: the previous thread
 */
struct lunatik_thread {
	struct lunatik_limits *limits;
	struct lunatik_thread *next, *prev;
};

#define LUA_EXTRASPACE		(3 * sizeof(void *))
#define lunatik_thread_of(L) \
	((struct lunatik_thread *)((char *)(L) - LUA_EXTRASPACE))

/* What an error raised at the limit may use above the floor, in bytes. */
#define LUNATIK_STACK_MARGIN	1536
/* What one level of pattern matching may use, in bytes. */
#define LUNATIK_MATCH_FRAME	320

#define lunatik_stack_left(L) \
	((long)((unsigned long)__builtin_frame_address(0) - \
		lunatik_thread_of(L)->limits->stack_floor))

/*
 * 200 while the stack lasts. Near its end, the count itself, so that the core
 * raises "C stack overflow"; past the margin that such an error may use, 0, so
 * that it gives up with LUA_ERRERR instead of calling message handlers.
 */
#define lunatik_max_ccalls(L) \
	(__builtin_expect(lunatik_stack_left(L) > LUNATIK_STACK_MARGIN, 1) ? \
	 LUNATIK_MAXCCALLS : lunatik_stack_left(L) > 0 ? (int)getCcalls(L) : 0)

#define lunatik_max_match_depth(L) \
	(lunatik_stack_left(L) < LUNATIK_STACK_MARGIN ? 1 : \
	 lunatik_stack_left(L) / LUNATIK_MATCH_FRAME > 200 ? 200 : \
	 (int)(lunatik_stack_left(L) / LUNATIK_MATCH_FRAME))

/* Every thread is on its runtime's list for as long as it has a stack. */
void lunatik_thread_init(struct lua_State *L, struct lua_State *thread);
void lunatik_thread_exit(struct lua_State *thread);
#define luai_userstatethread(L, L1)	lunatik_thread_init(L, L1)
#define luai_userstatefree(L, L1)	lunatik_thread_exit(L1)

/* Randomness and output */

unsigned int lunatik_seed(void);
#define luai_makeseed(L)	((void)(L), lunatik_seed())
#define l_randomizePivot()	lunatik_seed()
#define lua_writestring(s, l)	((void)(s), (void)(l))
#define lua_writeline()		((void)0)
#define lua_writestringerror(s, p) ((void)(s), (void)(p))
#define l_sprintf(s, sz, f, i)	snprintf(s, sz, f, i)
/* The kernel prints a hash in place of an address. */
#define lua_pointer2str(s, sz, p) snprintf(s, sz, "%p", p)
#define lua_getlocaledecpoint()	'.'

/* The rest of what the core expects this file to define */

#define LUA_PATH_SEP		";"
#define LUA_PATH_MARK		"?"
#define LUA_EXEC_DIR		"!"
#define LUA_DIRSEP		"/"
#define LUA_IGMARK		"-"
#define LUA_API			extern
#define LUALIB_API		LUA_API
#define LUAMOD_API		LUA_API
#define LUAI_FUNC		extern
#define LUAI_DDEC(dec)		extern dec
#define LUAI_DDEF
#define LUA_KCONTEXT		intptr_t
#define LUAI_MAXALIGN		lua_Number n; void *s; lua_Integer i; long l
#define luai_likely(x)		__builtin_expect(((x) != 0), 1)
#define luai_unlikely(x)	__builtin_expect(((x) != 0), 0)
#define l_likely(x)		luai_likely(x)
/*
 * Loops in C count no instructions. In the string library each l_unlikely() guards an
 * error, and matching a pattern passes one at every step; the table library gets
 * elements by lua_geti(). So these look at the time, or count.
 */
int lunatik_overdue(void);
void lunatik_in_time(struct lua_State *L);
void lunatik_checkpoint(struct lua_State *L);
#if defined(lstrlib_c)
#define l_unlikely(x)		(luai_unlikely(x) || luai_unlikely(lunatik_overdue()))
/* The error is another one where it is the time that l_unlikely() means. */
#define luaL_error(L, ...)	(lunatik_in_time(L), luaL_error(L, __VA_ARGS__))
#else
#define l_unlikely(x)		luai_unlikely(x)
#endif
#if defined(ltablib_c)
#define lua_geti(L, i, n)	(lunatik_checkpoint(L), (lua_geti)(L, i, n))
#endif

#endif
